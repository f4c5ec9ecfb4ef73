"""Facts about a whole table that no single row shows, each with the range it must lie in.

A fact becomes one column of a one-row frame, so that Great Expectations judges it like any other value. The
arithmetic is Arrow's and NumPy's: nothing loops over rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from contracts.dataset import load
from contracts.settings import settings
from contracts.tables import (
    BRONZE_EVENTS,
    CATEGORY_SHARES,
    ITEM_FEATURES,
    ITEM_INTERVALS,
    ITEMS,
    LEDGER,
    MAX_PROBLEM_SHARE,
    SILVER_EVENTS,
    TRAINING_LISTS,
    USER_HISTORIES,
    Table,
)
from contracts.trainings import coming_interval
from expectations.snapshot import Snapshot

MIN_INTERVALS = 4
"""Fewer intervals than this say nothing about the usual volume."""
RECENT_INTERVALS = 13
"""How many previous intervals the newest is held against: a shop may grow beyond its first year."""
MAX_QUIET_INTERVALS = 1
"""How many complete intervals in a row may bring no event: a source that stopped is noticed with the next one."""
VOLUME_TABLES = (BRONZE_EVENTS, SILVER_EVENTS, ITEM_INTERVALS, TRAINING_LISTS)


@dataclass(frozen=True)
class Fact:
    """What is measured, in words that go on after the number, and its inclusive range."""

    name: str
    words: str
    minimum: float | None = None
    maximum: float | None = None

    @property
    def allowed(self) -> str:
        """The range, in words that go on before `words`."""
        if self.minimum is None:
            return f"At most {self.maximum:g}"
        return f"At least {self.minimum:g}" + ("" if self.maximum is None else f" and at most {self.maximum:g}")


Measured = Sequence[tuple[Fact, float | None]]


def none_may(name: str, words: str) -> Fact:
    return Fact(name, words, maximum=0)


def missing_columns(table: Table, types: Mapping[str, str]) -> str:
    """Columns of the contract that the table lacks or holds with another type; empty when it fits."""
    return ", ".join(
        f"{column.name} is {types[column.name]}, not {column.type}"
        if column.name in types
        else f"{column.name} is missing"
        for column in table.columns
        if types.get(column.name) != column.type
    )


def volume_ratio(rows: Sequence[int]) -> float | None:
    """Rows of the newest interval to the median of the recent ones before it; None when there are too few."""
    if len(rows) < MIN_INTERVALS:
        return None
    usual = median(rows[-1 - RECENT_INTERVALS : -1])
    return rows[-1] / usual if usual else None


def problem_share(problems: pa.ChunkedArray) -> float:
    """Share of rows with at least one problem."""
    return float(pc.mean(pc.cast(pc.greater(pc.list_value_length(problems), 0), pa.float64())).as_py() or 0.0)


def outside_interval(interval: pa.ChunkedArray, at: pa.ChunkedArray) -> int:
    """Rows whose time is not in [interval - 1, interval), or is missing."""
    number, time = interval.to_numpy(), at.to_numpy()
    return int(np.count_nonzero(~((time >= number - 1 - 1e-6) & (time < number + 1e-6))))


def unknown(values: pa.ChunkedArray | pa.Array, vocabulary: pa.Array) -> int:
    """Distinct values that are not null and not among the known ones."""
    distinct = pc.unique(values).cast(pa.string()).drop_null()
    return int(len(distinct) - (pc.sum(pc.is_in(distinct, value_set=vocabulary)).as_py() or 0))


def descending(lists: pa.ChunkedArray) -> int:
    """Lists of numbers that are not in ascending order (equal neighbours are)."""
    array = lists.combine_chunks()
    values = array.flatten().to_numpy(zero_copy_only=False)
    owner = pc.list_parent_indices(array).to_numpy()
    falls = (np.diff(values) < 0) & (owner[1:] == owner[:-1])
    return len(np.unique(owner[1:][falls]))


def unequal_lengths(first: pa.ChunkedArray, *others: pa.ChunkedArray) -> int:
    """Rows whose lists differ in length."""
    length = pc.list_value_length(first)
    differs = np.zeros(len(first), dtype=bool)
    for other in others:
        differs |= pc.not_equal(pc.list_value_length(other), length).to_numpy()
    return int(differs.sum())


def unbalanced(ledger: pa.Table) -> int:
    """Rows in which what was read is not what landed, was quarantined or was known already."""
    read, *parts = (ledger[name].to_numpy() for name in ("read", "landed", "quarantined", "duplicates"))
    return int(np.count_nonzero(read != sum(parts)))


def _codes(*columns: pa.ChunkedArray | pa.Array) -> list[npt.NDArray[np.int64]]:
    """Each column as whole numbers from 0, the same number for the same text in all of them."""
    chunks = [chunk for column in columns for chunk in getattr(column, "chunks", [column])]
    vocabulary = pc.unique(pa.chunked_array(chunks, pa.string()))
    return [np.asarray(pc.index_in(column, value_set=vocabulary), dtype=np.int64) for column in columns]


def features_off(features: pa.Table, sums: pa.Table, horizon: int) -> int:
    """Rows whose `events_all` is not the sum of `events` of the intervals before their as_of: a leak, or a hole.

    Args:
        features: columns as_of, item_id and events_all.
        sums: rows of item_intervals, columns interval, item_id and events.
        horizon: how many intervals before as_of count.
    """
    ours, theirs = _codes(features["item_id"], sums["item_id"])
    sums = sums.append_column("code", pa.array(theirs)).sort_by("interval")
    interval, code, events = (sums[name].to_numpy() for name in ("interval", "code", "events"))
    as_of, claimed = features["as_of"].to_numpy(), features["events_all"].to_numpy()
    total = np.zeros(max(ours.max(initial=-1), theirs.max(initial=-1)) + 1)
    first, last, off = 0, 0, 0
    for number in np.unique(as_of):
        begin, end = np.searchsorted(interval, [number - horizon, number])
        total += np.bincount(code[last:end], events[last:end], len(total))
        total -= np.bincount(code[first:begin], events[first:begin], len(total))
        first, last, these = begin, end, as_of == number
        off += int(np.count_nonzero(~np.isclose(claimed[these], total[ours[these]], rtol=1e-6)))
    return off


def _distinct(values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Sorted distinct values, in a hundredth of the time that `np.unique` of NumPy 2.4 takes (it hashes)."""
    values = np.sort(values)
    return values[np.append(True, values[1:] != values[:-1])[: len(values)]]


