"""The state of the loop, read from tables and reports: what the page in Airflow's UI and the one for Prometheus tell.

Both live in processes that stay up, so nothing here needs Spark, TensorFlow, MLflow or Great Expectations.
"""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from contracts.dataset import load
from contracts.files import read_json
from contracts.gates import data_verdict, verdict_path
from contracts.lake import version_of
from contracts.settings import settings
from contracts.tables import LEDGER, QUARANTINE, UNTIMED, Table

GATES = ("raw", "clean", "features", "lists")
SHOWN_CHANGES = 15
SHOWN_INTERVALS = 60
"""How many of a source's newest intervals get a bar."""


@dataclass(frozen=True)
class Counts:
    """What became of records."""

    read: int = 0
    landed: int = 0
    quarantined: int = 0
    duplicates: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, part.name) + getattr(other, part.name) for part in fields(self)))

    @property
    def balanced(self) -> bool:
        return self.read == self.landed + self.quarantined + self.duplicates


@dataclass(frozen=True)
class Bar:
    """One interval of one source; `share` is its records to those of the source's busiest interval shown."""

    label: str
    counts: Counts
    share: float


@dataclass(frozen=True)
class Source:
    name: str
    num_batches: int
    counts: Counts
    balanced: bool
    """Every batch by itself, not only their sum."""
    last_landing: datetime
    bars: tuple[Bar, ...]


@dataclass(frozen=True)
class SetAside:
    """Quarantined rows of one source and reason. `command` drives them in again."""

    source: str
    reason: str
    num_rows: int
    first_interval: int | None
    """None: none of the rows has a time."""
    last_interval: int | None
    command: str


@dataclass(frozen=True)
class GateVerdict:
    """The newest verdict of a gate; `passed` is None when there is none yet."""

    name: str
    passed: bool | None
    line: str
    time: datetime | None
    failures: tuple[str, ...]
    suites: tuple[str, ...]


def sources() -> list[Source]:
    """The ledger, summed by source."""
    rows = _ledger(*_state(LEDGER))
    return [
        _source(name, [row for row in rows if row["source"] == name]) for name in sorted({r["source"] for r in rows})
    ]


def quarantine() -> list[SetAside]:
    """The quarantine, counted by source and reason; the most rows first."""
    return list(_set_aside(*_state(QUARANTINE)))


def gates() -> list[GateVerdict]:
    """The verdict of each gate, in the order in which data passes them."""
    return [_verdict(name) for name in GATES]


def report() -> dict[str, Any]:
    """What monitoring observed and decided last; empty when it has not yet."""
    files = {int(path.stem): path for path in decisions_folder().glob("*.json") if path.stem.lstrip("-").isdigit()}
    newest: dict[str, Any] = read_json(files[max(files)]) if files else {}
    return newest


def decision() -> dict[str, Any]:
    """What monitoring decided last: interval, retrain, reasons; empty when it has not yet."""
    newest = report()
    if not newest:
        return {}
    label = load(settings().dataset_path).interval.label
    return {"interval": label(int(newest["interval"])), **newest["decision"]}


def rollout() -> dict[str, Any]:
    """The document of the rollout: which version serves, which is on its way, and the last change; empty before the first."""
    document: dict[str, Any] = read_json(settings().serving_dir / "rollout.json")
    return document


def changes() -> list[dict[str, Any]]:
    """The last changes of what serves whom, newest first. A torn line counts as not written."""
    return list(_changes())[: -SHOWN_CHANGES - 1 : -1]


def num_changes() -> Counter[str]:
    """How many changes there were of each kind, as `promoted` or `rejected`."""
    return Counter(change["what"] for change in _changes())


def _changes() -> Iterator[dict[str, Any]]:
    path = settings().serving_dir / "history.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        with suppress(ValueError):
            yield json.loads(line)


def runs() -> dict[str, dict[str, Any]]:
    """How the last run of each DAG that has ended did so: `state`, `run_id`, `ended` (ISO 8601)."""
    return {path.stem: read_json(path) for path in sorted((settings().reports_dir / "runs").glob("*.json"))}


