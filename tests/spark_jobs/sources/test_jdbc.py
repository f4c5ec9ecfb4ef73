"""Events from a database: a real PostgreSQL on loopback, and Derby for another dialect."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from contracts.dataset import Events
from contracts.errors import InputError
from contracts.settings import settings
from contracts.tables import BRONZE_EVENTS, LEDGER
from spark_jobs import reading, storage
from spark_jobs.sources import Batch, Position
from spark_jobs.sources.jdbc import Options, Reader

psycopg2 = pytest.importorskip("psycopg2")

COLUMNS = {"user_id": "who", "item_id": "what", "occurred_at": "at"}
TABLE = "CREATE TABLE orders (id bigint, who text, what text, at timestamptz, shelf int)"
SHOP = """
name = "tiny"
[interval]
length = "1d"
first = 2024-01-01T00:00:00
[events]
columns = {{ event_id = "id", user_id = "who", item_id = "what", occurred_at = "at" }}
[events.jdbc]
url = "{url}"
user = "postgres"
password_secret = "shop_db"
table = "orders"
watermark = "at"
"""
Row = dict[str, Any]


Database = Any
"""`conftest.Database`."""


@pytest.fixture
def database(postgres_server: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Database]:
    """An empty database, its password a secret, and a home of our own."""
    postgres_server.execute("DROP SCHEMA public CASCADE", "CREATE SCHEMA public")
    monkeypatch.setenv("CARTWHEEL_HOME", str(tmp_path))
    monkeypatch.setenv("CARTWHEEL_SECRET_SHOP_DB", postgres_server.password)
    settings.cache_clear()
    yield postgres_server
    settings.cache_clear()


def reader(database: Database, columns: dict[str, str] = COLUMNS, **options: Any) -> Reader:
    declared = Events.model_validate({"columns": columns, "jdbc": {}})
    declaration = {
        "url": database.url,
        "user": "postgres",
        "password_secret": "shop_db",
        "table": "orders",
        "watermark": "at",
    }
    return Reader("orders", declared, Options.model_validate(declaration | options), Path())


def run(spark: Any, source: Reader, position: Position | None = None) -> tuple[list[Row] | None, Position]:
    """The rows as text and the position after them; no rows (None) and the old position when there was no batch."""
    landed: list[tuple[list[Row], Position]] = []

    def land(batch: Batch) -> None:
        frame = batch.rows.select([reading.text(batch.rows, name).alias(name) for name in batch.rows.columns])
        # As the ledger keeps it, which is JSON.
        landed.append(([row.asDict() for row in frame.collect()], json.loads(json.dumps(batch.position))))

    source.run(spark, position or {}, land)
    assert len(landed) <= 1
    return landed[0] if landed else (None, position or {})


def ids(rows: list[Row] | None) -> list[int]:
    return sorted(int(row["id"]) for row in rows or [])


def insert(number: int, at: str) -> str:
    at = "NULL" if at == "NULL" else f"'{at}+00'"
    return f"INSERT INTO orders VALUES ({number}, 'ann', 'apple', {at}, {number % 7})"


def test_types_come_through_exactly(spark: Any, database: Database) -> None:
    """Times with and without zone keep their microseconds, also where the JVM's own zone skips that hour."""
    database.execute(
        'CREATE TABLE orders (who uuid, what text, at timestamptz, local timestamp, paid numeric(10,2), "Odd name" text, '
        "more jsonb, tags text[], day date, gone boolean, number bigint)",
        "INSERT INTO orders VALUES ('a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', ' Käse ', '2024-03-31 02:30:00.123456+00', "
        "'2024-03-31 02:30:00.654321', 12.10, 'x', '{\"a\": [1]}', '{x,y}', '2024-03-31', true, 9007199254740993)",
    )
    zones = spark._jvm.java.util.TimeZone
    before = zones.getDefault()
    zones.setDefault(zones.getTimeZone("Europe/Berlin"))
    try:
        rows, position = run(spark, reader(database))
        assert zones.getDefault().getID() == "Europe/Berlin"
    finally:
        zones.setDefault(before)
    assert rows == [{
        "who": "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "what": "Käse", "at": "2024-03-31 02:30:00.123456",
        "local": "2024-03-31 02:30:00.654321", "paid": "12.10", "Odd name": "x", "more": '{"a": [1]}',
        "tags": '["x","y"]', "day": "2024-03-31", "gone": "true", "number": "9007199254740993",
    }]  # fmt: skip
    assert (position["watermark"], position["type"]) == ("2024-03-31 02:30:00.123456", "timestamp")


