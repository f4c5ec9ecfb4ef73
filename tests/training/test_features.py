"""Candidates and features of the tiny shop, against values worked out by hand."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import tensorflow as tf

from training.config import RankerConfig
from training.data import ITEM_STATISTICS, Shop
from training.features import NEVER, candidates, feature_names
from training.trainer import Retrieval, items_as_of, stored_history

CONFIG = RankerConfig(num_popular=2)


def computed(shop: Shop, users: list[int], as_of: int = 3) -> dict[tuple[int, str], dict[str, float]]:
    """Features by name of each (list, item)."""
    history = stored_history(shop, np.array(users), as_of, CONFIG)
    candidate = candidates(history, tf.constant(len(users), tf.int64), items_as_of(shop, as_of, CONFIG), CONFIG)
    names = feature_names(CONFIG)
    assert candidate.features.shape[1] == len(names)
    return {
        (int(row), str(shop.item_ids[item])): dict(zip(names, values.tolist(), strict=True))
        for row, item, values in zip(
            candidate.list_ids.numpy(), candidate.items.numpy(), candidate.features.numpy(), strict=True
        )
    }


def test_candidates_are_own_items_and_best_sellers_that_may_be_recommended(shop: Shop) -> None:
    """Ann has apple and bread, the best sellers are dates and apple; bob's fuel is excluded; cat has only best sellers."""
    features = computed(shop, [0, 1, 2])
    assert set(features) == {
        (0, "apple"), (0, "bread"), (0, "dates"), (1, "dates"), (1, "apple"), (2, "dates"), (2, "apple"),
    }  # fmt: skip


def test_counts_and_ages_of_an_own_item(shop: Shop) -> None:
    """Ann's apple, as of 2.0: two purchases aged 1.5 and 0.5, the last in her last of two baskets."""
    apple = computed(shop, [0])[0, "apple"]
    assert apple["count"] == pytest.approx(math.log1p(2), rel=1e-5)
    assert apple["decay_14"] == pytest.approx(math.log1p(math.exp(-0.75) + math.exp(-0.25)), rel=1e-5)
    assert apple["basket_decay_0.5"] == pytest.approx(math.log1p(0.5 + 1.0), rel=1e-5)
    assert apple["age_3_7"] == pytest.approx(math.log1p(1), rel=1e-5)
    assert apple["age_7_14"] == pytest.approx(math.log1p(1), rel=1e-5)
    assert apple["in_last_basket"] == pytest.approx(math.log1p(1), rel=1e-5)
    assert apple["last_age"] == pytest.approx(math.log1p(0.5), rel=1e-5)
    assert apple["first_age"] == pytest.approx(math.log1p(1.5), rel=1e-5)
    assert apple["baskets_since"] == 0
    assert apple["own_gap"] == pytest.approx(math.log1p(1.0), rel=1e-5)
    assert apple["shrunk_gap"] == pytest.approx(math.log1p((1 * 1.0 + 2.0) / 2), rel=1e-5)
    assert apple["rate_by_basket"] == pytest.approx(2 / 3, rel=1e-5)
    assert apple["is_own"] == 1


def test_an_item_never_taken_is_old_and_uncounted(shop: Shop) -> None:
    """Dates are a best seller ann never took."""
    dates = computed(shop, [0])[0, "dates"]
    assert dates["count"] == 0
    assert dates["is_own"] == 0
    assert dates["last_age"] == pytest.approx(math.log1p(NEVER), rel=1e-5)


def test_substitutes_of_the_same_type(shop: Shop) -> None:
    """Dates are fruit and ann took fruit twice, last at age 0.5; nothing newer than her own apple."""
    features = computed(shop, [0])
    assert features[0, "dates"]["type_count"] == pytest.approx(math.log1p(2), rel=1e-5)
    assert features[0, "dates"]["type_last_age"] == pytest.approx(math.log1p(0.5), rel=1e-5)
    assert features[0, "apple"]["type_another_since"] == 0
    # Bread (age 1.5) shares its category with the newer apple.
    assert features[0, "bread"]["category_another_since"] == 1


def test_user_features(shop: Shop) -> None:
    """Ann as of 2.0: two baskets, three entries, two items, tenure 1.5."""
    apple = computed(shop, [0])[0, "apple"]
    assert apple["user_baskets"] == pytest.approx(math.log1p(2), rel=1e-5)
    assert apple["user_events"] == pytest.approx(math.log1p(3), rel=1e-5)
    assert apple["user_items"] == pytest.approx(math.log1p(2), rel=1e-5)
    assert apple["user_tenure"] == pytest.approx(math.log1p(1.5), rel=1e-5)
    assert apple["user_last_age"] == pytest.approx(math.log1p(0.5), rel=1e-5)


def test_the_future_changes_nothing(shop: Shop) -> None:
    """Features as of interval 3 are the same when everything after its start is shuffled to other items."""
    items = shop.histories.items.copy()
    items[shop.histories.at >= 2.0] = 1
    changed = shop.__class__(**{**shop.__dict__, "histories": shop.histories.__class__(
        shop.histories.offsets, items, shop.histories.at, shop.histories.weights
    )})  # fmt: skip
    assert computed(changed, [0, 1, 2]) == computed(shop, [0, 1, 2])


def test_a_list_does_not_depend_on_its_neighbours(shop: Shop) -> None:
    """Ann's features are the same alone and in a batch."""
    alone = computed(shop, [0])
    together = computed(shop, [1, 0, 2])
    for (_, item), values in alone.items():
        assert together[1, item] == pytest.approx(values, abs=1e-5)


def test_lists_without_any_history(shop: Shop) -> None:
    """A batch with no history at all gets the best sellers and finite features."""
    features = computed(shop, [2])
    assert set(features) == {(0, "dates"), (0, "apple")}
    assert all(math.isfinite(value) for values in features.values() for value in values.values())


def test_the_compiled_graph_gives_the_same(shop: Shop) -> None:
    """The graph used for training and the plain function agree."""
    users = np.array([0, 1, 2])
    history = stored_history(shop, users, 3, CONFIG)
    eager = candidates(history, tf.constant(3, tf.int64), items_as_of(shop, 3, CONFIG), CONFIG)
    graph = Retrieval(shop, CONFIG)(shop, users, 3)
    np.testing.assert_array_equal(eager.items, graph.items)
    np.testing.assert_allclose(eager.features, graph.features, atol=1e-5)


def test_an_interval_of_a_day_means_the_same_as_one_of_a_week(shop: Shop) -> None:
    """The same purchases, counted in days: interval 15 starts where week 3 does."""
    statistics = shop.statistics[3].copy()
    statistics[:, ITEM_STATISTICS.index("mean_gap")] *= 7
    histories = dataclasses.replace(shop.histories, at=shop.histories.at * 7)
    daily = dataclasses.replace(shop, interval_days=1.0, histories=histories, statistics={15: statistics})
    weekly, by_day = computed(shop, [0, 1, 2]), computed(daily, [0, 1, 2], as_of=15)
    assert weekly.keys() == by_day.keys()
    for key, values in weekly.items():
        assert by_day[key] == pytest.approx(values, abs=1e-4)
