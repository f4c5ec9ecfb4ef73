"""Files, a database, an API and Kafka feed one shop that grows; landing, the broker and cleaning are killed by -9 again
and again.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from confluent_kafka import Producer
from deltalake import DeltaTable

from contracts.settings import REPOSITORY
from contracts.tables import UNTIMED

SEED = int(os.environ.get("CARTWHEEL_TEST_FAULTS_SEED", "20170102"))
NUM_EVENTS = int(os.environ.get("CARTWHEEL_TEST_FAULTS_EVENTS", "5000")) // 5
"""Of each source."""
NUM_KILLS = int(os.environ.get("CARTWHEEL_TEST_FAULTS_KILLS", "3"))
"""Of landing and the broker together; cleaning is killed half as often."""
SOURCES = ("files", "database", "api", "stream")
PAGE = 100

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

SHOP = """
name = "shop"
[interval]
length = "1d"
first = 2024-01-01T00:00:00

[[events]]
name = "files"
path = "in"
format = "csv"
settle_s = 0.2
columns = {columns}

[[events]]
name = "database"
columns = {columns}
[events.jdbc]
url = "{database}"
user = "postgres"
password_secret = "shop_db"
table = "orders"
watermark = "id"
overlap = 50

[[events]]
name = "api"
columns = {columns}
[events.http]
url = "{api}"
records = "orders"
pages_a_batch = 4
requests_per_second = 200
cursor = {{ path = "next" }}

