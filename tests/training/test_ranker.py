"""The loss by hand, the prior, and learning of something simple."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf

from training.config import RankerConfig
from training.features import feature_names
from training.ranker import Ranker, list_loss

NUM_FEATURES = len(feature_names(RankerConfig()))


def test_loss_by_hand() -> None:
    """List 0: scores 0 and ln 3, the second taken: -ln(3/4). List 1: one of two equal scores taken: ln 2."""
    total, num_lists = list_loss(
        tf.constant([0.0, math.log(3.0), 1.0, 1.0]),
        tf.constant([0.0, 1.0, 1.0, 0.0]),
        tf.zeros(4),
        tf.constant([0, 0, 1, 1], tf.int64),
        2,
    )
    assert float(total) == pytest.approx(math.log(4 / 3) + math.log(2), rel=1e-5)
    assert float(num_lists) == 2


def test_several_positives_weigh_by_the_root_of_their_number() -> None:
    """Two taken of three with equal scores: 2 * ln 3 / sqrt 2."""
    total, _ = list_loss(tf.zeros(3), tf.constant([1.0, 1.0, 0.0]), tf.zeros(3), tf.zeros(3, tf.int64), 1)
    assert float(total) == pytest.approx(math.sqrt(2) * math.log(3), rel=1e-5)


def test_a_sampled_negative_stands_for_those_left_out() -> None:
    """A negative kept with chance 1/4 counts four times: -ln(1 / (1 + 4))."""
    total, _ = list_loss(tf.zeros(2), tf.constant([1.0, 0.0]), tf.math.log([1.0, 0.25]), tf.zeros(2, tf.int64), 1)
    assert float(total) == pytest.approx(math.log(5), rel=1e-5)


def test_untrained_ranker_orders_by_personal_frequency() -> None:
    """Before any step the score grows with the decayed count alone."""
    config = RankerConfig()
    ranker = Ranker(config, np.zeros(NUM_FEATURES, np.float32), np.ones(NUM_FEATURES, np.float32), 2)
    features = np.zeros((2, NUM_FEATURES), np.float32)
    features[1, feature_names(config).index("decay_112")] = 1.0
    scores = ranker(tf.constant(features), tf.constant([0, 1], tf.int64)).numpy()
    assert scores.tolist() == [0.0, 1.0]
