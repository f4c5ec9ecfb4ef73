"""Events from Apache Kafka: each message one row, read from where the last batch ended to what there is at the start."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import date, time
from decimal import Decimal
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import fastavro
import pyarrow as pa
from confluent_kafka import (
    IsolationLevel,
    KafkaError,
    KafkaException,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, OffsetSpec
from py4j.protocol import Py4JError
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from contracts.dataset import Events, Many, resolve
from contracts.errors import InputError
from contracts.settings import settings
from spark_jobs.ledger import Position
from spark_jobs.parsing import MESSAGE_ID, declared_columns
from spark_jobs.reading import CORRUPT, FIELDS, KEYS, json_rows
from spark_jobs.session import say
from spark_jobs.sources import Batch, Land

Offsets = dict[str, dict[int, int]]
"""An offset by topic and partition."""

META = {
    "kafka.topic": "topic",
    "kafka.partition": "partition",
    "kafka.offset": "offset",
    "kafka.timestamp": "timestamp",
}
"""What the broker knows of a message, by the column that a dataset file may name."""
_DAMAGED = "_damaged"
"""Column with the text of what is no Avro record."""
ANSWER_S = 20.0
"""How long a broker has to answer."""


class Options(BaseModel):
    """`[events.kafka]` of the dataset file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    servers: Many = Field(min_length=1)
    """Brokers to ask first, each as host:port."""
    topics: Many = Field(min_length=1)
    """Topics to read, all of them with messages of one format."""
    format: Literal["json", "avro"] = "json"
    """What a message's value is: a JSON object or an Avro record."""
    avro_schema: str | None = None
    """File with the Avro schema (.avsc) that the values were written with, without any header."""
    schema_registry: str | None = None
    """Address of a Confluent schema registry: the values start with the id of their schema."""
    starting: Literal["earliest", "latest"] = "earliest"
    """What the first run starts from: all there is, or only what comes after it."""
    max_records_a_batch: int = Field(1_000_000, gt=0)
    """Messages that are landed in one commit."""
    on_data_loss: Literal["fail", "continue"] = "fail"
    """What to do when the broker has deleted messages that were not read yet."""
    tls: bool = False
    """Whether the brokers are talked to by TLS."""
    ca_file: str | None = None
    """PEM file with the authority that signed the brokers' certificates. None: those that this machine trusts."""
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = None
    """How to log in. None: not at all. PLAIN without `tls` sends the password readable."""
    username: str | None = None
    """Name to log in with."""
    password_secret: str | None = None
    """Name of the secret that holds the password; never the password itself."""

    @field_validator("servers")
    @classmethod
    def _have_ports(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for server in value:
            if not re.fullmatch(r"[^\s,:/@]+:\d{1,5}|\[[0-9a-fA-F:]+\]:\d{1,5}", server):
                raise ValueError("write each as host:port")
        return value

    @field_validator("topics")
    @classmethod
    def _are_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for topic in value:
            if not re.fullmatch(r"[A-Za-z0-9._-]{1,249}", topic):
                raise ValueError(
                    f"{topic!r} is no name of a topic: patterns and commas are not understood, give a list"
                )
        return tuple(dict.fromkeys(value))

    @field_validator("schema_registry")
    @classmethod
    def _is_an_address(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"https?://[^/@\s]+(/[^@\s]*)?", value):
            raise ValueError("write it as http://host:port or https://host, without a password")
        return value

    @model_validator(mode="after")
    def _fit_together(self) -> Options:
        schemas = sum(schema is not None for schema in (self.avro_schema, self.schema_registry))
        if self.format == "avro" and schemas != 1:
            raise ValueError("format avro needs either avro_schema or schema_registry")
        if self.format == "json" and schemas:
            raise ValueError("avro_schema and schema_registry are for format avro")
        if self.ca_file is not None and not self.tls:
            raise ValueError("ca_file is given: set tls = true")
        login = [part is not None for part in (self.sasl_mechanism, self.username, self.password_secret)]
        if any(login) and not all(login):
            raise ValueError("to log in, give sasl_mechanism, username and password_secret")
        return self

    @property
    def _protocol(self) -> str:
        return ("SASL_" if self.sasl_mechanism else "") + ("SSL" if self.tls else "PLAINTEXT")

    def reading(self, folder: Path) -> dict[str, str]:
        """Properties of Kafka's Java client, which Spark reads with. They hold the password.

        Raises:
            InputError: the secret or the file of the authority is missing.
        """
        options = {"bootstrap.servers": ",".join(self.servers), "security.protocol": self._protocol}
        if self.ca_file is not None:
            options |= {"ssl.truststore.type": "PEM", "ssl.truststore.location": resolve(self.ca_file, folder)}
        if self.sasl_mechanism is not None and self.username is not None and self.password_secret is not None:
            module = "plain.PlainLoginModule" if self.sasl_mechanism == "PLAIN" else "scram.ScramLoginModule"
            username, password = (
                text.replace("\\", "\\\\").replace('"', '\\"')
                for text in (self.username, settings().secret(self.password_secret))
            )
            options |= {
                "sasl.mechanism": self.sasl_mechanism,
                "sasl.jaas.config": f"org.apache.kafka.common.security.{module} required "
                f'username="{username}" password="{password}";',
            }
        return options

    def asking(self, folder: Path) -> dict[str, Any]:
        """The same for librdkafka, which asks for news: it needs no JVM.

        Raises:
            InputError: the secret or the file of the authority is missing.
        """
        options = {"bootstrap.servers": ",".join(self.servers), "security.protocol": self._protocol}
        if self.ca_file is not None:
            options |= {"ssl.ca.location": resolve(self.ca_file, folder)}
        if self.sasl_mechanism is not None and self.username is not None and self.password_secret is not None:
            password = settings().secret(self.password_secret)
            options |= {
                "sasl.mechanism": self.sasl_mechanism,
                "sasl.username": self.username,
                "sasl.password": password,
            }
        return options


# --- What the broker has -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kept:
    """The messages that a partition has: from `first` on, before `end`."""

    first: int
    end: int


def offsets_kept(options: Options, folder: Path) -> dict[str, dict[int, Kept]]:
    """What the broker has, by topic and partition. Messages of transactions that are still open are not counted.

    Raises:
        InputError: the broker does not answer, refuses us, or has no such topic.
    """
    errors: list[KafkaError] = []
    topic_name = ", ".join(options.topics)
    try:
        # What goes wrong on a connection is told to `error_cb` only; librdkafka's own log is for its developers.
        admin = AdminClient(options.asking(folder) | {"error_cb": errors.append, "log_level": 0})
        partitions = {}
        described = admin.describe_topics(TopicCollection(list(options.topics)), request_timeout=ANSWER_S)
        for topic_name in options.topics:
            partitions[topic_name] = [
                TopicPartition(topic_name, part.id) for part in _answer(admin, described[topic_name], errors).partitions
            ]
        topic_name = ", ".join(options.topics)
        first, end = (
            admin.list_offsets(
                {part: spec for parts in partitions.values() for part in parts},
                isolation_level=IsolationLevel.READ_COMMITTED,
                request_timeout=ANSWER_S,
            )
            for spec in (OffsetSpec.earliest(), OffsetSpec.latest())
        )
        return {
            topic: {
                part.partition: Kept(*(int(_answer(admin, each[part], errors).offset) for each in (first, end)))
                for part in parts
            }
            for topic, parts in partitions.items()
        }
    except KafkaException as error:
        raise _refusal(error.args[0], errors, options, topic_name) from None


def _answer(admin: AdminClient, future: Future[Any], errors: list[KafkaError]) -> Any:
    """Wait for an answer, but not for one that cannot come: a refused login is not a failure to librdkafka."""
    while not future.done():
        admin.poll(0.05)
        for error in errors:
            if error.code() in (KafkaError._AUTHENTICATION, KafkaError._SSL):
                raise KafkaException(error)
    return future.result()


_REFUSALS = {
    "AUTHENTICATION": ("the broker refuses the login", "correct username and the secret, or sasl_mechanism"),
    "SSL": (
        "the broker's certificate is not accepted", "give the right ca_file, and servers by the names in the certificate",
    ),
    "AUTHORIZATION": ("this user may not read the topic {topics}", "let it describe and read the topic, or give another user"),
    "UNKNOWN_TOPIC|INVALID_TOPIC": ("the broker has no topic {topics}", "correct topics, or create it"),
    "TIMED_OUT|TRANSPORT|RESOLVE|BROKERS_DOWN": (
        "no answer of the broker{why}", "see that it runs, and that servers, tls and sasl_mechanism are right",
    ),
    "INVALID_ARG": ("a connection cannot be set up", "see that ca_file is a PEM file with certificates"),
}  # fmt: skip
"""What a failure means, by a pattern of its name; the first that fits counts."""


def _refusal(error: KafkaError, errors: list[KafkaError], options: Options, topics: str) -> Exception:
    """A failure of librdkafka in our words: its own might quote the configuration."""
    reasons = [match[1] for each in errors if (match := re.search(r"failed: ([\w ]+\w)|Failed to resolve", each.str()))]
    why = f" ({reasons[-1] or 'its name is not known'})" if reasons else ""
    for pattern, (what, cure) in _REFUSALS.items():
        if re.search(pattern, error.name()):
            return InputError(
                what.format(topics=repr(topics), why=why), where=f"Kafka at {', '.join(options.servers)}", cure=cure
            )
    return RuntimeError(f"Kafka: {error.name()}")


# --- Where to start ------------------------------------------------------------------------------------------------


def offsets_of(position: Position) -> Offsets:
    """The offsets in a position: the next to read."""
    return {topic: {int(part): int(offset) for part, offset in parts.items()} for topic, parts in position.items()}


def gaps(next_: Offsets, available: Mapping[str, Mapping[int, Kept]]) -> list[str]:
    """In words, what was not read and is gone, of the topics that `there` has."""
    lines = []
    for topic, parts in available.items():
        for part, offset in next_.get(topic, {}).items():
            where = f"topic {topic!r}, partition {part}"
            has = parts.get(part)
            if has is None:
                lines.append(f"{where}: is gone, read up to offset {offset:,}")
            elif offset < has.first:
                lines.append(f"{where}: offsets {offset:,} to {has.first - 1:,} were deleted before they were read")
            elif offset > has.end:
                lines.append(f"{where}: was made anew, it ends at offset {has.end:,} and was read up to {offset:,}")
    return lines


def start_of(next_: Offsets, available: Mapping[str, Mapping[int, Kept]], starting: str) -> Offsets:
    """Where to read on: where we stopped, else the first message there is; `starting` is for topics not read before."""

    def begin(topic: str, part: int, has: Kept) -> int:
        if topic not in next_ and starting == "latest":
            return has.end
        offset = next_.get(topic, {}).get(part, has.first)
        return offset if has.first <= offset <= has.end else has.first

    return {topic: {part: begin(topic, part, has) for part, has in parts.items()} for topic, parts in available.items()}


def end_of_batch(start: Offsets, available: Mapping[str, Mapping[int, Kept]], max_records: int) -> Offsets:
    """Where a batch ends: at the end of all partitions, or the same share of each that has `max_records` in all."""
    lag = {(t, p): max(has.end - start[t][p], 0) for t, parts in available.items() for p, has in parts.items()}
    share = min(1.0, max_records / max(sum(lag.values()), 1))
    end: Offsets = {topic: {} for topic in available}
    for (topic, part), num_records in lag.items():
        end[topic][part] = start[topic][part] + math.ceil(num_records * share)
    return end


# --- One message ---------------------------------------------------------------------------------------------------


def printable(value: bytes) -> str:
    """A value as text that can be shown: what cannot is written as an escape."""
    text = value.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def json_text(value: Any) -> str:
    """A part of a message as JSON."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{json_text(str(key))}:{json_text(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(json_text, value)) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        return f'"{value}"'
    plain = value if isinstance(value, (str, bool, int, float, type(None))) else field(value)
    return json.dumps(plain, ensure_ascii=False)


def field(value: Any) -> str | None:
    """A field's value as text; whole numbers kept as doubles lose their `.0`."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, (dict, list, bool)):
        return json_text(value)
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)
    if isinstance(value, (date, time)):
        return value.isoformat()
    if isinstance(value, Decimal):
        return f"{value:f}"
    return printable(value) if isinstance(value, bytes) else str(value)