class Labels(NamedTuple):
    foreign: int
    """Labels that are no target event of their own interval: a leak."""
    missing: int
    """Target events of these intervals that are no label: a hole."""
    repeated: int
    """Labels that a list holds more than once."""


def labels_off(lists: pa.Table, events: pa.Table) -> Labels:
    """Hold labels against the events of the very same intervals.

    Args:
        lists: columns as_of, user_id and target_items.
        events: rows of the lists' intervals, columns interval, user_id, item_id and target.
    """
    targets = lists["target_items"].combine_chunks()
    owner = pc.list_parent_indices(targets).to_numpy()
    events = events.filter(events["target"])
    users, their_users = _codes(lists["user_id"], events["user_id"])
    items, their_items = _codes(targets.flatten(), events["item_id"])
    num_users = max(users.max(initial=0), their_users.max(initial=0)) + 1
    num_items = max(items.max(initial=0), their_items.max(initial=0)) + 1

    def keys(interval: pa.ChunkedArray, user: Any, item: Any) -> Any:
        return (np.asarray(interval, dtype=np.int64) * num_users + user) * num_items + item

    labels = keys(np.asarray(lists["as_of"])[owner], users[owner], items)
    ours, theirs = _distinct(labels), _distinct(keys(events["interval"], their_users, their_items))
    in_both = len(np.intersect1d(ours, theirs, assume_unique=True))
    return Labels(len(ours) - in_both, len(theirs) - in_both, len(labels) - len(ours))


def uneven_shares(shares: pa.Table) -> int:
    """Intervals whose shares do not add up to 1."""
    totals = shares.group_by("interval").aggregate([("share", "sum")])["share_sum"].to_numpy()
    return int(np.count_nonzero(~np.isclose(totals, 1.0, atol=1e-6)))


def measure(snapshot: Snapshot, rows: pa.Table, changed: Sequence[str], around: Mapping[str, Snapshot]) -> Measured:
    """Every fact of a table.

    Args:
        snapshot: the table.
        rows: the rows that are checked now.
        changed: labels of their partitions.
        around: snapshots of this and the other tables that the gate opened, by name.
    """
    table = snapshot.table
    minimum = 0 if table.may_be_empty else 1
    facts: list[tuple[Fact, float | None]] = [(Fact("rows", "rows in the table", minimum=minimum), snapshot.total_rows)]
    if table in VOLUME_TABLES:
        words = f"times the usual rows in the newest interval (median of up to {RECENT_INTERVALS} before it)"
        factor = load(settings().dataset_path).interval.volume_factor
        facts.append((Fact("volume_ratio", words, 1 / factor, factor), volume_ratio(list(snapshot.num_rows.values()))))
    if table.name in _SPECIAL and not missing_columns(table, snapshot.types):
        facts += _SPECIAL[table.name](snapshot, rows, changed, around)
    return facts


