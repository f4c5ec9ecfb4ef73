"""Classify, Regress and MultiInference: what TF Serving computes from examples (`tf.train.Example`)."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import tensorflow as tf
from grpc import StatusCode
from numpy.typing import NDArray
from tensorflow.core.example.example_pb2 import Example
from tensorflow_serving.apis import classification_pb2, inference_pb2, input_pb2, regression_pb2

from serving.local_server.saved_model import DEFAULT_SIGNATURE, Arrays, Model
from serving.local_server.status import StatusError, invalid
from serving.local_server.tensors import encoded, fits, json_object

CLASSIFY, REGRESS = "tensorflow/serving/classify", "tensorflow/serving/regress"
METHODS = {"classify": CLASSIFY, "regress": REGRESS}
"""Method of a signature by the verb of REST."""


def infer(model: Model, method: str, signature_name: str, source: Any) -> Any:
    """`ClassificationResult` or `RegressionResult` of the examples in an `Input`.

    Raises:
        StatusError: the signature is missing or of another method, there is no example, or the outputs do not fit.
    """
    name = signature_name or DEFAULT_SIGNATURE
    definition = model.signature_defs.get(name)
    if definition is None:
        raise invalid(f"No signature was found with the name: {name}")
    if definition.method_name != method:
        raise invalid(f"Expected signature {name} to have the method_name {method}. Was: {definition.method_name}")
    if [*definition.inputs] != ["inputs"]:
        raise invalid(f"Expected one input Tensor named 'inputs', found {sorted(definition.inputs)}")
    examples = _serialized(source)
    outputs = model.signature(name).run({"inputs": examples})
    return (_classifications if method == CLASSIFY else _regressions)(outputs, len(examples))


def multi_infer(model: Model, request: Any) -> Any:
    """`MultiInferenceResponse` of a request whose tasks are all of this model.

    Raises:
        StatusError: as `infer`; or a task comes twice or is of another model or method.
    """
    response, names = inference_pb2.MultiInferenceResponse(), set()
    for task in request.tasks:
        spec = task.model_spec
        if spec.name != request.tasks[0].model_spec.name:
            raise invalid("All ModelSpecs in a MultiInferenceRequest must access the same model name.")
        name = spec.signature_name or DEFAULT_SIGNATURE
        if name in names:
            raise invalid(f"Duplicate evaluation of signature: {name}")
        if task.method_name not in METHODS.values():
            raise StatusError(StatusCode.UNIMPLEMENTED, f"Unsupported signature method_name: {task.method_name}")
        names.add(name)
        result = response.results.add()
        field = result.classification_result if task.method_name == CLASSIFY else result.regression_result
        field.CopyFrom(infer(model, task.method_name, name, request.input))
    return response


def _serialized(source: Any) -> NDArray[Any]:
    kind = source.WhichOneof("kind")
    examples = getattr(source, kind).examples if kind else ()
    if not examples:
        raise invalid("Input is empty.")
    # Of two values of a field the later one counts, so an example's own features win over the context's.
    context = source.example_list_with_context.context.SerializeToString() if "context" in kind else b""
    return np.array([context + example.SerializeToString() for example in examples], dtype=object)


_KINDS = {"O": "strings", "f": "decimals"}
"""By NumPy's letter of it."""


def _checked(outputs: Arrays, name: str, kind: str, num_examples: int) -> NDArray[Any] | None:
    """An output of that kind, `[num_examples, ...]`; None when the signature has none of that name."""
    array = outputs.get(name)
    if array is not None and (array.dtype.kind != kind or array.shape[:1] != (num_examples,)):
        wrong = f"{tf.as_dtype(array.dtype).name} {list(array.shape)}"
        raise invalid(f"Expected {name} Tensor of {_KINDS[kind]} for {num_examples} examples. Got: {wrong}")
    return array


