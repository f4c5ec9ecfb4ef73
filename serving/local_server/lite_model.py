"""One loaded LiteRT file: TF Serving's `--prefer_tflite_model`."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow.lite.python.interpreter import Interpreter

from serving.local_server.batching import BatchedCall, Batcher
from serving.local_server.saved_model import DEFAULT_SIGNATURE, Model, Signature
from serving.local_server.status import invalid, status_of

PREDICT = "tensorflow/serving/predict"
Details = Mapping[str, Mapping[str, Any]]


class LiteModel(Model):
    """A `model.tflite` in one interpreter, which runs one request at a time.

    Its signatures are those that converters write today; a file without any has one, `serving_default`, whose inputs and
    outputs are called as its tensors are.

    Raises:
        StatusError: it is no file that LiteRT reads.
    """

    def __init__(self, path: Path, *, batcher: Batcher | None = None) -> None:
        self._lock = threading.Lock()
        try:
            with warnings.catch_warnings(action="ignore"):  # it will move to a package of its own
                interpreter = Interpreter(model_path=str(path))
            runners = {name: interpreter.get_signature_runner(name) for name in interpreter.get_signature_list()}
        except Exception as error:  # whatever a broken file makes it raise is a failed load
            raise status_of(error) from error
        super().__init__()
        for name, runner in runners.items():
            self._add(name, runner.get_input_details(), runner.get_output_details(), runner, batcher)
        if not runners:
            inputs, outputs = (
                {each["name"]: each for each in details}
                for details in (interpreter.get_input_details(), interpreter.get_output_details())
            )
            self._add(DEFAULT_SIGNATURE, inputs, outputs, partial(_run, interpreter, inputs, outputs), batcher)

    def _add(
        self,
        name: str,
        inputs: Details,
        outputs: Details,
        run: Callable[..., Mapping[str, NDArray[Any]]],
        batcher: Batcher | None,
    ) -> None:
        def call(*values: NDArray[Any]) -> list[NDArray[Any]]:
            try:
                with self._lock:
                    answer = run(**dict(zip(inputs, values, strict=True)))
            except (ValueError, RuntimeError) as error:
                raise invalid(str(error)) from None
            return [answer[output] for output in outputs]

        definition = meta_graph_pb2.SignatureDef(
            inputs={each: _info(details) for each, details in inputs.items()},
            outputs={each: _info(details) for each, details in outputs.items()},
            method_name=PREDICT,
        )
        self.signature_defs[name] = definition
        self._signatures[name] = Signature(
            {each: definition.inputs[each] for each in inputs},
            {each: definition.outputs[each] for each in outputs},
            BatchedCall(call, [*inputs], batcher) if batcher and inputs else call,
        )


def _info(details: Mapping[str, Any]) -> meta_graph_pb2.TensorInfo:
    shape = tf.TensorShape([None if size < 0 else int(size) for size in details["shape_signature"]])
    # LiteRT says `bytes` where texts are.
    dtype = tf.string if details["dtype"] is np.bytes_ else tf.as_dtype(details["dtype"])
    return meta_graph_pb2.TensorInfo(name=details["name"], dtype=dtype.as_datatype_enum, tensor_shape=shape.as_proto())


def _run(
    interpreter: Interpreter, inputs: Details, outputs: Details, **values: NDArray[Any]
) -> dict[str, NDArray[Any]]:
    for name, value in values.items():
        interpreter.resize_tensor_input(inputs[name]["index"], value.shape)
    interpreter.allocate_tensors()
    for name, value in values.items():
        interpreter.set_tensor(inputs[name]["index"], value)
    interpreter.invoke()
    return {name: interpreter.get_tensor(details["index"]) for name, details in outputs.items()}
