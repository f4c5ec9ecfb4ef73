"""Kafka as a source, against a real Apache Kafka."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import deltalake
import pytest
from pydantic import ValidationError

from contracts.dataset import EventColumns, Events, load
from contracts.errors import InputError
from contracts.settings import settings
from spark_jobs.parsing import MESSAGE_ID
from spark_jobs.reading import CORRUPT, FIELDS, KEYS
from spark_jobs.sources import Batch, kafka, open_source
from tests.spark_jobs.sources.brokers import PASSWORD, Kafka, certificates

COLUMNS = EventColumns(user_id="who", item_id="what", occurred_at="when")
UUID = "12345678-1234-5678-1234-567812345678"


# --- Without a broker ----------------------------------------------------------------------------------------------


def zigzag(number: int) -> bytes:
    """A number as Avro writes it."""
    left, encoded = (number << 1) ^ (number >> 63), bytearray()
    while left > 127:
        encoded.append(left & 127 | 128)
        left >>= 7
    return bytes([*encoded, left])


def avro_text(text: str) -> bytes:
    return zigzag(len(text.encode())) + text.encode()


SCHEMA = {
    "type": "record",
    "name": "Click",
    "namespace": "shop",
    "fields": [
        {"name": "who", "type": "string"},
        {"name": "what", "type": ["null", "long"]},
        {"name": "when", "type": {"type": "long", "logicalType": "timestamp-millis"}},
    ],
}
CLICK = avro_text("ann") + b"\x02" + zigzag(300) + zigzag(1_704_088_800_500)
CLICK_FIELDS = {"who": "ann", "what": "300", "when": "2024-01-01T06:00:00.500000+00:00"}


def test_avro_of_every_type() -> None:
    """Each type and logical type of Avro is read from bytes that were written by hand."""
    schema = {
        "type": "record", "name": "All", "fields": [
            {"name": "null", "type": "null"},
            {"name": "boolean", "type": "boolean"},
            {"name": "int", "type": "int"},
            {"name": "float", "type": "float"},
            {"name": "double", "type": "double"},
            {"name": "bytes", "type": "bytes"},
            {"name": "enum", "type": {"type": "enum", "name": "E", "symbols": ["A", "B"]}},
            {"name": "again", "type": "E"},
            {"name": "fixed", "type": {"type": "fixed", "name": "F", "size": 2}},
            {"name": "array", "type": {"type": "array", "items": "int"}},
            {"name": "map", "type": {"type": "map", "values": "string"}},
            {"name": "twice", "type": {"type": "record", "name": "T", "fields": [{"name": "n", "type": "int"}]}},
            {"name": "more", "type": ["null", "T"]},
            {"name": "date", "type": {"type": "int", "logicalType": "date"}},
            {"name": "time", "type": {"type": "int", "logicalType": "time-millis"}},
            {"name": "local", "type": {"type": "long", "logicalType": "local-timestamp-micros"}},
            {"name": "price", "type": {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}},
            {"name": "uuid", "type": {"type": "string", "logicalType": "uuid"}},
        ],
    }  # fmt: skip
    value = b"".join(
        [
            b"\x01", zigzag(-65), struct.pack("<f", 0.5), struct.pack("<d", 12.0), zigzag(2) + b"hi", zigzag(1), zigzag(0),
            b"\x00\x41",
            zigzag(1) + zigzag(7) + zigzag(-1) + zigzag(1) + zigzag(8) + zigzag(0),  # two blocks, one with its size
            zigzag(1) + avro_text("k") + avro_text("v") + zigzag(0),
            zigzag(5), zigzag(1) + zigzag(6),
            zigzag(19723), zigzag(3_600_000), zigzag(1_000_000), zigzag(2) + b"\xff\x38", avro_text(UUID),
        ]
    )  # fmt: skip
    assert kafka.avro(schema)(value) == {
        "null": None, "boolean": "true", "int": "-65", "float": "0.5", "double": "12", "bytes": "hi", "enum": "B",
        "again": "A", "fixed": "\\x00A", "array": "[7,8]", "map": '{"k":"v"}', "twice": '{"n":5}', "more": '{"n":6}',
        "date": "2024-01-01", "time": "01:00:00", "local": "1970-01-01T00:00:01", "price": "-2.00", "uuid": UUID,
    }  # fmt: skip


@pytest.mark.parametrize(
    "value",
    [CLICK[:-1], CLICK + b"\x00", b"\x06ann\x04", b"\x06ann\x00" + b"\xff" * 12, b"\xff\xff\xff\x7f", b"\x01", b"{}"],
)
def test_damaged_avro_keeps_its_text(value: bytes) -> None:
    """A value that does not fit its schema, or is followed by more, is a row with its text."""
    assert kafka.as_json(value, kafka.avro(SCHEMA)) == (None, kafka.printable(value))


HOLDS_ITSELF = {
    "type": "record",
    "name": "T",
    "fields": [{"name": "next", "type": ["null", {"type": "array", "items": "T"}]}],
}


@pytest.mark.parametrize(
    "schema", ["strin", HOLDS_ITSELF, {"type": "record", "name": "R", "fields": [{"name": "a", "type": "b"}]}, 7]
)
def test_a_schema_that_is_none_is_refused(schema: Any, tmp_path: Path) -> None:
    """A file that holds no Avro schema is named."""
    (tmp_path / "a.avsc").write_text(json.dumps(schema))
    with pytest.raises(InputError, match=r"no Avro schema.*a\.avsc"):
        kafka.schema_of_file(str(tmp_path / "a.avsc"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"servers": "localhost"}, "host:port"),
        ({"topics": "shop.*"}, "no name of a topic"),
        ({"format": "avro"}, "needs either avro_schema or schema_registry"),
        ({"avro_schema": "a.avsc"}, "are for format avro"),
        ({"ca_file": "ca.pem"}, "set tls = true"),
        ({"username": "ann"}, "sasl_mechanism, username and password_secret"),
        ({"format": "avro", "schema_registry": "http://ann:secret@host"}, "without a password"),
        ({"password": "secret"}, "Extra inputs"),
        ({"max_records_a_batch": 0}, "greater than 0"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    """Options that contradict each other, or would hold a secret, are refused with a reason."""
    with pytest.raises(ValidationError, match=message):
        kafka.Options.model_validate({"servers": "localhost:9092", "topics": "events"} | options)


def test_the_dataset_file_opens_it(tmp_path: Path) -> None:
    """`[events.kafka]` makes a reader of this kind, and an option that does not fit is named by its place."""
    text = """
