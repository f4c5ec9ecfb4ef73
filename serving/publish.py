"""Bring a registered version into service, and back: publish, verify, promote, roll back.

The config file holds the whole desired state and is replaced at once; the ledger's last line says which
version is deployed. Every step may be repeated, so a run that was killed is simply run again.
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
from pathlib import Path
from typing import Any

import httpx

from contracts.errors import InputError
from contracts.files import locked, write_json
from contracts.names import CHALLENGER, CHAMPION
from contracts.settings import settings
from serving import artifact, desired, ledger, registry
from serving.client import Client, Recommendation, ServingError
from serving.desired import CANARY, STABLE, Desired

DEADLINE_S = 120.0
SCORE_TOLERANCE = 1e-4
STALE_S = 5.0
"""How long the failure of an earlier try may still show after the config named the version anew."""
PASSED, FAILED = "passed", "failed"


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
        desired.write(Desired(tuple({version, *labels.values()}), labels))
    try:
        _wait_available(version, deadline_s)
        desired.write(Desired(tuple({version, *labels.values()}), {**labels, CANARY: version}))
        _wait_label(CANARY, version, deadline_s)
    except DeploymentError:
        desired.write(restored)
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
            desired.write(before.without(version))
        raise


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
    with Client() as client, _endpoint_errors():
        for number, case in enumerate(golden):
            users = [row["user_id"] for row in case["request"]["instances"]]
            try:
                answers = client.recommend(users, version=version)
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
    _require_verified(version)
    last = ledger.deployed()
    done = last is not None and last.version == version
    previous = last.version if last and not done else None
    if last and done and last.verdict == ledger.PROMOTED:
        previous = last.previous
    kept = {version} | {number for number in artifact.versions_on_disk() if number == previous}
    if version not in desired.read().versions:
        raise InputError(f"version {version} is not published", where=str(desired.config_path()), cure="publish it")
    _wait_available(version, deadline_s)
    desired.write(Desired(tuple(kept), {STABLE: version}))
    _wait_label(STABLE, version, deadline_s)
    registry.move_alias(CHAMPION, version)
    if not done:
        ledger.record(version, previous, ledger.PROMOTED)
    # After the ledger: a run killed before it must find the challenger pending again.
    registry.drop_alias(CHALLENGER, version)
    _remove_retired(deadline_s)


def _require_verified(version: int) -> None:
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

    def unloaded(client: Client) -> bool:
        states = client.states()
        return all(version not in states or states[version].state == "END" for version in retired)

    if retired:
        _wait(unloaded, deadline_s, f"versions {sorted(retired)} to unload")
    for version in sorted(retired):
        artifact.remove(version)


def rollback(to: int | None = None, *, deadline_s: float = DEADLINE_S) -> int | None:
    """Go back to the previous or a named version; the one left is unloaded.

    Returns:
        The version now served, None when the last deployment was a rollback already and no version is named.

    Raises:
        InputError: there is nothing to go back to.
        DeploymentError: the endpoint does not follow in time.
    """
    last = ledger.deployed()
    if last is None:
        raise InputError("nothing was deployed yet", where=str(ledger.ledger_path()), cure="publish and promote first")
    if to is None and last.verdict == ledger.ROLLED_BACK:
        return None
    target = last.previous if to is None else to
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
    if before.stable != target:
        labels = {} if before.stable is None else {STABLE: before.stable}
        if target not in before.versions:
            desired.write(Desired(tuple({target, *labels.values()}), labels))
        try:
            _wait_available(target, deadline_s)
        except DeploymentError:
            desired.write(before)
            raise
    # The version left behind goes at once: it would answer whoever names neither version nor label.
    desired.write(Desired((target,), {STABLE: target}))
    _wait_available(target, deadline_s)
    _wait_label(STABLE, target, deadline_s)
    registry.move_alias(CHAMPION, target)
    if last.version != target:
        registry.drop_alias(CHALLENGER, last.version)  # a promotion killed at its end left it there
        ledger.record(target, last.version, ledger.ROLLED_BACK)
    return target


def status() -> dict[str, Any]:
    """What config, ledger, endpoint and MLflow say; a part that does not answer says why."""

    def endpoint() -> Any:
        with Client(deadline_s=2) as client, _endpoint_errors():
            return {str(version): vars(state) for version, state in client.states().items()}

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
        "endpoint": said(endpoint),
        "mlflow": said(registry.aliases),
        "deleted_in_mlflow": said(deleted),
    }


# Waiting for the endpoint


def _wait_available(version: int, deadline_s: float) -> None:
    start_s = time.monotonic()

    def available(client: Client) -> bool:
        state = client.states().get(version)
        if state and state.failed and time.monotonic() - start_s > STALE_S:
            raise DeploymentError(f"version {version} failed to load: {state.error_code}: {state.message}")
        return state is not None and state.state == "AVAILABLE"

    _wait(available, deadline_s, f"version {version} to be AVAILABLE")


def _wait_label(label: str, version: int, deadline_s: float) -> None:
    def moved(client: Client) -> bool:
        try:
            return client.labelled(label) == version
        except ServingError as error:
            if error.status_code in (httpx.codes.BAD_REQUEST, httpx.codes.NOT_FOUND):
                return False
            raise

    _wait(moved, deadline_s, f"label {label} to reach version {version}")


def _wait(reached: Callable[[Client], bool], deadline_s: float, what: str) -> None:
    """Ask the endpoint until it says yes; one that does not answer may still be starting."""
    start_s, said_s, trouble = time.monotonic(), 0.0, ""
    with Client(deadline_s=5) as client:
        while True:
            try:
                if reached(client):
                    return _say(f"{what}: done after {time.monotonic() - start_s:.1f} s")
                trouble = "it answers, but not so"
            except (httpx.TransportError, ServingError) as error:
                trouble = f"{type(error).__name__}: {error}"
            waited_s = time.monotonic() - start_s
            if waited_s > deadline_s:
                raise DeploymentError(f"waited {waited_s:.0f} s for {what} at {settings().rest_url}: {trouble}")
            if waited_s - said_s >= 5:
                said_s = waited_s
                _say(f"waiting for {what}: {waited_s:.0f} of {deadline_s:.0f} s")
            time.sleep(0.2)


@contextmanager
def _endpoint_errors() -> Iterator[None]:
    try:
        yield
    except (httpx.TransportError, ServingError) as error:
        raise DeploymentError(f"the endpoint {settings().rest_url} failed: {type(error).__name__}: {error}") from None


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
