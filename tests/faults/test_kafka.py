"""One stack and one broker: everything between Kafka and the tables is killed at random instants."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from confluent_kafka import Producer
from deltalake import DeltaTable

from contracts.names import INGEST_EVENTS
from contracts.tables import UNTIMED
from deploy.local import airflow_api
from deploy.local.secrets import read_or_create

SEED = int(os.environ.get("CARTWHEEL_TEST_FAULTS_SEED", "20170102"))
NUM_EVENTS = int(os.environ.get("CARTWHEEL_TEST_FAULTS_EVENTS", "5000"))
NUM_KILLS = int(os.environ.get("CARTWHEEL_TEST_FAULTS_KILLS", "4"))
TOPICS = ("web", "app")
KINDS = ("driver", "worker", "scheduler", "broker")

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]

SHOP = """
name = "shop"
[interval]
length = "1d"
first = 2024-01-01T00:00:00
[events.kafka]
servers = "{servers}"
topics = ["web", "app"]
max_records_a_batch = {batch}
[events.columns]
event_id = "id"
user_id = "who"
item_id = "what"
occurred_at = "when"
"""


class Stream:
    """Events by a seed: most sound and sent once, some sent again, some without a time, some no JSON at all."""

    def __init__(self, seed: int, size: int) -> None:
        self._chance, self._size = random.Random(seed), size
        self.num_sent: Counter[str] = Counter()
        """How often each kind was delivered."""
        self.ids: set[str] = set()
        """Of the sound events."""

    def values(self) -> Iterator[tuple[str, bytes]]:
        """Each message with its kind: sound, again, untimed, broken."""
        earlier: list[bytes] = []
        for number in range(self._size):
            drawn = self._chance.random()
            if drawn < 0.005:
                yield "broken", b'{"id": "' + str(number).encode() + b'", "who": '
            elif drawn < 0.015:
                yield "untimed", json.dumps({"id": f"u{number}", "who": "ann", "what": "x", "when": "soon"}).encode()
            elif drawn < 0.05 and earlier:
                yield "again", self._chance.choice(earlier)
            else:
                day = 1 + self._chance.randrange(20)
                when = f"2024-01-{day:02d}T{number % 24:02d}:00:00Z"
                value = json.dumps(
                    {"id": str(number), "who": f"u{number % 500}", "what": f"i{number % 90}", "when": when}
                ).encode()
                earlier = [*earlier[-200:], value]
                self.ids.add(str(number))
                yield "sound", value


@pytest.fixture(scope="module")
def stack(install: Callable[..., Any], broker: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An installation that is up, of a shop whose events come from the broker."""
    shop = tmp_path_factory.mktemp("shop") / "shop.toml"
    shop.write_text(SHOP.format(servers=broker.address, batch=max(1000, NUM_EVENTS // 12)))
    installation = install(dataset=shop)
    assert installation.run("up") == 0, installation.output
    return installation


def connected(stack: Any) -> Any:
    """Airflow's API of the stack, as admin."""
    url = f"http://127.0.0.1:{stack.environment['CARTWHEEL_AIRFLOW_PORT']}"
    password = read_or_create(stack.home / "secrets.json").airflow_admin_password
    return airflow_api.connect(url, "admin", password, timeout_s=60)


def produce(stream: Stream, address: str, until: threading.Event, seconds: float) -> None:
    """Send everything, spread over some time; each message acknowledged, once (an idempotent producer)."""
    producer = Producer({"bootstrap.servers": address, "enable.idempotence": True, "message.timeout.ms": 600_000})
    failed: list[Any] = []

    def count(error: Any, message: Any) -> None:
        if error is not None:
            failed.append(error)

    pause_s = seconds / max(1, stream._size // 500)
    for place, (kind, value) in enumerate(stream.values()):
        producer.produce(TOPICS[place % 2], value, on_delivery=count)
        stream.num_sent[kind] += 1
        producer.poll(0)
        if place % 500 == 499:
            until.wait(pause_s)
    producer.flush()
    assert not failed, failed[:3]


def targets(kind: str, processes: list[psutil.Process]) -> list[psutil.Process]:
    """The processes of an installation that are of a kind."""
    victims = []
    for process in processes:
        with suppress(psutil.Error):
            line = " ".join(process.cmdline())
            if kind == "driver" and ("spark_jobs/land.py" in line or "SparkSubmit" in line):
                victims.append(process)
            if (
                kind == "scheduler"
                and "airflow scheduler" in line
                and "airflow" not in " ".join(process.parent().cmdline())
            ):
                victims.append(process)
            if kind == "worker" and "airflow" in line and "worker" in line and "scheduler" not in line:
                victims.append(process)
    return victims


def landed(home: Path, table: str) -> Any:
    return DeltaTable(str(home / "tables" / table)).to_pandas()


def accounted(home: Path) -> int:
    """Records in the ledger so far."""
    with suppress(Exception):
        return int(landed(home, "ledger")["read"].sum())
    return 0


def test_kafka_to_delta_under_fire(stack: Any, broker: Any) -> None:
    """Driver, Airflow's worker and scheduler, and the broker die by -9; the tables end equal to what was sent."""
    chance, home = random.Random(SEED), stack.home
    victims = [victim for _ in range(NUM_KILLS) for victim in chance.sample(KINDS, len(KINDS))][:NUM_KILLS]
    stream, all_sent = Stream(SEED, NUM_EVENTS), threading.Event()
    sender = threading.Thread(target=produce, args=(stream, broker.address, all_sent, 10.0 * NUM_KILLS))
    sender.start()
    kills: Counter[str] = Counter()
    try:
        with connected(stack) as airflow:
            airflow_api.wait_for_dag(airflow, INGEST_EVENTS)
            next_kill, deadline, run_number = time.monotonic() + 8, time.monotonic() + 3000, 0
            while True:
                assert time.monotonic() < deadline, (kills, accounted(home), stream.num_sent)
                with suppress(httpx.HTTPError):
                    runs = airflow_api.list_runs(airflow, INGEST_EVENTS)
                    if all(run.state in airflow_api.ENDED for run in runs):
                        if not sender.is_alive() and accounted(home) >= NUM_EVENTS and sum(kills.values()) >= NUM_KILLS:
                            break
                        run_number += 1
                        airflow_api.trigger(airflow, INGEST_EVENTS, f"fire_{run_number}", {"through": "31"})
                if sum(kills.values()) < NUM_KILLS and time.monotonic() > next_kill:
                    kind = victims[sum(kills.values())]
                    hit = targets(kind, stack.processes()) if kind != "broker" else []
                    if kind == "broker":
                        broker.kill()
                    elif hit:
                        chance.choice(hit).send_signal(signal.SIGKILL)
                    if hit or kind == "broker":
                        kills[kind] += 1
                        next_kill = time.monotonic() + chance.uniform(3, 15)
                time.sleep(0.5)
    finally:
        all_sent.set()
        sender.join()
    print(f"seed {SEED}: {NUM_EVENTS} messages, killed {dict(kills)}, {run_number} runs")

    everything, ledger = landed(home, "bronze_events"), landed(home, "ledger")
    bronze, untimed = (everything[everything.interval.ne(UNTIMED) == timed] for timed in (True, False))
    # None lost, none doubled: the sets are equal.
    assert everything.event_id.is_unique
    assert set(bronze.event_id) == {f"shop:{number}" for number in stream.ids}
    aside = stream.num_sent["untimed"] + stream.num_sent["broken"]
    assert len(untimed) == aside
    # Every record is accounted for, in every batch.
    assert (ledger.read == ledger.landed + ledger.quarantined + ledger.duplicates).all()
    assert not ledger.duplicated(["source", "batch", "interval"]).any()
    sums = ledger[["read", "landed", "quarantined", "duplicates"]].sum()
    assert sums.to_dict() == {
        "read": NUM_EVENTS,
        "landed": stream.num_sent["sound"],
        "quarantined": aside,
        "duplicates": stream.num_sent["again"],
    }
    assert kills == Counter(victims)