@pytest.mark.parametrize("watermark", ["at", "local"])
def test_a_late_commit_within_the_overlap_is_read(spark: Any, database: Database, watermark: str) -> None:
    """A row committed after one with a higher watermark is read by the next run, together with what lies in the overlap."""
    database.execute(
        TABLE, "ALTER TABLE orders ADD local timestamp GENERATED ALWAYS AS (at AT TIME ZONE 'UTC') STORED",
        insert(1, "2024-01-01 09:59:00.000000"), insert(2, "2024-01-01 09:59:00.000001"),
    )  # fmt: skip
    source = reader(database, watermark=watermark, overlap="10min")
    late = database.connect()
    late.cursor().execute(insert(3, "2024-01-01 10:05:00"))
    database.execute(insert(4, "2024-01-01 10:09:00.000001"))
    rows, position = run(spark, source)
    assert ids(rows) == [1, 2, 4]
    assert position["watermark"] == "2024-01-01 10:09:00.000001"
    assert run(spark, source, position)[1] == position
    late.commit()
    late.close()
    rows, position = run(spark, source, position)
    assert ids(rows) == [2, 3, 4]  # from 09:59:00.000001 on
    database.execute(insert(5, "2024-01-01 11:00:00"))
    rows, position = run(spark, source, position)
    assert ids(rows) == [2, 3, 4, 5]
    assert ids(run(spark, source, position)[0]) == [5]  # from 10:50 on


def test_an_equal_watermark_is_not_lost_without_overlap(spark: Any, database: Database) -> None:
    """With an overlap of 0 rows at the very watermark are still read again."""
    database.execute(TABLE, insert(1, "2024-01-01 10:00:00"))
    source = reader(database, overlap=0)
    position = run(spark, source)[1]
    database.execute(insert(2, "2024-01-01 10:00:00"), insert(3, "2024-01-01 09:59:59"))
    assert ids(run(spark, source, position)[0]) == [1, 2]


def test_rows_without_a_watermark_are_read_by_each_batch(spark: Any, database: Database) -> None:
    """A row without a watermark is read whenever it comes, also when no row has one."""
    database.execute(TABLE, insert(1, "NULL"))
    source = reader(database)
    rows, position = run(spark, source)
    assert (ids(rows), position["watermark"]) == ([1], None)
    assert run(spark, source, position) == (rows, position)
    database.execute(insert(2, "2024-01-01 10:00:00"))
    rows, position = run(spark, source, position)
    assert ids(rows) == [1, 2]
    database.execute(insert(3, "NULL"))
    rows, position = run(spark, source, position)
    assert ids(rows) == [1, 2, 3]


def test_an_empty_table_makes_no_batch(spark: Any, database: Database) -> None:
    """Nothing is landed of nothing."""
    database.execute(TABLE)
    assert run(spark, reader(database)) == (None, {})


@pytest.mark.parametrize("type_", ["bigint", "numeric(20,3)", "float8", "real"])
def test_a_number_as_watermark(spark: Any, database: Database, type_: str) -> None:
    """Numbers of each type work, and the overlap is a number."""
    database.execute(f'CREATE TABLE orders (id int, who text, what text, at text, "Seq No" {type_})')
    database.execute("INSERT INTO orders SELECT i, 'ann', 'apple', 'x', i FROM generate_series(1, 100) i")
    source = reader(database, table="", query="SELECT * FROM orders WHERE id <> 50;", watermark="Seq No", overlap=10)
    rows, position = run(spark, source)
    assert ids(rows) == [*range(1, 50), *range(51, 101)]
    database.execute("INSERT INTO orders SELECT i, 'ann', 'apple', 'x', i FROM generate_series(101, 102) i")
    rows, position = run(spark, source, position)
    assert ids(rows) == list(range(90, 103))
    assert float(position["watermark"]) == 102


