"""Verdicts on a canary: by hand, and by simulation of shops in which we know what is so."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from contracts.settings import Settings
from serving.gateway.measures import Arm, at_best, since
from serving.rollout.analysis import PASS, STOP, WAIT, Outcomes, Verdict, fails_more, half_width, judge
from serving.rollout.outcomes import summarise

SETTINGS = Settings(_env_file=None)
FAST = {90.0: 8.0, 99.0: 20.0}


def verdict(
    challenger: Arm, stable: Arm, outcomes=None, *, is_last: bool = False, waited_h: float = 0, **changed
) -> Verdict:
    settings = SETTINGS.model_copy(update=changed)
    return judge(challenger, stable, outcomes or {}, settings, is_last=is_last, waited_h=waited_h)


def taking(hit_rate: float, num_users: int, **more) -> Outcomes:
    return Outcomes(num_users=num_users, hit_rate=hit_rate, variance=hit_rate * (1 - hit_rate), **more)


@pytest.mark.parametrize(
    ("challenger", "stable", "answer", "reason"),
    [
        (Arm(100, 0, FAST), Arm(900, 0, FAST), PASS, "100 predictions, 0 failed"),
        (Arm(99, 0, FAST), Arm(900, 0, FAST), WAIT, "it takes 100 predictions, 99 were made"),
        (Arm(0, 0), Arm(0, 0), WAIT, "it takes 100 predictions, 0 were made"),
        (Arm(100, 30, FAST), Arm(900, 0, FAST), STOP, "30 of 100 predictions failed, and 0 of the champion's 900"),
        (Arm(30, 30, FAST), Arm(900, 0, FAST), STOP, "30 of 30 predictions failed"),
        (Arm(100, 2, FAST), Arm(900, 0, FAST), WAIT, "2 of 100 predictions failed, which may be chance"),
        (Arm(500, 150, FAST), Arm(500, 150, FAST), PASS, "500 predictions, 150 failed"),
        (Arm(100, 0, {90.0: 40.0, 99.0: 20.0}), Arm(900, 0, FAST), STOP, "p90 is 40.0 ms, the champion's 8.0 ms"),
        (Arm(100, 0, {90.0: 8.0, 99.0: 900.0}), Arm(900, 0, FAST), PASS, ""),  # of so few, the slowest is chance
        (Arm(1000, 0, {90.0: 8.0, 99.0: 900.0}), Arm(9000, 0, FAST), STOP, "p99 is 900.0 ms"),
        (Arm(1000, 0, {90.0: 1.0, 99.0: 6.0}), Arm(9000, 0, {90.0: 1.0, 99.0: 2.0}), PASS, ""),  # nobody notices
        (Arm(100, 0), Arm(900, 0), PASS, ""),  # the gateway has put no times together yet
    ],
)
def test_errors_and_latency(challenger: Arm, stable: Arm, answer: str, reason: str) -> None:
    """Failures are compared with the champion's; slow is what is much slower and can be noticed."""
    judged = verdict(challenger, stable)
    assert judged.answer == answer, judged
    assert reason in "; ".join(judged.reasons)
    assert (judged.evidence["requests"], judged.evidence["stable_failed"]) == (
        challenger.num_requests,
        stable.num_failed,
    )


@pytest.mark.parametrize(
    ("ours", "theirs", "is_last", "answer", "reason"),
    [
        (taking(0.50, 20_000), taking(0.50, 20_000), True, PASS, "hit rate 0.500 of 20000 users"),
        (taking(0.30, 2_000), taking(0.50, 2_000), False, STOP, "shoppers take less of it"),
        (taking(0.45, 200), taking(0.50, 200), False, PASS, ""),
        (taking(0.45, 200), taking(0.50, 200), True, WAIT, "it may lose more than 0.05 of the hit rate"),
        (taking(0.50, 0), taking(0.50, 0), True, WAIT, "it may lose more than"),
        (taking(0.60, 2_000), taking(0.50, 2_000), True, PASS, ""),
        (taking(0.5, 0, num_lists=9, num_bad_scores=1), taking(0.5, 0), False, STOP, "1 of 9 lists have scores"),
        (
            taking(0.5, 0, num_compared=100, num_distinct_items=10), taking(0.5, 0, num_compared=100, num_distinct_items=300),
            False, STOP, "in 100 lists it shows 10 different items, the champion 300",
        ),
        (
            taking(0.5, 0, num_compared=20, num_distinct_items=10), taking(0.5, 0, num_compared=20, num_distinct_items=90),
            False, PASS, "",
        ),
    ],
)  # fmt: skip
def test_what_shoppers_take(ours: Outcomes, theirs: Outcomes, is_last: bool, answer: str, reason: str) -> None:
    """Worse for certain stops at any share; before promotion it must be certain that it is not much worse."""
    judged = verdict(Arm(1000, 0, FAST), Arm(1000, 0, FAST), {"canary": ours, "stable": theirs}, is_last=is_last)
    assert judged.answer == answer, judged
    assert reason in "; ".join(judged.reasons)