[[events]]
name = "stream"
columns = {columns}
[events.kafka]
servers = "{broker}"
topics = ["web", "app"]
max_records_a_batch = {batch}
"""
COLUMNS = '{ event_id = "id", user_id = "who", item_id = "what", occurred_at = "at" }'

Event = dict[str, Any]
Grow = Callable[[list[Event]], None]
"""Adds events to a source."""


def events(first: int, count: int) -> list[Event]:
    """Events by number; one in fifty has no time."""
    return [
        {
            "id": number,
            "who": f"u{number % 97}",
            "what": f"i{number % 31}",
            "at": "soon" if number % 50 == 7 else f"2024-01-{1 + number % 20:02d}T{number % 24:02d}:00:00",
        }
        for number in range(first, first + count)
    ]


@pytest.fixture
def files(tmp_path: Path) -> Grow:
    """A folder into which files of events are dropped; every other file repeats half of the one before."""
    folder = tmp_path / "in"
    folder.mkdir()
    before: list[Event] = []

    def grow(new: list[Event]) -> None:
        path = folder / f"{new[0]['id']:08d}.csv.part"
        rows = [*before[: len(before) // 2], *new]
        path.write_text("id,who,what,at\n" + "".join(",".join(map(str, row.values())) + "\n" for row in rows))
        path.rename(path.with_suffix(""))
        before[:] = new

    return grow


@pytest.fixture
def database(postgres_server: Any) -> tuple[str, Grow]:
    """A table that is inserted into."""
    postgres_server.execute("CREATE TABLE orders (id bigint, who text, what text, at text)")

    def grow(new: list[Event]) -> None:
        rows = ", ".join(f"({row['id']}, '{row['who']}', '{row['what']}', '{row['at']}')" for row in new)
        postgres_server.execute(f"INSERT INTO orders VALUES {rows}")

    return postgres_server.url, grow


@pytest.fixture
def api() -> Iterator[tuple[str, Grow]]:
    """An API that hands out events in pages by a cursor."""
    stock: list[Event] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            start = int(parse_qs(urlsplit(self.path).query).get("cursor", ["0"])[0])
            page = stock[start : start + PAGE]
            following = start + len(page) if len(page) == PAGE else None
            body = json.dumps({"orders": page, "next": following}).encode()
            with suppress(OSError):  # whoever asked was killed
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/orders", stock.extend
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def stream(broker: Any) -> Grow:
    """Two topics that are written to by an idempotent producer."""

    def grow(new: list[Event]) -> None:
        producer = Producer({"bootstrap.servers": broker.address, "enable.idempotence": True})
        for row in new:
            producer.produce(("web", "app")[row["id"] % 2], json.dumps(row).encode())
        assert producer.flush(60) == 0

    return grow


def test_killed_again_and_again(
    files: Grow, database: tuple[str, Grow], api: tuple[str, Grow], stream: Grow, broker: Any, postgres_server: Any,
    tmp_path: Path,
) -> None:  # fmt: skip
    """However often landing, the broker or cleaning dies, each event of each source is there once in the end, and every
    record accounted for.
    """
    sources = (files, database[1], api[1], stream)
    addresses = {"database": database[0], "api": api[0], "broker": broker.address}
    (tmp_path / "shop.toml").write_text(SHOP.format(columns=COLUMNS, batch=max(250, NUM_EVENTS // 12), **addresses))
    home, chance = tmp_path / "home", random.Random(SEED)
    tables, spool = home / "tables", home / "spool"
    environment = os.environ | {
        "CARTWHEEL_HOME": str(home),
        "CARTWHEEL_DATASET": str(tmp_path / "shop.toml"),
        "CARTWHEEL_DATA_DIR": str(tmp_path),
        "CARTWHEEL_SPARK_DRIVER_MEMORY": "1g",
        "CARTWHEEL_SECRET_SHOP_DB": postgres_server.password,
        "NO_PROXY": "127.0.0.1",
    }
    log = (tmp_path / "jobs.log").open("w")

    def start(*command: str) -> subprocess.Popen[bytes]:
        """A job in a process group of its own."""
        argv = [sys.executable, "-m", *command]
        return subprocess.Popen(
            argv, cwd=REPOSITORY, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )

    def wait_for_a_random_instant(job: subprocess.Popen[bytes]) -> None:
        """Up to ten seconds after it has begun to write."""
        before = progress()
        while job.poll() is None and progress() == before:
            time.sleep(0.02)
        with suppress(subprocess.TimeoutExpired):
            job.wait(chance.uniform(0, 10))

    def kill(job: subprocess.Popen[bytes]) -> None:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
        job.wait()

    def progress() -> int:
        """Grows with every file that landing writes: commits of tables, pages and parts it keeps."""
        # os.walk passes over a folder that landing removes meanwhile
        return sum(len(names) for folder in (tables, spool) for _, _, names in os.walk(folder))

    number, size = 0, NUM_EVENTS // (NUM_KILLS + 1) + 1
    victims = [victim for _ in range(NUM_KILLS) for victim in chance.sample(("landing", "broker"), 2)][:NUM_KILLS]
    for victim in [*victims, None]:
        for grow in sources:
            grow(events(number, min(size, NUM_EVENTS - number)))
        number += min(size, NUM_EVENTS - number)
        landing = start("spark_jobs.land", "--through", "31")
        try:
            if victim is not None:
                wait_for_a_random_instant(landing)
            if victim == "broker":
                broker.kill()
            if victim != "landing":
                landing.wait(900)
        finally:
            kill(landing)
        # 2: without its broker, landing says so and ends, having landed the other sources.
        may_end_with = {"landing": (0, -9), "broker": (0, 2), None: (0,)}[victim]
        assert landing.returncode in may_end_with, (tmp_path / "jobs.log").read_text()[-3000:]
    for _ in range(NUM_KILLS // 2):
        cleaning = start("spark_jobs.clean")
        wait_for_a_random_instant(cleaning)
        kill(cleaning)
    cleaning = start("spark_jobs.clean")
    assert cleaning.wait(900) == 0, (tmp_path / "jobs.log").read_text()[-3000:]
    log.close()

    def rows(table: str) -> Any:
        return DeltaTable(str(tables / table)).to_pandas()

    everything, ledger = rows("bronze_events"), rows("ledger")
    bronze, aside = (everything[everything.interval.ne(UNTIMED) == timed] for timed in (True, False))
    untimed = {
        f"{source}:{event['id']}" for source in SOURCES for event in events(0, NUM_EVENTS) if event["at"] == "soon"
    }
    assert everything.event_id.is_unique
    assert {f"{row.source}:{json.loads(row.record)['id']}" for row in aside.itertuples()} == untimed
    assert len(aside) == len(untimed)
    assert (
        set(bronze.event_id) == {f"{source}:{number}" for source in SOURCES for number in range(NUM_EVENTS)} - untimed
    )
    assert (ledger.read == ledger.landed + ledger.quarantined + ledger.duplicates).all()
    assert (ledger.landed.sum(), ledger.quarantined.sum()) == (len(bronze), len(aside))
    assert sorted(rows("silver_events").event_id) == sorted(bronze.event_id)
    assert sorted(rows("quarantine").event_id) == sorted(aside.event_id)
    assert [path for path in spool.rglob("*") if path.is_file()] == []
