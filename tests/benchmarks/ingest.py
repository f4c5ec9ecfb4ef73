"""`make bench-ingest`: how fast each source lands, beside a plain Spark job that copies the same input, in one run.

Writes `docs/benchmarks/ingest.json`: records of source, rows, batch, seconds, rows_per_s, floor_seconds and
share_of_floor. The floor reads the same input (HTTP: pages fetched by a plain client first) and writes the same columns,
partitioned by interval, to Delta, without ids and checks. Batch 1 meets an empty installation, batch 50 one that 49
batches have landed in. Each batch goes on four weeks after the one before it, and overlaps it by a day. Each figure is
the median of the runs; floor and landing take turns, so that a busy moment hits both.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count, islice
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qs, urlsplit

from contracts import dataset as datasets
from contracts.files import write_json
from contracts.settings import REPOSITORY, settings

RESULT = REPOSITORY / "docs" / "benchmarks" / "ingest.json"
PAGE = 5000
FIRST_S = 1_577_836_800
DAY_S = 86_400
COLUMNS = ("id", "who", "what", "at", "visit", "pieces", "cost")
SHOP = """
name = "bench"
[interval]
length = "1d"
first = 2020-01-01T00:00:00
lateness_limit = "3650d"
[events]
settle_s = 0
{source}
[events.columns]
event_id = "id"
user_id = "who"
item_id = "what"
occurred_at = "at"
session_id = "visit"
quantity = "pieces"
price = "cost"
"""


class Input(Protocol):
    """A source that holds batches of the same rule."""

    source: str
    """Of the dataset file."""

    def put(self, batch: Path, number: int) -> None:
        """Add a batch (a folder of JSON lines)."""

    def read(self, spark: Any) -> Any:
        """The batch that was put last, by a plain reader."""


def make_batch(spark: Any, number: int, rows: int, folder: Path) -> Path:
    """JSON lines of the batch with this number."""
    from pyspark.sql import functions as F

    each, path = F.col("id"), folder / "batches" / str(number)
    when = F.lit(FIRST_S + (number - 1) * 27 * DAY_S) + (each * 40_503) % (28 * DAY_S)
    spark.range(rows, numPartitions=4).select(
        F.concat_ws("-", F.lit(number), each).alias("id"),
        F.concat(F.lit("u"), each % 20_000).alias("who"),
        F.concat(F.lit("i"), (each * 7919) % 50_000).alias("what"),
        F.date_format(F.timestamp_seconds(when), "yyyy-MM-dd'T'HH:mm:ss'Z'").alias("at"),
        F.concat(F.lit("s"), F.floor(each / 5)).alias("visit"),
        (1 + each % 4).cast("string").alias("pieces"),
        F.format_number(each % 1000 / 10, 2).alias("cost"),
    ).write.mode("overwrite").json(str(path))
    return path


def lines_of(batch: Path) -> Iterator[bytes]:
    for path in sorted(batch.glob("*.json")):
        with path.open("rb") as file:
            yield from (line.rstrip() for line in file)


def chunks(lines: Iterator[bytes], size: int) -> Iterator[list[bytes]]:
    return iter(lambda: list(islice(lines, size)), [])


class Files:
    def __init__(self, folder: Path, kind: str, spark: Any) -> None:
        self.source, self._folder, self._kind, self._spark = f'path = "{kind}"\nformat = "{kind}"', folder, kind, spark
        self._last = ""

    def put(self, batch: Path, number: int) -> None:
        self._last = str(self._folder / self._kind / str(number))
        writer = self._spark.read.json(str(batch)).select(*COLUMNS).write.mode("overwrite").option("header", True)
        getattr(writer, self._format)(self._last)

    def read(self, spark: Any) -> Any:
        return getattr(spark.read.option("header", True), self._format)(self._last)

    @property
    def _format(self) -> str:
        return "json" if self._kind == "jsonl" else self._kind


class Kafka:
    def __init__(self, address: str) -> None:
        from confluent_kafka import Producer

        self._address, self._first, self._end = address, 0, 0
        self._producer = Producer(
            {"bootstrap.servers": address, "linger.ms": 50, "queue.buffering.max.messages": 1_000_000}
        )
        self.source = f'[events.kafka]\nservers = "{address}"\ntopics = "events"'

    def put(self, batch: Path, number: int) -> None:
        self._first = self._end
        for line in lines_of(batch):
            self._producer.produce("events", line, partition=0)
            self._producer.poll(0)
            self._end += 1
        self._producer.flush()

    def read(self, spark: Any) -> Any:
        from pyspark.sql import functions as F

        offsets = [json.dumps({"events": {"0": offset}}) for offset in (self._first, self._end)]
        messages = (
            spark.read.format("kafka").option("kafka.bootstrap.servers", self._address).option("subscribe", "events")
            .option("startingOffsets", offsets[0]).option("endingOffsets", offsets[1]).load()
        )  # fmt: skip
        schema = ", ".join(f"{name} string" for name in COLUMNS)
        return messages.select(F.from_json(F.col("value").cast("string"), schema).alias("row")).select("row.*")


class Database:
    def __init__(self, server: Any) -> None:
        self._server, self._first, self._end = server, 1, 0
        server.execute(
            "CREATE TABLE events"
            " (id text, who text, what text, at text, visit text, pieces text, cost text, n bigserial primary key)"
        )
        os.environ["CARTWHEEL_SECRET_BENCH_DB"] = server.password
        self.source = (
            f'[events.jdbc]\nurl = "{server.url}"\nuser = "postgres"\npassword_secret = "bench_db"\n'
            'table = "events"\nwatermark = "n"\noverlap = 0\npartition_column = "n"\npartitions = 2'
        )

    def put(self, batch: Path, number: int) -> None:
        import io

        self._first = self._end + 1
        with closing(self._server.connect()) as shop, shop, shop.cursor() as cursor:
            for lines in chunks(lines_of(batch), 100_000):
                rows = ["\t".join(json.loads(line)[name] for name in COLUMNS) for line in lines]
                cursor.copy_expert(f"COPY events ({', '.join(COLUMNS)}) FROM STDIN", io.StringIO("\n".join(rows)))
                self._end += len(rows)

    def read(self, spark: Any) -> Any:
        middle = (self._first + self._end) // 2
        return spark.read.jdbc(
            self._server.url, "events",
            predicates=[f"n >= {self._first} AND n < {middle}", f"n >= {middle} AND n <= {self._end}"],
            properties={"user": "postgres", "password": self._server.password, "driver": "org.postgresql.Driver", "fetchsize": "10000"},
        )  # fmt: skip


def serve_pages(folder: Path, connection: Any) -> None:
    """A server of the files in `folder`, page n is `n`; says its port."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = folder / parse_qs(urlsplit(self.path).query)["page"][0]
            body = path.read_bytes() if path.exists() else b"[]"
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    connection.send(server.server_port)
    server.serve_forever()


