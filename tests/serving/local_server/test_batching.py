"""Requests that run as one: each gets its own rows, and what does not fit is refused in TF Serving's words."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from grpc import StatusCode
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.errors import InputError
from serving.local_server.batching import BatchedCall, Batcher
from serving.local_server.configs import Batching, batching
from serving.local_server.status import StatusError
from tests.waiting import wait_until

TEXT = """
max_batch_size { value: 4 }
batch_timeout_micros { value: 0 }
max_enqueued_batches { value: 9 }
num_batch_threads { value: 1 }
"""


class Watched(BatchedCall):
    """Counts the requests that wait or have run."""

    num_requests = 0

    def _enqueue(self, task: Any) -> None:
        super()._enqueue(task)
        self.num_requests += 1


class Doubler:
    """A model that doubles, and notes the batches that it got. It waits with each until `go` is set."""

    def __init__(self, **parameters: Any) -> None:
        self.batches: list[np.ndarray[Any, Any]] = []
        self.go = threading.Event()
        self.batched = Watched(self._double, ["x"], Batcher(Batching(num_batch_threads=1, **parameters)))

    def _double(self, x: np.ndarray[Any, Any]) -> list[Any]:
        self.batches.append(x)
        assert self.go.wait(60)
        if (x < 0).any():
            raise ValueError("negative")
        return [x * 2]

    def start(self, requests: ThreadPoolExecutor, rows: list[Any]) -> Any:
        """Send a request, and return when it waits or runs."""
        before = self.batched.num_requests
        future = requests.submit(self.batched, np.array(rows, dtype=np.float32))
        wait_until(lambda: self.batched.num_requests > before, "the request to be queued")
        return future


@pytest.fixture
def requests() -> Any:
    with ThreadPoolExecutor(16) as pool:
        yield pool


def rows_of(future: Any) -> list[float]:
    return future.result(60)[0].ravel().tolist()


def test_what_comes_while_a_batch_runs_is_the_next_one(requests: Any) -> None:
    """The first request does not wait for company; those that come meanwhile run together, and each gets its own rows."""
    model = Doubler(max_batch_size=4)
    first = model.start(requests, [1])
    wait_until(lambda: model.batches, "the first batch to run")
    others = [model.start(requests, rows) for rows in ([2, 3], [4], [5, 6])]
    model.go.set()
    assert [rows_of(each) for each in (first, *others)] == [[2], [4, 6], [8], [10, 12]]
    assert [batch.tolist() for batch in model.batches] == [[1], [2, 3, 4], [5, 6]]


def test_a_batch_waits_for_company_until_it_is_full(requests: Any) -> None:
    """It does not wait for its time-out then."""
    model = Doubler(max_batch_size=2, batch_timeout_micros=600_000_000)
    model.go.set()
    assert [rows_of(each) for each in [model.start(requests, [row]) for row in (1, 2)]] == [[2], [4]]
    assert [len(batch) for batch in model.batches] == [2]


def test_a_full_queue_refuses(requests: Any) -> None:
    """What is beyond the batches that may wait is refused at once; all others are answered."""
    model = Doubler(max_batch_size=2, max_enqueued_batches=1)
    running = model.start(requests, [1])
    wait_until(lambda: model.batches, "the first batch to run")
    waiting = model.start(requests, [2, 3])
    with pytest.raises(StatusError, match="queue to which this task was submitted is full") as error:
        model.batched(np.array([4.0]))
    assert error.value.code is StatusCode.UNAVAILABLE
    model.go.set()
    assert [rows_of(running), rows_of(waiting)] == [[2], [4, 6]]
    assert rows_of(model.start(requests, [5])) == [10]


def test_a_batch_that_fails_fails_all_of_its_requests(requests: Any) -> None:
    """And none of another batch."""
    model = Doubler(max_batch_size=2)
    first = model.start(requests, [1])
    wait_until(lambda: model.batches, "the first batch to run")
    together = [model.start(requests, [row]) for row in (-2, 3)]
    model.go.set()
    assert rows_of(first) == [2]
    for each in together:
        with pytest.raises(ValueError, match="negative"):
            each.result(60)
    assert rows_of(model.start(requests, [4])) == [8]


def test_batches_are_filled_up_to_sizes_that_are_allowed(requests: Any) -> None:
    """With the last request's first row; nobody sees it."""
    model = Doubler(max_batch_size=4, allowed_batch_sizes=(2, 4))
    model.go.set()
    assert rows_of(model.start(requests, [1, 2, 3])) == [2, 4, 6]
    assert model.batches[0].tolist() == [1, 2, 3, 1]


@pytest.mark.parametrize("is_padded", [True, False])
def test_rows_of_different_lengths(requests: Any, is_padded: bool) -> None:
    """They are filled up with their first entry, or refused."""
    model = Doubler(max_batch_size=4, pad_variable_length_inputs=is_padded)
    first = model.start(requests, [[1, 2, 3]])
    wait_until(lambda: model.batches, "the first batch to run")
    together = [model.start(requests, rows) for rows in ([[4, 5, 6]], [[7]])]
    model.go.set()
    assert rows_of(first) == [2, 4, 6]
    if is_padded:
        assert [rows_of(each) for each in together] == [[8, 10, 12], [14, 14, 14]]
    else:
        for each in together:
            with pytest.raises(StatusError, match="'x' from different tasks have different shapes") as error:
                each.result(60)
            assert error.value.code is StatusCode.FAILED_PRECONDITION


