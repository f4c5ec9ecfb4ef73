"""A refreshed model has the weights of the one before, and knows what has happened since."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from contracts.errors import InputError
from training.config import RankerConfig
from training.data import Histories, Shop
from training.export import GOLDEN_REQUESTS, export
from training.features import feature_names
from training.ranker import Ranker
from training.refresh import are_same, config_of, ranker_of, read_weights, refresh

CONFIG = RankerConfig(num_popular=3, top_k=3)


@pytest.fixture
def before(shop: Shop, tmp_path: Path) -> Path:
    """A model of the shop as of interval 4, of random weights."""
    generator, size = np.random.default_rng(3), len(feature_names(CONFIG))
    ranker = Ranker(CONFIG, np.zeros(size, np.float32), np.ones(size, np.float32), 5)
    for variable in ranker.trainable_variables:
        variable.assign(generator.normal(0, 0.2, variable.shape))
    ranker.item_bias.assign([0.1, 0.2, 0.3, 0.4, 0.5])
    export(ranker, shop, CONFIG, tmp_path / "before")
    return tmp_path / "before"


def a_week_later(shop: Shop) -> Shop:
    """As of interval 5 there is `aubergine`, first of all by name, and dan, who took bread three times."""
    statistics = np.vstack([shop.statistics[4][2:3], shop.statistics[4]])
    histories = shop.histories
    return dataclasses.replace(
        shop,
        item_ids=np.array(["aubergine", *shop.item_ids], dtype=object),
        item_types=np.append(1, shop.item_types),
        item_categories=np.append(1, shop.item_categories),
        recommendable=np.append(True, shop.recommendable),
        user_ids=np.array([*shop.user_ids, "dan"], dtype=object),
        histories=Histories(
            np.append(histories.offsets, 9),
            np.append(histories.items + 1, [2, 2, 2]).astype(np.int32),
            np.append(histories.at, [3.1, 3.2, 3.3]),
            np.ones(9, np.float32),
        ),
        lists={},
        statistics={5: statistics},
    )


def items_of(saved_model: Path, user: str) -> list[str]:
    answer = tf.saved_model.load(str(saved_model)).signatures["serving_default"](user_id=tf.constant([user]))
    return [item.decode() for item in answer["items"].numpy()[0]]


def test_same_weights_and_newer_data(shop: Shop, before: Path, tmp_path: Path) -> None:
    """Each weight stays with its item although their rows have moved; who is new has a list of their own."""
    later, folder = a_week_later(shop), tmp_path / "after"
    exported, compared = refresh(before, later, CONFIG, folder)
    bias = read_weights(folder).item_bias
    assert bias == pytest.approx(
        {"aubergine": 0, "apple": 0.1, "bread": 0.2, "cheese": 0.3, "dates": 0.4, "fuel": 0.5}
    )
    assert compared["same_weights"] is True
    assert (compared["num_users"], compared["unfit_lists"]) == (4, 0)
    assert "bread" in items_of(folder, "dan")
    assert exported["model_mib"] > 0
    assert (folder / GOLDEN_REQUESTS).exists()


def test_nothing_new_changes_nothing(shop: Shop, before: Path, tmp_path: Path) -> None:
    """Of the same data it gives the same lists."""
    _, compared = refresh(before, shop, CONFIG, tmp_path / "after")
    assert (compared["kept_share"], compared["coverage_ratio"]) == (1.0, 1.0)
    assert items_of(tmp_path / "after", "ann") == items_of(before, "ann")


def test_another_weight_is_noticed(shop: Shop, before: Path) -> None:
    """One weight, or the bias of one item, makes another model."""
    weights = read_weights(before)
    assert are_same(weights, weights)
    other = {**weights.arrays, "linear": weights.arrays["linear"] + 1}
    assert not are_same(weights, dataclasses.replace(weights, arrays=other))
    assert not are_same(weights, dataclasses.replace(weights, item_bias={**weights.item_bias, "fuel": 0.0}))


def test_a_model_of_other_code_is_refused(before: Path) -> None:
    """Weights that do not fit the features of today's code, or parameters it does not have, ask for a training."""
    weights = read_weights(before)
    short = {**weights.arrays, "mean": weights.arrays["mean"][1:], "deviation": weights.arrays["deviation"][1:]}
    with pytest.raises(InputError, match="of another shape"):
        ranker_of(dataclasses.replace(weights, arrays=short), CONFIG, np.array(["apple"], dtype=object))
    parameters = dataclasses.asdict(CONFIG)
    assert config_of({**parameters, "decay_days": list(CONFIG.decay_days)}) == CONFIG
    with pytest.raises(InputError, match="parameters are others"):
        config_of({**parameters, "dropout": 0.1})
