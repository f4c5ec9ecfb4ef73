"""Loads the feature tables into arrays. Items and users become row numbers here and ids again at the signature."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from deltalake import DeltaTable
from deltalake.exceptions import TableNotFoundError

from contracts import tables
from contracts.dataset import Dataset
from contracts.errors import InputError

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

ITEM_STATISTICS = tuple(c.name for c in tables.ITEM_FEATURES.columns if c.name not in ("as_of", "item_id"))
"""Columns of an item statistics array, in order."""


@dataclass(frozen=True)
class Histories:
    """Ragged histories, oldest entry first: user `u` has entries `offsets[u]:offsets[u+1]`."""

    offsets: Ints
    items: Ints
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
    """Everything the trainer knows. `num_items` is the length of `item_ids`."""

    item_ids: npt.NDArray[np.object_]
    item_types: Ints
    """`[num_items]`, 0 where unknown."""
    item_categories: Ints
    recommendable: npt.NDArray[np.bool_]
    user_ids: npt.NDArray[np.object_]
    histories: Histories
    lists: Mapping[int, Lists]
    statistics: Mapping[int, Floats]
    """For each as_of, `[num_items, len(ITEM_STATISTICS)]`."""
    minimum_item_events: int
    interval_days: float
    versions: Mapping[str, int]
    """Delta version of each table read."""

    @property
    def coming(self) -> int:
        """The interval the newest statistics look forward to: the one a model trained now will serve first."""
        return max(self.statistics)


def _read(table: tables.Table, versions: Mapping[str, int]) -> tuple[pd.DataFrame, int]:
    try:
        delta = DeltaTable(str(table.path), version=versions.get(table.name))
    except TableNotFoundError:
        raise InputError(
            f"table {table.name} does not exist", where=str(table.path), cure="run the DAG build_features first"
        ) from None
    return delta.to_pandas(), delta.version()


def _rows(index: pd.Index[Any], ids: Any) -> Ints:
    return np.asarray(index.get_indexer(pd.Index(ids)), dtype=np.int64)


def _flat(lists: pd.Series[Any]) -> tuple[Ints, npt.NDArray[Any]]:
    lengths = np.fromiter((len(entry) for entry in lists), dtype=np.int64, count=len(lists))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return offsets, np.concatenate(lists.to_numpy()) if len(lists) else np.empty(0, dtype=object)


def load_shop(dataset: Dataset, versions: Mapping[str, int]) -> Shop:
    """Read the feature tables of the dataset.

    Args:
        versions: Delta version of each table to read: those that passed their gate, whatever has landed since. A table
            that is not named is read as it is.

    Raises:
        InputError: a table is missing or holds nothing to learn from.
    """
    features, features_version = _read(tables.ITEM_FEATURES, versions)
    items, items_version = _read(tables.ITEMS, versions)
    histories, histories_version = _read(tables.USER_HISTORIES, versions)
    lists, lists_version = _read(tables.TRAINING_LISTS, versions)
    if not len(features) or not len(lists):
        raise InputError(
            "there is nothing to learn from",
            where=str(tables.TRAINING_LISTS.path),
            cure="land at least three intervals of events",
        )
    item_ids = np.sort(features["item_id"].unique())
    index = pd.Index(item_ids)
    known = items.drop_duplicates("item_id").set_index("item_id").reindex(item_ids)

    statistics = {}
    for as_of, group in features.groupby("as_of"):
        array = np.zeros((len(item_ids), len(ITEM_STATISTICS)), dtype=np.float32)
        array[_rows(index, group["item_id"])] = group[list(ITEM_STATISTICS)].to_numpy(np.float32)
        statistics[int(str(as_of))] = array

    histories = histories.sort_values("user_id", ignore_index=True)
    user_ids = histories["user_id"].to_numpy(object)
    offsets, taken = _flat(histories["item_ids"])
    users = pd.Index(user_ids)
    labels = {}
    for as_of, group in lists.sort_values(["as_of", "user_id"]).groupby("as_of"):
        label_offsets, targets = _flat(group["target_items"])
        labels[int(str(as_of))] = Lists(
            int(str(as_of)), _rows(users, group["user_id"]), label_offsets, _rows(index, targets)
        )
    return Shop(
        item_ids=item_ids,
        item_types=pd.factorize(known["type"])[0].astype(np.int64) + 1,
        item_categories=pd.factorize(known["category"])[0].astype(np.int64) + 1,
        recommendable=known["recommendable"].eq(True).to_numpy(bool),
        user_ids=user_ids,
        histories=Histories(
            offsets,
            _rows(index, taken),
            _flat(histories["at"])[1].astype(np.float64),
            _flat(histories["weights"])[1].astype(np.float32),
        ),
        lists=labels,
        statistics=statistics,
        minimum_item_events=dataset.minimum_item_events,
        interval_days=dataset.interval.days,
        versions={
            tables.ITEM_FEATURES.name: features_version,
            tables.ITEMS.name: items_version,
            tables.USER_HISTORIES.name: histories_version,
            tables.TRAINING_LISTS.name: lists_version,
        },
    )


def statistic(shop: Shop, as_of: int, name: str) -> Floats:
    """One column of the item statistics, `[num_items]`."""
    return shop.statistics[as_of][:, ITEM_STATISTICS.index(name)]


def may_be_candidate(shop: Shop, as_of: int) -> npt.NDArray[np.bool_]:
    """`[num_items]`: recommendable and known well enough before `as_of`."""
    return shop.recommendable & (statistic(shop, as_of, "events_all") >= shop.minimum_item_events)


def attainable(shop: Shop, lists: Lists) -> Lists:
    """The same lists with only the targets that could have been recommended; lists left without any are dropped."""
    kept = may_be_candidate(shop, lists.as_of)[lists.targets]
    lengths = np.bincount(np.repeat(np.arange(len(lists)), lists.num_targets)[kept], minlength=len(lists))
    return Lists(
        lists.as_of,
        lists.users[lengths > 0],
        np.concatenate([[0], np.cumsum(lengths[lengths > 0])]),
        lists.targets[kept],
    )


def popular_items(shop: Shop, as_of: int, count: int) -> Ints:
    """The `count` items with most target events in the 4 intervals before `as_of` (then ever, then by id), best first."""
    recent, ever = statistic(shop, as_of, "target_events_4"), statistic(shop, as_of, "events_all")
    order = np.lexsort((np.arange(len(recent)), -ever, -recent))
    return order[may_be_candidate(shop, as_of)[order]][:count]


def history_as_of(shop: Shop, users: Ints, as_of: int, max_entries: int) -> tuple[Ints, Ints, Floats, Floats]:
    """The users' entries before interval `as_of`, flat and oldest first within a user.

    Args:
        users: `[num_lists]` user rows.

    Returns:
        `list_ids`, `items`, `ages` (in intervals, before the start of `as_of`), `weights`: `[num_entries]` each.
    """
    at = shop.histories.at
    start = as_of - 1.0
    parts = []
    for user in users:
        first, last = shop.histories.offsets[user], shop.histories.offsets[user + 1]
        end = first + int(np.searchsorted(at[first:last], start, side="left"))
        parts.append(np.arange(max(first, end - max_entries), end))
    entries = np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)
    list_ids = np.repeat(np.arange(len(users)), [len(part) for part in parts])
    ages = (start - at[entries]).astype(np.float32)
    return list_ids, shop.histories.items[entries], ages, shop.histories.weights[entries]