def _state(table: Table) -> tuple[str, int]:
    """Path and version; version -1 when there is no such table."""
    version = version_of(table)
    return table.uri, -1 if version is None else version


@lru_cache(maxsize=2)
def _ledger(path: str, version: int) -> list[dict[str, Any]]:
    from deltalake import DeltaTable

    return DeltaTable(path, version).to_pyarrow_table().to_pylist() if version >= 0 else []


def _source(name: str, rows: list[dict[str, Any]]) -> Source:
    by_interval: dict[int, Counts] = {}
    for row in rows:
        by_interval[row["interval"]] = by_interval.get(row["interval"], Counts()) + _counts(row)
    shown = sorted(by_interval.items())[-SHOWN_INTERVALS:]
    most = max((counts.read for _, counts in shown), default=0) or 1
    label = load(settings().dataset_path).interval.label
    return Source(
        name=name,
        num_batches=len({row["batch"] for row in rows}),
        counts=sum(by_interval.values(), Counts()),
        balanced=all(_counts(row).balanced for row in rows),
        last_landing=max(row["committed_at"] for row in rows),
        bars=tuple(
            Bar(label(interval) if interval != UNTIMED else "without a time", counts, counts.read / most)
            for interval, counts in shown
        ),
    )


def _counts(row: dict[str, Any]) -> Counts:
    return Counts(*(int(row[part.name]) for part in fields(Counts)))


@lru_cache(maxsize=2)
def _set_aside(path: str, version: int) -> tuple[SetAside, ...]:
    from deltalake import DeltaTable

    if version < 0:
        return ()
    dataset = DeltaTable(path, version).to_pyarrow_dataset()
    num_rows: Counter[tuple[str, str]] = Counter()
    intervals: dict[tuple[str, str], tuple[int, int]] = {}
    # The rows themselves may be many and long: never all at once.
    for batch in dataset.to_batches(columns=["source", "interval", "reasons"]):
        for row in batch.to_pylist():
            number = row["interval"]
            for kind in {_kind(reason) for reason in row["reasons"]}:
                key = row["source"], kind
                num_rows[key] += 1
                if number != UNTIMED:
                    low, high = intervals.get(key, (number, number))
                    intervals[key] = min(low, number), max(high, number)
    rows = []
    for (source, reason), count in num_rows.most_common():
        first, last = intervals.get((source, reason), (None, None))
        rows.append(SetAside(source, reason, count, first, last, _redrive(source, reason)))
    return tuple(rows)


def _kind(reason: str) -> str:
    """A reason without the value it names: `quantity: 'many'` is `quantity`."""
    return reason.split(": '", 1)[0]


def _redrive(source: str, reason: str) -> str:
    command = ["python", "-m", "spark_jobs.quarantine", "redrive", "--reason", reason]
    return shlex.join([*command, "--source", source] if source else command)


def _verdict(name: str) -> GateVerdict:
    content = data_verdict(name)
    if not content:
        return GateVerdict(name, None, "no verdict yet", None, (), ())
    suites = [suite for table in content.get("table_versions", {}) for suite in (table, f"{table}_facts")]
    return GateVerdict(
        name=name,
        passed=content.get("passed") is True,
        line=str(content.get("line", "")),
        time=datetime.fromtimestamp(verdict_path(name).stat().st_mtime, UTC),
        failures=tuple(_failure(failure) for failure in content.get("failures", [])),
        suites=tuple(_with_page(suites)),
    )


def _failure(failure: dict[str, Any]) -> str:
    return f"{place(failure)}: {failure.get('observed', '')} ({failure.get('rule', '')})"


def place(failure: dict[str, Any]) -> str:
    """Table and column of a gate's failure, as far as it names them."""
    return ".".join(str(failure[part]) for part in ("table", "column") if failure.get(part))


def _with_page(suites: Iterable[str]) -> Iterable[str]:
    return (name for name in suites if (docs_folder() / "expectations" / f"{name}.html").exists())


def decisions_folder() -> Path:
    """A file for each coming interval that monitoring has decided for."""
    return settings().reports_dir / "monitoring"


def docs_folder() -> Path:
    """The Data Docs of Great Expectations."""
    return settings().reports_dir / "data_docs"