@pytest.mark.parametrize(
    ("inputs", "error"),
    [
        ([np.float32(1)], "at least one dimension"),
        ([np.zeros(2), np.zeros(3)], "equal 0th-dimension size"),
        ([np.zeros(5)], "Task size 5 is larger than maximum input batch size 4"),
    ],
)
def test_requests_that_make_no_batch(inputs: list[Any], error: str) -> None:
    """They are answered 400, before they wait."""
    with pytest.raises(StatusError, match=error) as raised:
        Doubler(max_batch_size=4).batched(*map(np.asarray, inputs))
    assert raised.value.code is StatusCode.INVALID_ARGUMENT


def test_a_model_whose_rows_are_not_those_of_its_inputs_is_found_out() -> None:
    """Nobody gets the rows of another."""
    batched = BatchedCall(lambda x: [x[:1]], ["x"], Batcher(Batching()))
    with pytest.raises(StatusError, match="does not equal the sum of the 0th dimension") as error:
        batched(np.zeros(2))
    assert error.value.code is StatusCode.FAILED_PRECONDITION


@settings(deadline=None, max_examples=30)
@given(
    sizes=st.lists(st.integers(0, 6), min_size=1, max_size=30),
    limit=st.integers(6, 12),
    num_threads=st.integers(1, 3),
    timeout_micros=st.sampled_from([0, 500]),
)
def test_each_gets_its_own(sizes: list[int], limit: int, num_threads: int, timeout_micros: int) -> None:
    """However requests fall together, whatever their sizes."""
    parameters = Batching(limit, timeout_micros, 99, num_threads)
    batched = BatchedCall(lambda x, y: [x + y, np.char.mod("%d", x)], ["x", "y"], Batcher(parameters))
    edges = np.cumsum([0, *sizes])
    with ThreadPoolExecutor(8) as pool:
        ranges = [np.arange(start, end) for start, end in itertools.pairwise(edges)]
        answers = list(pool.map(lambda x: batched(x, x), ranges))
    for x, (doubled, text) in zip(ranges, answers, strict=True):
        assert (doubled.tolist(), text.tolist()) == ((2 * x).tolist(), list(map(str, x)))


def test_parameters(tmp_path: Path) -> None:
    """They are read as they are published; what is not said is as in TF Serving."""
    path = tmp_path / "batching.config"
    path.write_text(TEXT + "pad_variable_length_inputs: true allowed_batch_sizes: 2 allowed_batch_sizes: 4")
    assert batching(path) == Batching(4, 0, 9, 1, (2, 4), True)
    path.write_text('thread_pool_name { value: "x" }')
    assert batching(path) == batching(None) == Batching()


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("max_batch_size: 4", "no BatchingParameters"),
        ("max_batch_size { value: 0 }", "max_batch_size is 0"),
        ("batch_timeout_micros { value: -1 }", "batch_timeout_micros is -1"),
        ("allowed_batch_sizes: 2", "last entry was 2; expected 1000"),
        ("max_batch_size { value: 2 } allowed_batch_sizes: 3 allowed_batch_sizes: 2", "ascending"),
    ],
)
def test_parameters_that_cannot_be(tmp_path: Path, text: str, error: str) -> None:
    """They are named before anything starts."""
    path = tmp_path / "batching.config"
    path.write_text(text)
    with pytest.raises(InputError) as raised:
        batching(path)
    assert error in str(raised.value)
    assert "--batching_parameters_file" in str(raised.value)


@pytest.mark.slow
def test_a_server_that_batches(kind: str, tools: Any, base_of: Callable[..., Path], tmp_path: Path) -> None:
    """Many at once are answered as one by one, and what is too large for a batch is answered 400."""
    path = tmp_path / "batching.config"
    path.write_text(TEXT.replace("micros { value: 0", "micros { value: 2000").replace("9", "1000"))
    config = f"model_config_list {{ {tools.model_text('shop', base_of(1), [1])} }}"
    flags = ("--enable_batching=true", f"--batching_parameters_file={path}")
    server = tools.Server(kind, tmp_path, config, *flags)
    try:
        server.wait_state("shop", 1, "AVAILABLE")
        users = [f"x{number}" for number in range(200)]
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda user: server.predict("shop", {"instances": [user]}), users))
        items = [answer.json()["predictions"][0]["items"] for answer in answers]
        assert items == [[f"{user}{letter}" for letter in "abc"] for user in users]
        too_large = server.predict("shop", {"instances": users[:5]})
        assert too_large.status_code == 400
        assert "Task size 5 is larger than maximum input batch size 4" in too_large.json()["error"]
    finally:
        server.stop()
