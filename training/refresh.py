"""A new version of a model without training: the weights it has, with newer histories, statistics, best sellers, promotions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from contracts.errors import InputError
from training.config import RankerConfig
from training.data import Shop, may_be_candidate
from training.export import export
from training.features import feature_names
from training.ranker import Ranker

Floats = npt.NDArray[np.float32]
NUM_COMPARED_USERS = 200
_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"


@dataclass(frozen=True)
class Weights:
    """What a ranker has learned."""

    arrays: Mapping[str, Floats]
    """By the name of the variable, as `kernels/0`; without those of single items."""
    item_bias: Mapping[str, float]
    """By item id."""


def read_weights(saved_model: Path) -> Weights:
    """The weights in a SavedModel that `training.export` wrote.

    Source: https://www.tensorflow.org/guide/checkpoint#manually_inspecting_checkpoints
    """
    reader = tf.train.load_checkpoint(str(saved_model / "variables" / "variables"))
    arrays = {
        name.removeprefix("_ranker/").removesuffix(_VALUE): reader.get_tensor(name)
        for name in reader.get_variable_to_shape_map()
        if name.startswith("_ranker/")
    }
    ids = [item.decode() for item in reader.get_tensor(f"_item_ids{_VALUE}")]
    return Weights(arrays, dict(zip(ids, arrays.pop("item_bias").tolist(), strict=True)))


def are_same(before: Weights, after: Weights) -> bool:
    """Whether both are one model: an item that only one of them has is no difference."""
    shared = before.item_bias.keys() & after.item_bias.keys()
    return (
        before.arrays.keys() == after.arrays.keys()
        and all(np.array_equal(before.arrays[name], after.arrays[name]) for name in before.arrays)
        and all(before.item_bias[item] == after.item_bias[item] for item in shared)
    )


def config_of(parameters: Mapping[str, Any]) -> RankerConfig:
    """The configuration that a training logged.

    Raises:
        InputError: it is of other code.
    """
    if parameters.keys() != {field.name for field in fields(RankerConfig)}:
        raise _made_by_other_code("its parameters are others")
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in parameters.items()
    }
    return RankerConfig(**values)


def ranker_of(weights: Weights, config: RankerConfig, item_ids: npt.NDArray[np.object_]) -> Ranker:
    """The ranker with these weights, for these items; one that it has never seen has no bias.

    Raises:
        InputError: the weights are of other code.
    """
    size = len(feature_names(config))
    ranker = Ranker(config, np.zeros(size, np.float32), np.ones(size, np.float32), len(item_ids))
    mine = {
        "mean": ranker.mean,
        "deviation": ranker.deviation,
        "linear": ranker.linear,
        **{f"kernels/{place}": kernel for place, kernel in enumerate(ranker.kernels)},
        **{f"biases/{place}": bias for place, bias in enumerate(ranker.biases)},
    }
    if {name: tuple(each.shape) for name, each in mine.items()} != {
        name: each.shape for name, each in weights.arrays.items()
    }:
        raise _made_by_other_code("its weights are of another shape")
    for name, variable in mine.items():
        variable.assign(weights.arrays[name])
    ranker.item_bias.assign([weights.item_bias.get(item, 0.0) for item in item_ids])
    return ranker


def refresh(before: Path, shop: Shop, config: RankerConfig, folder: Path) -> tuple[dict[str, float], dict[str, Any]]:
    """Write the SavedModel `before` anew to `folder`, with what is known of the shop now.

    Returns:
        What `export` says of it, and how its answers differ: `same_weights`; of up to NUM_COMPARED_USERS users
        (`num_users`) `unfit_lists`, the number of lists that are not of distinct recommendable items with descending
        scores; `kept_share`, the mean share of a list's items that were in the same user's list before; and
        `coverage_ratio`, the number of distinct items in all of these lists to that before.

    Raises:
        InputError: `before` is of other code.
    """
    weights = read_weights(before)
    exported = export(ranker_of(weights, config, shop.item_ids), shop, config, folder)
    chosen = np.linspace(0, len(shop.user_ids) - 1, min(NUM_COMPARED_USERS, len(shop.user_ids))).astype(int)
    users = [str(user) for user in shop.user_ids[chosen]]
    (old, _), (new, scores) = _answers(before, users), _answers(folder, users)
    fit = set(map(str, shop.item_ids[may_be_candidate(shop, shop.coming)]))
    unfit = [
        len(set(items)) < len(items)
        or not fit.issuperset(items)
        or not np.isfinite(row).all()
        or bool((np.diff(row) > 0).any())
        for items, row in zip(new, scores, strict=True)
    ]
    overlaps = [len({*items} & {*others}) / len(items) for items, others in zip(new, old, strict=True)]
    return exported, {
        "same_weights": are_same(weights, read_weights(folder)),
        "num_users": len(users),
        "unfit_lists": sum(unfit),
        "kept_share": float(np.mean(overlaps)),
        "coverage_ratio": len({item for items in new for item in items})
        / len({item for items in old for item in items}),
    }


def _answers(saved_model: Path, users: list[str]) -> tuple[list[list[str]], Floats]:
    """The users' lists, and their scores `[num_users, k]`."""
    answer = tf.saved_model.load(str(saved_model)).signatures["serving_default"](user_id=tf.constant(users))
    return [[item.decode() for item in row] for row in answer["items"].numpy()], answer["scores"].numpy()


def _made_by_other_code(how: str) -> InputError:
    return InputError(
        f"the model cannot be refreshed: {how}", where="training", cure="trigger train_recommender with `force`"
    )
