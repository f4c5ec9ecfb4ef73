"""Training examples on disk: sampled candidates with their features, a shard for each interval and part of the users.

A shard is made once, by one worker, from what was known before its interval, and read by every fold that learns from
the interval. Its description is written last: whoever sees it sees a whole shard.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from contracts.files import read_json, write_json

SHUFFLED_LISTS = 2048
"""How many lists are mixed at a time. Shards are read side by side, in another order in each epoch."""
_SHARDS_AT_ONCE = 16
_TYPES = {"features": tf.float16, "items": tf.int32, "labels": tf.uint8, "log_chance": tf.float32}
"""What a record holds for each candidate of its list, as bytes."""


class Examples(NamedTuple):
    """Sampled candidates of some lists: list `i` has the `lengths[i]` rows after those of the lists before it."""

    features: npt.NDArray[np.float16]
    """`[num_candidates, num_features]`"""
    items: npt.NDArray[np.int32]
    labels: npt.NDArray[np.uint8]
    log_chance: npt.NDArray[np.float32]
    """Log of the chance with which the candidate was sampled."""
    lengths: npt.NDArray[np.int64]
    """`[num_lists]`"""


@dataclass(frozen=True)
class Shard:
    """A file of examples, one record a list."""

    path: str
    num_lists: int
    num_candidates: int
    num_attainable_lists: int
    """Lists with a target that could have been recommended."""
    sums: list[float]
    """Of each feature over all candidates, `[num_features]`."""
    squares: list[float]


def find_shard(path: Path) -> Shard | None:
    """The shard at `path`; None where it is not whole."""
    about = read_json(path.with_suffix(".json"))
    return Shard(**about) if about else None


def write_shard(path: Path, parts: Iterable[Examples], num_attainable_lists: int, num_features: int) -> Shard:
    """Write a shard, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    sums, squares = np.zeros(num_features), np.zeros(num_features)
    num_lists = num_candidates = 0
    with tf.io.TFRecordWriter(str(unfinished)) as writer:
        for part in parts:
            ends = np.cumsum(part.lengths)
            for first, end in zip((ends - part.lengths).tolist(), ends.tolist(), strict=True):
                writer.write(_record(part, slice(first, end)))
            wide = part.features.astype(np.float64)
            sums, squares = sums + wide.sum(axis=0), squares + np.square(wide).sum(axis=0)
            num_lists, num_candidates = num_lists + len(part.lengths), num_candidates + len(part.items)
    unfinished.replace(path)
    shard = Shard(str(path), num_lists, num_candidates, num_attainable_lists, sums.tolist(), squares.tolist())
    write_json(path.with_suffix(".json"), asdict(shard))
    return shard


def _record(part: Examples, rows: slice) -> bytes:
    values = {
        name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[getattr(part, name)[rows].tobytes()]))
        for name in _TYPES
    }
    record: bytes = tf.train.Example(features=tf.train.Features(feature=values)).SerializeToString()
    return record


def moments(shards: Sequence[Shard]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Mean and deviation of each feature, `[num_features]`; a constant feature gets deviation 1."""
    count = max(1, sum(shard.num_candidates for shard in shards))
    mean = np.sum([shard.sums for shard in shards], axis=0) / count
    deviation = np.sqrt(np.maximum(np.sum([shard.squares for shard in shards], axis=0) / count - mean**2, 0.0))
    return mean.astype(np.float32), np.where(deviation > 1e-4, deviation, 1.0).astype(np.float32)


class Batch(NamedTuple):
    """Candidates of some lists, those of a list beside each other."""

    features: tf.Tensor
    """float16 `[num_candidates, num_features]`: half the bytes on their way to a device"""
    items: tf.Tensor
    """int64 `[num_candidates]`"""
    labels: tf.Tensor
    """float32 `[num_candidates]`"""
    log_chance: tf.Tensor
    """float32 `[num_candidates]`"""
    list_ids: tf.Tensor
    """int64 `[num_candidates]`, ascending"""


def batches(
    shards: Sequence[Shard],
    num_features: int,
    lists_a_batch: int,
    num_batches: int,
    seed: Sequence[int],
    *,
    skip: int = 0,
) -> tf.data.Dataset:
    """One epoch: every list once, in an order that `seed` decides, then empty batches up to `num_batches`.

    Args:
        skip: batches that are left out at the start: a training that goes on has seen them.
    """
    generator = np.random.default_rng([*seed])
    paths = [shards[place].path for place in generator.permutation(len(shards))]

    def decoded(records: tf.Tensor) -> Batch:
        parsed = tf.io.parse_example(records, {name: tf.io.FixedLenFeature([], tf.string) for name in _TYPES})
        flat = {name: tf.io.decode_raw(tf.strings.reduce_join(parsed[name]), dtype) for name, dtype in _TYPES.items()}
        lengths = tf.strings.length(parsed["labels"])
        return Batch(
            tf.reshape(flat["features"], [-1, num_features]),
            tf.cast(flat["items"], tf.int64),
            tf.cast(flat["labels"], tf.float32),
            flat["log_chance"],
            tf.repeat(tf.range(tf.size(lengths, out_type=tf.int64)), lengths),
        )

    lists = (
        tf.data.Dataset.from_tensor_slices(tf.constant(paths, tf.string))
        .interleave(
            tf.data.TFRecordDataset,
            cycle_length=_SHARDS_AT_ONCE,
            block_length=4,
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
        .shuffle(SHUFFLED_LISTS, seed=int(generator.integers(2**31)), reshuffle_each_iteration=False)
        .skip(skip * lists_a_batch)
    )
    whole = lists.batch(lists_a_batch, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).map(
        decoded, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
    )
    nothing = Batch(*(tf.zeros([0, *spec.shape[1:]], spec.dtype) for spec in whole.element_spec))
    empty = tf.data.Dataset.from_tensors(nothing).repeat()
    return whole.concatenate(empty).take(num_batches - skip).prefetch(4)
