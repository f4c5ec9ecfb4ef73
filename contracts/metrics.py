"""The metrics of a list of recommendations: one definition for evaluation, monitoring and reports.

A user's list of k items is held against the distinct items the user took in the interval ("targets"), as far as
they could have been recommended: known well enough before it, and not excluded by the dataset file.
recall_at_k = hits / |targets|; ndcg_at_k has gains 1 and the ideal list of min(k, |targets|) hits;
hit_rate_at_k = 1 when at least one item hits. Means are over users that have at least one target.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

K = 10
HIT_RATE = f"hit_rate_at_{K}"
RECALL = f"recall_at_{K}"
NDCG = f"ndcg_at_{K}"
METRICS = (HIT_RATE, RECALL, NDCG)

POPULARITY = "popularity"
"""G-TopFreq: the same most-bought items for everyone."""
PERSONAL_FREQUENCY = "personal_frequency"
"""P-TopFreq: a user's own most frequent items."""
BASELINES = (POPULARITY, PERSONAL_FREQUENCY)

Floats = npt.NDArray[np.float64]


def list_metrics(hits: npt.ArrayLike, num_targets: npt.ArrayLike) -> dict[str, Floats]:
    """Metrics of each user.

    Args:
        hits: `[num_users, k]`, whether the item at each place is one of the user's targets.
        num_targets: `[num_users]`, at least 1 each.

    Returns:
        For each name in `METRICS`, `[num_users]`.
    """
    hit = np.asarray(hits, dtype=np.float64)
    targets = np.asarray(num_targets, dtype=np.int64)
    discount = 1.0 / np.log2(np.arange(2, hit.shape[1] + 2))
    ideal = np.concatenate([[0.0], np.cumsum(discount)])[np.minimum(targets, hit.shape[1])]
    return {
        HIT_RATE: (hit.sum(axis=1) > 0).astype(np.float64),
        RECALL: hit.sum(axis=1) / targets,
        NDCG: hit @ discount / ideal,
    }


def score_lists(
    recommended: Sequence[Sequence[str]], taken: Sequence[Collection[str]], k: int = K
) -> dict[str, Floats]:
    """`list_metrics` for lists of item ids: `recommended[u]` against `taken[u]`, `[num_users]` each."""
    hits = np.zeros((len(recommended), k))
    for user, (items, targets) in enumerate(zip(recommended, taken, strict=True)):
        known = set(targets)
        for place, item in enumerate(items[:k]):
            hits[user, place] = item in known
    return list_metrics(hits, [len(set(targets)) for targets in taken])


class Paired(NamedTuple):
    """A paired difference of means with its one-sided lower bound."""

    mean: float
    lower: float
    num_users: int


def paired_difference(ours: Floats, theirs: Floats, confidence: float) -> Paired:
    """Mean of `ours - theirs` (`[num_users]` each) and the lower bound that holds with `confidence` (Student's t)."""
    from scipy import stats

    difference = np.asarray(ours) - np.asarray(theirs)
    n = len(difference)
    if n < 2:
        return Paired(float(difference.mean()) if n else 0.0, -np.inf, n)
    error = float(difference.std(ddof=1)) / np.sqrt(n)
    return Paired(float(difference.mean()), float(difference.mean() - stats.t.ppf(confidence, n - 1) * error), n)
