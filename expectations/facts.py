"""Facts about a whole table that no single row shows, each with the range it must lie in.

A fact becomes one column of a one-row frame, so that Great Expectations judges it like any other value. The
arithmetic is Arrow's and NumPy's: nothing loops over rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from contracts.dataset import load
from contracts.settings import settings
from contracts.tables import (
    BRONZE_EVENTS,
    ITEM_FEATURES,
    ITEM_INTERVALS,
    ITEMS,
    SILVER_EVENTS,
    TRAINING_LISTS,
    USER_HISTORIES,
    Table,
)
from expectations.snapshot import Snapshot

MAX_PROBLEM_SHARE = 0.2
MIN_INTERVALS = 4
"""Fewer intervals than this say nothing about the usual volume."""
RECENT_INTERVALS = 13
"""How many previous intervals the newest is held against: a shop may grow beyond its first year."""
VOLUME_TABLES = (BRONZE_EVENTS, SILVER_EVENTS, ITEM_INTERVALS, TRAINING_LISTS)


@dataclass(frozen=True)
class Fact:
    """What is measured, in words that go on after the number, and its inclusive range."""

    name: str
    words: str
    minimum: float | None = None
    maximum: float | None = None


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
    """Rows whose time is not in [interval - 1, interval)."""
    number, time = interval.to_numpy(), at.to_numpy()
    return int(np.count_nonzero((time < number - 1 - 1e-6) | (time >= number + 1e-6)))


def unknown(values: pa.ChunkedArray | pa.Array, known: pa.Array) -> int:
    """Distinct values that are not null and not among the known ones."""
    distinct = pc.unique(values).cast(pa.string()).drop_null()
    return int(len(distinct) - (pc.sum(pc.is_in(distinct, value_set=known)).as_py() or 0))


def repeated_elsewhere(keys: pa.ChunkedArray, others: pa.ChunkedArray) -> int:
    """Keys that also occur among the others."""
    text = pa.string()
    return int(pc.sum(pc.is_in(keys.cast(text), value_set=others.cast(text).combine_chunks())).as_py() or 0)


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


def features_off(features: pa.Table, sums: pa.Table, as_of: int) -> int:
    """Items whose `events_all` is not the sum of `events` of the intervals before `as_of`: a leak, or a hole.

    Args:
        features: rows of one as_of, columns item_id and events_all.
        sums: rows of item_intervals, columns interval, item_id and events.
    """
    before = sums.filter(pc.less(sums["interval"], as_of)).group_by("item_id").aggregate([("events", "sum")])
    joined = features.select(["item_id", "events_all"]).join(before, "item_id", join_type="left outer")
    ours, theirs = joined["events_all"].to_numpy(), pc.fill_null(joined["events_sum"], 0.0).to_numpy()
    return int(np.count_nonzero(~np.isclose(ours, theirs, rtol=1e-6)))


def labels_off(lists: pa.Table, events: pa.Table) -> int:
    """Pairs of user and target item that were not taken in the lists' own interval.

    Args:
        lists: rows of one as_of, columns user_id and target_items.
        events: rows of the same interval, columns user_id, item_id and target.
    """
    targets = lists["target_items"].combine_chunks()
    labels = pa.table(
        {
            "user_id": lists["user_id"].combine_chunks().take(pc.list_parent_indices(targets)).cast(pa.string()),
            "item_id": targets.flatten().cast(pa.string()),
        }
    )
    taken = events.filter(events["target"]).select(["user_id", "item_id"])
    taken = taken.cast(pa.schema([("user_id", pa.string()), ("item_id", pa.string())]))
    return labels.join(taken, ["user_id", "item_id"], join_type="left anti").num_rows


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


def _bronze(snapshot: Snapshot, rows: pa.Table, changed: Sequence[str], around: Mapping[str, Snapshot]) -> Measured:
    return [
        (
            Fact("problem_share", "of the new rows have problems (as a share)", maximum=MAX_PROBLEM_SHARE),
            problem_share(rows["problems"]),
        ),
        (
            none_may("outside_interval", "rows have a time outside their interval"),
            outside_interval(rows["interval"], rows["at"]),
        ),
    ]


def _silver(snapshot: Snapshot, rows: pa.Table, changed: Sequence[str], around: Mapping[str, Snapshot]) -> Measured:
    rest = set(snapshot.partitions) - set(changed)
    others = snapshot.read(["event_id"], rest)["event_id"] if rest else pa.chunked_array([[]], pa.string())
    return [
        (
            none_may("outside_interval", "rows have a time outside their interval"),
            outside_interval(rows["interval"], rows["at"]),
        ),
        (
            none_may("unknown_items", "item ids are not in items"),
            unknown(rows["item_id"], around[ITEMS.name].distinct("item_id")),
        ),
        (
            none_may("repeated_elsewhere", "event ids also occur in another interval"),
            repeated_elsewhere(rows["event_id"], others),
        ),
    ]


def _last_silver(around: Mapping[str, Snapshot]) -> int:
    return around[SILVER_EVENTS.name].newest or 0


def _beyond(snapshot: Snapshot, limit: int) -> int:
    return sum(rows for interval, rows in snapshot.num_rows.items() if interval > limit)


def _item_intervals(
    snapshot: Snapshot, rows: pa.Table, changed: Sequence[str], around: Mapping[str, Snapshot]
) -> Measured:
    words = "rows lie beyond the last interval of silver_events"
    return [
        (none_may("beyond_silver", words), _beyond(snapshot, _last_silver(around))),
        (
            none_may("unknown_items", "item ids are not in items"),
            unknown(rows["item_id"], around[ITEMS.name].distinct("item_id")),
        ),
    ]


def _item_features(
    snapshot: Snapshot, rows: pa.Table, changed: Sequence[str], around: Mapping[str, Snapshot]
) -> Measured:
    words = "rows are as of an interval after the coming one: they cannot be known yet"
    facts = [(none_may("beyond_coming", words), float(_beyond(snapshot, _last_silver(around) + 1)))]
    if changed:
        newest = max(map(int, changed))
        features = rows.filter(pc.equal(rows["as_of"], newest))
        sums = around[ITEM_INTERVALS.name].read(["interval", "item_id", "events"])
        words = (
            f"items as of {newest} have an events_all that is not the sum of the intervals before: a leak, or a hole"
        )
        facts.append((none_may("leaking_items", words), features_off(features, sums, newest)))
    return facts


def _training_lists(
    snapshot: Snapshot, rows: pa.Table, changed: Sequence[str], around: Mapping[str, Snapshot]
) -> Measured:
    words = "lists are of an interval beyond the last of silver_events"
    facts = [(none_may("beyond_silver", words), float(_beyond(snapshot, _last_silver(around))))]
    if changed:
        newest = max(map(int, changed))
        lists = rows.filter(pc.equal(rows["as_of"], newest))
        events = around[SILVER_EVENTS.name].read(["user_id", "item_id", "target"], [str(newest)])
        words = f"labels of interval {newest} were not taken in it"
        facts.append((none_may("foreign_labels", words), labels_off(lists, events)))
    return facts


def _user_histories(
    snapshot: Snapshot, rows: pa.Table, changed: Sequence[str], around: Mapping[str, Snapshot]
) -> Measured:
    item_ids, at, weights = rows["item_ids"], rows["at"], rows["weights"]
    last = _last_silver(around)
    times = pc.list_flatten(at).to_numpy()
    return [
        (none_may("descending", "histories are not in ascending order of time"), descending(at)),
        (none_may("unequal_lengths", "histories have lists of unequal length"), unequal_lengths(item_ids, at, weights)),
        (
            none_may("beyond_silver", "entries lie beyond the last interval of silver_events"),
            int(np.count_nonzero(times >= last + 1e-6)),
        ),
        (
            none_may("unknown_items", "item ids are not in items"),
            unknown(pc.list_flatten(item_ids), around[ITEMS.name].distinct("item_id")),
        ),
    ]


_SPECIAL: Mapping[str, Callable[[Snapshot, pa.Table, Sequence[str], Mapping[str, Snapshot]], Measured]] = {
    BRONZE_EVENTS.name: _bronze,
    SILVER_EVENTS.name: _silver,
    ITEM_INTERVALS.name: _item_intervals,
    ITEM_FEATURES.name: _item_features,
    TRAINING_LISTS.name: _training_lists,
    USER_HISTORIES.name: _user_histories,
}
