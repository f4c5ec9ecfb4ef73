"""The signature `history` for LiteRT (TensorFlow Lite): recommendations on a phone or a till, without asking anybody.

The file holds what is known of items and nothing of users. It has LiteRT's own operators only: no interpreter has to be
built for it. LiteRT cannot hash texts, so items are numbers there: rows of `items.txt`, which lies beside it.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from contracts.files import write_json
from training.config import RankerConfig
from training.data import Shop, history_as_of
from training.features import History, candidates
from training.ranker import Ranker
from training.trainer import items_as_of

MODEL, ITEMS, REPORT = "recommender.tflite", "items.txt", "report.json"
SIGNATURE = "history"
PLACES = 10
MAX_SAMPLE = 2000
MIN_PARITY = 0.999
"""Share of lists whose first PLACES must be the served model's own."""

Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]


class EdgeModel(tf.Module):
    """What is converted.

    Signatures:
        history: `item` int32 `[length]`, rows of `items.txt`, and `age_days` float `[length]` (before now) of one user; -1
            pads. Gives `item` int32 `[k]` and `scores` float `[k]`, best first.
    """

    def __init__(self, ranker: Ranker, shop: Shop, config: RankerConfig) -> None:
        super().__init__()
        self._config, self._ranker = config, ranker
        self._items = items_as_of(shop, shop.coming, config)
        self._items = self._items._replace(
            **{name: tf.cast(getattr(self._items, name), tf.int32) for name in ("types", "categories", "popular")}
        )
        self._k = min(config.top_k, int(self._items.popular.shape[0]))
        self._weight = max(shop.type_weights[name] for name in shop.target_types)

    @tf.function(
        autograph=False,
        input_signature=[
            tf.TensorSpec([None], tf.int32, name="item"),
            tf.TensorSpec([None], tf.float32, name="age_days"),
        ],
    )
    def history(self, item: tf.Tensor, age_days: tf.Tensor) -> dict[str, tf.Tensor]:
        order = tf.argsort(age_days, direction="DESCENDING", stable=True)
        order = tf.gather(order, tf.where(tf.gather(item, order) >= 0)[:, 0])
        items, ages = tf.gather(item, order), tf.maximum(tf.gather(age_days, order), 0.0)
        entries = History(tf.zeros_like(items), items, ages, tf.fill(tf.shape(items), self._weight))
        candidate = candidates(entries, tf.constant(1, tf.int32), self._items, self._config)
        best, places = tf.math.top_k(self._ranker(candidate.features, candidate.items), k=self._k)
        return {"item": tf.gather(candidate.items, places), "scores": best}


def convert(ranker: Ranker, shop: Shop, config: RankerConfig) -> bytes:
    """The model as a file of LiteRT, with the signature `history`.

    Raises:
        tf.lite's ConverterError: an operator of the model is none of LiteRT's own.
    """
    module = EdgeModel(ranker, shop, config)
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(module, folder, signatures={SIGNATURE: module.history})
        return bytes(tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=[SIGNATURE]).convert())


def export(saved_model: Path, ranker: Ranker, shop: Shop, config: RankerConfig, folder: Path) -> dict[str, Any]:
    """Write the files to `folder`, and compare their answers with those of the SavedModel to the same histories.

    Returns:
        What REPORT holds: `num_lists` compared, of that many users; `parity`, the share of lists whose first PLACES are
        the same items in the same order; `max_score_difference` of those; `mib`; and the median time of one list,
        `p50_ms`, beside that of the SavedModel, `saved_model_p50_ms`, both in this process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = convert(ranker, shop, config)
    (folder / MODEL).write_bytes(content)
    (folder / ITEMS).write_text("".join(f"{item}\n" for item in shop.item_ids), encoding="utf-8")
    edge = tf.lite.Interpreter(model_content=content).get_signature_runner(SIGNATURE)
    loaded = tf.saved_model.load(str(saved_model))
    served = loaded.signatures[SIGNATURE]
    same, differences, edge_ms, served_ms = 0, [0.0], [], []
    histories = _histories(shop, config)
    for items, ages in histories:
        started = time.perf_counter()
        mine = edge(item=items, age_days=ages)
        edge_ms.append(1000 * (time.perf_counter() - started))
        request = {"item_id": tf.constant([shop.item_ids[items].tolist()], tf.string), "age_days": tf.constant([ages])}
        started = time.perf_counter()
        theirs = {name: answer.numpy()[0] for name, answer in served(**request).items()}
        served_ms.append(1000 * (time.perf_counter() - started))
        if [*shop.item_ids[mine["item"]][:PLACES]] == [item.decode() for item in theirs["items"][:PLACES]]:
            same += 1
            differences.append(float(np.abs(mine["scores"] - theirs["scores"])[:PLACES].max()))
    report = {
        "num_lists": len(histories),
        "parity": same / len(histories),
        "max_score_difference": max(differences),
        "mib": len(content) / 2**20,
        "p50_ms": statistics.median(edge_ms),
        "saved_model_p50_ms": statistics.median(served_ms),
    }
    write_json(folder / REPORT, report)
    return report


def _histories(shop: Shop, config: RankerConfig) -> list[tuple[Ints, Floats]]:
    """Of up to MAX_SAMPLE users, those with the shortest and the longest among them: rows of items, and ages in days."""
    lengths = np.diff(shop.histories.offsets)
    places = np.unique(np.linspace(0, len(lengths) - 1, min(MAX_SAMPLE, len(lengths))).astype(int))
    users = np.sort(np.argsort(lengths, kind="stable")[places])
    list_ids, items, ages, _ = history_as_of(shop, users, shop.coming, config.max_history)
    ends = np.searchsorted(list_ids, np.arange(1, len(users)))
    days = (ages * shop.interval_days).astype(np.float32)
    return [*zip(np.split(items.astype(np.int32), ends), np.split(days, ends), strict=True)]
