"""What is evaluated: the lists that are served, at the places the metrics are named after."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from contracts.errors import InputError
from contracts.metrics import POPULARITY, RECALL
from training.config import RankerConfig
from training.data import Histories, Lists, Shop
from training.export import export
from training.features import feature_names
from training.ranker import Ranker
from training.trainer import Retrieval, Trained, recommend, train


def with_lists(shop: Shop, targets: list[int]) -> Shop:
    """The tiny shop with lists of intervals 2 and 3; in interval 3, ann and cat took `targets`, one each."""
    lists = {
        2: Lists(2, users=np.array([0, 1]), offsets=np.array([0, 1, 2]), targets=np.array([0, 1])),
        3: Lists(3, users=np.array([0, 2]), offsets=np.array([0, 1, 2]), targets=np.array(targets)),
    }
    statistics = dict.fromkeys((2, 3, 4), shop.statistics[3])
    return dataclasses.replace(shop, lists=lists, list_intervals=frozenset(lists), statistics=statistics)


def trained(shop: Shop, config: RankerConfig, folder: Path) -> Trained:
    """All users are one part."""
    return train(shop, [lambda: shop], config, lambda line: None, folder)


def test_somebody_without_a_history_is_evaluated_as_served(shop: Shop, tmp_path: Path) -> None:
    """cat, who has taken nothing yet, and somebody unheard of are served the list that the evaluation scores."""
    config, entries = RankerConfig(num_popular=3, top_k=3), shop.histories
    shop = dataclasses.replace(
        shop,
        histories=Histories(np.array([0, 4, 5, 5]), entries.items[:5], entries.at[:5], entries.weights[:5]),
    )
    size = len(feature_names(config))
    ranker = Ranker(config, np.zeros(size, np.float32), np.ones(size, np.float32), 5)
    ranker.item_bias.assign([9.0, 0.0, 5.0, 0.0, 0.0])
    cat = Lists(4, users=np.array([2]), offsets=np.array([0, 1]), targets=np.array([3]))
    [evaluated] = shop.item_ids[recommend(shop, cat, ranker, config, Retrieval(shop, config))].tolist()
    assert evaluated[0] == "apple"  # which the ranker likes; most sold are dates
    export(ranker, shop, config, tmp_path / "saved_model")
    serve = tf.saved_model.load(str(tmp_path / "saved_model")).signatures["serving_default"]
    served = serve(user_id=tf.constant(["cat", "nobody"]))["items"].numpy().astype(str).tolist()
    assert served == [evaluated, evaluated]


@pytest.mark.parametrize("top_k", [1, 10, 12])
def test_metrics_at_10_look_at_ten_places(shop: Shop, tmp_path: Path, top_k: int) -> None:
    """Best sellers are dates, apple, bread. ann took bread, cat dates: both are found, however many are served."""
    config = RankerConfig(num_popular=3, top_k=top_k, fold_offsets=(1,), epochs=1)
    [fold] = trained(with_lists(shop, targets=[1, 3]), config, tmp_path).folds
    assert fold.lists.metrics[POPULARITY][RECALL].tolist() == [1.0, 1.0]


def test_an_interval_of_items_that_nobody_could_recommend_is_no_fold(shop: Shop, tmp_path: Path) -> None:
    """In interval 3 only fuel was taken, which is excluded: there is a model, evaluated on nothing."""
    config = RankerConfig(num_popular=3, top_k=3, fold_offsets=(1,), epochs=1)
    assert trained(with_lists(shop, targets=[4, 4]), config, tmp_path).folds == []


def test_nothing_to_learn_from_is_said_in_words(shop: Shop, tmp_path: Path) -> None:
    """Where nothing that was taken could have been recommended, training refuses."""
    shop = dataclasses.replace(shop, recommendable=np.zeros(5, bool))
    with pytest.raises(InputError, match="12 intervals before 4, nothing could have been recommended"):
        trained(with_lists(shop, targets=[1, 3]), RankerConfig(fold_offsets=(1,), epochs=1), tmp_path)


def tiny(shop: Shop, kind: str) -> Shop:
    """The tiny shop, made smaller still."""
    shop = with_lists(shop, targets=[1, 3])
    entries = shop.histories
    if kind == "only new users":  # nobody in the lists has taken anything before
        nothing = Histories(np.zeros(4, np.int64), entries.items[:0], entries.at[:0], entries.weights[:0])
        return dataclasses.replace(shop, histories=nothing)
    if kind == "one item":
        statistics = {as_of: array[:1] for as_of, array in shop.statistics.items()}
        lists = {as_of: dataclasses.replace(each, targets=each.targets * 0) for as_of, each in shop.lists.items()}
        items = dataclasses.replace(entries, items=entries.items * 0)
        return dataclasses.replace(
            shop, item_ids=shop.item_ids[:1], item_types=shop.item_types[:1], lists=lists, statistics=statistics,
            item_categories=shop.item_categories[:1], recommendable=shop.recommendable[:1], histories=items,
        )  # fmt: skip
    if kind == "one user":
        lists = {
            as_of: Lists(as_of, np.array([0]), np.array([0, 1]), each.targets[:1]) for as_of, each in shop.lists.items()
        }
        return dataclasses.replace(shop, lists=lists)
    # Nothing is ever bought again: no gaps, no repeats, and lists of what nobody has had.
    once = dataclasses.replace(entries, items=np.array([0, 1, 2, 3, 4, 3]))
    return dataclasses.replace(shop, histories=once)


@pytest.mark.parametrize("kind", ["only new users", "one item", "one user", "nothing sold twice"])
@pytest.mark.slow
def test_the_smallest_shops_are_trained_and_served(shop: Shop, tmp_path: Path, kind: str) -> None:
    """Lists have no item twice and none that does not exist, and are as long as there are items; metrics are numbers."""
    shop = tiny(shop, kind)
    config = RankerConfig(fold_offsets=(1,), epochs=1)
    result = trained(shop, config, tmp_path)
    [fold] = result.folds
    assert all(np.isfinite(values).all() for by_metric in fold.lists.metrics.values() for values in by_metric.values())
    export(result.ranker, shop, config, tmp_path / "saved_model")
    serve = tf.saved_model.load(str(tmp_path / "saved_model")).signatures["serving_default"]
    answers = serve(user_id=tf.constant([*map(str, shop.user_ids), "nobody"]))
    recommendable = set(shop.item_ids[shop.recommendable])
    for items in answers["items"].numpy().astype(str):
        assert set(items) == recommendable
        assert len(items) == len(recommendable)
    assert np.isfinite(answers["scores"].numpy()).all()
