"""`make bench-arrival`: how long after an event has come its row is in silver, with landing each minute.

A whole installation runs, with a real Kafka: twelve hours of history, then events as fast as asked for, half of them by
Kafka, half by files that are put in place every five seconds. Intervals are of half an hour, so one ends meanwhile: it is
built, decided on and trained on beside. There are slots for that (`CARTWHEEL_AIRFLOW_PARALLELISM`), else landing would
wait for a training to end. An event comes when the broker or the folder has it; its row is there with the first commit of
silver that holds it.

Writes `docs/benchmarks/arrival.json`: records of source, part (whole, first third, last third), events, p50_s, p95_s, max_s;
and one of the source `all` with the events a second, minutes, lost, doubled, and files of the fullest interval.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from confluent_kafka import Producer

from contracts.files import write_json
from contracts.ports import free_ports
from contracts.settings import REPOSITORY, Settings, settings
from contracts.tables import BRONZE_EVENTS, SILVER_EVENTS
from deploy.local import kafka
from deploy.local.java import find_java
from deploy.local.progress import landed
from spark_jobs import storage

RESULT = REPOSITORY / "docs" / "benchmarks" / "arrival.json"
LENGTH = timedelta(minutes=30)
NUM_BEFORE, EVENTS_BEFORE = 24, 20_000
"""Intervals of history, and the events of each."""
PARALLELISM = 5
"""A training, a landing, and a step that takes one slot."""
FILE_S = 5.0
TOPIC = "events"
SHOP = """
name = "arrival"
[interval]
length = "30min"
first = {first}
volume_factor = 20.0
[[events]]
name = "drop"
path = "in"
format = "jsonl"
[events.columns]
event_id = "id"
user_id = "who"
item_id = "what"
occurred_at = "when"
[[events]]
name = "stream"
[events.kafka]
servers = "{servers}"
topics = ["{topic}"]
[events.columns]
event_id = "id"
user_id = "who"
item_id = "what"
occurred_at = "when"
"""


def event(chance: random.Random, number: int, source: str, when: datetime) -> str:
    user, item = chance.randrange(5000), int(chance.paretovariate(0.8)) % 800
    return json.dumps({"id": f"{source}{number}", "who": f"u{user}", "what": f"i{item}", "when": when.isoformat()})


def put(folder: Path, name: str, lines: list[str]) -> None:
    """A file, in place at once."""
    (folder / f"{name}.part").write_text("\n".join(lines) + "\n")
    (folder / f"{name}.part").rename(folder / name)


def send(folder: Path, address: str, events_per_s: float, until: float, ids: set[str]) -> None:
    """Send events at an even pace, each with the time at which it comes; `ids` gets what silver is to know them by."""
    chance, producer, number, lines = random.Random(1), Producer({"bootstrap.servers": address}), 0, 0
    started = last_s = time.monotonic()
    while (now := time.monotonic()) < until:
        while number < (now - started) * events_per_s / 2:
            producer.produce(TOPIC, event(chance, number, "k", datetime.now(UTC)))
            ids.add(f"stream:k{number}")
            number += 1
        producer.poll(0)
        if now - last_s >= FILE_S:
            size = int((now - started) * events_per_s / 2) - lines
            when = datetime.now(UTC)
            put(folder, f"{lines:07}.jsonl", [event(chance, lines + each, "f", when) for each in range(size)])
            ids.update(f"drop:f{lines + each}" for each in range(size))
            lines, last_s = lines + size, now
        time.sleep(0.02)
    producer.flush()


def commits() -> Iterator[tuple[float, list[str]]]:
    """Time of each commit of silver, and the files that it added."""
    log = Path(SILVER_EVENTS.uri) / "_delta_log"
    for path in sorted(log.glob("*.json")):
        actions = [json.loads(line) for line in path.read_text().splitlines()]
        [moment_ms] = [action["commitInfo"]["timestamp"] for action in actions if "commitInfo" in action]
        yield moment_ms / 1000, [action["add"]["path"] for action in actions if "add" in action]


def latencies(since: datetime) -> dict[str, list[tuple[float, float]]]:
    """By source: when each event came (seconds after `since`), and how long after its row was there."""
    ids_seen, by_source = set[str](), {"kafka": [], "files": []}  # type: ignore[var-annotated]
    for moment_s, paths in commits():
        for path in paths:
            rows = pq.read_table(f"{SILVER_EVENTS.uri}/{path}", columns=["event_id", "occurred_at"], partitioning=None)
            times = rows["occurred_at"].cast(pa.timestamp("us", "UTC")).to_pylist()
            for event_id, occurred_at in zip(rows["event_id"].to_pylist(), times, strict=True):
                kind = {"s": "kafka", "d": "files"}[event_id[0]]
                if event_id not in ids_seen and occurred_at >= since:
                    ids_seen.add(event_id)
                    by_source[kind].append(((occurred_at - since).total_seconds(), moment_s - occurred_at.timestamp()))
    return by_source


def records(since: datetime, minutes: float, events_per_s: float, ids_sent: set[str]) -> list[dict[str, Any]]:
    """What is written."""
    by_source, third_s, written = latencies(since), minutes * 20, []
    for source, pairs in by_source.items():
        parts = {
            "whole": pairs,
            "first third": [pair for pair in pairs if pair[0] < third_s],
            "last third": [pair for pair in pairs if pair[0] >= 2 * third_s],
        }
        for part, chosen in parts.items():
            delays = sorted(delay for _, delay in chosen)
            p95 = statistics.quantiles(delays, n=20)[-1]
            values = {"p50_s": statistics.median(delays), "p95_s": p95, "max_s": delays[-1]}
            rounded = {name: round(value, 1) for name, value in values.items()}
            written.append({"source": source, "part": part, "events": len(delays), **rounded})
    opened = storage.open_table(SILVER_EVENTS)
    assert opened is not None
    ids = Counter(opened.to_pyarrow_table(columns=["event_id"])["event_id"].to_pylist())
    num_files = {table.name: max(map(len, storage.files(table).values())) for table in (BRONZE_EVENTS, SILVER_EVENTS)}
    total = {
        "source": "all", "events_per_s": events_per_s, "minutes": minutes,
        "lost": len(ids_sent - ids.keys()),
        "doubled": sum(count > 1 for count in ids.values()),
        "most_files_of_an_interval": num_files,
    }  # fmt: skip
    return [*written, total]


def measured(folder: Path, minutes: float, events_per_s: float) -> list[dict[str, Any]]:
    """Start everything, send, wait until nothing is left to land, and look."""
    java = find_java(settings(), os.environ)
    broker = kafka.start(java, kafka.jars(settings(), java), folder / "kafka")
    names = [name for name in Settings.model_fields if name.endswith("_port")]
    ports = dict(zip(names, map(str, free_ports(len(names))), strict=True))
    begins = datetime.now(UTC) - (datetime.now(UTC) - datetime.min.replace(tzinfo=UTC)) % LENGTH - NUM_BEFORE * LENGTH
    (folder / "in").mkdir()
    first = begins.replace(tzinfo=None).isoformat()
    (folder / "shop.toml").write_text(SHOP.format(first=first, servers=broker.address, topic=TOPIC))
    chance = random.Random(0)
    times = sorted(begins + NUM_BEFORE * LENGTH * chance.random() for _ in range(NUM_BEFORE * EVENTS_BEFORE))
    put(folder / "in", "history.jsonl", [event(chance, -1 - place, "h", when) for place, when in enumerate(times)])
    own: dict[str, object] = {
        "home": folder / "home",
        "cache": settings().cache_dir,
        "dataset": folder / "shop.toml",
    } | ports
    own |= {"ingest_schedule": "* * * * *", "airflow_parallelism": PARALLELISM}
    os.environ |= {f"CARTWHEEL_{name.upper()}": str(value) for name, value in own.items()}
    settings.cache_clear()
    deploy = [sys.executable, "-m", "deploy.local"]
    try:
        subprocess.run([*deploy, "up"], cwd=REPOSITORY, check=True)
        producer = Producer({"bootstrap.servers": broker.address})
        producer.produce(TOPIC, event(chance, 0, "first", datetime.now(UTC)))
        producer.flush()
        while not (storage.recorded(SILVER_EVENTS).get("running") and landed(NUM_BEFORE)):
            time.sleep(5)  # the history is built
        print("the history is in silver", flush=True)
        since, until = datetime.now(UTC), time.monotonic() + minutes * 60
        ids_sent = set[str]()
        sender = threading.Thread(target=send, args=(folder / "in", broker.address, events_per_s, until, ids_sent))
        sender.start()
        while sender.is_alive():
            sender.join(60)
            print(f"{datetime.now(UTC) - since}: {storage.total_rows(SILVER_EVENTS):,} rows", flush=True)
        time.sleep(180)  # several landings: what is not there by now is lost
        return records(since, minutes, events_per_s, ids_sent)
    finally:
        subprocess.run([*deploy, "down"], cwd=REPOSITORY, check=False)
        kafka.stop(broker)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--events-per-s", type=float, default=50.0)
    parser.add_argument("--write", type=Path, default=RESULT, help="where the records go")
    chosen = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="cartwheel-bench-"))
    try:
        result = measured(folder, chosen.minutes, chosen.events_per_s)
    except BaseException:
        print(f"what there is stays in {folder}")
        raise
    shutil.rmtree(folder)
    for record in result:
        print(json.dumps(record))
    write_json(chosen.write, result)


if __name__ == "__main__":
    main()
