"""Landing from files, a database and an API is killed by -9 again and again while the source grows."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from deltalake import DeltaTable

from contracts.settings import REPOSITORY

SEED = int(os.environ.get("CARTWHEEL_TEST_FAULTS_SEED", "20170102"))
NUM_EVENTS = int(os.environ.get("CARTWHEEL_TEST_FAULTS_EVENTS", "20000")) // 5
NUM_KILLS = max(2, int(os.environ.get("CARTWHEEL_TEST_FAULTS_KILLS", "4")) // 2)
PAGE = 100

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SHOP = """
name = "shop"
[interval]
length = "1d"
first = 2024-01-01T00:00:00
[events]
{source}
[events.columns]
event_id = "id"
user_id = "who"
item_id = "what"
occurred_at = "at"
"""
FILES = 'path = "in"\nformat = "csv"\nsettle_s = 0.2'
JDBC = """[events.jdbc]
url = "{url}"
user = "postgres"
password_secret = "shop_db"
table = "orders"
watermark = "id"
overlap = 50"""
HTTP = """[events.http]
url = "{url}"
records = "orders"
pages_a_batch = 8
requests_per_second = 200
cursor = {{ path = "next" }}"""

Event = dict[str, Any]


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


Grow = Callable[[list[Event]], None]
"""Adds events to a source."""


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, Grow]:
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

    return FILES, grow


@pytest.fixture
def database(postgres_server: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Grow]:
    """A table that is inserted into."""
    postgres_server.execute(
        "DROP TABLE IF EXISTS orders", "CREATE TABLE orders (id bigint, who text, what text, at text)"
    )
    monkeypatch.setenv("CARTWHEEL_SECRET_SHOP_DB", postgres_server.password)

    def grow(new: list[Event]) -> None:
        rows = ", ".join(f"({row['id']}, '{row['who']}', '{row['what']}', '{row['at']}')" for row in new)
        postgres_server.execute(f"INSERT INTO orders VALUES {rows}")

    return JDBC.format(url=postgres_server.url), grow


@pytest.fixture
def api() -> Iterator[tuple[str, Grow]]:
    """An API that hands out events in pages by a cursor."""
    there: list[Event] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            start = int(parse_qs(urlsplit(self.path).query).get("cursor", ["0"])[0])
            page = there[start : start + PAGE]
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
    yield HTTP.format(url=f"http://127.0.0.1:{server.server_port}/orders"), there.extend
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("source", ["files", "database", "api"])
def test_killed_again_and_again(source: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """However often landing dies, each event is there once in the end, and every record is accounted for."""
    declared, grow = request.getfixturevalue(source)
    (tmp_path / "shop.toml").write_text(SHOP.format(source=declared))
    home, chance = tmp_path / "home", random.Random(f"{SEED} {source}")
    environment = os.environ | {
        "CARTWHEEL_HOME": str(home),
        "CARTWHEEL_DATASET": str(tmp_path / "shop.toml"),
        "CARTWHEEL_DATA_DIR": str(tmp_path),
        "CARTWHEEL_SPARK_DRIVER_MEMORY": "1g",
        "NO_PROXY": "127.0.0.1",
    }
    command = [sys.executable, "-m", "spark_jobs.land", "--through", "31"]
    kills, ended, size = 0, 0, NUM_EVENTS // (NUM_KILLS + 1) + 1
    number = 0
    with (tmp_path / "land.log").open("w") as log:
        while kills < NUM_KILLS or number < NUM_EVENTS or ended < 1:
            if number < NUM_EVENTS:
                count = min(size, NUM_EVENTS - number)
                grow(events(number, count))
                number += count
            landing = subprocess.Popen(
                command, cwd=REPOSITORY, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                landing.wait(chance.uniform(6, 25) if kills < NUM_KILLS else 600)
                assert landing.returncode == 0, (tmp_path / "land.log").read_text()[-3000:]
                ended += number >= NUM_EVENTS
            except subprocess.TimeoutExpired:
                os.killpg(landing.pid, signal.SIGKILL)
                landing.wait()
                kills, ended = kills + 1, 0

    def rows(table: str) -> Any:
        return DeltaTable(str(home / "tables" / table)).to_pandas()

    bronze, quarantine, ledger = rows("bronze_events"), rows("quarantine"), rows("ledger")
    untimed = {f"shop:{event['id']}" for event in events(0, NUM_EVENTS) if event["at"] == "soon"}
    assert bronze.event_id.is_unique
    assert quarantine.event_id.is_unique
    assert set(quarantine.event_id) == untimed
    assert set(bronze.event_id) == {f"shop:{number}" for number in range(NUM_EVENTS)} - untimed
    assert (ledger.read == ledger.landed + ledger.quarantined + ledger.duplicates).all()
    assert (ledger.landed.sum(), ledger.quarantined.sum()) == (len(bronze), len(quarantine))
    assert not (home / "spool" / "shop").exists() or not list((home / "spool" / "shop").iterdir())