def _classifications(outputs: Arrays, num_examples: int) -> Any:
    classes = _checked(outputs, "classes", "O", num_examples)
    scores = _checked(outputs, "scores", "f", num_examples)
    present = [array for array in (classes, scores) if array is not None]
    if not present or len(present) != len(outputs) or any(array.shape != present[0].shape for array in present):
        raise invalid(f"Expected the outputs 'classes' and 'scores', or one of them, found {sorted(outputs)}")
    if present[0].ndim != 2:
        raise invalid(f"Expected Tensor shape: [batch_size num_classes] but got {list(present[0].shape)}")
    result = classification_pb2.ClassificationResult()
    for row in range(num_examples):
        classified = result.classifications.add()
        for place in range(present[0].shape[1]):
            classified.classes.add(
                label=b"" if classes is None else classes[row, place], score=0 if scores is None else scores[row, place]
            )
    return result


def _regressions(outputs: Arrays, num_examples: int) -> Any:
    values = _checked(outputs, "outputs", "f", num_examples)
    if values is None or len(outputs) != 1:
        raise invalid(f"Expected one output Tensor named 'outputs', found {sorted(outputs)}")
    if values.size != num_examples:
        raise invalid(f"Expected Tensor shape: [batch_size] or [batch_size 1] but got {list(values.shape)}")
    result = regression_pb2.RegressionResult()
    for value in values.reshape(num_examples):
        result.regressions.add(value=value)
    return result


# The JSON of REST


def parse(body: bytes) -> tuple[str, Any]:
    """The name of the signature, and the `Input`: `examples`, and what they share as `context`.

    Raises:
        StatusError: INVALID_ARGUMENT when it is not such an object.
    """
    request, source = json_object(body), input_pb2.Input()
    if "context" in request:
        source.example_list_with_context.context.CopyFrom(_example(request["context"]))
    rows = request.get("examples")
    if not isinstance(rows, list) or not rows:
        raise invalid("The request must have the key 'examples', a list/array of at least one example")
    examples = source.example_list_with_context if "context" in request else source.example_list
    examples.examples.extend(_example(row) for row in rows)
    return request.get("signature_name", ""), source


def as_json(result: Any) -> dict[str, Any]:
    """`{"results": [...]}`: a number an example, or a list of `[label, score]`."""

    def number(value: float) -> float:
        return float(str(np.float32(value)))  # as the shortest decimals that name it

    if isinstance(result, regression_pb2.RegressionResult):
        return {"results": [number(each.value) for each in result.regressions]}
    return {"results": [[[each.label, number(each.score)] for each in row.classes] for row in result.classifications]}


def _example(features: Any) -> Example:
    if not isinstance(features, dict):
        raise invalid(f"Example must be JSON object, not {json.dumps(features)[:80]}")
    example = Example()
    for name, value in features.items():
        values = value if isinstance(value, list) else [value]
        kinds = dict.fromkeys(_kind(name, each) for each in values)
        if len(kinds) > 1:
            raise invalid(f"Elements of feature: {name} expecting type: {next(iter(kinds)).removesuffix('_list')}")
        for kind in kinds:
            encode = encoded if kind == "bytes_list" else int if kind == "int64_list" else float
            getattr(example.features.feature[name], kind).value.extend(map(encode, values))
    return example


def _kind(name: str, value: Any) -> str:
    """The field of `tf.train.Feature` that a value belongs to; booleans are integers."""
    if isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise invalid(f"Feature: {name} has {value}. Only int64 is supported")
        return "int64_list"
    if isinstance(value, float):
        if not fits(value, tf.float32):
            raise invalid(f"Cannot convert JSON value: {value} of feature: {name} to float without loss of precision")
        return "float_list"
    try:
        if encoded(value) is not None:
            return "bytes_list"
    except ValueError as error:
        raise invalid(f"Feature: {name}: {error}") from None
    kinds = {type(None): "Null", list: "Array"}
    raise invalid(f"Feature: {name} has element with unexpected JSON type: {kinds.get(type(value), 'Object')}")
