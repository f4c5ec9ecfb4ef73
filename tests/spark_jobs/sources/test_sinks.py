"""Recommendations in a real PostgreSQL and a real Kafka: all of one version, or all of the one before it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import deltalake
import pyarrow as pa
import pytest
from confluent_kafka import Consumer

from contracts.errors import InputError
from contracts.names import NOTHING_TO_DO
from contracts.pseudonyms import pseudonym
from contracts.settings import settings
from contracts.tables import RECOMMENDATIONS
from spark_jobs import erase, pending, publish, storage
from spark_jobs.sinks import KafkaTopic, PostgresTable, Row, sinks
from tests.spark_jobs.sources.brokers import Kafka

SHOP = """
name = "tiny"
[events]
path = "events.csv"
[events.columns]
user_id = "who"
item_id = "what"
occurred_at = "when"
"""
KEY = "0f" * 32
Database = Any
"""`conftest.Database`."""


def row(user_id: str, *items: str, version: int = 1) -> Row:
    """Scores fall by one from item to item, down to 1."""
    return {
        "user_id": user_id,
        "items": [*items],
        "scores": [float(score) for score in range(len(items), 0, -1)],
        "model_version": version,
    }


@pytest.fixture
def database(postgres_server: Database) -> Database:
    """An empty database."""
    postgres_server.execute("DROP SCHEMA public CASCADE", "CREATE SCHEMA public")
    return postgres_server


def address(database: Database, password: str = "") -> str:
    return f"postgresql://postgres:{password or database.password}@127.0.0.1:{database.port}/shop"


def select(database: Database, sql: str) -> list[tuple[Any, ...]]:
    connection = database.connect()
    try:
        with connection.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchall()
    finally:
        connection.close()


def table_rows(database: Database) -> list[tuple[Any, ...]]:
    return select(database, "SELECT user_id, items, scores, model_version FROM recommendations ORDER BY user_id")


def test_a_table_holds_the_last_version_and_nobody_else(database: Database) -> None:
    """Who is new comes, who is gone goes, and a row that is as it was is not written again."""
    sink = PostgresTable(address(database))
    sink.publish([row("ann", "apple", "bread"), row("bob", "Käse \t\\N"), row("eve", "fig")])
    before = dict(select(database, "SELECT user_id, xmin::text FROM recommendations"))
    sink.publish([row("ann", "bread", "apple", version=2), row("carol", "dates", version=2), row("bob", "Käse \t\\N")])
    after = dict(select(database, "SELECT user_id, xmin::text FROM recommendations"))
    assert table_rows(database) == [
        ("ann", ["bread", "apple"], [2.0, 1.0], 2),
        ("bob", ["Käse \t\\N"], [1.0], 1),
        ("carol", ["dates"], [1.0], 2),
    ]
    assert (before["bob"] == after["bob"], before["ann"] == after["ann"]) == (True, False)
    assert sink.name == f"database 127.0.0.1:{database.port}/shop"


def test_a_table_changes_as_a_whole_or_not_at_all(database: Database) -> None:
    """In the middle of publishing, another connection reads the version before; after a failure, still."""
    sink = PostgresTable(address(database))
    sink.publish([row("ann", "apple")])
    snapshots = []

    def failing() -> Iterator[Row]:
        yield row("ann", "bread", version=2)
        snapshots.append(table_rows(database))
        raise OSError("the disk of the lake is gone")

    with pytest.raises(OSError, match="is gone"):
        sink.publish(failing())
    assert [*snapshots, table_rows(database)] == [[("ann", ["apple"], [1.0], 1)]] * 2


def test_a_table_that_does_not_answer_is_named_without_its_password(database: Database) -> None:
    with pytest.raises(InputError, match="cannot be written") as caught:
        PostgresTable(address(database, "letmein")).publish([])
    assert "letmein" not in str(caught.value)
    assert f"127.0.0.1:{database.port}/shop" in str(caught.value)


def test_an_erased_user_leaves_the_table(database: Database) -> None:
    """Where no table is there yet, there is nobody to take out."""
    sink = PostgresTable(address(database))
    assert sink.withdraw("ann") == 0
    sink.publish([row("ann", "apple"), row("bob", "bread")])
    assert sink.withdraw("ann") == 1
    assert [table_rows[0] for table_rows in table_rows(database)] == ["bob"]


def messages(broker: Kafka, topic: str, count: int, isolation: str = "read_committed") -> list[tuple[str, Any]]:
    """The first messages of a topic, or those there are within half a minute."""
    consumer = Consumer({
        "bootstrap.servers": broker.address, "group.id": f"{topic}-{isolation}-{count}", "isolation.level": isolation,
        "auto.offset.reset": "earliest", "enable.auto.commit": False,
    })  # fmt: skip
    consumer.subscribe([topic])
    pairs = []
    try:
        while len(pairs) < count and (message := consumer.poll(30.0)) is not None:
            assert message.error() is None
            value = message.value()
            pairs.append((message.key().decode(), None if value is None else json.loads(value)))
    finally:
        consumer.close()
    return pairs


@pytest.mark.slow
def test_a_topic_gets_all_users_of_a_version_or_none(broker: Kafka) -> None:
    """What was sent before a failure is there, but who reads what is committed does not get it; an erased user ends."""
    broker.create("lists")
    sink = KafkaTopic("lists", {"bootstrap.servers": broker.address})

    def failing() -> Iterator[Row]:
        yield from (row(f"user {number}", "fig") for number in range(20_000))
        time.sleep(2)  # what is not sent yet when it is given up never is
        raise OSError("the disk of the lake is gone")

    with pytest.raises(OSError, match="is gone"):
        sink.publish(failing())
    sink.publish([row("ann", "apple", "Käse"), row("bob", "bread")])
    sink.withdraw("ann")
    expected = [("ann", row("ann", "apple", "Käse")), ("bob", row("bob", "bread")), ("ann", None)]
    assert messages(broker, "lists", 3) == expected
    assert messages(broker, "lists", 1, "read_uncommitted") == [("user 0", row("user 0", "fig"))]


@pytest.mark.slow
def test_a_topic_of_many_users_is_filled(broker: Kafka) -> None:
    """More than what the client keeps in memory (100,000 messages) waits until that is sent."""
    broker.create("many")
    KafkaTopic("many", {"bootstrap.servers": broker.address}).publish(row(str(n), "fig") for n in range(150_000))
    [*_, last] = messages(broker, "many", 150_000)
    assert last == ("149999", row("149999", "fig"))


@pytest.mark.parametrize("properties", [{"bootstrap.servers": "127.0.0.1:1"}, {"bootstrap.server": "misspelt"}])
def test_a_broker_that_is_not_there_is_named(properties: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spark_jobs.sinks.ANSWER_S", 1.0)
    with pytest.raises(InputError, match="cannot be sent"):
        KafkaTopic("lists", properties).publish([row("ann", "apple")])


@pytest.fixture
def recommended(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """A home whose table of recommendations has ann and bob, and a setting that names the database."""
    monkeypatch.setenv("CARTWHEEL_HOME", str(tmp_path))
    monkeypatch.setenv("CARTWHEEL_RECOMMENDATIONS_DATABASE_URL", address(database))
    settings.cache_clear()
    rows = [dict(row("ann", "apple"), bucket=3), dict(row("bob", "bread"), bucket=5)]
    storage.create(RECOMMENDATIONS)
    schema = storage.arrow_schema(RECOMMENDATIONS)
    deltalake.write_deltalake(RECOMMENDATIONS.uri, pa.Table.from_pylist(rows, schema), mode="append")
    yield database
    settings.cache_clear()


def test_each_sink_gets_each_state_of_the_table_once(recommended: Database) -> None:
    """Published, there is nothing to do; when a row is gone from the table, it is published again."""
    assert publish.main() == 0
    assert table_rows(recommended) == [("ann", ["apple"], [1.0], 1), ("bob", ["bread"], [1.0], 1)]
    assert pending.publish() == {}
    assert publish.main() == NOTHING_TO_DO
    storage.open_table(RECOMMENDATIONS).delete("user_id = 'ann'")
    assert [sink.name for sink in pending.publish()] == [f"database 127.0.0.1:{recommended.port}/shop"]
    assert publish.main() == 0
    assert table_rows(recommended) == [("bob", ["bread"], [1.0], 1)]


def test_erasing_a_user_takes_them_out_of_the_sinks_at_once(
    recommended: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not only when it is published the next time."""
    (tmp_path / "shop.toml").write_text(SHOP)
    monkeypatch.setenv("CARTWHEEL_DATASET", str(tmp_path / "shop.toml"))
    monkeypatch.setenv("CARTWHEEL_SECRET_PSEUDONYM_KEY", KEY)
    settings.cache_clear()
    assert publish.main() == 0
    assert erase.main("ann", None) == 0
    assert [row[0] for row in table_rows(recommended)] == ["bob"]
    assert f"database 127.0.0.1:{recommended.port}/shop" in capsys.readouterr().out


@pytest.mark.slow
def test_a_topic_never_gets_an_id_that_is_personal(
    broker: Kafka, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is erased by the shop's own id ends under the pseudonym, which is all that the topic knew."""
    broker.create("personal")
    (tmp_path / "shop.toml").write_text(f"personal_user_id = true\n{SHOP}")
    for name, value in {
        "HOME": str(tmp_path), "DATASET": str(tmp_path / "shop.toml"), "SECRET_PSEUDONYM_KEY": KEY,
        "RECOMMENDATIONS_KAFKA": json.dumps({"bootstrap.servers": broker.address}),
        "RECOMMENDATIONS_TOPIC": "personal",
    }.items():  # fmt: skip
        monkeypatch.setenv(f"CARTWHEEL_{name}", value)
    settings.cache_clear()
    try:
        assert erase.main("ann@example.org", None) == 0
        [sink] = sinks()
        sink.publish([row("bob", "bread")])
    finally:
        settings.cache_clear()
    assert [key for key, _ in messages(broker, "personal", 2)] == [pseudonym("ann@example.org", KEY), "bob"]
