"""Requests that come close together run as one: TF Serving's `--enable_batching`.

A batch takes rows until it is full, or until a thread is free for it and `batch_timeout_micros` have passed. What it
refuses, and in which words, is as TF Serving's batching guide and `batching_session` have it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from grpc import StatusCode
from numpy.typing import NDArray

from serving.local_server.configs import Batching
from serving.local_server.status import StatusError, invalid

Call = Callable[..., Sequence[Any]]


def as_array(value: Any) -> NDArray[Any]:
    """What a session gives as an array: a scalar string comes as bare bytes, whose trailing zeros NumPy would cut."""
    return np.asarray(value, dtype=object if isinstance(value, bytes) else None)


class Batcher:
    """The parameters and the threads that all signatures share."""

    def __init__(self, parameters: Batching) -> None:
        self.parameters = parameters
        self.threads = ThreadPoolExecutor(parameters.num_batch_threads, thread_name_prefix="batch")


@dataclass(frozen=True)
class _Task:
    """The inputs of one request, `[rows, ...]` each."""

    inputs: tuple[NDArray[Any], ...]
    outputs: Future[list[NDArray[Any]]] = field(default_factory=Future)

    @property
    def rows(self) -> int:
        return len(self.inputs[0])


@dataclass
class _Batch:
    tasks: list[_Task] = field(default_factory=list)
    is_full: threading.Event = field(default_factory=threading.Event)

    @property
    def rows(self) -> int:
        return sum(task.rows for task in self.tasks)


class BatchedCall:
    """A call of a session, in batches.

    Args:
        call: takes arrays `[rows, ...]` and gives such.
        names: of its inputs, for messages.
    """

    def __init__(self, call: Call, names: Sequence[str], batcher: Batcher) -> None:
        self._call, self._names, self._threads = call, names, batcher.threads
        self._parameters = batcher.parameters
        self._lock = threading.Lock()
        self._open: _Batch | None = None
        """The batch that takes rows."""
        self._num_enqueued = 0

    def __call__(self, *inputs: NDArray[Any]) -> list[NDArray[Any]]:
        """The outputs of these inputs, computed with those of others.

        Raises:
            StatusError: the inputs have no rows in common, are too many, or do not fit those of the batch; the queue is
                full; or the model does not give as many rows as it gets.
            OpError: TensorFlow refused the batch.
        """
        if not all(array.ndim for array in inputs):
            raise invalid("Batching Run() input tensors must have at least one dimension")
        if len({len(array) for array in inputs}) > 1:
            raise invalid("Batching Run() input tensors must have equal 0th-dimension size")
        task = _Task(inputs)
        self._enqueue(task)
        return task.outputs.result()

    def _enqueue(self, task: _Task) -> None:
        limit = self._parameters.max_batch_size
        if task.rows > limit:
            raise invalid(f"Task size {task.rows} is larger than maximum input batch size {limit}")
        with self._lock:
            if self._open is None or self._open.rows + task.rows > limit:
                if self._num_enqueued >= self._parameters.max_enqueued_batches:
                    raise StatusError(
                        StatusCode.UNAVAILABLE, "The batch scheduling queue to which this task was submitted is full"
                    )
                if self._open is not None:
                    self._open.is_full.set()
                self._open = _Batch()
                self._num_enqueued += 1
                self._threads.submit(self._run, self._open)
            self._open.tasks.append(task)
            if self._open.rows == limit:
                self._open.is_full.set()

    def _run(self, batch: _Batch) -> None:
        batch.is_full.wait(self._parameters.batch_timeout_micros / 1e6)
        with self._lock:
            self._num_enqueued -= 1
            if self._open is batch:
                self._open = None
        try:
            outputs = self._computed(batch)
        except Exception as error:  # it is the answer to each of the requests
            for task in batch.tasks:
                task.outputs.set_exception(error)
            return
        start = 0
        for task in batch.tasks:
            task.outputs.set_result([output[start : start + task.rows] for output in outputs])
            start += task.rows

    def _computed(self, batch: _Batch) -> list[NDArray[Any]]:
        sizes = self._parameters.allowed_batch_sizes
        num_rows = next((size for size in sizes if size >= batch.rows), batch.rows)
        inputs = []
        for name, arrays in zip(self._names, zip(*(task.inputs for task in batch.tasks), strict=True), strict=True):
            rows = self._of_one_shape(name, arrays)
            # The first row of the last request is one that the model can take.
            rows.extend([rows[-1][:1]] * (num_rows - batch.rows))
            inputs.append(np.concatenate(rows) if len(rows) > 1 else rows[0])
        outputs = [as_array(value) for value in self._call(*inputs)]
        if any(output.shape[:1] != (num_rows,) for output in outputs):
            raise StatusError(
                StatusCode.FAILED_PRECONDITION,
                "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension sizes of the input "
                "tensors",
            )
        return outputs

    def _of_one_shape(self, name: str, arrays: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """The arrays, filled up with their first entries to the longest one where that is a parameter."""
        shapes = {array.shape[1:] for array in arrays}
        if len(shapes) == 1:
            return list(arrays)
        if not self._parameters.pad_variable_length_inputs or len({len(shape) for shape in shapes}) > 1:
            raise StatusError(
                StatusCode.FAILED_PRECONDITION,
                f"Tensors with name '{name}' from different tasks have different shapes and padding is turned off. "
                "Set pad_variable_length_inputs to true, or ensure that all tensors with the same name have equal "
                "dimensions starting with the first dim.",
            )
        longest = np.max(list(shapes), axis=0)
        padded = []
        for array in arrays:
            wider = np.full((len(array), *longest), array.flat[0] if array.size else 0, array.dtype)
            wider[tuple(map(slice, array.shape))] = array
            padded.append(wider)
        return padded