def test_the_last_row_of_a_fraction_is_in_the_window(spark: Any, database: Database) -> None:
    """1.1 as a real number of 4 bytes is more than 1.1: it is read nevertheless."""
    database.execute("CREATE TABLE orders (id int, who text, what text, at text, w real)")
    database.execute("INSERT INTO orders VALUES (1, 'a', 'b', 'c', 1.1)")
    assert ids(run(spark, reader(database, watermark="w"))[0]) == [1]


@pytest.mark.parametrize("column", ["id", "at", "local", "day", "exact"])
def test_partitioned_reads_give_the_same_rows(spark: Any, database: Database, column: str) -> None:
    """Several connections read what one reads, rows without the partition column included."""
    database.execute(
        "CREATE TABLE orders (id int, who text, what text, at timestamptz, local timestamp, day date, exact numeric)",
        "INSERT INTO orders SELECT i, 'ann', 'apple', t, t, t, i / 7.0 FROM (SELECT i, "
        "timestamp '2024-01-01' + i * interval '37 min 0.000001 s' AS t FROM generate_series(1, 500) i) s",
        "INSERT INTO orders VALUES (501, 'bob', 'bread', '2024-01-02', NULL, NULL, NULL)",
    )
    whole = run(spark, reader(database))
    source = reader(database, partition_column=column, partitions=4)
    num_connections: list[int] = []
    source.run(spark, {}, lambda batch: num_connections.append(batch.rows.rdd.getNumPartitions()))
    assert num_connections == [4]
    rows, position = run(spark, source)
    assert ids(rows) == ids(whole[0]) == list(range(1, 502))
    assert position == whole[1]


def test_rows_of_the_future_wait(spark: Any, database: Database) -> None:
    """One date far ahead, or infinite, does not hide the rows that come after it."""
    database.execute(TABLE, insert(1, "2024-01-01 10:00:00"), insert(2, "2999-01-01 00:00:00"))
    database.execute("INSERT INTO orders VALUES (3, 'ann', 'apple', 'infinity', 1)")
    source = reader(database)
    rows, position = run(spark, source)
    assert (ids(rows), position["watermark"]) == ([1], "2024-01-01 10:00:00")
    database.execute(insert(4, "2024-01-01 10:30:00"))
    assert ids(run(spark, source, position)[0]) == [1, 4]  # from 09:50 on


def test_a_table_that_starts_afresh_is_told(spark: Any, database: Database) -> None:
    """A watermark that went back further than the overlap is an error; rows deleted within the overlap are not."""
    database.execute(TABLE, insert(1, "2024-01-01 09:55:00"), insert(2, "2024-01-01 10:00:00"))
    position = run(spark, reader(database))[1]
    database.execute("DELETE FROM orders WHERE id = 2")
    rows, position = run(spark, reader(database), position)
    assert (ids(rows), position["watermark"]) == ([1], "2024-01-01 10:00:00")
    database.execute("DELETE FROM orders", insert(1, "2024-01-01 09:00:00"))
    with pytest.raises(InputError, match="was 2024-01-01 10:00:00 and is 2024-01-01 09:00:00 now"):
        run(spark, reader(database), position)


