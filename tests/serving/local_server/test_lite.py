"""LiteRT files: signatures, values, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.lite.tools import flatbuffer_utils

from serving.local_server.batching import Batcher
from serving.local_server.configs import Batching
from serving.local_server.lite_model import LiteModel
from serving.local_server.saved_model import Model
from serving.local_server.status import StatusError
from serving.local_server.warmup import LITE_FILE, load


def answer(model: Model, signature: str, *x: float) -> list[float]:
    return [*model.signature(signature).run({"x": np.array(x, np.float32)})["y"].tolist()]


def test_it_is_preferred_where_it_is_wanted_and_there(lite_version: Path, tmp_path: Path) -> None:
    """By the flag the LiteRT file answers; without, and in a folder without, the SavedModel does."""
    (tmp_path / "plain").symlink_to(lite_version.parent / "three")
    threads = {"intra_op_threads": 1, "inter_op_threads": 1}
    assert answer(load(lite_version, **threads, prefers_lite=True), "half", 1.0, 4.0) == [3.5, 5.0]
    assert answer(load(lite_version, **threads), "half", 1.0) == [2.5]
    assert answer(load(tmp_path / "plain", **threads, prefers_lite=True), "half", 1.0) == [3.5]


def test_its_signatures_are_described(lite_version: Path) -> None:
    """As a SavedModel's are: names, types and shapes."""
    model = LiteModel(lite_version / LITE_FILE)
    [(name, definition)] = model.signature_defs.items()
    assert (name, definition.method_name) == ("half", "tensorflow/serving/predict")
    assert {each: tf.TensorShape(info.tensor_shape).as_list() for each, info in definition.inputs.items()} == {
        "x": [None]
    }
    assert definition.outputs["y"].dtype == tf.float32.as_datatype_enum


def test_a_file_without_signatures_is_called_by_its_tensors(lite_version: Path, tmp_path: Path) -> None:
    """As older converters wrote them, with as many rows as come."""
    content = flatbuffer_utils.read_model(str(lite_version / LITE_FILE))
    content.signatureDefs = []
    content.subgraphs[0].tensors[content.subgraphs[0].inputs[0]].name = b"x"
    content.subgraphs[0].tensors[content.subgraphs[0].outputs[0]].name = b"y"
    flatbuffer_utils.write_model(content, str(tmp_path / LITE_FILE))
    model = LiteModel(tmp_path / LITE_FILE)
    assert answer(model, "", 1.0) == [3.5]
    assert answer(model, "serving_default", 2.0, 3.0, 4.0) == [4.0, 4.5, 5.0]


def test_it_is_batched(lite_version: Path) -> None:
    """A request that fills a batch by itself is answered at once."""
    parameters = Batching(max_batch_size=2, batch_timeout_micros=10_000_000, num_batch_threads=1)
    assert answer(LiteModel(lite_version / LITE_FILE, batcher=Batcher(parameters)), "half", 1.0, 2.0) == [3.5, 4.0]


def test_what_does_not_fit_is_refused(lite_version: Path, tmp_path: Path) -> None:
    """A wrong type, an unknown signature, and a file that is none."""
    model = LiteModel(lite_version / LITE_FILE)
    with pytest.raises(StatusError, match="must be float32, not int64"):
        model.signature("half").run({"x": np.array([1])})
    with pytest.raises(StatusError, match='"serving_default" not found'):
        model.signature("")
    (tmp_path / LITE_FILE).write_bytes(b"no model")
    with pytest.raises(StatusError, match="identifier"):
        load(tmp_path, intra_op_threads=1, inter_op_threads=1, prefers_lite=True)
