"""A model that has answered before it is asked: the requests that TF Serving calls warm-up records."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import tensorflow as tf
from grpc import StatusCode
from tensorflow_serving.apis import prediction_log_pb2

from serving.local_server.batching import Batcher
from serving.local_server.inference import CLASSIFY, REGRESS, infer, multi_infer
from serving.local_server.saved_model import Model, SavedModel, array_of
from serving.local_server.status import StatusError, status_of

RECORDS_FILE = Path("assets.extra") / "tf_serving_warmup_requests"
LITE_FILE = "model.tflite"
MAX_RECORDS = 1000


def load(
    path: Path,
    *,
    intra_op_threads: int,
    inter_op_threads: int,
    batcher: Batcher | None = None,
    prefers_lite: bool = False,
) -> Model:
    """Load a version's folder and replay its records.

    Args:
        prefers_lite: whether a LiteRT file in it is loaded instead of the SavedModel.

    Raises:
        StatusError: it does not load, or a record fails.
    """
    model: Model
    if prefers_lite and (path / LITE_FILE).is_file():
        from serving.local_server.lite_model import LiteModel

        model = LiteModel(path / LITE_FILE, batcher=batcher)
    else:
        model = SavedModel(path, intra_op_threads=intra_op_threads, inter_op_threads=inter_op_threads, batcher=batcher)
    try:
        if (path / RECORDS_FILE).is_file():
            for number, record in enumerate(
                itertools.islice(tf.data.TFRecordDataset(str(path / RECORDS_FILE)), MAX_RECORDS)
            ):
                _replay(model, number, prediction_log_pb2.PredictionLog.FromString(record.numpy()))
    except Exception as error:  # also whatever a broken file makes the readers raise
        model.close()
        raise status_of(error) from error
    return model


def _replay(model: Model, number: int, log: Any) -> None:
    kind = log.WhichOneof("log_type")
    if kind == "predict_log":
        request = log.predict_log.request
        inputs = {name: array_of(tensor) for name, tensor in request.inputs.items()}
        model.signature(request.model_spec.signature_name).run(inputs)
    elif kind in ("classify_log", "regress_log"):
        request, method = getattr(log, kind).request, CLASSIFY if kind == "classify_log" else REGRESS
        infer(model, method, request.model_spec.signature_name, request.input)
    elif kind == "multi_inference_log":
        multi_infer(model, log.multi_inference_log.request)
    else:
        raise StatusError(StatusCode.UNIMPLEMENTED, f"Warm-up record {number} is a {kind}: not supported locally")
