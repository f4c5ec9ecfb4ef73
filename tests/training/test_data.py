"""Point-in-time slices, best sellers, attainable targets and baselines of the tiny shop."""

from __future__ import annotations

import numpy as np

from training import baselines, evaluation
from training.data import Shop, attainable, history_as_of, popular_items


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
