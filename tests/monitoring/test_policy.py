"""The retrain policy, rule by rule."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.metrics import NDCG, PERSONAL_FREQUENCY, POPULARITY
from monitoring.policy import Champion, Observation, State, Thresholds, decide
from monitoring.quality import MODEL, Live

THRESHOLDS = Thresholds(after_intervals=4, refresh_after_intervals=1, quality_drop=0.25, drift=0.2, confidence=0.95)
CHAMPION = Champion(version=7, as_of=50, evaluation={MODEL: {NDCG: 0.2}})
LIVE = Live(
    num_requests=500,
    num_users=400,
    means={MODEL: {NDCG: 0.2}, POPULARITY: {NDCG: 0.1}, PERSONAL_FREQUENCY: {NDCG: 0.15}},
    ndcg_half_width=0.01,
    ndcg_behind={POPULARITY: -0.11, PERSONAL_FREQUENCY: -0.06},
    latency_p50_ms=1.0,
    latency_p99_ms=5.0,
)
WELL = Observation(interval=51, champion=CHAMPION, live=LIVE, drift=0.1, failed_gates={})


def _live(ndcg: float, half_width: float = 0.01, behind: float = -0.1) -> Live:
    means = {**LIVE.means, MODEL: {NDCG: ndcg}}
    return replace(
        LIVE, means=means, ndcg_half_width=half_width, ndcg_behind={POPULARITY: behind, PERSONAL_FREQUENCY: -0.1}
    )


@pytest.mark.parametrize(
    ("observation", "state", "retrain", "reason"),
    [
        (WELL, State(), False, "7 is 1 of 4 intervals old, live ndcg_at_10 0.200 of 400 users, drift 0.100 of 0.2"),
        (replace(WELL, live=None, drift=None), State(), False, "no live traffic to judge, drift not measured"),
        (replace(WELL, champion=None), State(), True, "no model is deployed"),
        (replace(WELL, interval=53), State(), False, "3 of 4 intervals old"),
        (replace(WELL, interval=54), State(), True, "the model is 4 intervals old (limit 4)"),
        (replace(WELL, live=_live(0.16)), State(), False, "nothing asks"),
        (replace(WELL, live=_live(0.14)), State(), True, "0.140 is 30% below the 0.200 of the evaluation"),
        (replace(WELL, live=_live(0.14, half_width=0.07)), State(), False, "nothing asks"),
        (replace(WELL, live=replace(_live(0.0), means={}, num_users=0)), State(), False, "no live traffic to judge"),
        (replace(WELL, champion=replace(CHAMPION, evaluation={}), live=_live(0.01)), State(), False, "nothing asks"),
        (replace(WELL, live=_live(0.19, behind=0.02)), State(), True, "0.190 against 0.100, at least 0.020 behind"),
        (replace(WELL, drift=0.2), State(), False, "nothing asks"),
        (replace(WELL, drift=0.21), State(), True, "Jensen-Shannon distance 0.210"),
        (replace(WELL, champion=None), State(requested="as_of_51_v3"), False, "as_of_51_v3 is already asked for"),
        (replace(WELL, champion=None), State(finished="blocked"), False, "on this data has finished (blocked)"),
        (replace(WELL, champion=None, failed_gates={"raw": "x.y: bad"}), State(), False, "gate raw: x.y: bad"),
    ],
)  # fmt: skip
def test_each_rule(observation: Observation, state: State, retrain: bool, reason: str) -> None:
    """Each rule decides on its own side of its limit, and says so."""
    decision = decide(observation, state, THRESHOLDS)
    assert decision.retrain is retrain
    assert reason in "; ".join(decision.reasons)


@pytest.mark.parametrize(
    ("observation", "state", "after", "refresh"),
    [
        (WELL, State(), 1, True),
        (WELL, State(), 2, False),
        (WELL, State(), 0, False),
        (replace(WELL, interval=50), State(), 1, False),
        (WELL, State(refreshed="registered"), 1, False),
        (WELL, State(refreshed="blocked"), 1, False),
        (replace(WELL, champion=None), State(), 1, False),
        (replace(WELL, failed_gates={"raw": "x.y: bad"}), State(), 1, False),
        (replace(WELL, drift=0.9), State(), 1, False),
        (replace(WELL, drift=0.9), State(requested="as_of_51_v3"), 1, False),
        (replace(WELL, drift=0.9), State(finished="registered"), 1, False),
        (replace(WELL, drift=0.9), State(finished="blocked"), 1, True),
        (replace(WELL, challenger=8), State(), 1, False),
    ],
)  # fmt: skip
def test_newer_data_without_training(observation: Observation, state: State, after: int, refresh: bool) -> None:
    """The champion is refreshed when it lacks an interval, once, and when no training is due or on its way."""
    decision = decide(observation, state, replace(THRESHOLDS, refresh_after_intervals=after))
    assert decision.refresh is refresh
    assert ("7 lacks what was taken since interval 49" in decision.reasons[-1]) is refresh


@pytest.mark.parametrize(("after", "refresh"), [(1, True), (9, True), (0, False)])
def test_a_withdrawn_item_is_not_recommended_on(after: int, refresh: bool) -> None:
    """However young the champion is, it is refreshed without it, unless models are never refreshed."""
    fresh = replace(WELL, interval=50, withdrawn_items=("a", "b", "c", "d"))
    decision = decide(fresh, State(), replace(THRESHOLDS, refresh_after_intervals=after))
    assert (decision.retrain, decision.refresh) == (False, refresh)
    reason = "version 7 may recommend what is withdrawn (4: a, b, c, ...): the same weights with newer data"
    assert (reason in decision.reasons) is refresh
    assert not decide(fresh, State(refreshed="registered"), THRESHOLDS).refresh


def test_every_reason_is_given() -> None:
    """Several rules at once give several reasons."""
    decision = decide(replace(WELL, interval=60, drift=0.9, live=_live(0.05, behind=0.01)), State(), THRESHOLDS)
    assert len(decision.reasons) == 4


observations = st.builds(
    Observation,
    interval=st.integers(50, 60),
    champion=st.none() | st.just(CHAMPION),
    live=st.none() | st.builds(_live, st.floats(0, 1), st.floats(0, 1), st.floats(-1, 1)),
    drift=st.none() | st.floats(0, 1),
    failed_gates=st.sampled_from([{}, {"raw": "broken"}]),
)
states = st.builds(State, requested=st.sampled_from([None, "key"]), finished=st.sampled_from([None, "blocked"]))


@given(observations, states, st.floats(0, 1), st.integers(0, 20))
def test_worse_never_turns_retrain_into_keep(observation: Observation, state: State, drift: float, older: int) -> None:
    """More drift and more age never take a retraining back."""
    worse = replace(observation, drift=max(drift, observation.drift or 0.0), interval=observation.interval + older)
    assert decide(worse, state, THRESHOLDS).retrain >= decide(observation, state, THRESHOLDS).retrain


@given(observations, states)
def test_a_decision_always_has_a_reason(observation: Observation, state: State) -> None:
    """Whatever is observed, there are words for it; data that failed a check is never trained on."""
    decision = decide(observation, state, THRESHOLDS)
    assert decision.reasons
    assert not (decision.retrain and observation.failed_gates)
    assert not (decision.refresh and (decision.retrain or observation.failed_gates))