name = "tiny"
[events.columns]
user_id = "who"
item_id = "what"
occurred_at = "kafka.timestamp"
[events.kafka]
servers = ["a:9092", "b:9092"]
topics = "clicks"
starting = "{starting}"
"""
    (tmp_path / "shop.toml").write_text(text.format(starting="latest"))
    dataset = load(tmp_path / "shop.toml")
    opened = open_source(dataset.events[0], dataset, tmp_path)
    assert isinstance(opened, kafka.Reader)
    assert (opened.name, opened.options.servers, opened.options.topics) == ("tiny", ("a:9092", "b:9092"), ("clicks",))
    (tmp_path / "shop.toml").write_text(text.format(starting="now"))
    dataset = load(tmp_path / "shop.toml")
    with pytest.raises(InputError, match=r"events\.kafka\.starting: Input should be 'earliest' or 'latest'"):
        open_source(dataset.events[0], dataset, tmp_path)


def test_a_secret_that_is_missing_is_named(table: Table) -> None:
    """Without the secret it is an error before any broker is asked."""
    login = {"sasl_mechanism": "SCRAM-SHA-512", "username": "ann", "password_secret": "nobody_has_this"}
    with pytest.raises(InputError, match="no secret 'nobody_has_this'"):
        reader("localhost:9092", "events", **login).news({})


def test_gaps_are_found_and_where_to_start() -> None:
    """Deleted offsets, a topic made anew and a partition that is gone are gaps; new ones are read from their start."""
    next_ = {"a": {0: 5, 1: 9, 2: 1, 3: 4}, "left": {0: 3}}
    available = {
        "a": {0: kafka.Kept(7, 9), 1: kafka.Kept(0, 2), 3: kafka.Kept(0, 9), 4: kafka.Kept(1, 3)},
        "b": {0: kafka.Kept(2, 8)},
    }
    assert kafka.gaps(next_, available) == [
        "topic 'a', partition 0: offsets 5 to 6 were deleted before they were read",
        "topic 'a', partition 1: was made anew, it ends at offset 2 and was read up to 9",
        "topic 'a', partition 2: is gone, read up to offset 1",
    ]
    assert kafka.start_of(next_, available, "earliest") == {"a": {0: 7, 1: 0, 3: 4, 4: 1}, "b": {0: 2}}
    assert kafka.start_of(next_, available, "latest") == {"a": {0: 7, 1: 0, 3: 4, 4: 1}, "b": {0: 8}}


def test_a_batch_ends_at_the_same_share_of_each_partition() -> None:
    """10, 5 and 0 messages are waiting: a batch of 6 takes 4 and 2, and one of many takes all."""
    start = {"a": {0: 5, 1: 9}, "b": {0: 3}}
    available = {"a": {0: kafka.Kept(0, 15), 1: kafka.Kept(7, 14)}, "b": {0: kafka.Kept(0, 3)}}
    assert kafka.end_of_batch(start, available, 6) == {"a": {0: 9, 1: 11}, "b": {0: 3}}
    assert kafka.end_of_batch(start, available, 100) == {"a": {0: 15, 1: 14}, "b": {0: 3}}


# --- With a broker -------------------------------------------------------------------------------------------------


class Table:
    """A Delta table that is landed in as `spark_jobs.land` does it: rows and position are one commit."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def entries(self) -> list[dict[str, Any]]:
        """Positions that were committed, newest first."""
        if not (self.path / "_delta_log").exists():
            return []
        return [json.loads(commit["userMetadata"]) for commit in deltalake.DeltaTable(str(self.path)).history()]

    @property
    def position(self) -> dict[str, Any]:
        return next(iter(self.entries), {})

    def land(self, batch: Batch) -> None:
        from pyspark.sql import functions as F

        number = len(self.entries) + 1
        names = [f"`{name}`" for name in batch.rows.columns if name != MESSAGE_ID]
        (
            batch.rows.select(F.to_json(F.struct(*names)).alias("row"))
            .write.format("delta")
            .mode("append")
            .option("txnAppId", "kafka")
            .option("txnVersion", number)
            .option("userMetadata", json.dumps(batch.position))
            .save(str(self.path))
        )

    @property
    def rows(self) -> list[dict[str, Any]]:
        if not (self.path / "_delta_log").exists():
            return []
        rows = [json.loads(row) for row in deltalake.DeltaTable(str(self.path)).to_pyarrow_table()["row"].to_pylist()]
        return [
            {name: value for name, value in row.items() if name not in (FIELDS, KEYS)} | row.get(FIELDS, {})
            for row in rows
        ]

    def values(self, column: str = "who") -> list[str]:
        return sorted(row.get(column) or row.get(CORRUPT, "") for row in self.rows)


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Table]:
    """An empty table, in a home of its own."""
    monkeypatch.setenv("CARTWHEEL_HOME", str(tmp_path / "home"))
    settings.cache_clear()
    yield Table(tmp_path / "table")
    settings.cache_clear()