class Api:
    def __init__(self, folder: Path, port: int) -> None:
        self._pages, self._first, self._next = folder, 1, 1
        self._url = f"http://127.0.0.1:{port}/"
        self.source = (
            f'[events.http]\nurl = "{self._url}"\nrequests_per_second = 10000\noldest_first = true\npage = {{}}'
        )

    def put(self, batch: Path, number: int) -> None:
        self._first = self._next
        for lines in chunks(lines_of(batch), PAGE):
            (self._pages / str(self._next)).write_bytes(b"[" + b",".join(lines) + b"]")
            self._next += 1

    def read(self, spark: Any) -> Any:
        import httpx

        fetched = Path(tempfile.mkdtemp(dir=self._pages.parent))
        with httpx.Client() as client:
            for number in range(self._first, self._next):
                (fetched / f"{number}.json").write_bytes(client.get(self._url, params={"page": number}).content)
        return spark.read.option("multiLine", True).json(str(fetched))


@contextmanager
def opened(kind: str, folder: Path, spark: Any) -> Iterator[Input]:
    """A source of a kind, without batches."""
    with ExitStack() as stack:
        if kind == "kafka":
            from deploy.local import kafka as local
            from deploy.local.java import find_java

            java = find_java(settings(), os.environ)
            broker = local.start(java, local.jars(settings(), java), folder / "kafka")
            stack.callback(local.stop, broker)
            yield Kafka(broker.address)
        elif kind == "jdbc":
            from tests.conftest import running_postgres

            yield Database(stack.enter_context(running_postgres()))
        elif kind == "http":
            (folder / "pages").mkdir()
            ours, theirs = multiprocessing.get_context("spawn").Pipe()
            process = multiprocessing.get_context("spawn").Process(target=serve_pages, args=(folder / "pages", theirs))
            process.start()
            stack.callback(process.terminate)
            yield Api(folder / "pages", ours.recv())
        else:
            yield Files(folder, kind, spark)


@contextmanager
def home(folder: Path, source: str) -> Iterator[datasets.Dataset]:
    """An empty installation whose shop has one source."""
    own = Path(tempfile.mkdtemp(dir=folder))
    (own / "shop.toml").write_text(SHOP.format(source=source))
    os.environ |= {
        "CARTWHEEL_HOME": str(own / "home"),
        "CARTWHEEL_DATASET": str(own / "shop.toml"),
        "CARTWHEEL_DATA_DIR": str(folder),
    }
    settings.cache_clear()
    yield datasets.load(own / "shop.toml")
    shutil.rmtree(own)


