"""What became of every record, and how far each source has been read.

A commit of `bronze_events` carries the position of its source and the accounts of its batch: rows, position and accounts
are one atomic commit. The tables `positions` and `ledger` are made from these commits, here, and can be made again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

import deltalake
import pyarrow as pa
import pyarrow.compute as pc

from contracts import lake
from contracts.dataset import Dataset, Events
from contracts.tables import BRONZE_EVENTS, LEDGER, POSITIONS, UNTIMED, Table
from spark_jobs import storage

Position = dict[str, Any]
"""How far a source has been read, as JSON: a value for each part of it, such as a file or a topic. Empty: not at all."""

IDENTITY = "columns of the id"
"""Part of each position, for landing: the columns that made the ids of the first batch make those of all later ones."""
READING = "how records are read"
"""Part of each position, for landing: a hash of what the dataset file says of the source's records."""


@dataclass(frozen=True)
class Account:
    """What became of the records of one batch in one interval (UNTIMED: those without a time)."""

    interval: int
    read: int
    landed: int
    quarantined: int
    duplicates: int

    @classmethod
    def of(cls, interval: int, read: int, new: int) -> Account:
        """Of `read` records, `new` of which are not there yet."""
        timed = interval != UNTIMED
        return cls(interval, read, new if timed else 0, 0 if timed else new, read - new)

    @property
    def balanced(self) -> bool:
        return self.read == self.landed + self.quarantined + self.duplicates and self.duplicates >= 0


@dataclass(frozen=True)
class Entry:
    """One batch as its commit describes it. `position` holds the parts that it moves."""

    source: str
    batch: int
    position: Position
    accounts: tuple[Account, ...]
    token: str
    """Of the run that landed it."""

    @property
    def num_new(self) -> int:
        """Rows of the commit."""
        return sum(account.landed + account.quarantined for account in self.accounts)

    def record(self) -> dict[str, Any]:
        """For the commit's metadata."""
        accounts = [[a.interval, a.read, a.landed, a.quarantined, a.duplicates] for a in self.accounts]
        return {
            "source": self.source, "batch": self.batch, "position": self.position, "accounts": accounts,
            "token": self.token,
        }  # fmt: skip


class Latest(NamedTuple):
    """Where a source is."""

    batch: int
    """Number of the last batch that landed; 0 before the first."""
    position: Position
    """By all batches together."""
    identity: list[str] | None
    """See IDENTITY; None before the first batch."""
    reading: str | None
    """See READING, of the last batch; None before the first."""


def latest(source: str) -> Latest:
    """Where a source is, by the table `positions`."""
    opened = storage.open_table(POSITIONS)
    rows = [] if opened is None else opened.to_pyarrow_table(filters=[("source", "=", source)]).to_pylist()
    position = {row["part"]: json.loads(row["position"]) for row in rows}
    identity, reading = position.pop(IDENTITY, None), position.pop(READING, None)
    return Latest(max((row["batch"] for row in rows), default=0), position, identity, reading)


def reading_of(source: Events) -> str:
    """See READING. Weights and targets are not of it: cleaning looks at them anew."""
    rules = source.model_dump(
        mode="json", exclude={"name", "path", "kind", "options", "settle_s", "event_ids_are", "types", "targets"}
    )
    return storage.digest([rules, sorted(source.types)])[:16]


def read_otherwise(dataset: Dataset) -> list[str]:
    """The sources whose last batch was read as an earlier dataset file had it, each with what that means, in a line."""
    lines = []
    for source in dataset.events:
        name = dataset.source_name(source)
        if latest(name).reading not in (None, reading_of(source)):
            lines.append(
                f"{name}: the dataset file has its records read otherwise than before (`exclude`, `columns` and the "
                "like). What has landed stays as it was; to read it by these rules, land files again by "
                "`from_interval`, and redrive what was set aside"
            )
    return lines


def catch_up() -> list[Entry]:
    """Write what the commits of bronze say that is not in the ledger yet; returns it. Safe to kill and repeat."""
    bronze = storage.open_table(BRONZE_EVENTS)
    if bronze is None:
        return []
    last = _last_version()
    behind = bronze.version() - last
    entries = []
    for commit in sorted(bronze.history(behind) if behind > 0 else [], key=lambda commit: int(commit["version"])):
        record = json.loads(commit.get("userMetadata") or "{}")
        if int(commit["version"]) <= last or "accounts" not in record:
            continue
        accounts = tuple(Account(*account) for account in record["accounts"])
        entry = Entry(record["source"], record["batch"], record["position"], accounts, record["token"])
        _put_positions(entry)
        # Last: its presence says that the batch is entered.
        _put_accounts(entry, int(commit["version"]), datetime.fromtimestamp(commit["timestamp"] / 1000, UTC))
        entries.append(entry)
    return entries


def _last_version() -> int:
    """The newest version of bronze that is in the ledger; -1 before the first."""
    opened = storage.open_table(LEDGER)
    if opened is None:
        return -1
    newest = pc.max(pa.table(opened.get_add_actions(flatten=True))["max.bronze_version"]).as_py()
    return -1 if newest is None else int(newest)


def _put_positions(entry: Entry) -> None:
    """Move the parts of a position. IDENTITY and READING are moved along by each batch, so that all are counted."""
    rows = [
        {"source": entry.source, "part": part, "position": json.dumps(position), "batch": entry.batch}
        for part, position in entry.position.items()
    ]
    table = storage.open_table(POSITIONS)
    if table is None:
        deltalake.write_deltalake(POSITIONS.uri, _arrow(POSITIONS, rows), mode="append")
        return
    same = "new.source = old.source AND new.part = old.part"
    merge = table.merge(_arrow(POSITIONS, rows), same, source_alias="new", target_alias="old")
    merge.when_matched_update_all().when_not_matched_insert_all().execute()
    storage.compact(POSITIONS)


def _put_accounts(entry: Entry, bronze_version: int, committed_at: datetime) -> None:
    beside = {
        "source": entry.source,
        "batch": entry.batch,
        "bronze_version": bronze_version,
        "committed_at": committed_at,
    }
    accounts = entry.accounts or (Account.of(UNTIMED, 0, 0),)
    rows = _arrow(LEDGER, [beside | vars(account) for account in accounts])
    if not lake.exists(LEDGER):
        deltalake.write_deltalake(LEDGER.uri, rows, mode="append")
        return
    predicate = f"source = '{entry.source}' AND batch = {entry.batch}"
    deltalake.write_deltalake(LEDGER.uri, rows, mode="overwrite", predicate=predicate)
    storage.compact(LEDGER)


def _arrow(table: Table, rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(
        [{name: row[name] for name in table.column_names} for row in rows], storage.arrow_schema(table)
    )
