"""Where recommendations are brought, besides their table: a table of PostgreSQL and a topic of Kafka, by setting.

Whoever reads there sees all of one version, or all of the one before it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Protocol

import psycopg
import psycopg.conninfo
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from contracts.errors import InputError
from contracts.settings import settings

COLUMNS = ("user_id", "items", "scores", "model_version")
Row = Mapping[str, Any]
"""A row of `recommendations`: its `COLUMNS`."""
ANSWER_S = 20.0
"""How long a broker has to answer."""
TRANSACTION_S = 15 * 60
"""For how long brokers let a transaction be open, unless they are told otherwise."""


class Sink(Protocol):
    @property
    def name(self) -> str:
        """What it is, and where; without a password."""

    def publish(self, rows: Iterable[Row]) -> None:
        """Put rows in the place of all that are there.

        Raises:
            InputError: it does not answer, or refuses them. Nothing has changed then.
        """

    def withdraw(self, user_id: str) -> int:
        """Take a user out who was erased, by the id that the tables hold; the number of rows, as far as that can be told.

        Raises:
            InputError: it does not answer.
        """


class PostgresTable:
    """The table `recommendations` of a database. It is made where it is missing; only rows that differ are written."""

    def __init__(self, url: str) -> None:
        self._url = url
        parts = psycopg.conninfo.conninfo_to_dict(url)
        self.name = f"database {parts.get('host', '')}:{parts.get('port', 5432)}/{parts.get('dbname', '')}"

    def publish(self, rows: Iterable[Row]) -> None:
        with self._cursor() as cursor:
            cursor.execute(
                "CREATE TABLE IF NOT EXISTS recommendations (user_id text PRIMARY KEY, items text[] NOT NULL, "
                "scores double precision[] NOT NULL, model_version integer NOT NULL)"
            )
            cursor.execute("CREATE TEMPORARY TABLE incoming (LIKE recommendations) ON COMMIT DROP")
            with cursor.copy(f"COPY incoming ({', '.join(COLUMNS)}) FROM STDIN") as copy:
                for row in rows:
                    copy.write_row([row[name] for name in COLUMNS])
            cursor.execute("ANALYZE incoming")
            cursor.execute(
                "DELETE FROM recommendations AS old WHERE NOT EXISTS "
                "(SELECT FROM incoming WHERE incoming.user_id = old.user_id)"
            )
            cursor.execute(
                "INSERT INTO recommendations AS old SELECT * FROM incoming "
                "ON CONFLICT (user_id) DO UPDATE SET (items, scores, model_version) = "
                "(excluded.items, excluded.scores, excluded.model_version) "
                "WHERE (old.items, old.scores, old.model_version) IS DISTINCT FROM "
                "(excluded.items, excluded.scores, excluded.model_version)"
            )

    def withdraw(self, user_id: str) -> int:
        with self._cursor() as cursor:
            if cursor.execute("SELECT to_regclass('recommendations')").fetchone() == (None,):
                return 0
            cursor.execute("DELETE FROM recommendations WHERE user_id = %s", [user_id])
            return cursor.rowcount

    @contextmanager
    def _cursor(self) -> Iterator[psycopg.Cursor[Any]]:
        """In one transaction, committed at the end."""
        try:
            with psycopg.connect(self._url, connect_timeout=int(ANSWER_S)) as connection, connection.cursor() as cursor:
                yield cursor
        except psycopg.Error as error:
            raise InputError(
                f"recommendations cannot be written: {str(error).strip()}",
                where=self.name,
                cure="see that the database of CARTWHEEL_RECOMMENDATIONS_DATABASE_URL is there and lets us write",
            ) from None


class KafkaTopic:
    """A topic with a message for each user: the id as key, `items`, `scores` and `model_version` as JSON.

    All of a version are one transaction: consumers with `isolation.level=read_committed` get all or none of them.
    """

    def __init__(self, topic: str, properties: Mapping[str, str]) -> None:
        self._topic, self._properties = topic, properties
        self.name = f"topic {topic} at {properties.get('bootstrap.servers', '')}"

    def publish(self, rows: Iterable[Row]) -> None:
        self._send((row["user_id"], json.dumps({name: row[name] for name in COLUMNS})) for row in rows)

    def withdraw(self, user_id: str) -> int:
        """Sends what compaction takes for the end of a key; what the topic holds before it is not looked at."""
        self._send([(user_id, None)])
        return 0

    def _send(self, messages: Iterable[tuple[str, str | None]]) -> None:
        refused: list[KafkaError] = []

        def delivered(error: KafkaError | None, message: Message) -> None:
            if error is not None:
                refused.append(error)

        try:
            producer = Producer(
                {
                    "transaction.timeout.ms": 1000 * TRANSACTION_S,
                    "compression.type": "zstd",
                    **self._properties,
                    "transactional.id": f"cartwheel-{self._topic}",
                }
            )
            producer.init_transactions(ANSWER_S)
            producer.begin_transaction()
            try:
                for key, value in messages:
                    self._produce(producer, key, value, delivered)
                producer.commit_transaction(TRANSACTION_S)
            except BaseException:  # consumers would wait for an open transaction
                with suppress(KafkaException):
                    producer.abort_transaction(ANSWER_S)
                raise
        except KafkaException as error:
            why = refused[0] if refused else error.args[0]
            raise InputError(
                f"recommendations cannot be sent: {why.str()}",
                where=self.name,
                cure="see that the brokers of CARTWHEEL_RECOMMENDATIONS_KAFKA are there, have the topic and let us write",
            ) from None

    def _produce(self, producer: Producer, key: str, value: str | None, delivered: Callable[..., None]) -> None:
        while True:
            producer.poll(0)
            try:
                return producer.produce(self._topic, value, key, on_delivery=delivered)
            except BufferError:  # what was sent before must get away first
                producer.poll(1.0)


def sinks() -> list[Sink]:
    """Those that the settings name."""
    chosen, named = settings(), list[Sink]()
    if chosen.recommendations_database_url:
        named.append(PostgresTable(chosen.recommendations_database_url))
    if chosen.recommendations_kafka:
        named.append(KafkaTopic(chosen.recommendations_topic, chosen.recommendations_kafka))
    return named
