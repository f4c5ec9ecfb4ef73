"""The SavedModel gives the trainer's own lists, and sensible ones to those it does not know."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from contracts.verdicts import GOLDEN, MANIFEST
from tests.training.tiny import CONFIG, make_ranker
from training.config import RankerConfig
from training.data import ITEM_STATISTICS, Histories, Lists, Shop
from training.export import UNKNOWN_USER, export
from training.features import feature_names
from training.ranker import Ranker
from training.trainer import Retrieval, recommend


@pytest.fixture
def ranker() -> Ranker:
    return make_ranker()


@pytest.fixture(scope="module")
def model(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of that ranker, to be read only."""
    folder = tmp_path_factory.mktemp("model") / "saved_model"
    export(make_ranker(), shop, CONFIG, folder)
    return folder


def answer(model: Path, *users: str) -> tuple[list[list[str]], np.ndarray]:
    outputs = tf.saved_model.load(str(model)).signatures["serving_default"](user_id=tf.constant(users))
    return [[item.decode() for item in row] for row in outputs["items"].numpy()], outputs["scores"].numpy()


def test_serves_what_the_trainer_would_recommend(shop: Shop, ranker: Ranker, model: Path) -> None:
    """No skew: the lists of all users are those that the trainer's own code makes."""
    everybody = Lists(4, users=np.arange(3), offsets=np.array([0, 1, 2, 3]), targets=np.zeros(3, np.int64))
    expected = shop.item_ids[recommend(shop, everybody, ranker, CONFIG, Retrieval(shop, CONFIG))].tolist()
    assert answer(model, *map(str, shop.user_ids))[0] == expected


@pytest.mark.slow
def test_the_scores_of_all_users_of_a_larger_shop_are_the_trainers(shop: Shop, tmp_path: Path) -> None:
    """Sixty users with up to forty events of two types, and some with none: stored, and sent along, they score the same."""
    generator, config = np.random.default_rng(5), RankerConfig(num_popular=8, top_k=5)
    num_items, lengths = 30, generator.integers(0, 40, 60) * generator.integers(0, 2, 60)
    at = [np.sort(generator.uniform(0, 2.9, length)).round(1) for length in lengths]
    weights = generator.choice([0.5, 1.0], lengths.sum()).astype(np.float32)
    statistics = generator.uniform(0, 9, (num_items, len(ITEM_STATISTICS))).astype(np.float32)
    large = dataclasses.replace(
        shop,
        item_ids=np.array([f"i{number}" for number in range(num_items)], dtype=object),
        item_types=generator.integers(0, 4, num_items),
        item_categories=generator.integers(0, 3, num_items),
        recommendable=generator.random(num_items) < 0.9,
        user_ids=np.array([f"u{number}" for number in range(60)], dtype=object),
        histories=Histories(
            np.concatenate([[0], np.cumsum(lengths)]),
            generator.integers(0, num_items, lengths.sum()).astype(np.int32),
            np.concatenate(at),
            weights,
        ),
        statistics={4: statistics},
    )
    size = len(feature_names(config))
    ranker = Ranker(config, np.ones(size, np.float32), np.ones(size, np.float32), num_items)
    for variable in ranker.trainable_variables:
        variable.assign(generator.normal(0, 0.3, variable.shape))
    candidate = Retrieval(large, config)(large, np.arange(60), 4)
    ragged = tf.RaggedTensor.from_value_rowids(
        ranker(candidate.features, candidate.items), candidate.list_ids, nrows=60
    )
    expected = [sorted(row, reverse=True)[:5] for row in ragged.to_list()]
    export(ranker, large, config, tmp_path / "saved_model")
    loaded = tf.saved_model.load(str(tmp_path / "saved_model")).signatures
    np.testing.assert_allclose(
        loaded["serving_default"](tf.constant(large.user_ids.astype(str)))["scores"], expected, atol=1e-4
    )

    def padded(values: Iterable[Any], nothing: Any) -> tf.Tensor:
        rows = tf.RaggedTensor.from_row_splits(tf.constant([*values]), large.histories.offsets)
        return rows.to_tensor(nothing)

    outputs = loaded["typed_history"](
        item_id=padded(large.item_ids[large.histories.items], ""),
        age_days=padded(((3.0 - np.concatenate(at)) * 7).astype(np.float32), 0.0),
        event_type=padded(np.where(weights == 1.0, "purchase", "view"), ""),
    )
    np.testing.assert_allclose(outputs["scores"], expected, atol=1e-3)


def test_unknown_users_get_best_sellers(model: Path) -> None:
    """Somebody never seen gets dates, apple, bread: what sold best, without the excluded fuel, as the ranker likes it."""
    items, scores = answer(model, "nobody")
    assert sorted(items[0]) == ["apple", "bread", "dates"]
    assert np.isfinite(scores).all()


@pytest.mark.slow
def test_many_users_at_once_are_answered_as_one_by_one(model: Path) -> None:
    """More users than are recommended at once, in no order: everybody gets their own list; nobody asks, nobody is answered."""
    users = ["bob", "ann", "nobody", "cat", "ann"] * 30
    items, _ = answer(model, *users)
    own = {user: answer(model, user)[0][0] for user in set(users)}
    assert items == [own[user] for user in users]
    none = tf.saved_model.load(str(model)).signatures["serving_default"](user_id=tf.constant([], tf.string))
    assert none["items"].shape == (0, 3)


