"""The SavedModel: ids in, ids out, all preprocessing inside; with warm-up records, golden requests and checksums."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from contracts.files import sha256
from contracts.settings import settings
from contracts.verdicts import GOLDEN, MANIFEST
from training.config import RankerConfig
from training.data import Shop
from training.features import History, candidates
from training.mlmodel import write_mlmodel
from training.ranker import Ranker
from training.trainer import LISTS_AT_ONCE, items_as_of, stored_history

UNKNOWN_USER = "a-user-nobody-has-seen"


class ServingModel(tf.Module):
    """What TensorFlow Serving loads.

    Signatures:
        serving_default: `user_id` string `[batch]`, from the histories inside the model.
        history: `item_id` string `[batch, length]`, `age_days` float `[batch, length]` (before now); '' pads. All entries
            are of the heaviest of the types that a recommendation should lead to.
        typed_history: the same with `event_type` string `[batch, length]`. As in the histories that the model learned
            from, an item that occurs several times in one basket is one entry of its heaviest type.

    An entry with an item or a type that the model does not know is passed over. All give `items` string `[batch, k]` and
    `scores` float `[batch, k]`, best first. Without any history that the model knows, the same ranker orders what sold best in the last 4 intervals.
    """

    def __init__(self, ranker: Ranker, shop: Shop, config: RankerConfig) -> None:
        super().__init__()
        self._config = config
        self._ranker = ranker
        items = items_as_of(shop, shop.coming, config)
        self._items = items._replace(
            **{name: tf.Variable(value, trainable=False) for name, value in items._asdict().items()}
        )
        self._item_ids = tf.Variable(shop.item_ids.astype(str), trainable=False)
        self._k = min(config.top_k, int(items.popular.shape[0]))
        users = np.arange(len(shop.user_ids))
        history = stored_history(shop, users, shop.coming, config)
        self._starts = tf.Variable(np.searchsorted(history.list_ids, np.arange(len(users) + 1)), trainable=False)
        self._history_items = tf.Variable(tf.cast(history.items, tf.int32), trainable=False)
        self._history_ages = tf.Variable(history.ages, trainable=False)
        self._history_weights = tf.Variable(history.weights, trainable=False)
        self._user_rows, self._item_rows = _RowsById(shop.user_ids), _RowsById(shop.item_ids)
        self._types = tf.constant([*shop.type_weights], tf.string)
        self._weights = tf.constant([*shop.type_weights.values()], tf.float32)
        self._target_type = max(shop.target_types, key=lambda name: shop.type_weights[name])

    @property
    def history_bytes(self) -> int:
        """What the histories of all users take."""
        entries = (self._history_items, self._history_ages, self._history_weights)
        return sum(
            int(tf.size(each)) * each.dtype.size for each in (*entries, self._starts, *self._user_rows.variables)
        )

    @tf.function(autograph=False, input_signature=[tf.TensorSpec([None], tf.string, name="user_id")])
    def serving_default(self, user_id: tf.Tensor) -> dict[str, tf.Tensor]:
        return self._in_chunks(self._of_users, user_id)

    def _of_users(self, user_id: tf.Tensor) -> dict[str, tf.Tensor]:
        rows = self._user_rows(user_id)
        places = tf.maximum(rows, 0)
        starts = tf.gather(self._starts, places)
        lengths = tf.where(rows >= 0, tf.gather(self._starts, places + 1) - starts, 0)
        entries = tf.ragged.range(starts, starts + lengths)
        list_ids, flat = entries.value_rowids(), entries.flat_values
        items = tf.cast(tf.gather(self._history_items, flat), tf.int64)
        history = History(list_ids, items, tf.gather(self._history_ages, flat), tf.gather(self._history_weights, flat))
        return self._recommend(history, tf.size(user_id, out_type=tf.int64))

    @tf.function(
        autograph=False,
        input_signature=[
            tf.TensorSpec([None, None], tf.string, name="item_id"),
            tf.TensorSpec([None, None], tf.float32, name="age_days"),
        ],
    )
    def history(self, item_id: tf.Tensor, age_days: tf.Tensor) -> dict[str, tf.Tensor]:
        return self.typed_history(item_id, age_days, tf.fill(tf.shape(item_id), self._target_type))

    @tf.function(
        autograph=False,
        input_signature=[
            tf.TensorSpec([None, None], tf.string, name="item_id"),
            tf.TensorSpec([None, None], tf.float32, name="age_days"),
            tf.TensorSpec([None, None], tf.string, name="event_type"),
        ],
    )
    def typed_history(self, item_id: tf.Tensor, age_days: tf.Tensor, event_type: tf.Tensor) -> dict[str, tf.Tensor]:
        return self._in_chunks(self._of_histories, item_id, age_days, event_type)

    def _in_chunks(self, recommend: Callable[..., dict[str, tf.Tensor]], *inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        """`recommend` a few lists at a time: the candidates of thousands at once would take gigabytes."""
        batch = tf.shape(inputs[0])[0]
        size = tf.clip_by_value(batch, 1, LISTS_AT_ONCE)
        num_chunks = tf.maximum(1, -(-batch // size))
        chunks = []
        for each in inputs:  # the last chunk is filled up with lists that know nothing
            filled = tf.pad(each, [[0, num_chunks * size - batch]] + [[0, 0]] * (each.shape.rank - 1))
            chunks.append(tf.reshape(filled, tf.concat([[num_chunks, size], tf.shape(each)[1:]], 0)))
        answers = tf.map_fn(
            lambda parts: recommend(*parts),
            tuple(chunks),
            fn_output_signature={
                "items": tf.TensorSpec([None, self._k], tf.string),
                "scores": tf.TensorSpec([None, self._k], tf.float32),
            },
            parallel_iterations=1,
        )
        return {name: tf.reshape(answer, [-1, self._k])[:batch] for name, answer in answers.items()}

    def _of_histories(self, item_id: tf.Tensor, age_days: tf.Tensor, event_type: tf.Tensor) -> dict[str, tf.Tensor]:
        order = tf.argsort(age_days, axis=1, direction="DESCENDING", stable=True)
        ages = tf.maximum(tf.gather(age_days, order, batch_dims=1), 0.0)
        rows = self._item_rows(tf.gather(item_id, order, batch_dims=1))
        is_type = tf.gather(event_type, order, batch_dims=1)[:, :, None] == self._types
        weights = tf.reduce_max(tf.where(is_type, self._weights, 0.0), axis=2)
        places = tf.where((rows >= 0) & (weights > 0))
        entries = [tf.gather_nd(each, places) for each in (rows, ages, weights)]
        return self._recommend(History(places[:, 0], *entries), tf.shape(item_id, out_type=tf.int64)[0])

    def _recommend(self, history: History, num_lists: tf.Tensor) -> dict[str, tf.Tensor]:
        candidate = candidates(history, num_lists, self._items, self._config)
        scores = self._ranker(candidate.features, candidate.items)
        row_scores = tf.RaggedTensor.from_value_rowids(scores, candidate.list_ids, nrows=num_lists).to_tensor(-np.inf)
        row_items = tf.RaggedTensor.from_value_rowids(candidate.items, candidate.list_ids, nrows=num_lists).to_tensor(0)
        best, places = tf.math.top_k(row_scores, k=self._k)
        items = tf.gather(self._item_ids, tf.gather(row_items, places, batch_dims=1))
        return {"items": items, "scores": best}


class _RowsById(tf.Module):
    """The row of each id, -1 where there is none. Fingerprints stand for the ids, in variables: a table of texts would be
    a constant of the graph, which may have 2 GiB, and would tell who the users are.
    """

    def __init__(self, ids: npt.NDArray[np.object_]) -> None:
        """
        Raises:
            RuntimeError: two ids have the same fingerprint, of 63 bits.
        """
        super().__init__()
        fingerprints = _fingerprints(tf.constant(ids.astype(str), tf.string)).numpy()
        order = np.argsort(fingerprints)
        if (np.diff(fingerprints[order]) == 0).any():
            raise RuntimeError("two ids have the same fingerprint")
        # The last one is nobody's, so that there is always one.
        self._fingerprints = tf.Variable(np.append(fingerprints[order], np.iinfo(np.int64).max), trainable=False)
        self._rows = tf.Variable(np.append(order, -1), trainable=False)

    def __call__(self, ids: tf.Tensor) -> tf.Tensor:
        fingerprints = _fingerprints(ids)
        places = tf.reshape(tf.searchsorted(self._fingerprints, tf.reshape(fingerprints, [-1])), tf.shape(fingerprints))
        return tf.where(tf.gather(self._fingerprints, places) == fingerprints, tf.gather(self._rows, places), -1)


def _fingerprints(ids: tf.Tensor) -> tf.Tensor:
    """int64, at least 0 and less than the greatest."""
    return tf.strings.to_hash_bucket_fast(ids, np.iinfo(np.int64).max)


def _predict(loaded: Any, users: list[str]) -> dict[str, Any]:
    answer = loaded.signatures["serving_default"](user_id=tf.constant(users))
    return {
        "request": {"instances": [{"user_id": user} for user in users]},
        "items": [[item.decode() for item in row] for row in answer["items"].numpy()],
        "scores": answer["scores"].numpy().tolist(),
    }


def _warm_up(folder: Path, users: list[str]) -> None:
    """Records that TensorFlow Serving replays before the version becomes available (its SavedModel warm-up guide)."""
    from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

    (folder / "assets.extra").mkdir()
    with tf.io.TFRecordWriter(str(folder / "assets.extra" / "tf_serving_warmup_requests")) as writer:
        for batch in (users[:1], users):
            request = predict_pb2.PredictRequest()
            request.model_spec.name = settings().model
            request.model_spec.signature_name = "serving_default"
            request.inputs["user_id"].CopyFrom(tf.make_tensor_proto(batch))
            log = prediction_log_pb2.PredictLog(request=request)
            writer.write(prediction_log_pb2.PredictionLog(predict_log=log).SerializeToString())


def _write_manifest(folder: Path) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    lines = [f"{sha256(path)}  {path.relative_to(folder).as_posix()}" for path in files]
    (folder / MANIFEST).write_text("\n".join(lines) + "\n")


def export(ranker: Ranker, shop: Shop, config: RankerConfig, folder: Path) -> dict[str, float]:
    """Write the SavedModel to `folder`, whole or not at all.

    Returns:
        `model_mib`, `predict_p50_ms` (median time of a single user's prediction in this process) and `user_bytes` (what a
        user's history takes of the model).
    """
    staging = folder.with_name(folder.name + ".partial")
    shutil.rmtree(staging, ignore_errors=True)
    module = ServingModel(ranker, shop, config)
    signatures = {
        "serving_default": module.serving_default,
        "history": module.history,
        "typed_history": module.typed_history,
    }
    tf.saved_model.save(module, str(staging), signatures=signatures)
    lengths = np.diff(shop.histories.offsets)
    chosen = np.argsort(lengths, kind="stable")[np.linspace(0, len(lengths) - 1, min(8, len(lengths))).astype(int)]
    users = [*map(str, shop.user_ids[chosen]), UNKNOWN_USER]
    _warm_up(staging, users)
    loaded = tf.saved_model.load(str(staging))
    golden = [_predict(loaded, users), *[_predict(loaded, [user]) for user in users]]
    (staging / GOLDEN).write_text(json.dumps(golden, indent=1))
    times_ms = []
    for place in range(50):
        started = time.perf_counter()
        loaded.signatures["serving_default"](user_id=tf.constant(users[place % len(users)])[None])
        times_ms.append(1000 * (time.perf_counter() - started))
    write_mlmodel(staging, [UNKNOWN_USER])  # an example must not outlive a user who is erased
    _write_manifest(staging)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(staging, folder)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return {
        "model_mib": size / 2**20,
        "predict_p50_ms": statistics.median(times_ms),
        "user_bytes": module.history_bytes / max(1, len(shop.user_ids)),
    }