# --- Avro ----------------------------------------------------------------------------------------------------------


Parse = Callable[[bytes], dict[str, str | None]]
"""Reads the fields of one value, as text."""


def avro(schema: Any) -> Parse:
    """Reads values that were written with an Avro schema (binary encoding, no header).

    Raises:
        ValueError: the schema is none.
    """
    try:
        parsed = fastavro.parse_schema(schema)
    except Exception as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None
    if _holds_itself(parsed, frozenset()):
        raise ValueError("a type that holds itself is not supported")

    def parse(value: bytes) -> dict[str, str | None]:
        content = BytesIO(value)
        fields = fastavro.schemaless_reader(content, parsed, None)
        if not isinstance(fields, dict) or content.read(1):
            raise ValueError("no record, or longer than its schema says")
        return {name: field(part) for name, part in fields.items()}

    return parse


def _holds_itself(schema: Any, within: frozenset[str]) -> bool:
    """Whether a type of a parsed schema is part of itself: a hostile value of such a one overruns fastavro's stack."""
    if isinstance(schema, str):
        return schema in within
    if isinstance(schema, list):
        return any(_holds_itself(branch, within) for branch in schema)
    if "fields" in schema:
        return any(_holds_itself(part["type"], within | {schema["name"]}) for part in schema["fields"])
    return any(_holds_itself(schema[key], within) for key in ("type", "items", "values") if key in schema)