def test_another_watermark_column_is_told(spark: Any, database: Database) -> None:
    """A position by another column, or of another kind of source, is not mistaken."""
    database.execute(TABLE, insert(1, "2024-01-01 10:00:00"))
    position = run(spark, reader(database))[1]
    with pytest.raises(InputError, match=r"was at \(timestamp\) so far and is id \(number\) now"):
        run(spark, reader(database, watermark="id"), position)
    with pytest.raises(InputError, match=r"is at \(timestamp\) now"):
        run(spark, reader(database), {"files": {}})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"password_secret": "wrong"}, "password authentication failed.*correct user, or the secret 'wrong'"),
        ({"password_secret": ""}, "no password was provided.*password_secret"),
        ({"password_secret": "not_there"}, "no secret 'not_there'"),
        ({"url": "jdbc:postgresql://127.0.0.1:1/shop"}, "refused.*127.0.0.1:1/shop.*the database runs"),
        ({"url": "jdbc:postgresql://no-host.invalid/shop"}, "no host no-host.invalid"),
        ({"url": "jdbc:unknown://127.0.0.1/shop"}, "no driver for this address.*spark-jars"),
        ({"driver": "org.nobody.Driver"}, "no driver for this address"),
        ({"table": "missing"}, 'relation "missing" does not exist'),
        ({"table": "", "query": "SELECT nope FROM orders"}, 'column "nope" does not exist'),
        ({"watermark": "nope"}, "no column 'nope'; there are: id, who, what, at, shelf"),
        ({"watermark": "who"}, "column 'who' is of type string"),
        ({"partition_column": "who", "partitions": 2}, "column 'who' is of type string"),
        ({"overlap": 5}, "overlap does not fit at, which is a timestamp"),
        ({"watermark": "id", "overlap": "5min"}, "overlap does not fit id, which is a number"),
        ({"table": "", "query": "SELECT *, 1 / (id - 1) AS x FROM orders"}, "division by zero"),
    ],
)
def test_failures_are_one_line(
    spark: Any, database: Database, monkeypatch: pytest.MonkeyPatch, options: Any, message: str
) -> None:
    """What a person can cure is said in one line that names the address, and never the password."""
    monkeypatch.setenv("CARTWHEEL_SECRET_WRONG", "not-the-password")
    database.execute(TABLE, insert(1, "2024-01-01 10:00:00"))
    with pytest.raises(InputError, match=message) as caught:
        run(spark, reader(database, **options))
    line = str(caught.value)
    assert "\n" not in line
    assert database.password not in line
    assert "not-the-password" not in line


def test_declared_columns_must_be_there(spark: Any, database: Database) -> None:
    """A declared column that the table lacks is told before anything is read."""
    database.execute(TABLE)
    with pytest.raises(InputError, match="no column 'person'"):
        run(spark, reader(database, {**COLUMNS, "user_id": "person"}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "jdbc:postgresql://h/db?user=a&password=hunter2"}, "holds a password"),
        ({"url": "jdbc:mysql://ann:hunter2@h/db"}, "holds a password"),
        ({"url": "jdbc:oracle:thin:ann/hunter2@h:1521/x"}, "holds a password"),
        ({"url": "postgresql://h/db"}, "url"),
        ({"query": "SELECT 1"}, "either table or query"),
        ({"partitions": 2}, "belong together"),
        ({"overlap": "soon"}, "a length of time"),
        ({"overlap": -1}, "a length of time"),
        ({"fetchsize": 1}, "fetchsize"),
    ],
)
def test_options_that_do_not_fit(options: Any, message: str) -> None:
    """Options that contradict each other, or hold a password, are refused."""
    with pytest.raises(ValidationError, match=message):
        Options.model_validate({"url": "jdbc:postgresql://h:5/db", "table": "t", "watermark": "w"} | options)


@pytest.mark.parametrize(
    "url", ["jdbc:postgresql://h:5/db?x=a@b", "jdbc:oracle:thin:@//h:1521/x", "jdbc:sqlserver://h;databaseName=a"]
)
def test_addresses_without_a_password_are_taken(url: str) -> None:
    """Only passwords are refused."""
    assert Options(url=url, table="t", watermark="w").url == url