def land_s(dataset: datasets.Dataset, folder: Path, rows: int) -> float:
    """Seconds to land what is new, which must be `rows`."""
    from contracts.tables import BRONZE_EVENTS
    from spark_jobs import land, storage

    before = storage.total_rows(BRONZE_EVENTS)
    started = time.monotonic()
    assert land.main(dataset, folder, None, None, datetime.now(UTC)) == 0
    seconds = time.monotonic() - started
    landed = storage.total_rows(BRONZE_EVENTS) - before
    assert landed == rows, f"{landed} of {rows} have landed"
    return seconds


def floor_s(spark: Any, source: Input, folder: Path, rows: int) -> float:
    """Seconds of a plain copy of the batch that was put last."""
    from pyspark.sql import functions as F

    target = str(folder / "floor")
    started = time.monotonic()
    at = (F.unix_micros(F.col("at").cast("timestamp")) - FIRST_S * 1_000_000) / (DAY_S * 1e6)
    nothing = F.lit(None).cast("string")
    source.read(spark).select(
        F.lit("bench").alias("source"), (F.floor(at) + 1).cast("int").alias("interval"), F.col("id").alias("event_id"),
        F.col("who").alias("user_id"), F.col("what").alias("item_id"), F.lit("event").alias("event_type"),
        F.col("at").cast("timestamp").alias("occurred_at"), at.alias("at"), F.col("visit").alias("session_id"),
        F.col("pieces").cast("double").alias("quantity"), F.col("cost").cast("double").alias("price"),
        F.array().cast("array<string>").alias("problems"), F.create_map().cast("map<string,string>").alias("extra"),
        nothing.alias("record"), F.current_timestamp().alias("ingested_at"),
    ).write.format("delta").partitionBy("interval").save(target)  # fmt: skip
    seconds = time.monotonic() - started
    assert spark.read.format("delta").load(target).count() == rows
    shutil.rmtree(target)
    return seconds


def measure(spark: Any, kind: str, folder: Path, rows: int, runs: int, batches: int) -> Iterator[dict[str, Any]]:
    """Records of one source: for its batch with the number `batches` and its first one."""
    with opened(kind, folder, spark) as source:
        numbers = count(1)

        def put(num_rows: int) -> None:
            batch = make_batch(spark, number := next(numbers), num_rows, folder)
            source.put(batch, number)
            shutil.rmtree(batch)

        def record(batch: int, seconds: list[float], floors: list[float]) -> dict[str, Any]:
            middle, least = statistics.median(seconds), statistics.median(floors)
            return {
                "source": kind, "rows": rows, "batch": batch, "seconds": round(middle, 1),
                "rows_per_s": round(rows / middle), "floor_seconds": round(least, 1), "share_of_floor": round(least / middle, 2),
            }  # fmt: skip

        times: list[float] = []
        floors: list[float] = []
        if batches > 1:
            with home(folder, source.source) as dataset:
                small = max(rows // 10, 1)
                for _ in range(batches - 1):
                    put(small)
                    land_s(dataset, folder, small)
                for _ in range(runs):
                    put(rows)
                    floors.append(floor_s(spark, source, folder, rows))
                    times.append(land_s(dataset, folder, rows))
            yield record(batches, times, floors)
    for own in (folder / kind, folder / "pages"):
        shutil.rmtree(own, ignore_errors=True)
    with opened(kind, folder, spark) as source:
        put(rows)
        times, floors = [], []
        for _ in range(runs + 1):
            with home(folder, source.source) as dataset:
                floors.append(floor_s(spark, source, folder, rows))
                times.append(land_s(dataset, folder, rows))
        yield record(1, times[1:], floors[1:])  # in the first one the JVM warms up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--batches", type=int, default=50, help="1: only the first batch is measured")
    parser.add_argument("--sources", nargs="+", default=["parquet", "csv", "jsonl", "kafka", "jdbc", "http"])
    parser.add_argument("--write", type=Path, default=RESULT, help="where the records go")
    chosen = parser.parse_args()
    os.environ["NO_PROXY"] = "127.0.0.1"
    from spark_jobs.session import session

    records = []
    spark = session("bench")
    try:
        for kind in chosen.sources:
            for rows in chosen.rows:
                with tempfile.TemporaryDirectory(prefix="cartwheel-bench-") as folder:
                    for record in measure(spark, kind, Path(folder), rows, chosen.runs, chosen.batches):
                        print(json.dumps(record), flush=True)
                        records.append(record)
    finally:
        spark.stop()
    write_json(chosen.write, records)


if __name__ == "__main__":
    main()
