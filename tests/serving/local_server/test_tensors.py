"""Numbers in JSON as TensorFlow Serving reads them (tensorflow_serving/util/json_tensor.cc)."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from serving.local_server import tensors
from serving.local_server.status import StatusError


def infos(dtype: Any) -> dict[str, Any]:
    return {"x": SimpleNamespace(dtype=dtype.as_datatype_enum)}


@pytest.mark.parametrize(
    ("dtype", "number"),
    [
        (tf.float32, 2**24 - 1), (tf.float32, 0.1), (tf.float32, -3.4e38), (tf.float64, 2**53 - 1), (tf.float64, 1e39),
        (tf.float32, math.inf), (tf.float16, 2047),
    ],
)  # fmt: skip
def test_a_number_that_a_float_holds_is_taken(dtype: Any, number: float) -> None:
    """Whole numbers up to the mantissa, decimals up to the largest, and what is not finite."""
    assert tensors.from_columns([number], infos(dtype))["x"][0] == np.array(number, dtype.as_numpy_dtype)


@pytest.mark.parametrize(
    ("dtype", "number"),
    [
        (tf.float32, 2**24), (tf.float32, -(2**24)), (tf.float32, 1e39), (tf.float64, 2**53), (tf.float32, 10**400),
        (tf.float16, 2048), (tf.bfloat16, 256),
    ],
)  # fmt: skip
def test_a_number_that_no_float_holds_is_refused(dtype: Any, number: float) -> None:
    """A whole number that would be rounded, and one that is too large, are invalid."""
    with pytest.raises(StatusError, match="loss of precision"):
        tensors.from_columns([number], infos(dtype))


def test_a_float_is_written_without_the_noise_of_a_double() -> None:
    """The float32 0.2 is 0.2; whole, tiny and missing numbers are what they are."""
    values = np.array([0.2, 3.0, 1e-7, 16777216.0], np.float32)
    assert json.dumps(tensors.to_columns({"x": values})) == '{"outputs": [0.2, 3.0, 1e-07, 16777216.0]}'
    assert json.dumps(tensors.to_columns({"x": np.array([[np.nan, -np.inf]], np.float32)})) == (
        '{"outputs": [[NaN, -Infinity]]}'
    )