def reader(
    address: str, *topics: str, columns: EventColumns = COLUMNS, folder: Path = Path(), **more: Any
) -> kafka.Reader:
    options = {"servers": address, "topics": topics, **more}
    return kafka.Reader("clicks", Events(kind="kafka", columns=columns), kafka.Options(**options), folder)


def run(broker: Kafka, table: Table, *topics: str, address: str = "", **more: Any) -> None:
    reader(address or broker.address, *topics, **more).run(broker.spark, table.position, table.land)


def click(who: str, **more: Any) -> str:
    return json.dumps({"who": who, "what": "apple", "when": "2024-01-01T06:00:00"} | more)


@pytest.mark.slow
def test_messages_become_rows_and_bad_ones_are_kept(broker: Kafka, table: Table) -> None:
    """Objects of several shapes become columns, what is none keeps its text, and a declared column is always there."""
    broker.create("shapes")
    values = [
        click("ann", price=1.10),
        '{"who": "bob", "basket": {"n": 1}}',
        "{",
        None,
        b"",
        b"\xff\xfe",
        "[1]",
        '{"x.y": "z"}',
    ]
    broker.produce("shapes", *values)
    columns = COLUMNS.model_copy(
        update={"session_id": "visit", "quantity": "kafka.partition", "event_id": "kafka.offset"}
    )
    landed: list[Any] = []

    def land(batch: Batch) -> None:
        landed.append((batch.rows.columns, dict(batch.rows.dtypes)))
        table.land(batch)

    reader(broker.address, "shapes", columns=columns).run(broker.spark, {}, land)
    (names, types), *others = landed
    assert not others
    assert set(names) == {
        "who", "what", "when", "visit", "kafka.partition", "kafka.offset", FIELDS, KEYS, CORRUPT, MESSAGE_ID,
    }  # fmt: skip
    assert types["visit"] == "string"
    by_offset = sorted(table.rows, key=lambda row: row.pop("kafka.offset"))
    assert all(row.pop("kafka.partition") == 0 for row in by_offset)
    assert by_offset == [
        {"who": "ann", "what": "apple", "when": "2024-01-01T06:00:00", "price": "1.1"},
        {"who": "bob", "basket": '{"n":1}'},
        {CORRUPT: "{"},
        {CORRUPT: "no value"},
        {CORRUPT: "no value"},
        {CORRUPT: "\ufffd\ufffd"},
        {CORRUPT: "[1]"},
        {"x.y": "z"},
    ]
    assert table.position == {"shapes": {"0": 8}}


