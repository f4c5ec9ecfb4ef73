"""Bring a registered version into service, and back: publish, verify, promote, roll back.

Two files hold the whole desired state, and each is replaced at once: which versions the model servers load, and which
of them the gateway asks. The ledger's last line says which version is deployed. A version is loaded everywhere before
it is asked, and not asked any more before it is unloaded. Every step may be repeated, so a run that was killed is
simply run again.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from contracts.errors import InputError
from contracts.files import locked, write_json
from contracts.names import CHALLENGER, CHAMPION
from contracts.settings import settings
from serving import artifact, desired, ledger, registry
from serving.backend import Backend
from serving.client import Recommendation, ServingError
from serving.desired import CANARY, STABLE, Desired
from serving.gateway import process as gateway
from serving.gateway import traffic

DEADLINE_S = 120.0
SCORE_TOLERANCE = 1e-4
STALE_S = 5.0
"""How long the failure of an earlier try may still show after the config named the version anew."""
PASSED, FAILED = "passed", "failed"
NOBODY = "\N{REPLACEMENT CHARACTER}"
"""A user that no model knows."""


class DeploymentError(Exception):
    """The deployment failed a check of the endpoint; what served before serves on."""


@contextmanager
def exclusive() -> Iterator[None]:
    """Only one deployment at a time on this machine."""
    with locked(settings().serving_dir / ".lock"):
        yield


def pending() -> int | None:
    """The challenger that is not deployed yet, None when there is nothing to deploy.

    Raises:
        InputError: the challenger did not pass the gate.
    """
    challenger = registry.aliases().get(CHALLENGER)
    deployed = ledger.deployed()
    if challenger is None or (deployed and deployed.version == challenger):
        return None
    registry.deployable(challenger)
    return challenger


def publish(version: int, *, deadline_s: float = DEADLINE_S) -> None:
    """Load a version beside the champion and label it canary; on failure the champion's config is restored.

    Raises:
        InputError: the version did not pass the gate, or its files do not match the manifest.
        DeploymentError: the endpoint does not load it in time.
    """
    source = registry.deployable(version)
    artifact.place(version, source)
    before = desired.read()
    if before.stable == version:
        return _say(f"version {version} is the champion already")
    restored = before.without(version)
    champion = before.stable
    labels = {} if champion is None else {STABLE: champion}
    # A label in use moves only to a version that is AVAILABLE: load first, label then.
    if before.labels.get(CANARY) != version:
        _load(Desired(tuple({version, *labels.values()}), labels))
    try:
        _wait_available(version, deadline_s)
        _load(Desired(tuple({version, *labels.values()}), {**labels, CANARY: version}))
        _wait_label(CANARY, version, deadline_s)
    except DeploymentError:
        _load(restored)
        raise


def verify(version: int) -> dict[str, Any]:
    """Replay the golden requests at the version and report; unless all are answered alike, it is unloaded again.

    Raises:
        InputError: the version is not published.
        DeploymentError: an answer differs from what training recorded, or none came.
    """
    try:
        return _verified(version)
    except DeploymentError:
        before = desired.read()
        if before.stable != version:
            _load(before.without(version))
        raise


def _load(wanted: Desired) -> None:
    """Have the model servers load these versions, and keep the one that answers; none that goes is asked any more."""
    asked = kept = traffic.read()
    if asked.stable is not None:  # a promotion that broke off has left it so
        wanted = Desired((*wanted.versions, asked.stable), wanted.labels)
    for version in asked.versions - set(wanted.versions):
        kept = kept.without(version)
    if kept != asked:
        gateway.put(kept)
    desired.write(wanted)


def _ask(version: int) -> None:
    """Give all traffic to a version that is AVAILABLE everywhere; what it tells a stranger is the fallback."""
    with Backend(settings().serving_urls[0]) as backend, endpoint_errors():
        (popular,) = backend.recommend([NOBODY], version=version)
    gateway.put(traffic.read().promoted(version, popular.items, popular.scores))


def _verified(version: int) -> dict[str, Any]:
    folder = desired.base_path() / str(version)
    if not folder.is_dir():
        raise InputError(f"version {version} is not published", where=str(folder), cure="publish it first")
    manifest = artifact.verify(folder)
    golden = json.loads((folder / artifact.GOLDEN).read_text())
    if not golden:
        raise InputError("there is no golden request", where=str(folder / artifact.GOLDEN), cure="export it again")
    latencies_ms: list[float] = []
    mismatches: list[str] = []
    with Backend(settings().serving_urls[0]) as backend, endpoint_errors():
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
    report = {
        "version": version,
        "verdict": FAILED if mismatches else PASSED,
        "requests": len(golden),
        "mismatches": mismatches[:20],
        "latency_ms": statistics.median(latencies_ms) if latencies_ms else None,
        "manifest_sha256": manifest,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_json(report_path(version), report)
    if mismatches:
        raise DeploymentError(
            f"version {version} does not answer as trained, see {report_path(version)}: {mismatches[0]}"
        )
    return report


def differences(answers: list[Recommendation], case: dict[str, Any]) -> list[str]:
    """How the answers differ from a golden case: other items, or scores more than 1e-4 apart."""
    expected = list(zip(case["items"], case["scores"], strict=True))
    if len(answers) != len(expected):
        return [f"{len(answers)} answers instead of {len(expected)}"]
    found = []
    for row, (answer, (items, scores)) in enumerate(zip(answers, expected, strict=True)):
        if list(answer.items) != items:
            found.append(f"row {row}: items {list(answer.items)} instead of {items}")
        elif len(answer.scores) != len(scores) or not all(
            math.isclose(seen, wanted, rel_tol=0, abs_tol=SCORE_TOLERANCE)
            for seen, wanted in zip(answer.scores, scores, strict=True)
        ):
            found.append(f"row {row}: scores {list(answer.scores)} instead of {scores}")
    return found


def report_path(version: int) -> Path:
    return settings().reports_dir / "deploy" / f"{version}.json"


def promote(version: int, *, deadline_s: float = DEADLINE_S) -> None:
    """Make a verified version the champion; the previous one stays loaded for an instant rollback.

    Raises:
        InputError: the version did not pass the gate, is not published, or was not verified.
        DeploymentError: the endpoint does not follow in time.
    """
    registry.deployable(version)
    require_verified(version)
    last = ledger.deployed()
    done = last is not None and last.version == version
    previous = last.version if last and not done else None
    if last and done and last.verdict == ledger.PROMOTED:
        previous = last.previous
    kept = {version} | {number for number in artifact.versions_on_disk() if number == previous}
    if version not in desired.read().versions:
        raise InputError(f"version {version} is not published", where=str(desired.config_path()), cure="publish it")
    _wait_available(version, deadline_s)
    _ask(version)
    _load(Desired(tuple(kept), {STABLE: version}))
    _wait_label(STABLE, version, deadline_s)
    registry.move_alias(CHAMPION, version)
    if not done:
        ledger.record(version, previous, ledger.PROMOTED)
    # After the ledger: a run killed before it must find the challenger pending again.
    registry.drop_alias(CHALLENGER, version)
    _remove_retired(deadline_s)


def require_verified(version: int) -> None:
    path, folder = report_path(version), desired.base_path() / str(version)
    try:
        report = json.loads(path.read_text())
        if report["verdict"] == PASSED and report["manifest_sha256"] == artifact.sha256(folder / artifact.MANIFEST):
            return
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise InputError(f"version {version} is not verified", where=str(path), cure=f"verify --version {version} first")


def _remove_retired(deadline_s: float) -> None:
    """Delete the folders that the config no longer names, once the endpoint let go of them."""
    retired = artifact.versions_on_disk() - set(desired.read().versions)

    def unloaded(backend: Backend) -> bool:
        states = backend.states()
        return all(version not in states or states[version].state == "END" for version in retired)

    if retired:
        _wait(unloaded, deadline_s, f"versions {sorted(retired)} to unload")
    for version in sorted(retired):
        artifact.remove(version)


def rollback(to: int | None = None, *, deadline_s: float = DEADLINE_S) -> int | None:
    """Go back to the previous or a named version; the one left is unloaded. A promotion that broke off is undone.

    Returns:
        The version now served, None when the last deployment was a rollback already and no version is named.

    Raises:
        InputError: there is nothing to go back to.
        DeploymentError: the endpoint does not follow in time.
    """
    last, asked = ledger.deployed(), traffic.read().stable
    if last is None:
        raise InputError("nothing was deployed yet", where=str(ledger.ledger_path()), cure="publish and promote first")
    left = last.version if asked is None else asked
    was_done = left == last.version and last.verdict == ledger.ROLLED_BACK
    target = to if to is not None else last.version if left != last.version or was_done else last.previous
    if target is None:
        raise InputError(
            f"version {last.version} is the first", where=str(ledger.ledger_path()), cure="name a version with --to"
        )
    if target not in {deployment.version for deployment in ledger.deployments()}:
        raise InputError(
            f"version {target} was never deployed",
            where=str(ledger.ledger_path()),
            cure="publish, verify and promote it",
        )
    before = desired.read()
    if target not in artifact.versions_on_disk():
        artifact.place(target, registry.deployable(target))
    if target not in before.versions:
        labels = {} if before.stable is None else {STABLE: before.stable}
        _load(Desired((*before.versions, target), labels))
    try:
        _wait_available(target, deadline_s)
    except DeploymentError:
        _load(before)
        raise
    # Before anything changes for users: whoever runs this again, after a kill, goes on to the same version.
    if left != target and (last.version, last.previous, last.verdict) != (target, left, ledger.ROLLED_BACK):
        ledger.record(target, left, ledger.ROLLED_BACK)
    _ask(target)
    # The version left behind goes at once: it would answer whoever asks the model server without version and label.
    _load(Desired((target,), {STABLE: target}))
    _wait_label(STABLE, target, deadline_s)
    registry.move_alias(CHAMPION, target)
    for version in (left, last.version, last.previous):
        if version is not None and version != target:
            registry.drop_alias(CHALLENGER, version)  # or the next deployment would promote it again
    return None if was_done and to is None else target


def status() -> dict[str, Any]:
    """What config, ledger, endpoint and MLflow say; a part that does not answer says why."""

    def endpoint(url: str) -> Any:
        with Backend(url, deadline_s=2) as backend, endpoint_errors():
            return {str(version): vars(state) for version, state in backend.states().items()}

    def said(ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except (InputError, DeploymentError) as error:
            return {"error": str(error)}

    def deleted() -> list[int]:
        named = {*registry.aliases().values(), *desired.read().versions, *([deployed.version] if deployed else [])}
        return sorted(named - registry.versions().keys())

    deployed = ledger.deployed()
    return {
        "config": said(lambda: vars(desired.read())),
        "deployed": vars(deployed) if deployed else None,
        "traffic": said(lambda: vars(traffic.read())),
        "endpoints": {url: said(partial(endpoint, url)) for url in settings().serving_urls},
        "mlflow": said(registry.aliases),
        "deleted_in_mlflow": said(deleted),
    }


# Waiting for the endpoint


def _wait_available(version: int, deadline_s: float) -> None:
    start_s = time.monotonic()

    def available(backend: Backend) -> bool:
        state = backend.states().get(version)
        if state and state.failed and time.monotonic() - start_s > STALE_S:
            raise DeploymentError(f"version {version} failed to load: {state.error_code}: {state.message}")
        return state is not None and state.state == "AVAILABLE"

    _wait(available, deadline_s, f"version {version} to be AVAILABLE")


def _wait_label(label: str, version: int, deadline_s: float) -> None:
    def moved(backend: Backend) -> bool:
        try:
            return backend.labelled(label) == version
        except ServingError as error:
            if error.status_code in (httpx.codes.BAD_REQUEST, httpx.codes.NOT_FOUND):
                return False
            raise

    _wait(moved, deadline_s, f"label {label} to reach version {version}")


def _wait(reached: Callable[[Backend], bool], deadline_s: float, what: str) -> None:
    """Ask every model server until it says yes; one that does not answer may still be starting."""
    end_s = time.monotonic() + deadline_s
    for url in settings().serving_urls:
        _wait_one(url, reached, end_s, what)


def _wait_one(url: str, reached: Callable[[Backend], bool], end_s: float, what: str) -> None:
    start_s, said_s, trouble = time.monotonic(), 0.0, ""
    with Backend(url) as backend:
        while True:
            try:
                if reached(backend):
                    return _say(f"{what}: done after {time.monotonic() - start_s:.1f} s")
                trouble = "it answers, but not so"
            except (httpx.TransportError, ServingError) as error:
                trouble = f"{type(error).__name__}: {error}"
            waited_s = time.monotonic() - start_s
            if time.monotonic() > end_s:
                raise DeploymentError(f"waited {waited_s:.0f} s for {what} at {url}: {trouble}")
            if waited_s - said_s >= 5:
                said_s = waited_s
                _say(f"waiting for {what}: {waited_s:.0f} s, until {end_s - start_s:.0f} s")
            time.sleep(0.2)


@contextmanager
def endpoint_errors() -> Iterator[None]:
    try:
        yield
    except (httpx.TransportError, ServingError) as error:
        raise DeploymentError(f"the model server failed: {type(error).__name__}: {error}") from None


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
