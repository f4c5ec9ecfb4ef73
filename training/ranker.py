"""The scorer and how it learns: a small network over candidate features, trained on whole lists."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from training.config import RankerConfig
from training.features import feature_names

CLIP = 6.0
"""Standardised features beyond this many deviations are cut."""

_PRIOR = {"decay_16": 1.0, "decay_4": 0.3, "item_target_4": 0.3}
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
        self._dropout = config.dropout
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
            self.biases.append(tf.Variable(tf.zeros([fan_out]), name=f"bias_{place}"))

    def __call__(self, features: tf.Tensor, items: tf.Tensor, *, training: bool = False) -> tf.Tensor:
        """Scores `[num_candidates]` of `features` `[num_candidates, num_features]` and `items` `[num_candidates]`."""
        x = tf.clip_by_value((features - self.mean) / self.deviation, -CLIP, CLIP)
        hidden = x
        for kernel, bias in zip(self.kernels[:-1], self.biases[:-1], strict=True):
            hidden = tf.nn.relu(tf.matmul(hidden, kernel) + bias)
            if training:
                hidden = tf.nn.dropout(hidden, self._dropout)
        score = tf.matmul(hidden, self.kernels[-1]) + self.biases[-1] + tf.matmul(x, self.linear)
        return score[:, 0] + tf.gather(self.item_bias, items)


def list_loss(
    scores: tf.Tensor, labels: tf.Tensor, log_chance: tf.Tensor, list_ids: tf.Tensor, num_lists: int
) -> tf.Tensor:
    """Multi-positive softmax over each list, each positive weighted 1/sqrt(#positives of its list); mean over lists.

    Args:
        scores, labels, log_chance: `[num_candidates]`; `log_chance` is the log of the chance with which the
            candidate was sampled, taken off the logit so that the sampled softmax estimates the whole one.
        list_ids: `[num_candidates]`, ascending.
    """
    logits = scores - log_chance
    top = tf.math.unsorted_segment_max(logits, list_ids, num_lists)
    total = tf.math.unsorted_segment_sum(tf.exp(logits - tf.gather(top, list_ids)), list_ids, num_lists)
    log_total = tf.math.log(tf.maximum(total, 1e-30)) + top
    positives = tf.math.unsorted_segment_sum(labels, list_ids, num_lists)
    weights = labels / tf.sqrt(tf.maximum(tf.gather(positives, list_ids), 1.0))
    losses = weights * (tf.gather(log_total, list_ids) - logits)
    return tf.reduce_sum(losses) / tf.maximum(tf.reduce_sum(tf.cast(positives > 0, tf.float32)), 1.0)


class Examples:
    """Sampled candidates of many lists in arrays: list `i` is rows `offsets[i]:offsets[i+1]`."""

    def __init__(
        self,
        features: npt.NDArray[np.float16],
        items: npt.NDArray[np.int64],
        labels: npt.NDArray[np.float32],
        log_chance: npt.NDArray[np.float32],
        lengths: npt.NDArray[np.int64],
    ) -> None:
        self.features, self.items, self.labels, self.log_chance = features, items, labels, log_chance
        self.offsets = np.concatenate([[0], np.cumsum(lengths)])

    @property
    def num_lists(self) -> int:
        return len(self.offsets) - 1

    @staticmethod
    def concatenate(parts: list[Examples]) -> Examples:
        """All lists of all parts, in order."""
        return Examples(
            np.concatenate([part.features for part in parts]),
            np.concatenate([part.items for part in parts]),
            np.concatenate([part.labels for part in parts]),
            np.concatenate([part.log_chance for part in parts]),
            np.concatenate([np.diff(part.offsets) for part in parts]),
        )

    def moments(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Mean and deviation of each feature, `[num_features]`; a constant feature gets deviation 1."""
        total, squares = np.zeros(self.features.shape[1]), np.zeros(self.features.shape[1])
        for chunk in np.array_split(self.features, max(1, len(self.features) // 100_000)):
            wide = chunk.astype(np.float64)
            total, squares = total + wide.sum(axis=0), squares + np.square(wide).sum(axis=0)
        mean = total / len(self.features)
        deviation = np.sqrt(np.maximum(squares / len(self.features) - mean**2, 0.0))
        return mean.astype(np.float32), np.where(deviation > 1e-4, deviation, 1.0).astype(np.float32)

    def batches(
        self, lists_a_batch: int, generator: np.random.Generator
    ) -> Iterator[tuple[npt.NDArray[np.float32], ...]]:
        """Shuffled batches of whole lists: features, items, labels, log_chance, list_ids."""
        order = generator.permutation(self.num_lists)
        for start in range(0, len(order), lists_a_batch):
            chosen = order[start : start + lists_a_batch]
            rows = np.concatenate([np.arange(self.offsets[i], self.offsets[i + 1]) for i in chosen])
            lengths = self.offsets[chosen + 1] - self.offsets[chosen]
            yield (
                self.features[rows].astype(np.float32),
                self.items[rows],
                self.labels[rows],
                self.log_chance[rows],
                np.repeat(np.arange(len(chosen)), lengths),
            )


def fit(examples: Examples, config: RankerConfig, num_items: int, progress: Callable[[int, float], None]) -> Ranker:
    """Train a ranker.

    Args:
        progress: called after each epoch with its number and its mean loss.
    """
    tf.keras.utils.set_random_seed(config.seed)
    mean, deviation = examples.moments()
    ranker = Ranker(config, mean, deviation, num_items)
    steps = config.epochs * math.ceil(examples.num_lists / config.lists_a_batch)
    warmup = min(config.warmup_steps, max(1, steps // 10))
    schedule = tf.keras.optimizers.schedules.CosineDecay(
        1e-6, max(1, steps - warmup), warmup_target=config.learning_rate, warmup_steps=warmup
    )
    optimizer = tf.keras.optimizers.AdamW(schedule, weight_decay=config.weight_decay, global_clipnorm=config.clip_norm)
    optimizer.exclude_from_weight_decay(var_list=[ranker.item_bias])
    variables = list(ranker.trainable_variables)
    optimizer.build(variables)
    lists_a_batch = config.lists_a_batch

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, len(mean)], tf.float32),
            tf.TensorSpec([None], tf.int64),
            tf.TensorSpec([None], tf.float32),
            tf.TensorSpec([None], tf.float32),
            tf.TensorSpec([None], tf.int64),
        ]
    )
    def step(
        features: tf.Tensor, items: tf.Tensor, labels: tf.Tensor, log_chance: tf.Tensor, list_ids: tf.Tensor
    ) -> tf.Tensor:
        with tf.GradientTape() as tape:
            scores = ranker(features, items, training=True)
            loss = list_loss(scores, labels, log_chance, list_ids, lists_a_batch)
            bias = tf.gather(ranker.item_bias, items)
            objective = loss + config.item_bias_l2 * tf.reduce_sum(tf.square(bias)) / lists_a_batch
        gradients = tape.gradient(objective, variables)
        optimizer.apply_gradients(zip([tf.convert_to_tensor(g) for g in gradients], variables, strict=True))
        return loss

    generator = np.random.default_rng(config.seed)
    for epoch in range(config.epochs):
        losses = [float(step(*batch)) for batch in examples.batches(lists_a_batch, generator)]
        progress(epoch + 1, float(np.mean(losses)))
    return ranker