@pytest.mark.parametrize(("undecided", "answer"), [("promote", PASS), ("reject", STOP), ("wait", WAIT)])
def test_patience_ends_as_set(undecided: str, answer: str) -> None:
    """After it, not before; what is known to be bad is stopped in any case."""
    few = Arm(7, 0, FAST), Arm(900, 0, FAST)
    assert verdict(*few, waited_h=23, rollout_undecided=undecided).answer == WAIT
    late = verdict(*few, waited_h=25, rollout_undecided=undecided)
    assert late.answer == answer
    assert ("undecided after 25.0 hours" in late.reasons) == (answer != WAIT)
    assert verdict(Arm(100, 90), few[1], waited_h=25, rollout_undecided=undecided).answer == STOP


def test_a_champion_that_fails_more_than_the_one_before() -> None:
    """Surely more; with nothing to compare with, it is held against one that does not fail."""
    assert fails_more(Arm(100, 1), Arm(900, 0), SETTINGS) == ""
    assert fails_more(Arm(100, 20), Arm(900, 180), SETTINGS) == ""
    assert "30 of 100 predictions failed since it is champion, 0 of 900" in fails_more(
        Arm(100, 30), Arm(900, 0), SETTINGS
    )
    assert fails_more(Arm(), Arm(), SETTINGS) == ""
    assert "0 of 0 of the version before" in fails_more(Arm(60, 60), Arm(), SETTINGS)


def test_the_interval_by_hand() -> None:
    """Theorem 2.2 at t = 1000, variance 1/4, alpha 0.05, with rho as it is best at 1000."""
    rho_squared = (-2 * math.log(0.05) + math.log(-2 * math.log(0.05) + 1)) / 1000
    scale = 1000 * rho_squared + 1
    expected = 0.5 * math.sqrt(2 * scale / (1000**2 * rho_squared) * math.log(math.sqrt(scale) / 0.05))
    assert half_width(1000, 0.25, 0.05) == pytest.approx(expected)
    assert 0.031 < half_width(1000, 0.25, 0.05) < 0.062  # wider than that of one look, and less than twice as wide
    assert half_width(0, 0.25, 0.05) == math.inf


def looks(rate: float, stable_rate: float, num_shops: int = 400, num_users: int = 3000) -> float:
    """Share of simulated shops whose challenger is stopped by what shoppers take, when we look after every ten users."""
    random = np.random.default_rng(7)
    stopped = 0
    for _ in range(num_shops):
        means = [
            np.cumsum(random.random(num_users) < each) / np.arange(1, num_users + 1) for each in (rate, stable_rate)
        ]
        for count in range(30, num_users + 1, 10):
            ours, theirs = (taking(float(mean[count - 1]), count) for mean in means)
            if verdict(Arm(), Arm(), {"canary": ours, "stable": theirs}).answer == STOP:
                stopped += 1
                break
    return stopped / num_shops


def test_however_often_one_looks() -> None:
    """A challenger that is as good is stopped in fewer than one shop of twenty; one that is clearly worse in nearly all."""
    assert looks(0.5, 0.5) <= 0.05
    assert looks(0.35, 0.5) > 0.95


def test_outcomes_by_hand() -> None:
    """Users, not lists, are counted; who took nothing says nothing; who is in no arm is left out."""
    shown = pd.DataFrame(
        [
            ("r1", "canary", ["a", "b"], [2.0, 1.0]),
            ("r2", "canary", ["a", "c"], [2.0, 1.0]),
            ("r3", "canary", ["d", "e"], [2.0, math.nan]),
            ("r4", "stable", ["a", "b"], [2.0, 1.0]),
            ("r5", "stable", ["f", "g"], [2.0, 1.0]),
            ("r6", "pinned", ["a", "b"], [2.0, 1.0]),
        ],
        columns=["request_id", "arm", "items", "scores"],
    )
    attributions = pd.DataFrame(
        [
            ("r1", "ann", ["a"]),
            ("r2", "ann", ["x"]),
            ("r3", "bob", []),
            ("r4", "cid", ["b", "x"]),
            ("r5", "dan", ["x"]),
        ],
        columns=["request_id", "user_id", "taken_items"],
    )
    by_arm = summarise(shown, attributions)
    assert by_arm["canary"] == Outcomes(
        1, 0.5, 0.0, num_lists=3, num_distinct_items=3, num_compared=2, num_bad_scores=1
    )
    assert by_arm["stable"] == Outcomes(2, 0.5, 0.25, num_lists=2, num_distinct_items=4, num_compared=2)
    assert summarise(shown, attributions.iloc[:0])["canary"].num_users == 0


def test_times_at_their_best() -> None:
    """A slow challenger slows down its champion, too: what that took before is held against it."""
    before = {"num_requests": 100, "latency_ms": {"90": 3.0, "99": 30.0}}
    assert at_best(Arm(9, 1, FAST), before) == Arm(9, 1, {90.0: 3.0, 99.0: 20.0})
    assert at_best(Arm(9, 1, FAST), before | {"num_requests": 99}) == Arm(9, 1, FAST)
    assert at_best(Arm(9, 1, FAST), {}) == Arm(9, 1, FAST)


def test_counted_since_the_step_began() -> None:
    """Unless the gateway has started anew meanwhile."""
    assert since(Arm(50, 5), {"num_requests": 30, "num_failed": 1}) == Arm(20, 4)
    assert since(Arm(50, 5), {}) == Arm(50, 5)
    assert since(Arm(10, 0), {"num_requests": 30, "num_failed": 1}) == Arm(10, 0)
