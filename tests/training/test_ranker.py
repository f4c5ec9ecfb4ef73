"""The loss by hand, the prior, and learning of something simple."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf

from training.config import RankerConfig
from training.features import feature_names
from training.ranker import Examples, Ranker, fit, list_loss

NUM_FEATURES = len(feature_names(RankerConfig()))


def test_loss_by_hand() -> None:
    """List 0: scores 0 and ln 3, the second taken: -ln(3/4). List 1: one of two equal scores taken: ln 2. Mean of both."""
    loss = list_loss(
        tf.constant([0.0, math.log(3.0), 1.0, 1.0]),
        tf.constant([0.0, 1.0, 1.0, 0.0]),
        tf.zeros(4),
        tf.constant([0, 0, 1, 1], tf.int64),
        2,
    )
    assert float(loss) == pytest.approx((math.log(4 / 3) + math.log(2)) / 2, rel=1e-5)


def test_several_positives_weigh_by_the_root_of_their_number() -> None:
    """Two taken of three with equal scores: 2 * ln 3 / sqrt 2."""
    loss = list_loss(tf.zeros(3), tf.constant([1.0, 1.0, 0.0]), tf.zeros(3), tf.zeros(3, tf.int64), 1)
    assert float(loss) == pytest.approx(math.sqrt(2) * math.log(3), rel=1e-5)


def test_a_sampled_negative_stands_for_those_left_out() -> None:
    """A negative kept with chance 1/4 counts four times: -ln(1 / (1 + 4))."""
    loss = list_loss(tf.zeros(2), tf.constant([1.0, 0.0]), tf.math.log([1.0, 0.25]), tf.zeros(2, tf.int64), 1)
    assert float(loss) == pytest.approx(math.log(5), rel=1e-5)


def test_untrained_ranker_orders_by_personal_frequency() -> None:
    """Before any step the score grows with the decayed count alone."""
    config = RankerConfig()
    ranker = Ranker(config, np.zeros(NUM_FEATURES, np.float32), np.ones(NUM_FEATURES, np.float32), 2)
    features = np.zeros((2, NUM_FEATURES), np.float32)
    features[1, feature_names(config).index("decay_16")] = 1.0
    scores = ranker(tf.constant(features), tf.constant([0, 1], tf.int64)).numpy()
    assert scores.tolist() == [0.0, 1.0]


def test_learns_what_decides() -> None:
    """Where one feature alone decides what is taken, the trained ranker puts the taken item first."""
    generator = np.random.default_rng(0)
    num_lists, size = 200, 10
    features = generator.normal(size=(num_lists * size, NUM_FEATURES)).astype(np.float16)
    decisive = features[:, 7].reshape(num_lists, size)
    labels = np.zeros((num_lists, size), np.float32)
    labels[np.arange(num_lists), decisive.argmax(axis=1)] = 1.0
    items = np.tile(np.arange(size), num_lists)
    examples = Examples(
        features, items, labels.ravel(), np.zeros(num_lists * size, np.float32), np.full(num_lists, size)
    )
    losses = []
    ranker = fit(
        examples, RankerConfig(epochs=15, dropout=0.0, lists_a_batch=8), size, lambda _, loss: losses.append(loss)
    )
    scores = ranker(tf.constant(features.astype(np.float32)), tf.constant(items)).numpy().reshape(num_lists, size)
    assert losses[-1] < losses[0] / 2
    assert (scores.argmax(axis=1) == decisive.argmax(axis=1)).mean() > 0.9


def test_training_is_reproducible() -> None:
    """The same seed gives the same weights."""
    generator = np.random.default_rng(1)
    features = generator.normal(size=(60, NUM_FEATURES)).astype(np.float16)
    labels = np.tile([1.0, 0.0, 0.0], 20).astype(np.float32)
    examples = Examples(features, np.tile(np.arange(3), 20), labels, np.zeros(60, np.float32), np.full(20, 3))
    first, second = (fit(examples, RankerConfig(epochs=2), 3, lambda *_: None) for _ in range(2))
    for ours, theirs in zip(first.trainable_variables, second.trainable_variables, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())
