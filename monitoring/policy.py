"""The retrain policy: from what was observed to a decision, with its reasons in words. Pure.

Any one rule asks for retraining; data that failed a gate forbids it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from contracts.metrics import NDCG
from contracts.settings import Settings
from contracts.trainings import BLOCKED
from monitoring.quality import MODEL, Live


@dataclass(frozen=True)
class Champion:
    """The deployed model."""

    version: int
    as_of: int
    """The interval it was trained to predict first."""
    evaluation: Mapping[str, Mapping[str, float]]
    """`evaluation[model or baseline][metric]`, pooled over the folds; empty when unknown."""
    items_version: int | None = None
    """Version of the table `items` that says what it may recommend; None when unknown."""


@dataclass(frozen=True)
class Observation:
    """What is known when the decision is made."""

    interval: int
    """The coming interval: the first one without data."""
    champion: Champion | None
    live: Live | None
    """The champion in the latest interval; None without traffic."""
    drift: float | None
    """How far the latest two intervals both lie from those trained on (`monitoring.drift`); None: not measured."""
    failed_gates: Mapping[str, str]
    """Gates whose newest verdict failed, with the first rule that did not hold."""
    challenger: int | None = None
    """A version that is registered and neither champion nor rejected yet."""
    withdrawn_items: tuple[str, ...] = ()
    """What the champion may recommend and is not to be recommended any more."""


@dataclass(frozen=True)
class State:
    """What has already been done about the data of this observation."""

    requested: str | None = None
    """Key of a training that was asked for and has not finished."""
    finished: str | None = None
    """How a training on this very data ended: `registered` or `blocked`."""
    refreshed: str | None = None
    """How a refresh of the champion with this very data ended: `registered` or `blocked`."""


@dataclass(frozen=True)
class Thresholds:
    """When to retrain; see `contracts.settings` for each."""

    after_intervals: int
    refresh_after_intervals: int
    """0: never."""
    quality_drop: float
    drift: float
    confidence: float

    @classmethod
    def of(cls, settings: Settings) -> Thresholds:
        return cls(
            after_intervals=settings.retrain_after_intervals,
            refresh_after_intervals=settings.refresh_after_intervals,
            quality_drop=settings.retrain_quality_drop,
            drift=settings.retrain_drift,
            confidence=settings.gate_confidence,
        )


@dataclass(frozen=True)
class Decision:
    retrain: bool
    reasons: tuple[str, ...]
    """Why, in words for whoever is on call. Never empty."""
    refresh: bool = False
    """Whether the model gets newer data without training; never together with `retrain`."""


def decide(observation: Observation, state: State, thresholds: Thresholds) -> Decision:
    """Whether to train a new model now, or to give the one that serves newer data.

    In order: data that failed a gate is used for neither; a training on this data that runs or ran is not asked for
    again; otherwise every rule that asks for retraining gives a reason. Where none does, or the gate has blocked what was
    trained, the model that serves is refreshed.
    """
    causes = tuple(_wants(observation, thresholds))
    if observation.failed_gates:
        failed = (
            f"no training on data that failed a check: gate {name}: {why}"
            for name, why in observation.failed_gates.items()
        )
        return Decision(False, (*failed, *(f"(would ask for retraining: {reason})" for reason in causes)))
    if not causes:
        return _with_refresh((_all_well(observation, thresholds),), observation, state, thresholds)
    if state.finished is not None:
        reasons = (f"a training on this data has finished ({state.finished}); it takes new data to try again", *causes)
        if state.finished == BLOCKED:
            return _with_refresh(reasons, observation, state, thresholds)
        return Decision(False, reasons)
    if state.requested is not None:
        return Decision(False, (f"training {state.requested} is already asked for and has not finished", *causes))
    return Decision(True, causes)


def _with_refresh(reasons: tuple[str, ...], observation: Observation, state: State, thresholds: Thresholds) -> Decision:
    """No training; newer data for the champion, if it lacks any."""
    champion, limit = observation.champion, thresholds.refresh_after_intervals
    withdrawn = observation.withdrawn_items
    if champion is None or not limit or (observation.interval - champion.as_of < limit and not withdrawn):
        return Decision(False, reasons)
    if observation.challenger is not None:
        # Its refresh would come after it, and put older weights in the place of newer ones.
        return Decision(False, (*reasons, f"version {observation.challenger} is on its way: no refresh meanwhile"))
    if state.refreshed is not None:
        return Decision(False, (*reasons, f"its refresh with this data has finished ({state.refreshed})"))
    if withdrawn:
        some = ", ".join([*withdrawn[:3], *(["..."] if len(withdrawn) > 3 else [])])
        lacks = f"version {champion.version} may recommend what is withdrawn ({len(withdrawn)}: {some})"
    else:
        lacks = f"version {champion.version} lacks what was taken since interval {champion.as_of - 1}"
    return Decision(False, (*reasons, f"{lacks}: the same weights with newer data"), refresh=True)


def _wants(observation: Observation, thresholds: Thresholds) -> Iterator[str]:
    champion, live, drift = observation.champion, observation.live, observation.drift
    if champion is None:
        yield "no model is deployed, or it was deleted in MLflow"
        return
    age = observation.interval - champion.as_of
    if age >= thresholds.after_intervals:
        yield (
            f"the model is {age} intervals old (limit {thresholds.after_intervals}): "
            f"made for interval {champion.as_of}, the coming one is {observation.interval}"
        )
    if live is not None and live.means:
        yield from _quality(champion, live, thresholds)
    if drift is not None and drift > thresholds.drift:
        yield (
            f"what people take has drifted for two intervals: Jensen-Shannon distance {drift:.3f} from the categories "
            f"trained on, beyond what is usual (limit {thresholds.drift:g})"
        )


def _quality(champion: Champion, live: Live, thresholds: Thresholds) -> Iterator[str]:
    ours = live.means[MODEL][NDCG]
    promised = champion.evaluation.get(MODEL, {}).get(NDCG)
    if promised:
        loss = promised - ours
        if loss / promised > thresholds.quality_drop and loss > live.ndcg_half_width:
            yield (
                f"live {NDCG} {ours:.3f} is {loss / promised:.0%} below the {promised:.3f} of the evaluation "
                f"(limit {thresholds.quality_drop:.0%}; noise of {live.num_users} users +-{live.ndcg_half_width:.3f})"
            )
    for baseline, behind in live.ndcg_behind.items():
        if behind > 0:
            yield (
                f"the model is worse live than the {baseline} baseline: {NDCG} {ours:.3f} "
                f"against {live.means[baseline][NDCG]:.3f}, at least {behind:.3f} behind "
                f"at {thresholds.confidence:.0%} confidence"
            )


def _all_well(observation: Observation, thresholds: Thresholds) -> str:
    champion, live, drift = observation.champion, observation.live, observation.drift
    limit = thresholds.after_intervals
    assert champion is not None  # without one, a rule asks for retraining
    parts = [f"model {champion.version} is {observation.interval - champion.as_of} of {limit} intervals old"]
    parts.append(
        f"live {NDCG} {live.means[MODEL][NDCG]:.3f} of {live.num_users} users"
        if live and live.means
        else "no live traffic to judge"
    )
    parts.append(
        "drift not measured (it takes two categories, and three intervals to compare with)"
        if drift is None
        else f"drift {drift:.3f} of {thresholds.drift:g}"
    )
    return "nothing asks for retraining: " + ", ".join(parts)
