"""The document of a rollout and its changes, on their own: what follows from what, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.errors import InputError
from serving.desired import Desired
from serving.gateway.traffic import Traffic
from serving.rollout import steps
from serving.rollout.document import CANARY, LOADED, SHADOW, STAGED, STATES, VALIDATED, Rollout

SERVING = Rollout(champion=1, popular="one")


def loaded(now: Rollout, version: int) -> Rollout:
    """The document with a version that came as far as loaded."""
    for state in (VALIDATED, LOADED):
        now = steps.advance(steps.stage(now, version), version, state)
    return now


def test_a_version_on_its_way() -> None:
    """At each step the document says what is loaded, labelled and asked, as counted by hand."""
    now = steps.stage(SERVING, 2)
    assert (now.desired, now.traffic) == (Desired((1,), {"stable": 1}), Traffic(stable=1, popular="one"))
    now = loaded(SERVING, 2)
    assert now.desired == Desired((1, 2), {"stable": 1, "canary": 2})
    assert now.traffic == Traffic(stable=1, popular="one")
    now = steps.advance(now, 2, SHADOW, 0.2)
    assert now.traffic == Traffic(stable=1, shadow=2, shadow_share=0.2, popular="one", step=4)
    now = steps.advance(now, 2, CANARY, 0.1)
    assert now.traffic == Traffic(stable=1, canary=2, canary_share=0.1, popular="one", step=5)
    now = steps.passed(now, "well", {"requests": 7})
    assert (now.traffic.step, now.change.what, now.change.evidence) == (5, "passed", {"requests": 7})
    now = steps.promote(now, 2, "two")
    assert now.desired == Desired((1, 2), {"stable": 2})
    assert now.traffic == Traffic(stable=2, popular="two", step=7)
    assert (now.previous, now.challenger, now.change.before, now.change.champion) == (1, None, 1, 2)
    now = steps.roll_back(now, "bad")
    assert now.desired == Desired((1,), {"stable": 1})
    assert now.traffic == Traffic(stable=1, popular="one", step=8)
    assert now.rejected == {2: "bad"}


def test_what_is_done_changes_nothing() -> None:
    """Asked again, a step leaves the very same document."""
    now = loaded(SERVING, 2)
    assert steps.stage(now, 2) is now
    assert steps.advance(now, 2, VALIDATED) is now
    now = steps.advance(now, 2, CANARY, 0.1)
    assert steps.advance(now, 2, LOADED) is now
    assert steps.advance(now, 2, CANARY, 0.1) is now
    promoted = steps.promote(now, 2, "x")
    assert steps.promote(promoted, 2, "x") is promoted
    assert steps.stage(promoted, 2) is promoted
    rejected = steps.reject(now, 2, "bad")
    assert steps.reject(rejected, 2, "bad") is rejected


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda now: steps.advance(now, 3, CANARY, 0.1), "version 3 is not on its way"),
        (lambda now: steps.advance(now, 2, CANARY, 0.1), "is staged, not yet loaded"),
        (lambda now: steps.advance(now, 2, LOADED), "is staged, not yet validated"),
        (lambda now: steps.advance(now, 2, CANARY, 1.5), "share is 1.5"),
        (lambda now: steps.promote(now, 2, "x"), "not yet loaded"),
        (lambda now: steps.promote(now, 3, "x"), "not on its way"),
        (lambda now: steps.stage(now, 3), r"version 2 is on its way \(staged\)"),
        (lambda now: steps.reject(now, 3, "x"), "not on its way"),
        (lambda now: steps.roll_back(now, "x"), "no version before version 1"),
        (lambda now: steps.stage(steps.reject(now, 2, "slow"), 2), "was rejected: slow"),
    ],
)
def test_what_is_refused(change, reason: str) -> None:
    """Each refusal names what is so instead."""
    with pytest.raises(InputError, match=reason):
        change(steps.stage(SERVING, 2))


def test_the_first_model_has_nobody_to_be_compared_with() -> None:
    """It is no canary, and has no traffic before it is champion."""
    now = loaded(Rollout(), 1)
    assert now.traffic == Traffic()
    with pytest.raises(InputError, match="no champion"):
        steps.advance(now, 1, CANARY, 0.1)
    assert steps.promote(now, 1, "x").traffic == Traffic(stable=1, popular="x", step=4)


def test_a_rejected_version_comes_again_when_somebody_says_so() -> None:
    """And is not rejected any more, then."""
    now = steps.reject(steps.stage(SERVING, 2), 2, "slow")
    assert steps.stage(now, 2, again=True).rejected == {}


CHANGES = st.tuples(
    st.sampled_from(["stage", "advance", "passed", "promote", "reject", "roll_back", "keep_loaded"]),
    st.integers(1, 4),
    st.sampled_from(STATES),
    st.sampled_from([0.0, 0.1, 1.0]),
)


def changed(now: Rollout, what: str, version: int, state: str, share: float) -> Rollout:
    return {
        "stage": lambda: steps.stage(now, version),
        "advance": lambda: steps.advance(now, version, state, share),
        "passed": lambda: steps.passed(now, "", {}) if now.challenger else now,
        "promote": lambda: steps.promote(now, version, str(version)),
        "reject": lambda: steps.reject(now, version, "bad"),
        "roll_back": lambda: steps.roll_back(now, "bad"),
        "keep_loaded": lambda: steps.keep_loaded(now, version) if version != now.challenger else now,
    }[what]()


@given(st.lists(CHANGES, max_size=30))
def test_whatever_is_asked_who_is_asked_is_loaded(changes) -> None:
    """Any changes in any order: who has traffic is to be loaded; nobody rejected is on its way; a change has the next
    number; and a new step has begun exactly where traffic has changed."""
    now = Rollout()
    for what, version, state, share in changes:
        try:
            after = changed(now, what, version, state, share)
        except InputError:
            continue
        if after is not now:
            assert after.change.number == (now.change.number if now.change else 0) + 1
            assert (after.change.before, after.change.champion) == (now.champion, after.champion)
            assert (after.step == after.change.number) == (after.traffic != now.traffic)
        now = after
        assert now.traffic.versions <= set(now.desired.versions)
        assert now.challenger not in now.rejected
        assert now.champion not in now.rejected
        assert now.challenger is None or now.challenger not in (now.champion, now.previous)
        assert (now.state in STATES) == (now.challenger is not None)
        assert now.traffic.canary_share * now.traffic.shadow_share == 0
    assert now.state != STAGED or now.challenger not in now.desired.versions
