"""What became of every record, and how far each source has been read.

A commit of `bronze_events` carries the position of its source and the accounts of its batch: rows, position and accounts
are one atomic commit. The tables `positions` and `ledger` are made from these commits, here, and can be made again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import deltalake
import pyarrow as pa

from contracts.tables import BRONZE_EVENTS, LEDGER, POSITIONS, Table
from spark_jobs import storage

_TYPES = {"string": pa.string(), "int": pa.int32(), "bigint": pa.int64(), "timestamp": pa.timestamp("us", "UTC")}


@dataclass(frozen=True)
class Account:
    """What became of the records of one batch in one interval (0: those without a time)."""

    interval: int
    read: int
    landed: int
    quarantined: int
    duplicates: int

    @property
    def balanced(self) -> bool:
        return self.read == self.landed + self.quarantined + self.duplicates


@dataclass(frozen=True)
class Entry:
    """One batch as its commit tells it."""

    source: str
    batch: int
    position: dict[str, Any]
    accounts: tuple[Account, ...]
    token: str
    """Of the run that landed it."""

    def told(self) -> dict[str, Any]:
        """For the commit's metadata."""
        accounts = [[a.interval, a.read, a.landed, a.quarantined, a.duplicates] for a in self.accounts]
        return {
            "source": self.source, "batch": self.batch, "position": self.position, "accounts": accounts,
            "token": self.token,
        }  # fmt: skip


def latest(source: str) -> tuple[int, dict[str, Any]]:
    """Number and position of the last batch of a source that landed; (0, {}) before the first."""
    opened = storage.open_table(POSITIONS)
    if opened is None:
        return 0, {}
    rows = opened.to_pyarrow_table(filters=[("source", "=", source)]).to_pylist()
    if not rows:
        return 0, {}
    newest = max(rows, key=lambda row: row["batch"])
    return newest["batch"], json.loads(newest["position"])


def catch_up() -> list[Entry]:
    """Write what the commits of bronze say that is not in the ledger yet; returns it. Safe to kill and repeat.

    Raises:
        RuntimeError: a commit's accounts do not balance, or are not what Delta itself counted.
    """
    bronze = storage.open_table(BRONZE_EVENTS)
    if bronze is None:
        return []
    positions = storage.open_table(POSITIONS)
    known = -1
    if positions is not None:
        known = max(positions.to_pyarrow_table(columns=["bronze_version"])["bronze_version"].to_pylist(), default=-1)
    behind = bronze.version() - known
    if behind <= 0:
        return []
    found = []
    for commit in sorted(bronze.history(behind), key=lambda commit: int(commit["version"])):
        told = json.loads(commit.get("userMetadata") or "{}")
        if int(commit["version"]) <= known or "accounts" not in told:
            continue
        entry = Entry(
            told["source"],
            told["batch"],
            told["position"],
            tuple(Account(*account) for account in told["accounts"]),
            told["token"],
        )
        _check(entry, commit)
        version, moment = int(commit["version"]), datetime.fromtimestamp(commit["timestamp"] / 1000, UTC)
        beside = {"source": entry.source, "batch": entry.batch, "bronze_version": version, "committed_at": moment}
        _put(LEDGER, [beside | vars(account) for account in entry.accounts], entry)
        # Last: its presence says that the batch is in the ledger.
        _put(POSITIONS, [beside | {"position": json.dumps(entry.position)}], entry)
        found.append(entry)
    return found


def _check(entry: Entry, commit: dict[str, Any]) -> None:
    landed = sum(account.landed for account in entry.accounts)
    written = int(commit.get("operationMetrics", {}).get("numOutputRows", landed))
    unbalanced = [account for account in entry.accounts if not account.balanced]
    if unbalanced or written != landed:
        raise RuntimeError(
            f"batch {entry.batch} of {entry.source} does not balance: {unbalanced or f'{landed} landed, {written} written'}"
        )


def _put(table: Table, rows: list[dict[str, Any]], entry: Entry) -> None:
    schema = pa.schema([pa.field(c.name, _TYPES[c.type], c.nullable) for c in table.columns])
    arrow = pa.Table.from_pylist([{name: row[name] for name in table.column_names} for row in rows], schema)
    there = storage.exists(table)
    predicate = f"source = '{entry.source}' AND batch = {entry.batch}"
    deltalake.write_deltalake(
        str(table.path), arrow, mode="overwrite" if there else "append", predicate=predicate if there else None
    )