def schema_of_file(path: str) -> str:
    """The text of a schema's file.

    Raises:
        InputError: it is no Avro schema.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        avro(json.loads(text))
    except OSError as error:
        raise InputError(f"cannot read the Avro schema: {error.strerror}", where=path, cure="name a file") from None
    except ValueError as error:
        raise InputError(f"no Avro schema: {error}", where=path, cure="name a schema file (.avsc)") from None
    return text


def fetch_schema(registry: str, schema_id: int) -> str | None:
    """The text of a schema of a Confluent registry; None when it has no such id.

    Raises:
        InputError: the registry does not answer, or what it has is not an Avro schema.
    """
    import httpx
    import stamina

    url = f"{registry.rstrip('/')}/schemas/ids/{schema_id}"

    def passing(error: Exception) -> bool:
        if isinstance(error, httpx.HTTPStatusError):
            return error.response.status_code >= 500 or error.response.status_code == 429
        return isinstance(error, httpx.TransportError)

    def unknown(response: httpx.Response) -> bool:
        with suppress(ValueError, AttributeError):
            return response.status_code == 404 and response.json().get("error_code") == 40403
        return False

    cure = "see that schema_registry is right and runs"
    try:
        for attempt in stamina.retry_context(on=passing, attempts=4, timeout=20, wait_max=2):
            with attempt:
                response = httpx.get(url, timeout=5, headers={"Accept": "application/json"}, follow_redirects=True)
                if unknown(response):
                    return None
                response.raise_for_status()
        answer = response.json()
        if answer.get("schemaType", "AVRO") != "AVRO" or answer.get("references"):
            raise InputError(
                f"schema {schema_id} is of another kind than Avro, or refers to others", where=url,
                cure="have it written as one Avro schema, or read the messages as JSON",
            )  # fmt: skip
        avro(json.loads(answer["schema"]))
        return str(answer["schema"])
    except httpx.HTTPStatusError as error:
        raise InputError(f"the schema registry says {error.response.status_code}", where=url, cure=cure) from None
    except httpx.HTTPError as error:
        raise InputError(f"no answer of the schema registry ({type(error).__name__})", where=url, cure=cure) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError("the schema registry's answer is no Avro schema", where=url, cure=cure) from None


def schema_id_of(value: bytes) -> int | None:
    """The id that a value of the Confluent wire format starts with."""
    return int.from_bytes(value[1:5], "big") if len(value) >= 5 and value[0] == 0 else None


# --- One batch -----------------------------------------------------------------------------------------------------


def avro_by_id(schemas: Mapping[int, str]) -> Parse:
    """Reads values each of which starts with the id of its schema."""
    by_id = {number: avro(json.loads(text)) for number, text in schemas.items()}

    def parse(value: bytes) -> dict[str, str | None]:
        own = by_id.get(-1 if (number := schema_id_of(value)) is None else number)
        if own is None:
            raise ValueError("no known schema")
        return own(value[5:])

    return parse


def as_json(value: bytes | None, parse: Parse) -> tuple[str | None, str | None]:
    """The fields of a value as a JSON object, or the text of what is no record."""
    if not value:
        return None, None
    try:
        return json.dumps(parse(value)), None
    except Exception:  # fastavro raises what it happens to stumble over
        return None, printable(value)


def from_avro(frame: DataFrame, parser: Callable[[], Parse]) -> DataFrame:
    """Kafka's rows with JSON in `value`, and in _DAMAGED the text of what is no record."""

    def convert(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        parse = parser()
        for batch in batches:
            rows = [as_json(value, parse) for value in batch.column("value").to_pylist()]
            texts = [pa.array(part, pa.string()) for part in (zip(*rows, strict=True) if rows else ([], []))]
            beside = [name for name in batch.schema.names if name != "value"]
            yield pa.RecordBatch.from_arrays(
                [*texts, *(batch.column(name) for name in beside)], ["value", _DAMAGED, *beside]
            )

    texts = [T.StructField(name, T.StringType()) for name in ("value", _DAMAGED)]
    return frame.mapInArrow(convert, T.StructType([*texts, *(each for each in frame.schema if each.name != "value")]))


class Reader:
    """Reads topics of Kafka. See `spark_jobs.sources.Reader`."""

    rereads = False

    def __init__(self, name: str, declared: Events, options: Options, folder: Path) -> None:
        self.name, self.options, self.folder = name, options, folder
        self.declared = list(dict.fromkeys(name for name in declared_columns(declared) if name is not None))
        self.where = f"Kafka at {', '.join(options.servers)}, {', '.join(options.topics)}"

    def news(self, position: Position) -> bool:
        available = offsets_kept(self.options, self.folder)
        next_ = offsets_of(position)
        if self.options.starting == "latest" and available.keys() - next_.keys():
            return True  # where the first run starts is written down by it
        return any(
            next_.get(topic, {}).get(part, has.first) != has.end
            for topic, parts in available.items()
            for part, has in parts.items()
        ) or bool(gaps(next_, available))

    def run(self, spark: SparkSession, position: Position, land: Land) -> None:
        next_, available = offsets_of(position), offsets_kept(self.options, self.folder)
        self._check(next_, available)
        start = start_of(next_, available, self.options.starting)
        if self.options.starting == "latest" and start.keys() - next_.keys():
            # The end of a topic is where we start: unless that is written down, what comes before the next run is lost.
            land(Batch(self._nothing(spark), dict(start), where=self.where))
        schema = schema_of_file(resolve(self.options.avro_schema, self.folder)) if self.options.avro_schema else None
        schemas: dict[int, str] | None = {} if self.options.schema_registry is not None else None
        while start != (end := end_of_batch(start, available, self.options.max_records_a_batch)):
            with self._broken_off(start):
                messages = self._messages(spark, start, end)
                if schemas is not None:
                    schemas.update(self._schemas(messages, schemas))
                    messages = from_avro(messages, partial(avro_by_id, dict(schemas)))
                elif schema is not None:
                    messages = from_avro(messages, partial(avro, json.loads(schema)))
                land(Batch(self._rows(messages), dict(end), where=self.where))
            start = end
            if self.options.on_data_loss == "continue":  # Spark goes on without a word
                now = offsets_kept(self.options, self.folder)
                self._check(start, now)
                start = start_of(start, now, self.options.starting)

    def _check(self, next_: Offsets, available: Mapping[str, Mapping[int, Kept]]) -> None:
        """Messages that are gone stop us, or are told.

        Raises:
            InputError: some are, and the dataset file does not say to go on.
        """
        for gap in gaps(next_, available):
            if self.options.on_data_loss == "fail":
                raise InputError(
                    f"messages are lost: {gap}",
                    where=self.where,
                    cure='set on_data_loss = "continue" to go on with the first message there is, '
                    "and have the topic keep messages for longer",
                )
            say(f"{self.name}: messages are lost, going on: {gap}")

    def _rows(self, messages: DataFrame) -> DataFrame:
        """A column for each declared name; see `reading.json_rows`."""
        meta = {name: own for name, own in META.items() if name in self.declared}
        beside = [F.col(own).alias(name) for name, own in meta.items()]
        columns = [name for name in (_DAMAGED, MESSAGE_ID) if name in messages.columns]
        texts = messages.select(F.col("value").cast("string"), *beside, *columns)
        rows = json_rows(texts, [name for name in self.declared if name not in meta])
        if _DAMAGED in columns:
            rows = rows.withColumn(CORRUPT, F.coalesce(_DAMAGED, CORRUPT)).drop(_DAMAGED)
        return rows

    def _nothing(self, spark: SparkSession) -> DataFrame:
        columns = dict.fromkeys((*self.declared, CORRUPT, MESSAGE_ID), "string") | {
            FIELDS: "map<string,string>",
            KEYS: "array<string>",
        }
        return spark.range(0).select(*[F.lit(None).cast(kind).alias(name) for name, kind in columns.items()])

    def _messages(self, spark: SparkSession, start: Offsets, end: Offsets) -> DataFrame:
        """The messages from `start` on, before `end`."""
        reader = (
            spark.read.format("kafka")
            .options(**{f"kafka.{key}": value for key, value in self.options.reading(self.folder).items()})
            .option("kafka.isolation.level", "read_committed")
            .option("assign", json.dumps({topic: sorted(parts) for topic, parts in start.items()}))
            .option("startingOffsets", json.dumps(start))
            .option("endingOffsets", json.dumps(end))
            .option("failOnDataLoss", str(self.options.on_data_loss == "fail").lower())
            .option("minPartitions", spark.sparkContext.defaultParallelism)
            .option("kafkaConsumer.pollTimeoutMs", 60_000)
        )
        known_by = F.concat_ws("-", "topic", "partition", "offset").alias(MESSAGE_ID)
        return reader.load().select("value", *META.values(), known_by)

    @contextmanager
    def _broken_off(self, start: Offsets) -> Iterator[None]:
        """Say in our words what a broker does to us while we read.

        Raises:
            InputError: it is gone, or has deleted messages meanwhile.
        """
        try:
            yield
        except (Py4JError, PySparkException) as error:
            if not re.search("org.apache.kafka|KafkaIllegalState|KAFKA_DATA_LOSS", str(error)):
                raise
            self._check(start, offsets_kept(self.options, self.folder))
            raise InputError("the broker broke off while we read", where=self.where, cure="run it again") from None

    def _schemas(self, raw: DataFrame, cached: Mapping[int, str]) -> dict[int, str]:
        """The schemas of a batch that are not known yet, by id. An id that the registry does not know is left out."""
        assert self.options.schema_registry is not None
        heads = raw.select(F.substring("value", 1, 5).alias("head")).distinct().collect()
        ids = {schema_id_of(bytes(row["head"])) for row in heads if row["head"] is not None} - cached.keys() - {None}
        fetched = {number: fetch_schema(self.options.schema_registry, number) for number in sorted(filter(None, ids))}
        return {number: text for number, text in fetched.items() if text is not None}
