"""One loaded model: its signatures, and how to run them. Here those of a SavedModel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tensorflow.core.framework import tensor_pb2
from tensorflow.core.protobuf import config_pb2

from serving.local_server.batching import BatchedCall, Batcher, as_array
from serving.local_server.status import invalid, status_of

DEFAULT_SIGNATURE = "serving_default"
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Signature:
    """One signature: `TensorInfo` of each input and output by name, and the call that runs it."""

    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]
    call: Any

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """Run once.

        Raises:
            StatusError: names or types differ from the signature, or TensorFlow refused the values.
        """
        if inputs.keys() != self.inputs.keys():
            raise invalid(f"Inputs {sorted(inputs)} do not match the signature's {sorted(self.inputs)}")
        for name, info in self.inputs.items():
            actual, expected = tf.as_dtype(inputs[name].dtype), tf.as_dtype(info.dtype)
            # A Session would cast silently where TF Serving refuses.
            if actual != expected:
                raise invalid(f"Input {name!r} must be {expected.name}, not {actual.name}")
            if not tf.TensorShape(info.tensor_shape).is_compatible_with(inputs[name].shape):
                raise invalid(f"Input {name!r} has shape {inputs[name].shape}, not {tf.TensorShape(info.tensor_shape)}")
        try:
            values = self.call(*(inputs[name] for name in self.inputs))
        except tf.errors.OpError as error:
            raise status_of(error) from None
        return dict(zip(self.outputs, map(as_array, values), strict=True))


class Model:
    """What is loaded of a version.

    Attributes:
        signature_defs: `SignatureDef` by name.
    """

    def __init__(self) -> None:
        self.signature_defs: dict[str, Any] = {}
        self._signatures: dict[str, Signature] = {}

    def signature(self, name: str) -> Signature:
        """The signature of that name, `serving_default` for an empty one."""
        name = name or DEFAULT_SIGNATURE
        if name not in self._signatures:
            raise invalid(f'Serving signature name: "{name}" not found in signature def')
        return self._signatures[name]

    def close(self) -> None:
        """Let go of all that it holds."""
        self._signatures = {}


class SavedModel(Model):
    """A SavedModel in a session of its own; the thread pools are shared by all of this process.

    The TF1 loader is used because it feeds and fetches by tensor name, as TF Serving does.

    Raises:
        StatusError: the folder holds no SavedModel that loads.
    """

    def __init__(
        self, path: Path, *, intra_op_threads: int, inter_op_threads: int, batcher: Batcher | None = None
    ) -> None:
        super().__init__()
        config = tf.compat.v1.ConfigProto(
            intra_op_parallelism_threads=intra_op_threads, inter_op_parallelism_threads=inter_op_threads
        )
        graph = tf.Graph()
        self.session = tf.compat.v1.Session(graph=graph, config=config)
        try:
            with graph.as_default():
                meta_graph = tf.compat.v1.saved_model.loader.load(self.session, ["serve"], str(path))
            self.signature_defs = dict(meta_graph.signature_def)
            self._signatures = {
                name: self._signature(definition, batcher)
                for name, definition in self.signature_defs.items()
                if not name.startswith("__")
            }
        except Exception as error:  # whatever a broken file makes the loader raise is a failed load
            self.close()
            raise status_of(error) from error

    def _signature(self, definition: Any, batcher: Batcher | None) -> Signature:
        inputs, outputs = dict(definition.inputs), dict(definition.outputs)
        options = config_pb2.CallableOptions(
            feed=[info.name for info in inputs.values()], fetch=[info.name for info in outputs.values()]
        )
        call = self.session._make_callable_from_options(options)
        if batcher and inputs:
            call = BatchedCall(call, [info.name for info in inputs.values()], batcher)
        return Signature(inputs, outputs, call)

    def close(self) -> None:
        super().close()
        self.session.close()


def array_of(tensor: Any) -> NDArray[Any]:
    """The array in a `TensorProto`.

    Raises:
        StatusError: the proto contradicts itself.
    """
    try:
        return np.asarray(tf.make_ndarray(tensor))
    except (TypeError, ValueError, KeyError) as error:
        raise invalid(f"Malformed tensor: {error}") from None


_TYPED_FIELD = {
    "f": {4: "float_val", 8: "double_val"},
    "i": {1: "int_val", 2: "int_val", 4: "int_val", 8: "int64_val"},
    "u": {1: "int_val", 2: "int_val", 4: "uint32_val", 8: "uint64_val"},
    "b": {1: "bool_val"},
    "O": {8: "string_val"},
}


def proto_of(array: NDArray[Any]) -> Any:
    """The `TensorProto` of an array, values in the typed field as TF Serving sends them (not `tensor_content`)."""
    field = _TYPED_FIELD.get(array.dtype.kind, {}).get(array.dtype.itemsize)
    if field is None:
        return tf.make_tensor_proto(array)
    proto = tensor_pb2.TensorProto(
        dtype=tf.as_dtype(array.dtype).as_datatype_enum, tensor_shape=tf.TensorShape(array.shape).as_proto()
    )
    getattr(proto, field).extend(array.ravel().tolist())
    return proto
