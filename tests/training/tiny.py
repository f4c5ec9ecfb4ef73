"""A tiny shop whose answers are computed by hand, and a ranker for it."""

from __future__ import annotations

import numpy as np

from training.config import RankerConfig
from training.data import ITEM_STATISTICS, Histories, Lists, Shop
from training.features import feature_names
from training.ranker import Ranker

CONFIG = RankerConfig(num_popular=3, top_k=3)


def make_ranker() -> Ranker:
    size = len(feature_names(CONFIG))
    ranker = Ranker(CONFIG, np.zeros(size, np.float32), np.ones(size, np.float32), 5)
    ranker.item_bias.assign([0.0, 0.3, 0.1, 0.2, 9.0])
    return ranker


# Items 0..4 are apple, bread, cheese, dates, fuel; types fruit(1), food(2), food, fruit, none(0). Fuel is excluded.
ITEMS = np.array(["apple", "bread", "cheese", "dates", "fuel"], dtype=object)


def statistics(**columns: list[float]) -> np.ndarray:
    """`[5, len(ITEM_STATISTICS)]`, zero where nothing is said."""
    array = np.zeros((5, len(ITEM_STATISTICS)), dtype=np.float32)
    for name, values in columns.items():
        array[:, ITEM_STATISTICS.index(name)] = values
    return array


def tiny_shop() -> Shop:
    """Three users; history as of interval 3 starts at time 2.0.

    ann: apple+bread at 0.5, apple at 1.5, cheese at 2.25 (after the start of interval 3)
    bob: fuel at 1.0
    cat: nothing before interval 3; dates at 2.5
    """
    item_statistics = statistics(
        events_1=[1, 0, 0, 0, 0],
        events_4=[2, 1, 0, 0, 1],
        events_13=[2, 1, 0, 0, 1],
        events_all=[9, 9, 9, 9, 9],
        target_events_4=[2, 1, 0, 5, 8],
        buyers_all=[1, 1, 1, 1, 1],
        mean_gap=[2, 0, 0, 0, 0],
        mean_price=[1, 2, 3, 4, 5],
        price_ratio=[1, 1, 1, 1, 1],
    )
    return Shop(
        item_ids=ITEMS,
        item_types=np.array([1, 2, 2, 1, 0]),
        item_categories=np.array([1, 1, 1, 1, 0]),
        recommendable=np.array([True, True, True, True, False]),
        user_ids=np.array(["ann", "bob", "cat"], dtype=object),
        histories=Histories(
            offsets=np.array([0, 4, 5, 6]),
            items=np.array([0, 1, 0, 2, 4, 3]),
            at=np.array([0.5, 0.5, 1.5, 2.25, 1.0, 2.5]),
            weights=np.ones(6, np.float32),
        ),
        lists={
            3: Lists(3, users=np.array([0, 2]), offsets=np.array([0, 2, 3]), targets=np.array([2, 4, 3])),
        },
        statistics={3: item_statistics, 4: item_statistics},
        list_intervals=frozenset({3}),
        minimum_item_events=5,
        interval_days=7.0,
        type_weights={"view": 0.5, "purchase": 1.0},
        target_types=("purchase",),
        versions={},
    )