def test_another_database(spark: Any, database: Database) -> None:
    """Derby, which is no PostgreSQL, is read by the same SQL."""
    url = "jdbc:derby:memory:shop;create=true"
    driver = "org.apache.derby.iapi.jdbc.AutoloadedDriver"
    connection = spark._jvm.java.sql.DriverManager.getConnection(url)
    statement = connection.createStatement()
    statement.execute("CREATE TABLE orders (id INT, who VARCHAR(9), what VARCHAR(9), placed TIMESTAMP, placed_on DATE)")
    add = "INSERT INTO orders VALUES ({0}, 'ann', 'apple', '2024-01-{0:02d} 10:00:00.5', '2024-01-{0:02d}')"
    for number in range(1, 21):
        statement.execute(add.format(number))
    columns = {"user_id": "WHO", "item_id": "WHAT", "occurred_at": "PLACED"}
    for watermark in ("PLACED", "PLACED_ON", "ID"):
        declaration = {"url": url, "user": "", "password_secret": "", "driver": driver, "watermark": watermark}
        source = reader(database, columns, **declaration, partition_column="PLACED", partitions=3, overlap=0)
        rows, position = run(spark, source)
        assert sorted(int(row["ID"]) for row in rows or []) == list(range(1, 21))
        statement.execute("DELETE FROM orders WHERE id > 20")
        statement.execute(add.format(21))
        rows, position = run(spark, source, position)
        assert sorted(int(row["ID"]) for row in rows or []) == [20, 21]
        statement.execute("DELETE FROM orders WHERE id > 20")
    connection.close()


def test_a_long_transaction_is_not_passed_over(spark: Any, database: Database) -> None:
    """However many numbers others take while a transaction is open: its rows are read when it has ended."""
    database.execute(TABLE, insert(1, "2024-01-01 10:00:00"))
    source = reader(database, watermark="id", overlap=0)
    with closing(database.connect()) as late:
        late.cursor().execute(insert(2, "2024-01-01 10:01:00"))
        database.execute(insert(9000, "2024-01-01 10:02:00"))
        rows, position = run(spark, source)
        late.commit()
    assert (ids(rows), position["settled"]) == ([1, 9000], "1")
    rows, position = run(spark, source, position)
    assert (ids(rows), position["settled"]) == ([1, 2, 9000], "9000")
    assert ids(run(spark, source, position)[0]) == [9000]


def test_where_nothing_is_settled_reading_goes_on_from_the_same_place(spark: Any, database: Database) -> None:
    """The row that reading went on from is gone, and a transaction is open: nothing is passed over, and the start is not."""
    database.execute(TABLE, *(insert(number, "2024-01-01 10:00:00") for number in (1, 5)))
    source = reader(database, watermark="id", overlap=0)
    position = run(spark, source)[1]
    with closing(database.connect()) as late:
        late.cursor().execute(insert(7, "2024-01-01 10:01:00"))
        database.execute("DELETE FROM orders WHERE id = 5", insert(9, "2024-01-01 10:02:00"))
        rows, position = run(spark, source, position)
        assert (ids(rows), position["settled"]) == ([9], "5")
        late.commit()
    assert ids(run(spark, source, position)[0]) == [7, 9]


@pytest.mark.slow
def test_an_unchanged_table_makes_no_batch(shop: Any, database: Database) -> None:
    """What lies in the overlap is read again by each run, and lands once; where nothing is new, nothing is committed."""
    shop.write(shop__toml=SHOP.format(url=database.url))
    database.execute(TABLE, insert(1, "2024-01-01 10:00:00"))
    shop.land(1)
    state = storage.state(BRONZE_EVENTS)
    shop.land(1)
    assert storage.state(BRONZE_EVENTS) == state
    database.execute(insert(2, "2024-01-01 10:00:00"))
    shop.land(1)
    assert shop.values(BRONZE_EVENTS, "event_id") == [("tiny:1",), ("tiny:2",)]
    assert shop.values(LEDGER, "batch", "read", "landed", "duplicates") == [(1, 1, 1, 0), (2, 2, 1, 1)]
