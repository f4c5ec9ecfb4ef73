"""`make bench-ingest`: how fast each source lands, beside a plain copy of the same rows by Spark, in one run.

Writes `docs/benchmarks/ingest.json`: records of source, rows, seconds, rows_per_s and share_of_floor. The floor of every
source is Spark reading the same rows from files and writing them to Delta, partitioned as bronze is: CSV for csv, JSON
lines for jsonl, Kafka and HTTP, Parquet for parquet and the database. Each figure is the median of the runs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from contracts import dataset as datasets
from contracts.files import write_json
from contracts.settings import REPOSITORY, settings

RESULT = REPOSITORY / "docs" / "benchmarks" / "ingest.json"
PAGE = 5000
SHOP = """
name = "bench"
[interval]
length = "1d"
first = 2024-01-01T00:00:00
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


def made(spark: Any, rows: int, folder: Path) -> None:
    """Files of the same events in each format."""
    from pyspark.sql import functions as F

    number = F.col("id")
    events = spark.range(rows, numPartitions=4).select(
        number.cast("string").alias("id"),
        F.concat(F.lit("u"), number % 20_000).alias("who"),
        F.concat(F.lit("i"), (number * 7919) % 50_000).alias("what"),
        F.date_format(
            F.timestamp_seconds(F.lit(1_704_067_200) + number % (28 * 86_400)), "yyyy-MM-dd'T'HH:mm:ss'Z'"
        ).alias("at"),
        F.concat(F.lit("s"), F.floor(number / 5)).alias("visit"),
        (1 + number % 4).cast("string").alias("pieces"),
        F.format_number(number % 1000 / 10, 2).alias("cost"),
    )
    events.write.parquet(str(folder / "parquet"))
    spark.read.parquet(str(folder / "parquet")).write.option("header", True).csv(str(folder / "csv"))
    spark.read.parquet(str(folder / "parquet")).write.json(str(folder / "jsonl"))


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


def land(folder: Path, source: str, rows: int) -> float:
    """Seconds to land everything; all of it must have landed."""
    from contracts.tables import BRONZE_EVENTS
    from spark_jobs import land as landing
    from spark_jobs import storage

    with home(folder, source) as dataset:
        started = time.monotonic()
        assert landing.main(dataset, folder, None, 40, datetime.now(UTC)) == 0
        seconds = time.monotonic() - started
        landed = storage.total_rows(BRONZE_EVENTS)
        assert landed == rows, f"{landed} of {rows} have landed"
    return seconds


def floor(spark: Any, folder: Path, kind: str, rows: int) -> float:
    """Seconds of a plain copy of the files to Delta."""
    from pyspark.sql import functions as F

    target = folder / "floor"
    started = time.monotonic()
    found = getattr(spark.read.option("header", True), "json" if kind == "jsonl" else kind)(str(folder / kind))
    copied = found.withColumn("interval", F.datediff(F.to_date("at"), F.lit("2024-01-01")) + 1).repartition("interval")
    copied.write.format("delta").partitionBy("interval").save(str(target))
    seconds = time.monotonic() - started
    assert spark.read.format("delta").load(str(target)).count() == rows
    shutil.rmtree(target)
    return seconds


@contextmanager
def kafka(folder: Path) -> Iterator[str]:
    """A broker that holds the events."""
    from confluent_kafka import Producer

    from deploy.local import kafka as local
    from deploy.local.java import find_java

    chosen = settings()
    java = find_java(chosen, os.environ)
    broker = local.start(java, local.jars(chosen, java), folder / "kafka")
    producer = Producer(
        {"bootstrap.servers": broker.address, "linger.ms": 50, "queue.buffering.max.messages": 1_000_000}
    )
    for path in sorted((folder / "jsonl").glob("*.json")):
        for line in path.open("rb"):
            producer.produce("events", line.rstrip())
            producer.poll(0)
    producer.flush()
    yield f'[events.kafka]\nservers = "{broker.address}"\ntopics = "events"\nmax_records_a_batch = 1000000'
    local.stop(broker)