@pytest.mark.slow
def test_each_run_goes_on_where_the_last_one_stopped(broker: Kafka, table: Table) -> None:
    """Several topics and partitions, in batches; news are told; what was read is not read again."""
    broker.create("first", 2)
    broker.create("second")
    for partition in range(2):
        broker.produce("first", *[click(f"f{partition}{n}") for n in range(5)], partition=partition)
    broker.produce("second", click("s0"))
    both = reader(broker.address, "first", "second", max_records_a_batch=4)
    assert both.news({})
    both.run(broker.spark, {}, table.land)
    everyone = sorted([f"f{p}{n}" for p in range(2) for n in range(5)] + ["s0"])
    assert table.values() == everyone
    assert len(table.entries) == 3
    assert table.position == {"first": {"0": 5, "1": 5}, "second": {"0": 1}}
    assert not both.news(table.position)

    both.run(broker.spark, table.position, table.land)
    assert len(table.entries) == 3
    broker.produce("second", click("s1"))
    assert both.news(table.position)
    both.run(broker.spark, table.position, table.land)
    assert table.values() == sorted([*everyone, "s1"])


@pytest.mark.slow
@pytest.mark.parametrize("committed", [True, False])
def test_a_failure_around_the_commit_repeats_nothing(broker: Kafka, table: Table, committed: bool) -> None:
    """A run that fails just before or just after a batch is committed neither loses nor repeats it, and says why."""
    topic = f"around-{committed}".lower()
    broker.create(topic)
    broker.produce(topic, *[click(str(n)) for n in range(6)])

    def land(batch: Batch) -> None:
        fails = len(table.entries) == 1
        if committed or not fails:
            table.land(batch)
        if fails:
            raise InputError("the disk is full", where="here", cure="free some")

    source = reader(broker.address, topic, max_records_a_batch=2)
    with pytest.raises(InputError, match="the disk is full"):
        source.run(broker.spark, {}, land)
    assert len(table.entries) == 1 + committed
    source.run(broker.spark, table.position, table.land)
    assert table.values() == list("012345")
    assert len(table.entries) == 3


@pytest.mark.slow
def test_latest_starts_from_the_first_run(broker: Kafka, table: Table) -> None:
    """With `latest`, what came after the first run is read even when that run found nothing."""
    broker.create("late")
    broker.produce("late", click("before"))
    run(broker, table, "late", starting="latest")
    broker.produce("late", click("after"))
    run(broker, table, "late", starting="latest")
    assert table.values() == ["after"]


@pytest.mark.slow
def test_aborted_transactions_are_not_read(broker: Kafka, table: Table) -> None:
    """Messages of a transaction count when it is committed and never when it is aborted."""
    broker.create("transactions")
    broker.produce("transactions", click("sold"), commit=True)
    broker.produce("transactions", click("never"), click("never"), commit=False)
    source = reader(broker.address, "transactions")
    run(broker, table, "transactions")
    assert table.values() == ["sold"]
    assert not source.news(table.position)


