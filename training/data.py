"""Loads the feature tables into arrays. Items and users become row numbers here and ids again at the signature."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable

from contracts import tables
from contracts.dataset import Dataset, horizon
from contracts.errors import InputError
from contracts.lake import open_table
from contracts.trainings import TABLES

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

ITEM_STATISTICS = tuple(c.name for c in tables.ITEM_FEATURES.columns if c.name not in ("as_of", "item_id"))
"""Columns of an item statistics array, in order."""


@dataclass(frozen=True)
class Histories:
    """Ragged histories, oldest entry first: user `u` has entries `offsets[u]:offsets[u+1]`."""

    offsets: Ints
    items: npt.NDArray[np.int32]
    at: npt.NDArray[np.float64]
    weights: Floats


@dataclass(frozen=True)
class Lists:
    """Labels of one interval: list `i` is of user row `users[i]`, who took `targets[offsets[i]:offsets[i+1]]`."""

    as_of: int
    users: Ints
    offsets: Ints
    targets: Ints

    def __len__(self) -> int:
        return len(self.users)

    @property
    def num_targets(self) -> Ints:
        return np.diff(self.offsets)


@dataclass(frozen=True)
class Shop:
    """What the trainer knows: of all items, and of the users of some buckets. `num_items` is the length of `item_ids`."""

    item_ids: npt.NDArray[np.object_]
    item_types: Ints
    """`[num_items]`, 0 where unknown."""
    item_categories: Ints
    recommendable: npt.NDArray[np.bool_]
    user_ids: npt.NDArray[np.object_]
    histories: Histories
    lists: Mapping[int, Lists]
    """Of these users, by interval."""
    statistics: Mapping[int, Floats]
    """For each as_of, `[num_items, len(ITEM_STATISTICS)]`."""
    list_intervals: frozenset[int]
    """Intervals of which there are lists, of whatever user."""
    minimum_item_events: int
    interval_days: float
    type_weights: Mapping[str, float]
    """By event type."""
    target_types: tuple[str, ...]
    versions: Mapping[str, int]
    """Delta version of each table read."""

    @property
    def horizon(self) -> int:
        """HORIZON_DAYS in intervals: what lies further back is not known."""
        return horizon(self.interval_days)

    @property
    def usable_intervals(self) -> Set[int]:
        """Intervals with lists, and with what was known of the items before them."""
        return self.list_intervals & self.statistics.keys()

    @property
    def coming(self) -> int:
        """The interval the newest statistics look forward to: the one a model trained now will serve first."""
        return max(self.statistics)


Part = Callable[[], Shop]
"""Reads the shop with the users of one bucket, or of some small ones."""
ROWS_A_PART = 25_000
"""Rows of `user_histories` that buckets are put together for: to open tables takes its time for few rows, too."""


def _open(table: tables.Table, versions: Mapping[str, int]) -> DeltaTable:
    opened = open_table(table, versions.get(table.name))
    if opened is None:
        raise InputError(f"table {table.name} does not exist", where=table.uri, cure="run the DAG build_features first")
    return opened


def _as_ofs(opened: DeltaTable) -> list[int]:
    return sorted({int(partition["as_of"]) for partition in opened.partitions()})


def load_items(dataset: Dataset, versions: Mapping[str, int], num_intervals: int | None = None) -> Shop:
    """Read what is known of the items: a shop without users.

    Args:
        versions: Delta version of each table to read: those that passed their gate, whatever has landed since. A table
            that is not named is read as it is.
        num_intervals: how many of the latest intervals are looked at; None: all.

    Raises:
        InputError: a table is missing or holds nothing to learn from.
    """
    opened = {table.name: _open(table, versions) for table in TABLES}
    features = opened[tables.ITEM_FEATURES.name]
    as_ofs, lists = _as_ofs(features), _as_ofs(opened[tables.TRAINING_LISTS.name])
    if not as_ofs or not lists:
        raise InputError(
            "there is nothing to learn from",
            where=tables.TRAINING_LISTS.uri,
            cure="land at least three intervals of events",
        )

    def rows_as_of(as_of: int, columns: Sequence[str]) -> pa.Table:
        return features.to_pyarrow_table(filters=[("as_of", "=", as_of)], columns=[*columns])

    as_ofs_read = [as_of for as_of in as_ofs if num_intervals is None or as_of >= as_ofs[-1] - num_intervals]
    # What a history holds as of an interval, and was taken in the one before, has statistics as of that interval.
    every_id = pa.chunked_array(
        [chunk for as_of in as_ofs_read for chunk in rows_as_of(as_of, ["item_id"])["item_id"].chunks]
    )
    item_ids = np.sort(pc.unique(every_id).to_numpy(zero_copy_only=False).astype(object))
    index = pd.Index(item_ids)
    statistics = {}
    for as_of in as_ofs_read:
        rows = rows_as_of(as_of, ["item_id", *ITEM_STATISTICS])
        array = np.zeros((len(item_ids), len(ITEM_STATISTICS)), dtype=np.float32)
        columns = [rows[name].to_numpy().astype(np.float32) for name in ITEM_STATISTICS]
        array[_rows(index, rows["item_id"])] = np.stack(columns, axis=1)
        statistics[as_of] = array
    items = opened[tables.ITEMS.name].to_pandas().drop_duplicates("item_id").set_index("item_id").reindex(item_ids)
    return Shop(
        item_ids=item_ids,
        item_types=pd.factorize(items["type"])[0].astype(np.int64) + 1,
        item_categories=pd.factorize(items["category"])[0].astype(np.int64) + 1,
        recommendable=items["recommendable"].eq(True).to_numpy(bool),
        user_ids=np.empty(0, dtype=object),
        histories=Histories(np.zeros(1, np.int64), np.empty(0, np.int32), np.empty(0), np.empty(0, np.float32)),
        lists={},
        statistics=statistics,
        list_intervals=frozenset(lists),
        minimum_item_events=dataset.minimum_item_events,
        interval_days=dataset.interval.days,
        type_weights=dataset.types,
        target_types=dataset.target_types,
        versions={name: table.version() for name, table in opened.items()},
    )


def with_users(shop: Shop, buckets: Collection[int] | None = None) -> Shop:
    """The shop with the users of some buckets (None: with all users), and their lists of the intervals it looks at."""
    histories = _open(tables.USER_HISTORIES, shop.versions)
    usable = sorted(shop.usable_intervals)
    in_horizon = [("interval", ">=", min([*usable, shop.coming]) - shop.horizon)]
    lists = _open(tables.TRAINING_LISTS, shop.versions)
    of_bucket = [] if buckets is None else [("bucket", "in", sorted(buckets))]
    index = pd.Index(shop.item_ids)

    def column(name: str) -> pa.ChunkedArray:
        return histories.to_pyarrow_table(filters=[*of_bucket, *in_horizon], columns=[name])[name]

    # One column after the other, so that none but the last waits for the others. A user's rows follow each other, by time.
    keys = pa.table({name: column(name) for name in ("user_id", "interval")})
    order = pc.sort_indices(keys, sort_keys=[("user_id", "ascending"), ("interval", "ascending")])
    encoded = keys["user_id"].take(order).combine_chunks().dictionary_encode()
    user_ids = encoded.dictionary.to_numpy(zero_copy_only=False).astype(object)
    of_rows, item_entries = _flat(column("item_ids").take(order))
    first_rows = np.searchsorted(encoded.indices.to_numpy(), np.arange(len(user_ids) + 1))
    offsets = of_rows[first_rows]
    items = _rows(index, item_entries).astype(np.int32)
    at = _flat(column("at").take(order))[1].to_numpy().astype(np.float64, copy=False)
    weights = _flat(column("weights").take(order))[1].to_numpy().astype(np.float32)
    rows_of_users = pd.Index(user_ids)
    labels = {}
    targets_of_lists = lists.to_pyarrow_table(
        filters=[*of_bucket, ("as_of", "in", usable)], columns=["as_of", "user_id", "target_items"]
    ).sort_by([("as_of", "ascending"), ("user_id", "ascending")])
    for as_of in pc.unique(targets_of_lists["as_of"]).to_pylist():
        group = targets_of_lists.filter(pc.equal(targets_of_lists["as_of"], as_of)).combine_chunks()
        label_offsets, targets = _flat(group["target_items"])
        labels[as_of] = Lists(as_of, _rows(rows_of_users, group["user_id"]), label_offsets, _rows(index, targets))
    del item_entries
    pa.default_memory_pool().release_unused()
    return replace(shop, user_ids=user_ids, histories=Histories(offsets, items, at, weights), lists=labels)


def parts(shop: Shop) -> list[Part]:
    """The shop in parts: buckets of users, in order, whatever number of workers there is."""
    histories = _open(tables.USER_HISTORIES, shop.versions)
    counts = pc.value_counts(histories.to_pyarrow_table(columns=["bucket"])["bucket"]).to_pylist()
    of_parts: list[list[int]] = []
    num_rows = 0
    for bucket, count in sorted((each["values"], each["counts"]) for each in counts):
        num_rows += count
        if not of_parts or num_rows > ROWS_A_PART:
            of_parts.append([])
            num_rows = count
        of_parts[-1].append(bucket)
    return [partial(with_users, shop, buckets) for buckets in of_parts]


def load_shop(dataset: Dataset, versions: Mapping[str, int]) -> Shop:
    """The shop with all of its users; see `load_items`."""
    return with_users(load_items(dataset, versions))


def _rows(index: pd.Index[Any], ids: pa.ChunkedArray) -> Ints:
    """The place of each id in `index`, -1 where it has none."""
    encoded = ids.dictionary_encode().unify_dictionaries()
    places = [
        index.get_indexer(pd.Index(chunk.dictionary.to_numpy(zero_copy_only=False)))[chunk.indices.to_numpy()]
        for chunk in encoded.chunks
    ]
    return np.concatenate([np.empty(0, np.int64), *places]).astype(np.int64)


def _flat(lists: pa.ChunkedArray) -> tuple[Ints, pa.ChunkedArray]:
    """Where each list begins and the last one ends, `[num_lists + 1]`, and what is in all of them."""
    lengths = pc.list_value_length(lists).to_numpy()
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), pc.list_flatten(lists)


def statistic(shop: Shop, as_of: int, name: str) -> Floats:
    """One column of the item statistics, `[num_items]`."""
    return shop.statistics[as_of][:, ITEM_STATISTICS.index(name)]


def may_be_candidate(shop: Shop, as_of: int) -> npt.NDArray[np.bool_]:
    """`[num_items]`: recommendable and known well enough before `as_of`."""
    return shop.recommendable & (statistic(shop, as_of, "events_all") >= shop.minimum_item_events)


def attainable(shop: Shop, lists: Lists) -> Lists:
    """The same lists with only the targets that could have been recommended; lists left without any are dropped."""
    return only_targets(lists, may_be_candidate(shop, lists.as_of)[lists.targets])[1]


def only_targets(lists: Lists, is_kept: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.bool_], Lists]:
    """Which lists keep any of their targets, `[num_lists]`, and those lists with what they keep.

    Args:
        is_kept: `[num_targets]`.
    """
    lengths = np.bincount(np.repeat(np.arange(len(lists)), lists.num_targets)[is_kept], minlength=len(lists))
    has_any = lengths > 0
    offsets = np.concatenate([[0], np.cumsum(lengths[has_any])])
    return has_any, Lists(lists.as_of, lists.users[has_any], offsets, lists.targets[is_kept])


def popular_items(shop: Shop, as_of: int, count: int) -> Ints:
    """The `count` items with most target events in the 4 intervals before `as_of` (then ever, then by id), best first."""
    recent, ever = statistic(shop, as_of, "target_events_4"), statistic(shop, as_of, "events_all")
    order = np.lexsort((np.arange(len(recent)), -ever, -recent))
    return order[may_be_candidate(shop, as_of)[order]][:count]


def _span(shop: Shop, user: int, as_of: int) -> tuple[int, int]:
    """Where the user's entries before interval `as_of` begin, back to the horizon, and where they end."""
    begin, end = shop.histories.offsets[user : user + 2]
    bounds = (as_of - 1.0 - shop.horizon, as_of - 1.0)
    first, last = begin + np.searchsorted(shop.histories.at[begin:end], bounds, side="left")
    return int(first), int(last)


def history_lengths(shop: Shop, users: Ints, as_of: int) -> Ints:
    """How many entries each of the users has before interval `as_of`, `[num_lists]`."""
    spans = (_span(shop, user, as_of) for user in users)
    return np.array([end - first for first, end in spans], np.int64)


def history_as_of(shop: Shop, users: Ints, as_of: int, max_entries: int) -> tuple[Ints, Ints, Floats, Floats]:
    """The users' entries before interval `as_of`, back to the horizon, flat and oldest first within a user.

    Args:
        users: `[num_lists]` user rows.

    Returns:
        `list_ids`, `items`, `ages` (in intervals, before the start of `as_of`), `weights`: `[num_entries]` each.
    """
    at, start = shop.histories.at, as_of - 1.0
    spans = [_span(shop, user, as_of) for user in users]
    parts = [np.arange(max(first, end - max_entries), end) for first, end in spans]
    entries = np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)
    list_ids = np.repeat(np.arange(len(users)), [len(part) for part in parts])
    ages = (start - at[entries]).astype(np.float32)
    return list_ids, shop.histories.items[entries].astype(np.int64), ages, shop.histories.weights[entries]
