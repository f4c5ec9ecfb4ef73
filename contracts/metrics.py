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
"""Those that live traffic is held against, too."""
DECAYED_FREQUENCY = "decayed_frequency"
"""A user's own items, each purchase worth less the longer it is ago."""
OFFLINE_BASELINES = (*BASELINES, DECAYED_FREQUENCY)
"""Those that a training is held against."""

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
        target_set = set(targets)
        for place, item in enumerate(items[:k]):
            hits[user, place] = item in target_set
    return list_metrics(hits, [len(set(targets)) for targets in taken])


class Paired(NamedTuple):
    """A paired difference of means, with the bounds that each hold with the confidence asked for."""

    mean: float
    lower: float
    upper: float
    num_lists: int
    num_users: int


def paired_difference(ours: Floats, theirs: Floats, confidence: float, users: npt.ArrayLike | None = None) -> Paired:
    """Mean of `ours - theirs` over lists (`[num_lists]` each), with one-sided bounds by Student's t.

    Args:
        users: `[num_lists]`, whose list it is: those of one user are not independent of each other, so it is users that
            are counted as such. None: each is another's.

    Source: cluster-robust error of a mean, Cameron and Miller, A Practitioner's Guide to Cluster-Robust Inference, 2015,
    section II.B. With one list a user it is the paired t test.
    """
    from scipy import stats

    difference = np.asarray(ours) - np.asarray(theirs)
    num_lists = len(difference)
    if num_lists == 0:
        return Paired(0.0, -np.inf, np.inf, 0, 0)
    mean = float(difference.mean())
    of_user: Floats = difference - mean
    if users is not None:
        _, place = np.unique(np.asarray(users), return_inverse=True)
        of_user = np.bincount(place, weights=of_user).astype(np.float64)
    num_users = len(of_user)
    if num_users < 2:
        return Paired(mean, -np.inf, np.inf, num_lists, num_users)
    error = np.sqrt((of_user**2).sum() * num_users / (num_users - 1)) / num_lists
    half_width = float(stats.t.ppf(confidence, num_users - 1) * error)
    return Paired(mean, mean - half_width, mean + half_width, num_lists, num_users)
