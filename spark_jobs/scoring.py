"""What a model answers, computed where the rows are: TensorFlow runs in Spark's workers."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa


@functools.lru_cache(maxsize=1)
def _signature(folder: str) -> Any:
    """Loaded once in a worker, which Spark keeps for the tasks that follow."""
    import tensorflow as tf

    return tf.saved_model.load(folder).signatures["serving_default"]


def score(batches: Iterator[pa.RecordBatch], *, folder: str) -> Iterator[pa.RecordBatch]:
    """The answers to users, in their order: what the endpoint answers, by the same function.

    Args:
        batches: with the column `user_id`; others are handed on.
        folder: of the SavedModel.

    Returns:
        The same rows with `items` and `scores`, best first.
    """
    import tensorflow as tf

    recommend = _signature(folder)
    for batch in batches:
        answer = recommend(user_id=tf.constant(batch["user_id"].to_pylist(), tf.string))
        items, scores = answer["items"].numpy(), answer["scores"].numpy().astype(np.float64)
        starts = pa.array(np.arange(0, items.size + 1, items.shape[1], dtype=np.int32))
        texts = pa.array(items.ravel(), pa.binary()).cast(pa.string())
        lists = {"items": texts, "scores": pa.array(scores.ravel())}
        columns = dict(zip(batch.schema.names, batch.columns, strict=True)) | {
            name: pa.ListArray.from_arrays(starts, values) for name, values in lists.items()
        }
        yield pa.RecordBatch.from_pydict(columns)