def last_interval_of_the_clock() -> int | None:
    """The last interval that is over by the shop's clock; None in a replay, where time stands still."""
    if not settings().ingest_schedule:
        return None
    dataset = load(settings().dataset_path)
    return dataset.interval.number(dataset.wall_clock(datetime.now(UTC))) - 1


def _lag(words: str, maximum: int, expected: int | None, newest: int | None) -> tuple[Fact, float | None]:
    """Freshness: how many intervals a table lies behind what it should reach."""
    lag = None if expected is None or newest is None else float(expected - newest)
    return Fact(f"behind_{words}", f"intervals behind {_BEHIND[words]}", maximum=maximum), lag


_BEHIND = {
    "landing": "the last interval that landing calls complete",
    "clock": "the last interval that is over by the shop's clock",
    "bronze": "the last complete interval of bronze_events",
    "silver": "the last interval of silver_events",
    "targets": "the last interval of silver_events that holds a target event",
    "coming": "the coming interval",
}
_ITEMS_KNOWN = none_may("unknown_items", "item ids are not in items")
_IN_INTERVAL = none_may("outside_interval", "rows have a time outside their interval")
_NOT_BEYOND = none_may("beyond_silver", "rows lie beyond the last interval of silver_events")


def _bronze(snapshot: Snapshot, rows: pa.Table, changed: Sequence[str], around: Mapping[str, Snapshot]) -> Measured:
    words = "of the new rows have problems (as a share)"
    return [
        (Fact("problem_share", words, maximum=MAX_PROBLEM_SHARE), problem_share(rows["problems"])),
        (
            Fact("untimed_share", "of all records have no time (as a share)", maximum=MAX_PROBLEM_SHARE),
            snapshot.untimed_share,
        ),
        (_IN_INTERVAL, outside_interval(rows["interval"], rows["at"])),
        _lag("landing", MAX_QUIET_INTERVALS, snapshot.through, snapshot.newest),
        _lag("clock", MAX_QUIET_INTERVALS, last_interval_of_the_clock(), snapshot.newest),
    ]


def _ledger(snapshot: Snapshot, rows: pa.Table, changed: Sequence[str], around: Mapping[str, Snapshot]) -> Measured:
    # That the ledger's landed rows are those in bronze is no rule: an interval that landed again, or a user who was
    # erased, makes them differ for good reasons. Each batch is held against Delta's own count when it is entered.
    words = "batches do not balance: read is not landed + quarantined + duplicates"
    return [(none_may("unbalanced", words), unbalanced(rows))]


def _silver(snapshot: Snapshot, rows: pa.Table, changed: Sequence[str], around: Mapping[str, Snapshot]) -> Measured:
    rest = set(snapshot.partitions) - set(changed)
    # Bronze may have gone on while silver was made: it counts up to where silver says it was made of.
    reach = math.inf if snapshot.through is None else snapshot.through
    landed = [interval for interval in around[BRONZE_EVENTS.name].num_rows if interval <= reach]
    return [
        (_IN_INTERVAL, outside_interval(rows["interval"], rows["at"])),
        (_ITEMS_KNOWN, unknown(rows["item_id"], around[ITEMS.name].distinct("item_id"))),
        (
            none_may("repeated_elsewhere", "event ids also occur in another interval"),
            snapshot.count("event_id", rows["event_id"].combine_chunks(), rest),
        ),
        _lag("bronze", 0, max(landed, default=None), snapshot.newest),
    ]


def _last_silver(around: Mapping[str, Snapshot]) -> int:
    return around[SILVER_EVENTS.name].newest or 0


def _beyond(snapshot: Snapshot, limit: int) -> int:
    return sum(rows for interval, rows in snapshot.num_rows.items() if interval > limit)


def _item_intervals(
    snapshot: Snapshot, rows: pa.Table, changed: Sequence[str], around: Mapping[str, Snapshot]
) -> Measured:
    return [
        (_NOT_BEYOND, _beyond(snapshot, _last_silver(around))),
        (_ITEMS_KNOWN, unknown(rows["item_id"], around[ITEMS.name].distinct("item_id"))),
        _lag("silver", 0, around[SILVER_EVENTS.name].newest, snapshot.newest),
    ]


def _category_shares(
    snapshot: Snapshot, rows: pa.Table, changed: Sequence[str], around: Mapping[str, Snapshot]
) -> Measured:
    return [
        (_NOT_BEYOND, _beyond(snapshot, _last_silver(around))),
        (none_may("uneven_shares", "intervals have shares that do not add up to 1"), uneven_shares(rows)),
        _lag("silver", 0, around[SILVER_EVENTS.name].newest, snapshot.newest),
    ]


