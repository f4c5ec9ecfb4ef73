"""Does a challenger bear its share of the traffic? From what the gateway has counted and what shoppers took.

The intervals hold at every look at once: one may look as often as one likes, and stop as soon as they say enough.
They are asymptotic confidence sequences (Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas: Time-uniform central limit theory
and asymptotic confidence sequences, 2021, theorem 2.2), one for each arm; users are independent, lists of one are not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from contracts.settings import Settings
from serving.gateway.measures import Arm

PASS, WAIT, STOP = "pass", "wait", "stop"
PLANNED_SAMPLES = 1000
"""At so many samples the intervals are narrowest, compared to those of one look."""
MANY_REQUESTS, MANY_PERCENT, FEW_PERCENT = 1000, 99.0, 90.0
"""Of fewer requests the 99th percentile is chance: they are judged by the 90th."""
NOTICEABLE_MS = 5.0
MIN_COVERAGE_RATIO = 0.5
MAX_MORE_FAILED = 0.01


@dataclass(frozen=True)
class Outcomes:
    """What became of the lists that an arm has shown in one step.

    Attributes:
        num_users: who took something after their list was shown.
        hit_rate: mean of `hit_rate_at_10` over these users, each with the mean of the own lists.
        variance: of it between users.
        num_lists: lists shown, also to those who took nothing.
        num_distinct_items: in the first `num_compared` lists.
        num_compared: the same for both arms.
        num_bad_scores: lists with a score that is no finite number.
    """

    num_users: int = 0
    hit_rate: float = 0.0
    variance: float = 0.0
    num_lists: int = 0
    num_distinct_items: int = 0
    num_compared: int = 0
    num_bad_scores: int = 0


@dataclass(frozen=True)
class Verdict:
    """What to do with the challenger, why, and the numbers behind it."""

    answer: str
    reasons: tuple[str, ...]
    evidence: Mapping[str, Any] = field(default_factory=dict)


def half_width(num_samples: int, variance: float, alpha: float) -> float:
    """Of the interval that holds the mean at every number of samples at once, but for a chance of `alpha`.

    Args:
        variance: of one sample.
    """
    if num_samples == 0:
        return math.inf
    rho_squared = (-2 * math.log(alpha) + math.log(-2 * math.log(alpha) + 1)) / PLANNED_SAMPLES
    scale = num_samples * rho_squared + 1
    return math.sqrt(variance * 2 * scale / (num_samples**2 * rho_squared) * math.log(math.sqrt(scale) / alpha))


def difference(
    ours: tuple[int, float, float], theirs: tuple[int, float, float], alpha: float
) -> tuple[float, float, float]:
    """Difference of two means with its lower and upper bound.

    Args:
        ours: number of samples, mean and variance; `theirs` too.
    """
    mean = ours[1] - theirs[1]
    wide = sum(half_width(count, variance, alpha / 2) for count, _, variance in (ours, theirs))
    return mean, mean - wide, mean + wide


def _failing(arm: Arm) -> tuple[int, float, float]:
    """Number of requests, share that failed and its variance, which is never taken for none."""
    share = arm.num_failed / arm.num_requests if arm.num_requests else 0.0
    at_least = (arm.num_failed + 0.5) / (arm.num_requests + 1)
    return arm.num_requests, share, at_least * (1 - at_least)


def judge(
    challenger: Arm,
    stable: Arm,
    outcomes: Mapping[str, Outcomes],
    settings: Settings,
    *,
    is_last: bool,
    waited_h: float,
) -> Verdict:
    """Judge one step.

    Args:
        challenger: what the gateway has counted of it, as shadow or canary; `stable` of the champion beside it.
        outcomes: of `canary` and `stable`; of a shadow there are none.
        is_last: the step before promotion, for which shoppers' outcomes count.
        waited_h: since the step began.
    """
    alpha = 1 - settings.rollout_confidence
    evidence: dict[str, Any] = {"requests": challenger.num_requests, "failed": challenger.num_failed}
    evidence |= {"stable_requests": stable.num_requests, "stable_failed": stable.num_failed}
    more_failed, surely_more, _ = difference(_failing(challenger), _failing(stable), alpha)
    faults, doubts = [], []
    if surely_more > 0:
        faults.append(
            f"{challenger.num_failed} of {challenger.num_requests} predictions failed, "
            f"and {stable.num_failed} of the champion's {stable.num_requests}"
        )
    elif more_failed > MAX_MORE_FAILED:
        doubts.append(f"{challenger.num_failed} of {challenger.num_requests} predictions failed, which may be chance")
    enough = settings.rollout_min_requests
    if challenger.num_requests < enough:
        doubts.append(f"it takes {enough} predictions, {challenger.num_requests} were made")
    else:
        faults += _slow(challenger, stable, settings, evidence)
    ours, theirs = outcomes.get("canary", Outcomes()), outcomes.get("stable", Outcomes())
    faults += _odd(ours, theirs, evidence)
    gain, low, high = difference(
        (ours.num_users, ours.hit_rate, ours.variance), (theirs.num_users, theirs.hit_rate, theirs.variance), alpha
    )
    hit_rates = f"hit rate {ours.hit_rate:.3f} of {ours.num_users} users, the champion's {theirs.hit_rate:.3f} of {theirs.num_users}"
    if ours.num_users and theirs.num_users:
        evidence |= {"users": ours.num_users, "stable_users": theirs.num_users}
        evidence |= {"hit_rate": ours.hit_rate, "stable_hit_rate": theirs.hit_rate, "gain": [low, gain, high]}
    if high < 0:
        faults.append(f"shoppers take less of it: {hit_rates}")
    elif is_last and low < -settings.rollout_max_lost_hit_rate:
        doubts.append(f"it may lose more than {settings.rollout_max_lost_hit_rate:g} of the hit rate: {hit_rates}")
    if faults:
        return Verdict(STOP, tuple(faults), evidence)
    if not doubts:
        borne = f"{challenger.num_requests} predictions, {challenger.num_failed} failed"
        return Verdict(PASS, (borne, hit_rates) if ours.num_users else (borne,), evidence)
    if waited_h < settings.rollout_patience_h or settings.rollout_undecided == "wait":
        return Verdict(WAIT, tuple(doubts), evidence)
    late = f"undecided after {waited_h:.1f} hours"
    answer = PASS if settings.rollout_undecided == "promote" else STOP
    return Verdict(answer, (late, *doubts), evidence)


def fails_more(champion: Arm, before: Arm, settings: Settings) -> str:
    """Why a new champion is surely worse than what it took the place of, in words; empty when it is not.

    Args:
        champion: since its promotion.
        before: the champion before, beside the canary; empty where there was none.
    """
    reference = before if before.num_requests else Arm(MANY_REQUESTS)
    _, surely_more, _ = difference(_failing(champion), _failing(reference), 1 - settings.rollout_confidence)
    if surely_more <= 0:
        return ""
    return (
        f"{champion.num_failed} of {champion.num_requests} predictions failed since it is champion, "
        f"{before.num_failed} of {before.num_requests} of the version before"
    )


def _slow(challenger: Arm, stable: Arm, settings: Settings, evidence: dict[str, Any]) -> list[str]:
    many = min(challenger.num_requests, stable.num_requests) >= MANY_REQUESTS
    percent = MANY_PERCENT if many else FEW_PERCENT
    ours, theirs = challenger.latency_ms.get(percent), stable.latency_ms.get(percent)
    if ours is None or theirs is None:
        return []
    evidence |= {f"p{percent:g}_ms": round(ours, 2), f"stable_p{percent:g}_ms": round(theirs, 2)}
    if ours > settings.rollout_max_latency_ratio * theirs and ours > theirs + NOTICEABLE_MS:
        return [f"p{percent:g} is {ours:.1f} ms, the champion's {theirs:.1f} ms"]
    return []


def _odd(ours: Outcomes, theirs: Outcomes, evidence: dict[str, Any]) -> list[str]:
    oddities = []
    if ours.num_bad_scores:
        oddities.append(f"{ours.num_bad_scores} of {ours.num_lists} lists have scores that are no finite numbers")
    if ours.num_compared >= MANY_REQUESTS // 10:
        evidence |= {"distinct_items": ours.num_distinct_items, "stable_distinct_items": theirs.num_distinct_items}
        if ours.num_distinct_items < MIN_COVERAGE_RATIO * theirs.num_distinct_items:
            oddities.append(
                f"in {ours.num_compared} lists it shows {ours.num_distinct_items} different items, "
                f"the champion {theirs.num_distinct_items}"
            )
    return oddities