def test_excluded_items_are_never_served(model: Path) -> None:
    """Bob bought nothing but fuel, whose bias is greatest; he is not offered it."""
    assert "fuel" not in answer(model, "bob")[0][0]


def test_a_history_in_the_request_gives_the_same_as_the_stored_one(model: Path) -> None:
    """Bob's and ann's histories sent along, padded and out of order, give their stored lists."""
    loaded = tf.saved_model.load(str(model))
    # As of interval 4 (time 3.0): ann has apple+bread aged 2.5 weeks, apple 1.5, cheese 0.75.
    outputs = loaded.signatures["history"](
        item_id=tf.constant([["cheese", "apple", "", "bread", "apple", "unheard-of"]]),
        age_days=tf.constant([[5.25, 10.5, 0.0, 17.5, 17.5, 3.0]]),
    )
    items, scores = answer(model, "ann")
    assert [item.decode() for item in outputs["items"].numpy()[0]] == items[0]
    np.testing.assert_allclose(outputs["scores"].numpy(), scores, atol=1e-4)


@pytest.mark.slow
def test_events_of_all_types_in_the_request_give_the_same_as_the_stored_ones(
    shop: Shop, ranker: Ranker, tmp_path: Path
) -> None:
    """Ann viewed bread and cheese, and bought apple: half of the weight, in the request as in the model. What is no type is
    passed over, and without types all would count as bought.
    """
    index = feature_names(CONFIG).index("weight")
    ranker.linear.assign(
        np.eye(ranker.linear.shape[0], dtype=np.float32)[:, index : index + 1]
    )  # the weight alone decides
    weights = np.array([1.0, 0.5, 1.0, 0.5, 1.0, 1.0], np.float32)
    viewed = dataclasses.replace(shop, histories=dataclasses.replace(shop.histories, weights=weights))
    export(ranker, viewed, CONFIG, tmp_path / "saved_model")
    loaded = tf.saved_model.load(str(tmp_path / "saved_model"))
    request = {
        "item_id": tf.constant([["apple", "bread", "apple", "cheese", "dates"]]),
        "age_days": tf.constant([[17.5, 17.5, 10.5, 5.25, 3.0]]),
    }
    types = tf.constant([["purchase", "view", "purchase", "view", "no such type"]])
    outputs = loaded.signatures["typed_history"](**request, event_type=types)
    items, scores = answer(tmp_path / "saved_model", "ann")
    assert [item.decode() for item in outputs["items"].numpy()[0]] == items[0]
    np.testing.assert_allclose(outputs["scores"].numpy(), scores, atol=1e-4)
    bought = loaded.signatures["history"](**request)
    assert bought["scores"].numpy().sum() > scores.sum() + 0.5


@pytest.mark.slow
def test_the_model_holds_no_user_id(shop: Shop, ranker: Ranker, tmp_path: Path) -> None:
    """Fingerprints only, but for the examples that are written beside it on purpose."""
    ids = np.array([f"{name}@example.org" for name in shop.user_ids], dtype=object)
    export(ranker, dataclasses.replace(shop, user_ids=ids), CONFIG, tmp_path / "saved_model")
    assert answer(tmp_path / "saved_model", ids[0])[0] != answer(tmp_path / "saved_model", "ann")[0]
    files = [tmp_path / "saved_model" / "saved_model.pb", *(tmp_path / "saved_model" / "variables").iterdir()]
    everything = b"".join(path.read_bytes() for path in files)
    assert b"cheese" in everything
    assert b"example.org" not in everything


def test_golden_requests_and_checksums_describe_the_files(model: Path) -> None:
    """The manifest lists every other file with its SHA-256; golden answers are those the model gives."""
    listed = dict(line.split("  ")[::-1] for line in (model / MANIFEST).read_text().splitlines())
    assert set(listed) == {str(p.relative_to(model)) for p in model.rglob("*") if p.is_file()} - {MANIFEST}
    assert all(hashlib.sha256((model / name).read_bytes()).hexdigest() == digest for name, digest in listed.items())
    golden = json.loads((model / GOLDEN).read_text())
    users = [instance["user_id"] for instance in golden[0]["request"]["instances"]]
    assert answer(model, *users)[0] == golden[0]["items"]


def test_mlflow_loads_it_and_knows_what_it_takes(model: Path) -> None:
    """As an ML engineer does, with a DataFrame; the example fits the signature and is nobody's."""
    loaded = mlflow.pyfunc.load_model(str(model))
    assert loaded.metadata.signature.inputs.input_names() == ["user_id"]
    example = loaded.input_example
    assert example.to_dict("list") == {"user_id": [UNKNOWN_USER]}
    outputs = loaded.predict(pd.DataFrame({"user_id": ["ann", "bob"]}))
    assert [[item.decode() for item in row] for row in outputs["items"]] == answer(model, "ann", "bob")[0]
