"""What shoppers did with the lists that each arm has shown in one step: `exposures` beside `attributions`."""

from __future__ import annotations

import numpy as np
import pandas as pd

from contracts.lake import open_table
from contracts.metrics import HIT_RATE, score_lists
from contracts.tables import ATTRIBUTIONS, EXPOSURES
from serving.rollout.analysis import Outcomes

ARMS = ("canary", "stable")


def of_step(step: int) -> dict[str, Outcomes]:
    """Outcomes by arm, as far as they have landed and were attributed; none where there is no such table."""
    exposed, attributed = open_table(EXPOSURES), open_table(ATTRIBUTIONS)
    if exposed is None or attributed is None:
        return {}
    if "step" not in {each.name for each in exposed.schema().fields}:
        return {}
    columns = ["interval", "request_id", "arm", "items", "scores"]
    shown = exposed.to_pandas(columns=columns, filters=[("step", "=", step), ("arm", "in", ARMS)])
    if shown.empty:
        return {}
    attributions = attributed.to_pandas(
        columns=["request_id", "user_id", "taken_items"],
        filters=[("interval", "in", sorted(map(int, shown["interval"].unique())))],
    )
    return summarise(shown, attributions)


def summarise(shown: pd.DataFrame, attributions: pd.DataFrame) -> dict[str, Outcomes]:
    """Outcomes by arm.

    Args:
        shown: `request_id`, `arm`, `items` and `scores` of exposures of one step.
        taken: `request_id`, `user_id` and `taken_items` of attributions.
    """
    by_arm = {arm: shown[shown["arm"] == arm] for arm in ARMS}
    num_compared = min(len(rows) for rows in by_arm.values())
    outcomes_by_arm = {}
    for arm, rows in by_arm.items():
        judged = rows.merge(attributions[attributions["taken_items"].map(len) > 0], on="request_id")
        hits = pd.Series(score_lists(list(judged["items"]), list(judged["taken_items"]))[HIT_RATE])
        by_user = hits.groupby(judged["user_id"].to_numpy()).mean()
        first = rows["items"].iloc[:num_compared]
        outcomes_by_arm[arm] = Outcomes(
            num_users=len(by_user),
            hit_rate=float(by_user.mean()) if len(by_user) else 0.0,
            variance=float(by_user.var(ddof=0)) if len(by_user) else 0.0,
            num_lists=len(rows),
            num_distinct_items=len(set().union(*map(set, first))),
            num_compared=num_compared,
            num_bad_scores=sum(not np.isfinite(np.asarray(scores, dtype=float)).all() for scores in rows["scores"]),
        )
    return outcomes_by_arm
