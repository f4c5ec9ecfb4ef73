"""Live quality: what was recommended held against what was then taken, for the model and for the baselines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from contracts.metrics import (
    BASELINES,
    METRICS,
    NDCG,
    PERSONAL_FREQUENCY,
    POPULARITY,
    Floats,
    paired_difference,
    score_lists,
)

MODEL = "model"
LISTS: Mapping[str, str] = {MODEL: "items", POPULARITY: "popular_items", PERSONAL_FREQUENCY: "frequent_items"}
"""Which column of `contracts.tables.ATTRIBUTIONS` holds whose list."""


@dataclass(frozen=True)
class Live:
    """Live metrics of one model version in one interval, over the users who took something.

    A user who asked several times counts once, with the mean of the lists shown.
    """

    num_requests: int
    """All requests, also of users who took nothing; latency is over these."""
    num_users: int
    means: Mapping[str, Mapping[str, float]]
    """`means[model or baseline][metric]`; empty when no user took anything."""
    ndcg_half_width: float
    """Half width of the confidence interval of the model's ndcg_at_10; infinite below two users."""
    ndcg_behind: Mapping[str, float]
    """Lower bound of how far the model's ndcg_at_10 lies behind each baseline's; above 0: behind for certain."""
    latency_p50_ms: float
    latency_p99_ms: float


def user_metrics(attributions: pd.DataFrame) -> dict[str, dict[str, Floats]]:
    """Metrics of each user who took something: `[model or baseline][metric]` -> `[num_users]`, users in one order."""
    took = attributions[attributions["taken_items"].map(len) > 0]
    scores: dict[str, dict[str, Floats]] = {}
    for who, column in LISTS.items():
        frame = pd.DataFrame(score_lists(list(took[column]), list(took["taken_items"])))
        by_user = frame.groupby(took["user_id"].to_numpy()).mean()
        scores[who] = {metric: by_user[metric].to_numpy(dtype=np.float64) for metric in METRICS}
    return scores


def measure(attributions: pd.DataFrame, confidence: float) -> Live | None:
    """Live metrics of rows of `contracts.tables.ATTRIBUTIONS`; None when there are no rows.

    Args:
        attributions: rows of one interval and one model version.
        confidence: one-sided confidence of the half width and of the bounds.
    """
    if attributions.empty:
        return None
    scores = user_metrics(attributions)
    model = scores[MODEL][NDCG]
    num_users = len(model)
    bound = paired_difference(model, np.zeros(num_users), confidence)
    p50, p99 = np.percentile(attributions["latency_ms"], [50, 99])
    return Live(
        num_requests=len(attributions),
        num_users=num_users,
        means={
            who: {metric: float(each.mean()) for metric, each in by_metric.items()} for who, by_metric in scores.items()
        }
        if num_users
        else {},
        ndcg_half_width=float(bound.mean - bound.lower),
        ndcg_behind={who: float(paired_difference(scores[who][NDCG], model, confidence).lower) for who in BASELINES},
        latency_p50_ms=float(p50),
        latency_p99_ms=float(p99),
    )


def by_version(attributions: pd.DataFrame, confidence: float) -> dict[int, Live]:
    """`measure` of each model version of an interval."""
    live_by_version: dict[int, Live] = {}
    for version in sorted(set(attributions["model_version"])):
        live = measure(attributions[attributions["model_version"] == version], confidence)
        if live is not None:
            live_by_version[int(version)] = live
    return live_by_version