@pytest.mark.slow
def test_messages_deleted_before_they_were_read(
    broker: Kafka, table: Table, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are an error that names topic, partition, gap and cure; on demand reading goes on, and says so."""
    broker.create("gap")
    broker.produce("gap", *[click(str(n)) for n in range(3)])
    run(broker, table, "gap", max_records_a_batch=2)
    broker.produce("gap", *[click(str(n)) for n in range(3, 9)])
    broker.delete_before("gap", 5)
    message = r"topic 'gap', partition 0: offsets 3 to 4 were deleted.*on_data_loss = \"continue\""
    with pytest.raises(InputError, match=message):
        run(broker, table, "gap")
    assert reader(broker.address, "gap").news(table.position)
    run(broker, table, "gap", on_data_loss="continue")
    assert table.values() == list("0125678")
    assert "offsets 3 to 4 were deleted" in capsys.readouterr().out


@pytest.mark.slow
def test_messages_deleted_while_they_are_read(broker: Kafka, table: Table) -> None:
    """A gap that opens between two batches of a run is an error too, and what came before it has landed."""
    broker.create("meanwhile")
    padding = "x" * 700_000  # so that the consumer cannot have fetched all of them
    broker.produce("meanwhile", *[click(str(n), padding=padding) for n in range(10)])

    def land(batch: Batch) -> None:
        table.land(batch)
        broker.delete_before("meanwhile", 9)

    with pytest.raises(InputError, match=r"topic 'meanwhile', partition 0: offsets \d to 8 were deleted"):
        reader(broker.address, "meanwhile", max_records_a_batch=2).run(broker.spark, {}, land)
    next_offset = table.position["meanwhile"]["0"]
    assert table.values() == [str(n) for n in range(next_offset)]


@pytest.mark.slow
def test_a_topic_made_anew_is_told(broker: Kafka, table: Table) -> None:
    """A topic that was deleted and created again is data loss, and is read from its start on demand."""
    broker.create("anew")
    broker.produce("anew", click("a"), click("b"))
    run(broker, table, "anew")
    broker.delete("anew")
    broker.create("anew")
    broker.produce("anew", click("c"))
    with pytest.raises(InputError, match="topic 'anew', partition 0: was made anew"):
        run(broker, table, "anew")
    run(broker, table, "anew", on_data_loss="continue")
    assert table.values() == ["a", "b", "c"]


@pytest.mark.slow
def test_avro_by_a_file(broker: Kafka, table: Table, tmp_path: Path) -> None:
    """Values of one schema are read by its file; a damaged one keeps its text."""
    (tmp_path / "click.avsc").write_text(json.dumps(SCHEMA))
    broker.create("avro")
    broker.produce("avro", CLICK, CLICK[:4])
    run(broker, table, "avro", format="avro", avro_schema="click.avsc", folder=tmp_path)
    assert sorted(table.rows, key=len) == [{CORRUPT: "\\x06ann"}, CLICK_FIELDS]


@pytest.fixture
def registry() -> Iterator[tuple[str, Counter[str]]]:
    """A schema registry with two schemas, which fails once first; and what it was asked."""
    newer = {**SCHEMA, "fields": [*SCHEMA["fields"], {"name": "shelf", "type": "int"}]}
    answers = {f"/schemas/ids/{n}": {"schema": json.dumps(schema)} for n, schema in ((1, SCHEMA), (700, newer))}
    requests: Counter[str] = Counter()

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests[self.path] += 1
            answer = answers.get(self.path, {"error_code": 40403, "message": "Schema not found"})
            status = 503 if requests.total() == 1 else 200 if self.path in answers else 404
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", requests
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_avro_by_a_registry(broker: Kafka, table: Table, registry: tuple[str, Counter[str]]) -> None:
    """Each value is read by the schema whose id it starts with, fetched once; an unknown id is a row with its text."""
    url, requests = registry
    broker.create("framed")

    def framed(schema_id: int, value: bytes) -> bytes:
        return b"\0" + schema_id.to_bytes(4, "big") + value

    broker.produce("framed", framed(1, CLICK), framed(700, CLICK + zigzag(9)), framed(5, CLICK), CLICK, b"\0\0", None)
    run(broker, table, "framed", format="avro", schema_registry=url)
    texts = [kafka.printable(value) for value in (framed(5, CLICK), CLICK, b"\0\0")] + ["no value"]
    assert sorted(row[CORRUPT] for row in table.rows if CORRUPT in row) == sorted(texts)
    sound = sorted((row for row in table.rows if CORRUPT not in row), key=len)
    assert sound == [CLICK_FIELDS, CLICK_FIELDS | {"shelf": "9"}]
    assert requests == {"/schemas/ids/1": 2, "/schemas/ids/5": 1, "/schemas/ids/700": 1}


def test_a_registry_that_is_none() -> None:
    """A registry that does not answer is named."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(InputError, match=r"no answer of the schema registry.*/schemas/ids/3"):
            kafka.fetch_schema(f"http://127.0.0.1:{closed.getsockname()[1]}/", 3)


@pytest.mark.slow
@pytest.mark.parametrize("tls", [False, True])
def test_a_login(broker: Kafka, table: Table, tls: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A topic is read with a password that is a secret, in the clear and by TLS with an authority of our own."""
    monkeypatch.setenv("CARTWHEEL_SECRET_KAFKA", PASSWORD)
    topic = f"login-{tls}".lower()
    broker.create(topic)
    broker.produce(topic, click("ann"))
    more = {"tls": True, "ca_file": "ca.pem", "folder": broker.folder} if tls else {}
    login = {"sasl_mechanism": "PLAIN", "username": "ann", "password_secret": "kafka"}
    run(broker, table, topic, address=broker.sasl_ssl if tls else broker.sasl, **login, **more)
    assert table.values() == ["ann"]


@pytest.mark.slow
def test_a_refused_login_tells_no_secret(
    broker: Kafka, table: Table, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A wrong password is one clear line, without the password there or in what is printed."""
    monkeypatch.setenv("CARTWHEEL_SECRET_KAFKA", "wrong-and-secret")
    login = {"sasl_mechanism": "PLAIN", "username": "ann", "password_secret": "kafka"}
    with pytest.raises(InputError, match="the broker refuses the login") as refused:
        run(broker, table, "shapes", address=broker.sasl, **login)
    printed = capfd.readouterr()
    assert "wrong-and-secret" not in f"{refused.value!r} {refused.value} {printed.out} {printed.err}"


@pytest.mark.slow
def test_an_authority_that_did_not_sign(
    broker: Kafka, table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A certificate of another authority is not accepted."""
    monkeypatch.setenv("CARTWHEEL_SECRET_KAFKA", PASSWORD)
    certificates(tmp_path)
    login = {"sasl_mechanism": "PLAIN", "username": "ann", "password_secret": "kafka", "tls": True, "ca_file": "ca.pem"}
    with pytest.raises(InputError, match="certificate is not accepted"):
        run(broker, table, "shapes", address=broker.sasl_ssl, folder=tmp_path, **login)


@pytest.mark.slow
def test_no_such_topic(broker: Kafka, table: Table) -> None:
    """A topic that does not exist is named, and is not created by asking."""
    for _ in range(2):
        with pytest.raises(InputError, match="the broker has no topic 'nowhere'"):
            run(broker, table, "nowhere")


@pytest.mark.slow
def test_an_unreachable_broker(spark: Any, table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that is not there is one clear line, for both questions."""
    monkeypatch.setattr(kafka, "ANSWER_S", 3.0)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        source = reader(f"127.0.0.1:{closed.getsockname()[1]}", "events")
        with pytest.raises(InputError, match=r"no answer of the broker \(Connection refused\)"):
            source.news({})
        with pytest.raises(InputError, match=r"no answer of the broker \(Connection refused\)"):
            source.run(spark, {}, table.land)


@pytest.mark.slow
def test_news_need_no_session(broker: Kafka, table: Table) -> None:
    """A process without a Spark session can ask for news, and starts no JVM for it."""
    broker.create("news")
    broker.produce("news", click("ann"))
    script = f"""
import importlib.util, psutil
spec = importlib.util.spec_from_file_location("driver", {__file__!r})
driver = importlib.util.module_from_spec(spec)
spec.loader.exec_module(driver)
source = driver.reader({broker.address!r}, "news")
print(source.news({{}}), source.news({{"news": {{"0": 1}}}}), len(psutil.Process().children()))
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.stdout.split() == ["True", "False", "0"], result.stderr
