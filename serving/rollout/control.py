"""What a person or Airflow may ask of a rollout. Each may be asked again, also after a kill at any instant."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any

from contracts.champion import document_path
from contracts.errors import InputError
from contracts.files import locked
from contracts.names import CHALLENGER
from contracts.settings import settings
from serving import artifact, command, desired, registry
from serving.backend import Backend
from serving.gateway import measures, traffic
from serving.gateway import process as gateway
from serving.gateway.measures import Arm
from serving.rollout import alerts, analysis, document, endpoint, history, outcomes, steps, validation
from serving.rollout.document import CANARY, LOADED, SHADOW, VALIDATED, Change, Rollout
from serving.rollout.endpoint import DEADLINE_S, DeploymentError, UnfitVersionError
from serving.rollout.reconciliation import begin_to_load, reconcile


@contextmanager
def _exclusive() -> Iterator[None]:
    """Only one change at a time on this machine."""
    with locked(settings().serving_dir / ".lock"):
        yield


def _put(now: Rollout, after: Rollout) -> None:
    """Put a document into force; the history of the one before is whole by then."""
    history.catch_up(now)
    if after is not now:
        document.write(after)


def _follow(now: Rollout, after: Rollout, deadline_s: float = DEADLINE_S) -> None:
    """Put a document into force and make everything follow."""
    _put(now, after)
    reconcile(after, deadline_s=deadline_s)


@_exclusive()
def initialise() -> None:
    """Write the files that model server and gateway need to start; what is there is kept.

    The document says then that nothing is deployed, or what an installation without one serves.
    """
    command.initialise()
    if not document_path().exists():
        document.write(document.read())
    gateway.initialise(document.read().traffic)


def pending() -> int | None:
    """The version that is on its way, else the challenger that may set out; None when there is neither.

    Raises:
        InputError: the challenger did not pass the gate.
    """
    now = document.read()
    if now.challenger is not None:
        return now.challenger
    challenger = registry.aliases().get(CHALLENGER)
    if challenger is None or challenger == now.champion or challenger in now.rejected:
        return None
    registry.deployable(challenger)
    return challenger


@_exclusive()
def stage(version: int, *, again: bool = False) -> None:
    """Bring a version's files beside those that serve, complete and checked.

    Raises:
        InputError: it did not pass the gate, its files do not match the manifest, or `steps.stage`.
    """
    now = document.read()
    after = steps.stage(now, version, again=again)
    if version != now.champion and (after is not now or version not in artifact.versions_on_disk()):
        artifact.place(version, *registry.deployable(version))
    _follow(now, after)


def validate(version: int, *, deadline_s: float = DEADLINE_S) -> None:
    """Try a staged version without traffic; one that is not fit is rejected. Others may change things meanwhile.

    Raises:
        InputError: as of `validation.validate` and `steps.advance`.
        DeploymentError: as of `validation.validate`.
    """
    with _exclusive():
        now = document.read()
        if version == now.champion or (version == now.challenger and now.is_at_least(VALIDATED)):
            return _follow(now, now)
        steps.advance(now, version, VALIDATED)  # refuses one that is not on its way, before the work
    try:
        report = validation.validate(version, deadline_s=deadline_s)
    except UnfitVersionError as error:
        with _exclusive():
            _reject(version, str(error))
        raise
    evidence = {name: report[name] for name in ("latency_ms", "memory_mib", "requests", "manifest_sha256")}
    with _exclusive():
        now = document.read()
        _follow(now, steps.advance(now, version, VALIDATED, evidence=evidence), deadline_s)


def load(version: int, *, deadline_s: float = DEADLINE_S) -> None:
    """Load a validated version on every model server, and see that each answers as it should; it has no traffic yet.

    Others may change things meanwhile: a rollback does not wait for it.

    Raises:
        InputError: it is not validated.
        UnfitVersionError: it cannot be loaded, or answers otherwise; it is rejected.
        DeploymentError: a model server does not answer.
    """
    with _exclusive():
        now = document.read()
        after = now if version == now.champion else steps.advance(now, version, LOADED)
        _put(now, after)
        begin_to_load(after)
    try:
        endpoint.wait_available(version, deadline_s)
        if after.state == LOADED:
            _replay_everywhere(version)
    except UnfitVersionError as error:
        with _exclusive():
            _reject(version, str(error))
        raise
    with _exclusive():
        now = document.read()
        _follow(now, now, deadline_s)


def _replay_everywhere(version: int) -> None:
    for url in settings().serving_urls:
        mismatches, _ = endpoint.replay(validation.golden_requests(version), url, version)
        if mismatches:
            raise UnfitVersionError(f"version {version} does not answer as trained at {url}: {mismatches[0]}")


@_exclusive()
def shadow(version: int, share: float) -> None:
    """Send a loaded version a copy of this share of the predictions and throw its answers away.

    Raises:
        InputError: as of `steps.advance`.
    """
    _give(version, SHADOW, share)


@_exclusive()
def canary(version: int, share: float) -> None:
    """Let a loaded version answer this share of the users, always the same ones.

    Raises:
        InputError: as of `steps.advance`.
    """
    _give(version, CANARY, share)


def _give(version: int, role: str, share: float) -> None:
    """Give the challenger a share of the traffic, and keep what was counted until then: the verdict asks for it."""
    now = document.read()
    before = {arm: vars(counted) for arm, counted in measures.arms(now.step).items()}
    _follow(now, steps.advance(now, version, role, share, evidence=before))


@_exclusive()
def advance(version: int, to: str) -> bool:
    """Take the challenger through its time as shadow or canary, one share after the other, as far as it goes now.

    Args:
        to: `shadow` or `canary`. A version that is farther, or has nobody to be compared with, has passed.

    Returns:
        Whether it has passed; else ask again later.

    Raises:
        UnfitVersionError: it is worse than the champion; it is rejected, and its traffic is the champion's again.
    """
    now = document.read()
    _follow(now, now)  # what a kill has left undone: without its share a version would wait for shoppers in vain
    while True:
        now = document.read()
        if now.champion in (None, version) or (to == SHADOW and now.state == CANARY):
            return True
        shares = _shares_to_come(now, to)
        if now.state == to and not (now.change and now.change.what == steps.PASSED):
            verdict = _judged(now)
            why = "; ".join(verdict.reasons)
            endpoint.say(f"version {version} as {to} at {now.share:.1%}: {verdict.answer}: {why}")
            if verdict.answer == analysis.STOP:
                _follow(now, steps.reject(now, version, why, evidence=verdict.evidence))
                raise UnfitVersionError(f"version {version} was stopped as {to} at {now.share:.1%}: {why}")
            if verdict.answer == analysis.WAIT:
                return False
            _follow(now, steps.passed(now, why, verdict.evidence))
        elif not shares:
            return True
        else:
            _give(version, to, shares[0])


def _shares_to_come(now: Rollout, to: str) -> list[float]:
    """As shadow or canary, smallest first; without those that the challenger has had."""
    chosen = sorted(settings().rollout_shares) if to == CANARY else [settings().rollout_shadow_share]
    return [share for share in chosen if share > (now.share if now.state == to else 0)]


def judgement() -> analysis.Verdict | None:
    """What is to be said by now of the version that has a share of the traffic; changes nothing. None: none has."""
    now = document.read()
    return _judged(now) if now.state in (SHADOW, CANARY) and now.champion is not None else None


def _judged(now: Rollout) -> analysis.Verdict:
    assert now.change is not None  # or it would have no share
    counted, before = measures.arms(now.step), now.change.evidence
    challenger = counted[now.state]
    if now.state == SHADOW:
        challenger = measures.since(challenger, before.get("shadow", {}))
    return analysis.judge(
        challenger,
        measures.at_best(counted["stable"], before.get("stable", {})),
        outcomes.of_step(now.step) if now.state == CANARY else {},
        settings(),
        is_last=now.state == CANARY and not _shares_to_come(now, CANARY),
        waited_h=_hours_since(now.change),
    )


def _hours_since(change: Change) -> float:
    return (datetime.now(UTC) - datetime.fromisoformat(change.time)).total_seconds() / 3600


@_exclusive()
def promote(version: int, *, why: str = "", deadline_s: float = DEADLINE_S) -> None:
    """Make a version the champion; the one before stays loaded.

    Raises:
        InputError: it is not loaded, or did not pass the gate.
        DeploymentError: a model server does not follow in time.
    """
    now = document.read()
    if version == now.champion:
        return _follow(now, now, deadline_s)
    evidence: dict[str, Any] = {"made_of": registry.origin(version)}
    if now.change and now.change.what == steps.PASSED:
        evidence |= now.change.evidence
    steps.promote(now, version, "")  # refuses one that is not ready, before it is asked anything
    endpoint.wait_available(version, deadline_s)
    popular = endpoint.popular_list(version)
    _follow(now, steps.promote(now, version, popular, why=why, evidence=evidence), deadline_s)


@_exclusive()
def bake(version: int) -> bool:
    """Watch a version after its promotion, and take it back by itself where it fails and the one before does not.

    Returns:
        Whether its time is over; else ask again later.

    Raises:
        UnfitVersionError: it was rolled back.
    """
    now = document.read()
    promoted = next((each for each in reversed(history.changes()) if each.what == steps.PROMOTED), None)
    if now.champion != version or now.previous is None or promoted is None or promoted.version != version:
        return True
    before = Arm(promoted.evidence.get("stable_requests", 0), promoted.evidence.get("stable_failed", 0))
    why = analysis.fails_more(measures.arms(now.step)["stable"], before, settings()) or alerts.since(promoted.time)
    if why and _answers(now.previous):
        _rollback(now.previous, why, DEADLINE_S)
        raise UnfitVersionError(f"version {version} was rolled back: {why}")
    if why:
        endpoint.say(f"{why}; but that does not answer either: it is not the version's fault")
    return _hours_since(promoted) * 60 >= settings().rollout_bake_minutes


def _answers(version: int) -> bool:
    """Whether a version answers as it should on every model server."""
    try:
        _replay_everywhere(version)
    except (DeploymentError, OSError):
        return False
    return True


@_exclusive()
def reject(version: int, why: str) -> None:
    """End a version's way; it does not come again by itself.

    Raises:
        InputError: it is not on its way.
    """
    _reject(version, why)


def _reject(version: int, why: str) -> None:
    now = document.read()
    _follow(now, steps.reject(now, version, why))


@_exclusive()
def rollback(to: int | None = None, *, why: str = "asked for", deadline_s: float = DEADLINE_S) -> int | None:
    """Take back what was done last: a challenger's traffic, else a promotion. What is left is rejected.

    Args:
        to: a version that was champion once, instead.

    Returns:
        The version that answers now; None when the last thing done was a rollback, and no version is named.

    Raises:
        InputError: there is nothing to go back to.
        DeploymentError: the gateway has gone back, and a model server does not follow in time.
    """
    return _rollback(to, why, deadline_s)


def _rollback(to: int | None, why: str, deadline_s: float) -> int | None:
    now = document.read()
    if to is None and now.challenger is not None and now.traffic.versions - {now.champion}:
        _follow(now, steps.reject(now, now.challenger, f"rolled back: {why}"), deadline_s)
        return now.champion
    if to is None and now.change and now.change.what == steps.ROLLED_BACK:
        _follow(now, now, deadline_s)
        return None
    if to is not None and to == now.champion:
        _follow(now, now, deadline_s)
        return to
    if to is not None and to != now.previous:
        now = _loaded_again(now, to, deadline_s)
    after = steps.roll_back(now, why)
    _put(now, after)
    if after.champion in desired.read().versions:
        gateway.put(after.traffic)  # first of all: it waits for nobody
    reconcile(after, deadline_s=deadline_s)
    return after.champion


def _loaded_again(now: Rollout, to: int, deadline_s: float) -> Rollout:
    """Load a champion of the past in the place of the previous one."""
    if to not in {change.version for change in history.changes() if change.what == steps.PROMOTED}:
        raise InputError(
            f"version {to} was never champion",
            where=str(history.history_path()),
            cure="stage, validate, load and promote it",
        )
    if to == now.challenger:
        raise InputError(f"version {to} is on its way", where="the rollout", cure=f"promote --version {to}")
    if to not in artifact.versions_on_disk():
        artifact.place(to, *registry.deployable(to))
    after = steps.keep_loaded(now, to)
    try:
        _follow(now, after, deadline_s)
        endpoint.wait_available(to, deadline_s)
    except DeploymentError:
        _follow(after, steps.keep_loaded(after, now.previous, now.previous_popular), deadline_s)
        raise
    return after


def status() -> dict[str, Any]:
    """What the document, model servers, gateway and MLflow say; a part that does not answer says why."""

    def states(url: str) -> Any:
        with Backend(url, deadline_s=2) as backend, endpoint.endpoint_errors():
            return {str(version): vars(state) for version, state in backend.states().items()}

    def or_error(ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except (InputError, DeploymentError) as error:
            return {"error": str(error)}

    now = document.read()

    def deleted() -> list[int]:
        return sorted({*registry.aliases().values(), *now.desired.versions} - registry.versions().keys())

    return {
        "rollout": document.as_json(now),
        "verdict": or_error(lambda: vars(verdict) if (verdict := judgement()) else None),
        "config": or_error(lambda: vars(desired.read())),
        "traffic": or_error(lambda: vars(traffic.read())),
        "endpoints": {url: or_error(partial(states, url)) for url in settings().serving_urls},
        "mlflow": or_error(registry.aliases),
        "deleted_in_mlflow": or_error(deleted),
    }
