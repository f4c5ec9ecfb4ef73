"""Point-in-time slices, best sellers, attainable targets and baselines of the tiny shop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contracts.dataset import Dataset, load
from contracts.tables import ITEM_FEATURES, ITEMS, TRAINING_LISTS, USER_HISTORIES
from tests.training.tables import write_shop, write_table
from training import baselines, data, evaluation
from training.data import (
    ITEM_STATISTICS,
    Shop,
    attainable,
    history_as_of,
    history_lengths,
    load_items,
    parts,
    popular_items,
    with_users,
)


def test_history_is_a_strict_prefix(shop: Shop) -> None:
    """As of interval 3 ann has three entries, newest last; cheese at 2.25 is in the future."""
    list_ids, items, ages, _ = history_as_of(shop, np.array([0, 1]), 3, max_entries=10)
    assert list_ids.tolist() == [0, 0, 0, 1]
    assert items.tolist() == [0, 1, 0, 4]
    assert ages.tolist() == [1.5, 1.5, 0.5, 1.0]


def test_long_histories_keep_the_newest_entries(shop: Shop) -> None:
    """With room for one entry ann keeps her latest apple."""
    _, items, ages, _ = history_as_of(shop, np.array([0]), 3, max_entries=1)
    assert (items.tolist(), ages.tolist()) == ([0], [0.5])


def test_what_lies_beyond_the_horizon_is_not_known(shop: Shop) -> None:
    """In a shop of long intervals the horizon is one of them: of ann's entries as of 3 the one at 1.5 is left."""
    shop = replace(shop, interval_days=420.0)
    _, items, ages, _ = history_as_of(shop, np.array([0]), 3, max_entries=10)
    assert (items.tolist(), ages.tolist()) == ([0], [0.5])
    assert history_lengths(shop, np.array([0, 1, 2]), 3).tolist() == [1, 1, 0]


def test_best_sellers_leave_out_what_is_excluded(shop: Shop) -> None:
    """Fuel sells most and is never recommended."""
    assert popular_items(shop, 3, 3).tolist() == [3, 0, 1]


def test_only_attainable_targets_count(shop: Shop) -> None:
    """Ann took cheese and fuel: fuel cannot be recommended, so one target is left."""
    lists = attainable(shop, shop.lists[3])
    assert lists.num_targets.tolist() == [1, 1]
    assert lists.targets.tolist() == [2, 3]


def test_popularity_is_the_same_for_everyone(shop: Shop) -> None:
    """Both lists get dates, apple."""
    assert baselines.popularity(shop, shop.lists[3], 2).tolist() == [[3, 0], [3, 0]]


def test_personal_frequency_then_popularity(shop: Shop) -> None:
    """Ann took apple twice, bread once, then dates fill; cat has nothing and gets the best sellers."""
    assert baselines.personal_frequency(shop, shop.lists[3], 3).tolist() == [[0, 1, 3], [3, 0, 1]]


def test_scores_of_a_fold(shop: Shop) -> None:
    """Popularity misses ann's cheese and hits cat's dates at the first place."""
    lists = attainable(shop, shop.lists[3])
    metrics = evaluation.score(baselines.popularity(shop, lists, 2), lists, len(shop.item_ids))
    assert metrics["recall_at_10"].tolist() == [0.0, 1.0]
    assert metrics["ndcg_at_10"].tolist() == [0.0, 1.0]


@pytest.fixture
def dataset(home: Path) -> Dataset:
    """Feature tables of three users in two buckets, with lists of intervals 1 to 3."""
    items = ("a", "b", "c")
    text = {"name": "", "category": "", "type": "", "recommendable": True, "seen": True}
    write_table(ITEMS, [text | {"item_id": item} for item in items])
    write_table(
        ITEM_FEATURES, [{"as_of": n, "item_id": item, "events_all": n} for n in (2, 3, 4) for item in items[: n - 1]]
    )
    buckets = {"ann": 0, "bob": 1, "cem": 0}
    histories = {
        (3, "ann"): (["c"], [2.5]), (1, "ann"): (["a"], [0.5]), (2, "bob"): (["b"], [1.0]),
        (1, "cem"): (["b", "a"], [0.25, 0.25]),
    }  # fmt: skip
    write_table(
        USER_HISTORIES,
        [
            {"interval": n, "user_id": user, "item_ids": ids, "at": at, "weights": [1.0] * len(at)}
            | {"bucket": buckets[user]}
            for (n, user), (ids, at) in histories.items()
        ],
    )
    taken = {1: {"cem": ["b"]}, 2: {"bob": ["b"], "ann": ["a", "b"]}, 3: {"ann": ["c"], "cem": ["a"]}}
    write_table(
        TRAINING_LISTS,
        [
            {"as_of": as_of, "user_id": user, "target_items": ids, "bucket": buckets[user]}
            for as_of, lists in taken.items()
            for user, ids in lists.items()
        ],
    )
    return load(write_shop(home))


def in_ids(shop: Shop) -> tuple[dict[str, Any], dict[tuple[int, str], list[str]]]:
    """Histories by user, and what was taken by interval and user, in ids."""
    histories = {}
    for row, user in enumerate(shop.user_ids):
        entries = slice(shop.histories.offsets[row], shop.histories.offsets[row + 1])
        histories[user] = (shop.item_ids[shop.histories.items[entries]].tolist(), shop.histories.at[entries].tolist())
    taken = {}
    for as_of, lists in shop.lists.items():
        for place, row in enumerate(lists.users):
            targets = lists.targets[lists.offsets[place] : lists.offsets[place + 1]]
            taken[as_of, shop.user_ids[row]] = shop.item_ids[targets].tolist()
    return histories, taken


def test_parts_are_the_whole(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bucket of users each, with their histories and lists, small ones together; they are the shop, read at once."""
    items = load_items(dataset, {}, num_intervals=2)
    assert (sorted(items.statistics), items.coming, sorted(items.list_intervals)) == ([2, 3, 4], 4, [1, 2, 3])
    assert items.statistics[3][:, ITEM_STATISTICS.index("events_all")].tolist() == [3.0, 3.0, 0.0]
    whole = in_ids(with_users(items))
    assert whole == (
        {"ann": (["a", "c"], [0.5, 2.5]), "bob": (["b"], [1.0]), "cem": (["b", "a"], [0.25, 0.25])},
        {(2, "ann"): ["a", "b"], (2, "bob"): ["b"], (3, "ann"): ["c"], (3, "cem"): ["a"]},
    )
    [only] = parts(items)
    assert in_ids(only()) == whole
    monkeypatch.setattr(data, "ROWS_A_PART", 3)
    first, second = (in_ids(part()) for part in parts(items))
    assert (sorted(first[0]), sorted(second[0])) == (["ann", "cem"], ["bob"])
    assert (first[0] | second[0], first[1] | second[1]) == whole
    assert sorted(load_items(dataset, {}, num_intervals=1).statistics) == [3, 4]
