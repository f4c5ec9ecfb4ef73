"""How the document may change: pure functions from one document to the next. What is done already changes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from contracts.errors import InputError
from contracts.settings import actor
from serving.rollout.document import CANARY, LOADED, SHADOW, STAGED, STATES, VALIDATED, Change, Rollout

PASSED, PROMOTED, REJECTED, ROLLED_BACK, KEPT_LOADED = "passed", "promoted", "rejected", "rolled back", "kept loaded"
_WHERE = "the rollout"


def _changed(
    before: Rollout,
    what: str,
    version: int,
    *,
    why: str = "",
    evidence: Mapping[str, Any] | None = None,
    **fields: Any,
) -> Rollout:
    """The next document, which knows what it was made by."""
    number = before.change.number + 1 if before.change else 1
    after = replace(before, **fields)
    if after.traffic != before.traffic:
        after = replace(after, step=number)
    change = Change(
        number=number,
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        who=actor(),
        what=what,
        version=version,
        champion=after.champion,
        before=before.champion,
        state=after.state,
        share=after.share,
        why=why,
        evidence=evidence or {},
    )
    return replace(after, change=change)


_WITHOUT_CHALLENGER = {"challenger": None, "state": "", "share": 0.0}


def _require(now: Rollout, version: int, state: str) -> None:
    """Refuse a version that is not the challenger, or has not come as far as that."""
    if now.challenger != version:
        cure = f"it was rejected: {now.rejected[version]}" if version in now.rejected else f"stage --version {version}"
        raise InputError(f"version {version} is not on its way", where=_WHERE, cure=cure)
    if not now.is_at_least(state):
        raise InputError(
            f"version {version} is {now.state}, not yet {state}",
            where=_WHERE,
            cure="take one step after the other: stage, validate, load, shadow, canary, promote",
        )


def stage(now: Rollout, version: int, *, again: bool = False) -> Rollout:
    """A version sets out.

    Args:
        again: also one that was rejected.

    Raises:
        InputError: another one is on its way, or it was rejected.
    """
    if version in (now.champion, now.challenger):
        return now
    if now.challenger is not None:
        raise InputError(
            f"version {now.challenger} is on its way ({now.state})",
            where=_WHERE,
            cure=f"wait for it, or end it: python -m serving reject --version {now.challenger}",
        )
    if version in now.rejected and not again:
        raise InputError(
            f"version {version} was rejected: {now.rejected[version]}",
            where=_WHERE,
            cure="train another one; or say --again",
        )
    rejected = {number: why for number, why in now.rejected.items() if number != version}
    took_back = version == now.previous
    return _changed(
        now,
        STAGED,
        version,
        challenger=version,
        state=STAGED,
        share=0.0,
        rejected=rejected,
        previous=None if took_back else now.previous,
        previous_popular="" if took_back else now.previous_popular,
    )


def advance(
    now: Rollout, version: int, state: str, share: float = 0.0, *, evidence: Mapping[str, Any] | None = None
) -> Rollout:
    """The challenger comes to a state, or back to an earlier one that has traffic.

    Args:
        share: of the traffic, as shadow or canary; 0 takes it away.

    Raises:
        InputError: it is not the challenger, has skipped a state, or has nobody to be compared with.
    """
    _require(now, version, STAGED)
    if not 0 <= share <= 1:
        raise InputError(f"the share is {share}", where=_WHERE, cure="give one from 0 to 1")
    if state in (VALIDATED, LOADED) and now.is_at_least(state):
        return now
    _require(now, version, LOADED if state in (SHADOW, CANARY) else STATES[STATES.index(state) - 1])
    if state in (SHADOW, CANARY) and now.champion is None:
        raise InputError("there is no champion to compare it with", where=_WHERE, cure=f"promote --version {version}")
    if (now.state, now.share) == (state, share):
        return now
    return _changed(now, state, version, state=state, share=share, evidence=evidence)


def passed(now: Rollout, why: str, evidence: Mapping[str, Any]) -> Rollout:
    """The challenger has borne its present share."""
    assert now.challenger is not None  # or there is nothing to bear
    return _changed(now, PASSED, now.challenger, why=why, evidence=evidence)


def promote(
    now: Rollout, version: int, popular: str, *, why: str = "", evidence: Mapping[str, Any] | None = None
) -> Rollout:
    """The challenger becomes champion, and the champion stays loaded as the previous one.

    Raises:
        InputError: it is not the challenger, or not loaded.
    """
    if version == now.champion:
        return now
    _require(now, version, LOADED)
    return _changed(
        now,
        PROMOTED,
        version,
        why=why,
        evidence=evidence,
        champion=version,
        popular=popular,
        previous=now.champion,
        previous_popular=now.popular,
        **_WITHOUT_CHALLENGER,
    )


def reject(now: Rollout, version: int, why: str, *, evidence: Mapping[str, Any] | None = None) -> Rollout:
    """The challenger's way ends.

    Raises:
        InputError: it is not the challenger.
    """
    if version in now.rejected and version != now.challenger:
        return now
    _require(now, version, STAGED)
    rejected = {**now.rejected, version: why}
    return _changed(now, REJECTED, version, why=why, evidence=evidence, rejected=rejected, **_WITHOUT_CHALLENGER)


def keep_loaded(now: Rollout, previous: int | None, popular: str = "") -> Rollout:
    """Another version, or none, takes the place of the previous one: what a rollback would go to."""
    version = now.previous if previous is None else previous
    assert version is not None  # one of them is
    return _changed(now, KEPT_LOADED, version, previous=previous, previous_popular=popular)


def roll_back(now: Rollout, why: str) -> Rollout:
    """The previous version is champion again, and the champion does not come back by itself.

    Raises:
        InputError: there is no previous one.
    """
    current, target = now.champion, now.previous
    if current is None or target is None:
        raise InputError(
            "nothing was deployed yet" if current is None else f"there is no version before version {current}",
            where=_WHERE,
            cure="name a version with --to",
        )
    rejected = {number: reason for number, reason in now.rejected.items() if number != target} | {current: why}
    return _changed(
        now,
        ROLLED_BACK,
        current,
        why=why,
        champion=target,
        popular=now.previous_popular or now.popular,
        previous=None,
        previous_popular="",
        rejected=rejected,
    )