def _item_features(
    snapshot: Snapshot, rows: pa.Table, changed: Sequence[str], around: Mapping[str, Snapshot]
) -> Measured:
    last = _last_silver(around)
    coming = coming_interval(last, around[SILVER_EVENTS.name].through or last)
    words = "rows are as of an interval after the coming one: they cannot be known yet"
    leaking = none_may(
        "leaking_items", "rows have an events_all that is not the sum of the intervals before as_of: a leak, or a hole"
    )
    horizon, wrong = load(settings().dataset_path).interval.horizon, 0
    if changed:
        oldest = min(map(int, changed)) - horizon
        near = [str(interval) for interval in around[ITEM_INTERVALS.name].num_rows if interval >= oldest]
        wrong = features_off(rows, around[ITEM_INTERVALS.name].read(["interval", "item_id", "events"], near), horizon)
    return [
        (none_may("beyond_coming", words), _beyond(snapshot, coming)),
        (leaking, wrong),
        (_ITEMS_KNOWN, unknown(rows["item_id"], around[ITEMS.name].distinct("item_id"))),
        _lag("coming", 0, coming, snapshot.newest),
    ]


def _user_histories(
    snapshot: Snapshot, rows: pa.Table, changed: Sequence[str], around: Mapping[str, Snapshot]
) -> Measured:
    item_ids, at, weights = rows["item_ids"], rows["at"], rows["weights"]
    times = pc.list_flatten(at).to_numpy()
    start = np.repeat(rows["interval"].to_numpy(), pc.list_value_length(at).to_numpy()) - 1
    return [
        (none_may("descending", "histories are not in ascending order of time"), descending(at)),
        (none_may("unequal_lengths", "histories have lists of unequal length"), unequal_lengths(item_ids, at, weights)),
        (
            none_may("outside_interval", "entries lie outside the interval of their row"),
            int(np.count_nonzero((times < start - 1e-6) | (times >= start + 1 + 1e-6))),
        ),
        (_ITEMS_KNOWN, unknown(pc.list_flatten(item_ids), around[ITEMS.name].distinct("item_id"))),
        _lag("silver", 0, _last_silver(around), snapshot.newest),
    ]


def _of_interval(intervals: pa.ChunkedArray, users: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.binary_join_element_wise(intervals.cast(pa.string()), users, " ")


def _shoppers(histories: Snapshot, intervals: Sequence[str]) -> pa.Array:
    """Who has a history in which of some intervals."""
    rows = histories.read(["interval", "user_id"], intervals)
    return pc.unique(_of_interval(rows["interval"], rows["user_id"]))


def _last_target(silver: Snapshot) -> int | None:
    """The newest interval that holds a target event: shops may have quiet ones."""
    for interval in sorted(silver.num_rows, reverse=True):
        if pc.any(silver.read(["target"], [str(interval)])["target"]).as_py():
            return interval
    return None


def _training_lists(
    snapshot: Snapshot, rows: pa.Table, changed: Sequence[str], around: Mapping[str, Snapshot]
) -> Measured:
    silver = around[SILVER_EVENTS.name]
    labels = Labels(0, 0, 0)
    if changed:
        labels = labels_off(rows, silver.read(["interval", "user_id", "item_id", "target"], changed))
    words = "lists are of an interval beyond the last of silver_events"
    return [
        (none_may("beyond_silver", words), _beyond(snapshot, _last_silver(around))),
        (none_may("foreign_labels", "labels were not taken in their list's own interval: a leak"), labels.foreign),
        (none_may("missing_labels", "target events of the lists' intervals are in no list"), labels.missing),
        (none_may("repeated_labels", "labels occur more than once in their list"), labels.repeated),
        (
            none_may("unknown_users", "users have no history of the interval"),
            unknown(_of_interval(rows["as_of"], rows["user_id"]), _shoppers(around[USER_HISTORIES.name], changed)),
        ),
        (
            _ITEMS_KNOWN,
            unknown(pc.list_flatten(rows["target_items"]), around[ITEMS.name].distinct("item_id")),
        ),
        _lag("targets", 0, _last_target(silver), snapshot.newest),
    ]


_SPECIAL: Mapping[str, Callable[[Snapshot, pa.Table, Sequence[str], Mapping[str, Snapshot]], Measured]] = {
    BRONZE_EVENTS.name: _bronze,
    LEDGER.name: _ledger,
    SILVER_EVENTS.name: _silver,
    ITEM_INTERVALS.name: _item_intervals,
    ITEM_FEATURES.name: _item_features,
    USER_HISTORIES.name: _user_histories,
    CATEGORY_SHARES.name: _category_shares,
    TRAINING_LISTS.name: _training_lists,
}
