"""The scorer and its loss: a small network over candidate features, trained on whole lists."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from training.config import RankerConfig
from training.features import feature_names

CLIP = 6.0
"""Standardised features beyond this many deviations are cut."""

_PRIOR = {"decay_112": 1.0, "decay_28": 0.3, "item_target_4": 0.3}
"""Weights the linear part starts with: decayed personal frequency, then popularity. A little data can only improve on it."""


class Ranker(tf.Module):
    """score = MLP(x) + linear(x) + bias of the item, over standardised features x."""

    def __init__(
        self, config: RankerConfig, mean: npt.NDArray[np.float32], deviation: npt.NDArray[np.float32], num_items: int
    ) -> None:
        """
        Args:
            mean, deviation: `[num_features]`, of the training features.
        """
        super().__init__()
        generator = np.random.default_rng(config.seed)
        self.mean = tf.Variable(mean, trainable=False)
        self.deviation = tf.Variable(deviation, trainable=False)
        names = feature_names(config)
        linear = np.array([_PRIOR.get(name, 0.0) for name in names], dtype=np.float32)
        self.linear = tf.Variable(linear[:, None], name="linear")
        self.item_bias = tf.Variable(tf.zeros([num_items]), name="item_bias")
        self.kernels, self.biases = [], []
        sizes = [len(names), *config.hidden_units, 1]
        for place, (fan_in, fan_out) in enumerate(pairwise(sizes)):
            # The last layer starts at zero, so that the untrained ranker is its prior.
            scale = 0.0 if fan_out == 1 else math.sqrt(2.0 / fan_in)
            kernel = generator.normal(0.0, scale, [fan_in, fan_out]).astype(np.float32)
            self.kernels.append(tf.Variable(kernel, name=f"kernel_{place}"))
            if fan_out > 1:  # a softmax over a list does not see what is added to all of its scores
                self.biases.append(tf.Variable(tf.zeros([fan_out]), name=f"bias_{place}"))

    def __call__(self, features: tf.Tensor, items: tf.Tensor) -> tf.Tensor:
        """Scores `[num_candidates]` of `features` `[num_candidates, num_features]` and `items` `[num_candidates]`."""
        x = tf.clip_by_value((features - self.mean) / self.deviation, -CLIP, CLIP)
        hidden = x
        for kernel, bias in zip(self.kernels[:-1], self.biases, strict=True):
            hidden = tf.nn.relu(tf.matmul(hidden, kernel) + bias)
        score = tf.matmul(hidden, self.kernels[-1]) + tf.matmul(x, self.linear)
        return score[:, 0] + tf.gather(self.item_bias, items)


def list_loss(
    scores: tf.Tensor, labels: tf.Tensor, log_chance: tf.Tensor, list_ids: tf.Tensor, num_lists: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """Multi-positive softmax over each list, each positive weighted 1/sqrt(#positives of its list).

    Args:
        scores, labels, log_chance: `[num_candidates]`; `log_chance` is the log of the chance with which the
            candidate was sampled, taken off the logit so that the sampled softmax estimates the whole one.
        list_ids: `[num_candidates]`, ascending.

    Returns:
        The sum over the lists, and the number of lists with a positive: the mean is taken over all replicas.
    """
    logits = scores - log_chance
    top = tf.math.unsorted_segment_max(logits, list_ids, num_lists)
    total = tf.math.unsorted_segment_sum(tf.exp(logits - tf.gather(top, list_ids)), list_ids, num_lists)
    log_total = tf.math.log(tf.maximum(total, 1e-30)) + top
    positives = tf.math.unsorted_segment_sum(labels, list_ids, num_lists)
    weights = labels / tf.sqrt(tf.maximum(tf.gather(positives, list_ids), 1.0))
    losses = weights * (tf.gather(log_total, list_ids) - logits)
    return tf.reduce_sum(losses), tf.reduce_sum(tf.cast(positives > 0, tf.float32))
