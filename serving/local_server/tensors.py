"""The two JSON formats of Predict (row `instances`, columnar `inputs`) to and from arrays."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from serving.local_server.saved_model import Arrays
from serving.local_server.status import invalid


def parse(body: bytes) -> tuple[dict[str, Any], bool]:
    """The request object and whether it is in row format.

    Raises:
        StatusError: INVALID_ARGUMENT when it is no JSON object with one of `instances` and `inputs`.
    """
    request = json_object(body)
    if ("instances" in request) == ("inputs" in request):
        raise invalid("The request must have one of the keys 'instances' and 'inputs'")
    return request, "instances" in request


def json_object(body: bytes) -> dict[str, Any]:
    """The object that a body is.

    Raises:
        StatusError: INVALID_ARGUMENT when it is none, or names its signature by anything but a string.
    """
    try:
        request = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise invalid(f"JSON Parse error: {error}") from None
    if not isinstance(request, dict):
        raise invalid("The request must be a JSON object")
    if not isinstance(request.get("signature_name", ""), str):
        raise invalid("'signature_name' must be a string")
    return request


def encoded(value: Any) -> bytes | None:
    """The bytes of a string, or of `{"b64": ...}`; None of anything else.

    Raises:
        ValueError: it cannot be decoded.
    """
    if isinstance(value, str):
        return value.encode()
    if _is_b64(value) and isinstance(value["b64"], str):
        return base64.b64decode(value["b64"], validate=True)
    return None


def from_rows(instances: Any, infos: Mapping[str, Any]) -> Arrays:
    """Arrays of the rows of `instances`: objects of named values, or bare values when there is one input."""
    if not isinstance(instances, list) or not instances:
        raise invalid("'instances' must be a list with at least one row")
    named = isinstance(instances[0], dict) and not _is_b64(instances[0])
    if not named:
        if len(infos) != 1:
            raise invalid(f"Rows must be objects with the keys {sorted(infos)}")
        return {name: _array(name, instances, info) for name, info in infos.items()}
    for number, row in enumerate(instances):
        if not isinstance(row, dict) or row.keys() != infos.keys():
            raise invalid(f"Row {number} of 'instances' must be an object with the keys {sorted(infos)}")
    return {name: _array(name, [row[name] for row in instances], info) for name, info in infos.items()}


def from_columns(inputs: Any, infos: Mapping[str, Any]) -> Arrays:
    """Arrays of `inputs`: an object of named tensors, or a bare tensor when there is one input."""
    if isinstance(inputs, dict) and not _is_b64(inputs):
        if inputs.keys() != infos.keys():
            raise invalid(f"'inputs' must have the keys {sorted(infos)}, not {sorted(inputs)}")
        return {name: _array(name, inputs[name], info) for name, info in infos.items()}
    if len(infos) != 1:
        raise invalid(f"'inputs' must be an object with the keys {sorted(infos)}")
    return {name: _array(name, inputs, info) for name, info in infos.items()}


def to_rows(outputs: Arrays) -> dict[str, Any]:
    """`{"predictions": [...]}`, one entry a row.

    Raises:
        StatusError: the outputs have no common batch dimension.
    """
    if len({array.shape[:1] for array in outputs.values()} - {()}) != 1 or any(a.ndim == 0 for a in outputs.values()):
        raise invalid("The outputs have no common batch dimension: ask in columnar format ('inputs')")
    columns = {name: _values(name, array) for name, array in outputs.items()}
    if len(columns) == 1:
        return {"predictions": next(iter(columns.values()))}
    return {"predictions": [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]}


def to_columns(outputs: Arrays) -> dict[str, Any]:
    """`{"outputs": ...}`: one bare tensor, or an object of tensors by name."""
    columns = {name: _values(name, array) for name, array in outputs.items()}
    return {"outputs": next(iter(columns.values())) if len(columns) == 1 else columns}


def _is_b64(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"b64"}


def _array(name: str, value: Any, info: Any) -> NDArray[Any]:
    """A dense array of nested lists, every leaf checked against the signature's type."""
    dtype = tf.as_dtype(info.dtype)
    leaves: list[Any] = []
    try:
        shape = _collect(name, value, dtype, leaves)
        return np.array(leaves, dtype=dtype.as_numpy_dtype).reshape(shape)
    except (OverflowError, RecursionError) as error:
        raise invalid(f"Input {name!r}: {error}") from None


def _collect(name: str, value: Any, dtype: Any, leaves: list[Any]) -> tuple[int, ...]:
    if not isinstance(value, list):
        leaves.append(_leaf(name, value, dtype))
        return ()
    shapes = {_collect(name, part, dtype, leaves) for part in value}
    if len(shapes) > 1:
        raise invalid(f"Input {name!r} is ragged: its parts have the shapes {sorted(shapes)}")
    return (len(value), *(shapes.pop() if shapes else ()))


def _leaf(name: str, value: Any, dtype: Any) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if dtype == tf.string:
        try:
            content = encoded(value)
        except ValueError as error:
            raise invalid(f"Input {name!r}: {error}") from None
        if content is not None:
            return content
    elif dtype == tf.bool:
        if isinstance(value, bool):
            return value
    elif dtype.is_integer:
        if is_number and isinstance(value, int) and dtype.min <= value <= dtype.max:
            return value
    elif dtype.is_floating and is_number:
        if not fits(value, dtype):
            raise invalid(
                f"Cannot convert JSON value: {value} of input {name!r} to {dtype.name} without loss of precision"
            )
        return value
    raise invalid(f"JSON Value: {json.dumps(value)[:80]} of input {name!r} is not of expected type: {dtype.name}")


def fits(value: float, dtype: Any) -> bool:
    """Whether a floating type holds a number as TF Serving sees it (`IsLosslessDecimal` in its util/json_tensor.cc)."""
    limits = ml_dtypes.finfo(dtype.as_numpy_dtype)  # type: ignore[no-untyped-call]
    if isinstance(value, int):
        return abs(value) < 2 ** (limits.nmant + 1)
    return not math.isfinite(value) or abs(value) <= float(limits.max)


def _values(name: str, array: NDArray[Any]) -> Any:
    if array.dtype == np.float32:
        # By the shortest decimals that name the float: as doubles, 0.2 would be 0.20000000298023224.
        return array.astype(np.str_).astype(np.float64).tolist()
    if array.dtype.kind != "O":
        return array.tolist()
    return _strings(array.tolist(), as_bytes=name.endswith("_bytes"))


def _strings(value: Any, *, as_bytes: bool) -> Any:
    if isinstance(value, list):
        return [_strings(part, as_bytes=as_bytes) for part in value]
    # TF Serving tells binary from text by the name of the output alone.
    return {"b64": base64.b64encode(value).decode()} if as_bytes else value.decode(errors="replace")