@contextmanager
def database(folder: Path) -> Iterator[str]:
    """An embedded PostgreSQL that holds the events."""
    from tests.conftest import running_postgres

    with running_postgres() as server:
        server.execute(
            "CREATE TABLE events"
            " (id text, who text, what text, at text, visit text, pieces text, cost text, n bigserial primary key)"
        )
        with server.connect() as shop, shop.cursor() as cursor:
            for path in sorted((folder / "csv").glob("*.csv")):
                with path.open() as file:
                    cursor.copy_expert(
                        "COPY events (id, who, what, at, visit, pieces, cost) FROM STDIN CSV HEADER", file
                    )
        shop.close()
        os.environ["CARTWHEEL_SECRET_BENCH_DB"] = server.password
        yield (
            f'[events.jdbc]\nurl = "{server.url}"\nuser = "postgres"\npassword_secret = "bench_db"\n'
            'table = "events"\nwatermark = "n"\npartition_column = "n"\npartitions = 2'
        )


@contextmanager
def api(folder: Path) -> Iterator[str]:
    """A server in a thread of this process that hands out the events in pages made beforehand."""
    lines = [line.rstrip() for path in sorted((folder / "jsonl").glob("*.json")) for line in path.open("rb")]
    pages = [b"[" + b",".join(lines[start : start + PAGE]) + b"]" for start in range(0, len(lines), PAGE)]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            number = int(parse_qs(urlsplit(self.path).query)["page"][0])
            body = pages[number - 1] if number <= len(pages) else b"[]"
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'[events.http]\nurl = "http://127.0.0.1:{server.server_port}/"\nrequests_per_second = 10000\npages_a_batch = 1000\npage = {{}}'
    server.shutdown()


@contextmanager
def files(kind: str) -> Iterator[str]:
    yield f'path = "{kind}"\nformat = "{kind}"'


def measured(spark: Any, folder: Path, rows: int, runs: int) -> list[dict[str, Any]]:
    """A record for each source."""
    declared: dict[str, tuple[Callable[[], Any], str]] = {
        "parquet": (lambda: files("parquet"), "parquet"),
        "csv": (lambda: files("csv"), "csv"),
        "jsonl": (lambda: files("jsonl"), "jsonl"),
        "kafka": (lambda: kafka(folder), "jsonl"),
        "jdbc": (lambda: database(folder), "parquet"),
        "http": (lambda: api(folder), "jsonl"),
    }
    records = []
    for name, (opened, kind) in declared.items():
        with opened() as source:
            times, floors = [], []
            for _ in range(runs):  # in turn, so that a busy moment hits both
                floors.append(floor(spark, folder, kind, rows))
                times.append(land(folder, source, rows))
        seconds, least = statistics.median(times), statistics.median(floors)
        records.append(
            {
                "source": name,
                "rows": rows,
                "seconds": round(seconds, 1),
                "rows_per_s": round(rows / seconds),
                "floor_seconds": round(least, 1),
                "share_of_floor": round(least / seconds, 2),
            }
        )
        print(json.dumps(records[-1]), flush=True)
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--write", type=Path, default=RESULT, help="where the records go")
    chosen = parser.parse_args()
    os.environ["NO_PROXY"] = "127.0.0.1"
    from spark_jobs.session import session

    folder = Path(tempfile.mkdtemp(prefix="cartwheel-bench-"))
    spark = session("bench")
    try:
        made(spark, chosen.rows, folder)
        with files("parquet") as source:  # the JVM warms up
            floor(spark, folder, "parquet", chosen.rows)
            land(folder, source, chosen.rows)
        records = measured(spark, folder, chosen.rows, chosen.runs)
    finally:
        spark.stop()
        shutil.rmtree(folder, ignore_errors=True)
    write_json(chosen.write, records)


if __name__ == "__main__":
    main()
