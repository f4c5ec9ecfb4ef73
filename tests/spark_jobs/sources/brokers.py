"""A real Apache Kafka, to read from and to write to."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from contracts.ports import free_ports
from contracts.settings import settings

PASSWORD = 'open "sesame\\'


def certificates(folder: Path) -> None:
    """`ca.pem` and `broker.pem` (key and certificate) for 127.0.0.1."""
    from datetime import UTC, datetime, timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    now = datetime.now(UTC)

    def signed(name: str, issuer: tuple[Any, Any] | None) -> tuple[Any, Any]:
        key = rsa.generate_private_key(65537, 2048)
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer[1].subject if issuer else subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
            .sign(issuer[0] if issuer else key, hashes.SHA256())
        )
        return key, certificate

    ca = signed("ca", None)
    key, certificate = signed("broker", ca)
    pem = serialization.Encoding.PEM
    (folder / "ca.pem").write_bytes(ca[1].public_bytes(pem))
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "broker.pem").write_bytes(private + certificate.public_bytes(pem) + ca[1].public_bytes(pem))


class Kafka:
    """A real broker and the Java clients of the Spark session, to fill topics with."""

    def __init__(self, spark: Any, address: str, sasl: str, sasl_ssl: str, folder: Path) -> None:
        self.spark, self.java, self.folder = spark, spark._jvm, folder
        self.address, self.sasl, self.sasl_ssl = address, sasl, sasl_ssl

    def properties(self, **more: str) -> Any:
        properties_ = self.java.java.util.Properties()
        for key, value in ({"bootstrap.servers": self.address} | more).items():
            properties_.put(key.replace("_", "."), value)
        return properties_

    def create(self, topic: str, partitions: int = 1) -> None:
        admins, optional = self.java.org.apache.kafka.clients.admin, self.java.java.util.Optional
        admin = admins.Admin.create(self.properties())
        admin.createTopics([admins.NewTopic(topic, optional.of(partitions), optional.empty())]).all().get()
        admin.close()

    def delete_before(self, topic: str, offset: int) -> None:
        admins, part = self.java.org.apache.kafka.clients.admin, self.java.org.apache.kafka.common.TopicPartition
        admin = admins.Admin.create(self.properties())
        # py4j cannot call a static method that has a sister of the same name: RecordsToDelete.beforeOffset(offset).
        array = self.spark.sparkContext._gateway.new_array
        types, values = array(self.java.Class, 1), array(self.java.Object, 1)
        types[0], values[0] = self.java.Long.TYPE, offset
        loader = part(topic, 0).getClass().getClassLoader()
        before_offset = loader.loadClass("org.apache.kafka.clients.admin.RecordsToDelete").getMethod(
            "beforeOffset", types
        )
        admin.deleteRecords({part(topic, 0): before_offset.invoke(None, values)}).all().get()
        admin.close()

    def delete(self, topic: str) -> None:
        admin = self.java.org.apache.kafka.clients.admin.Admin.create(self.properties())
        admin.deleteTopics([topic]).all().get()
        while topic in admin.listTopics().names().get():
            time.sleep(0.1)
        admin.close()

    def produce(self, topic: str, *values: bytes | str | None, partition: int = 0, commit: bool | None = None) -> None:
        """Write messages; with `commit`, in a transaction that is committed or aborted."""
        serializer = "org.apache.kafka.common.serialization.ByteArraySerializer"
        more = {"key_serializer": serializer, "value_serializer": serializer}
        producers = self.java.org.apache.kafka.clients.producer
        more |= {} if commit is None else {"transactional_id": f"{topic}-{commit}"}
        producer = producers.KafkaProducer(self.properties(**more))
        if commit is not None:
            producer.initTransactions()
            producer.beginTransaction()
        for value in values:
            content = bytearray(value.encode() if isinstance(value, str) else value) if value is not None else None
            producer.send(producers.ProducerRecord(topic, partition, None, content))
        producer.flush()
        if commit is not None:
            producer.commitTransaction() if commit else producer.abortTransaction()
        producer.close()


@contextmanager
def running_kafka(spark: Any, folder: Path) -> Iterator[Kafka]:
    """Apache Kafka on free ports: in the clear, with a login, and with a login by TLS."""
    from deploy.local import kafka as local
    from deploy.local.java import find_java

    certificates(folder)
    java = find_java(settings())
    jars = local.jars(settings(), java)
    ports = free_ports(2)
    quoted = PASSWORD.replace("\\", "\\\\").replace('"', '\\"')
    login = f'org.apache.kafka.common.security.plain.PlainLoginModule required user_ann="{quoted}";'
    running = local.start(java, jars, folder / "state", 0, {
        "listeners": f"SASL_PLAINTEXT://127.0.0.1:{ports[0]},SASL_SSL://127.0.0.1:{ports[1]}",
        "sasl.enabled.mechanisms": "PLAIN",
        "listener.name.sasl_plaintext.plain.sasl.jaas.config": login,
        "listener.name.sasl_ssl.plain.sasl.jaas.config": login,
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(folder / "broker.pem"),
    })  # fmt: skip
    try:
        yield Kafka(spark, running.address, *(f"127.0.0.1:{port}" for port in ports), folder)
    finally:
        local.stop(running)
