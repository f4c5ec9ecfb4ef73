"""The model servers as a rollout sees them: what they have loaded, and whether they answer as training did."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx

from contracts.settings import settings
from serving.backend import Backend
from serving.client import Recommendation, ServingError

DEADLINE_S = 120.0
SCORE_TOLERANCE = 1e-4
STALE_S = 5.0
"""How long the failure of an earlier try may still show after the config named the version anew."""
PROBE_S = 2.0
Check = Callable[[], bool]
NOBODY = "\N{REPLACEMENT CHARACTER}"
"""A user that no model knows."""


class DeploymentError(Exception):
    """An endpoint does not do what it should; what served before serves on."""


class UnfitVersionError(DeploymentError):
    """It is the version's own fault: to try again is in vain."""


@contextmanager
def endpoint_errors() -> Iterator[None]:
    """Say in one line that a model server failed."""
    try:
        yield
    except (httpx.TransportError, ServingError) as error:
        raise DeploymentError(f"the model server failed: {type(error).__name__}: {error}") from None


def popular_list(version: int) -> str:
    """What a version that is loaded tells a stranger, as JSON of one prediction."""
    with Backend(settings().serving_urls[0]) as backend, endpoint_errors():
        (popular,) = backend.recommend([NOBODY], version=version)
    return json.dumps({"items": list(popular.items), "scores": list(popular.scores)})


def replay(golden: Sequence[dict[str, Any]], url: str, version: int) -> tuple[list[str], list[float]]:
    """Ask a model server what training has asked.

    Returns:
        How its answers differ, and how long each request took, in milliseconds.

    Raises:
        DeploymentError: it does not answer, or has not loaded the version.
    """
    latencies_ms: list[float] = []
    mismatches: list[str] = []
    with Backend(url) as backend, endpoint_errors():
        for number, case in enumerate(golden):
            users = [row["user_id"] for row in case["request"]["instances"]]
            try:
                answers = backend.recommend(users, version=version)
            except ServingError as error:
                if error.status_code in (httpx.codes.NOT_FOUND, httpx.codes.SERVICE_UNAVAILABLE):
                    raise  # it is not loaded, which says nothing of its answers
                mismatches.append(f"request {number}: {error}")
                continue
            latencies_ms += [answer.latency_ms for answer in answers[:1]]
            mismatches += [f"request {number}: {what}" for what in differences(answers, case)]
    return mismatches, latencies_ms


def differences(answers: list[Recommendation], case: dict[str, Any]) -> list[str]:
    """How the answers differ from a golden case: other items, or scores more than 1e-4 apart."""
    expected = list(zip(case["items"], case["scores"], strict=True))
    if len(answers) != len(expected):
        return [f"{len(answers)} answers instead of {len(expected)}"]
    lines = []
    for row, (answer, (items, scores)) in enumerate(zip(answers, expected, strict=True)):
        if list(answer.items) != items:
            lines.append(f"row {row}: items {list(answer.items)} instead of {items}")
        elif len(answer.scores) != len(scores) or not all(
            math.isclose(score, golden, rel_tol=0, abs_tol=SCORE_TOLERANCE)
            for score, golden in zip(answer.scores, scores, strict=True)
        ):
            lines.append(f"row {row}: scores {list(answer.scores)} instead of {scores}")
    return lines


# Waiting, until every model server says yes


def wait_available(
    version: int, deadline_s: float, urls: Sequence[str] | None = None, is_alive: Check = lambda: True
) -> None:
    """Wait until a version is AVAILABLE everywhere; a model server that does not answer may still be starting.

    Args:
        urls: of other model servers than those that serve.
        is_alive: whether there is somebody to wait for.

    Raises:
        UnfitVersionError: it cannot be loaded.
        DeploymentError: it is not in time.
    """
    start_s = time.monotonic()

    def is_available(backend: Backend) -> bool:
        state = backend.states().get(version)
        if state and state.failed and time.monotonic() - start_s > STALE_S:
            raise UnfitVersionError(f"version {version} failed to load: {state.error_code}: {state.message}")
        return state is not None and state.state == "AVAILABLE"

    end_s = start_s + deadline_s
    for url in urls or settings().serving_urls:
        _wait(url, is_available, end_s, f"version {version} to be AVAILABLE", is_alive)


def wait_started(url: str, deadline_s: float, is_alive: Check) -> None:
    """Wait until a model server answers.

    Raises:
        DeploymentError: it does not in time.
    """
    _wait(url, lambda backend: backend.states() is not None, time.monotonic() + deadline_s, "it to start", is_alive)


def wait_labelled(label: str, version: int, deadline_s: float) -> None:
    """Wait until a label points at a version on every model server that runs; others follow when they start.

    Raises:
        DeploymentError: it does not in time.
    """

    def has_moved(backend: Backend) -> bool:
        try:
            return backend.labelled(label) == version
        except ServingError as error:
            if error.status_code in (httpx.codes.BAD_REQUEST, httpx.codes.NOT_FOUND):
                return False
            raise

    _wait_running(has_moved, deadline_s, f"label {label} to reach version {version}")


def wait_unloaded(versions: set[int], deadline_s: float) -> None:
    """Wait until versions are loaded on no model server that runs.

    Raises:
        DeploymentError: they are in the end.
    """

    def is_unloaded(backend: Backend) -> bool:
        states = backend.states()
        return all(version not in states or states[version].state == "END" for version in versions)

    _wait_running(is_unloaded, deadline_s, f"versions {sorted(versions)} to unload")


def _wait_running(reached: Callable[[Backend], bool], deadline_s: float, what: str) -> None:
    end_s = time.monotonic() + deadline_s
    for url in settings().serving_urls:
        if _runs(url):
            _wait(url, reached, end_s, what)
        else:
            say(f"nobody answers at {url}: it will follow when it starts")


def _runs(url: str) -> bool:
    """Whether somebody listens there. One that is dead must not keep a rollback waiting."""
    try:
        with Backend(url, deadline_s=PROBE_S) as backend:
            backend.states()
    except httpx.TransportError:
        return False
    except ServingError:
        return True  # it says no, but it is there
    return True


def _wait(
    url: str, reached: Callable[[Backend], bool], end_s: float, what: str, is_alive: Check = lambda: True
) -> None:
    start_s, said_s, trouble = time.monotonic(), 0.0, ""
    with Backend(url) as backend:
        while True:
            try:
                if reached(backend):
                    return say(f"{what}: done after {time.monotonic() - start_s:.1f} s")
                trouble = "it answers, but not so"
            except (httpx.TransportError, ServingError) as error:
                trouble = f"{type(error).__name__}: {error}"
            waited_s = time.monotonic() - start_s
            if time.monotonic() > end_s or not is_alive():
                raise DeploymentError(f"waited {waited_s:.0f} s for {what} at {url}: {trouble}")
            if waited_s - said_s >= 5:
                said_s = waited_s
                say(f"waiting for {what}: {waited_s:.0f} s, until {end_s - start_s:.0f} s")
            time.sleep(0.2)


def say(line: str) -> None:
    """Tell whoever reads the log of the task."""
    print(line, file=sys.stderr, flush=True)
