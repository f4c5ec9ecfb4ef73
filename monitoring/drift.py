"""Drift: has what people take moved away from what the model was trained on, for longer and further than by chance?"""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np
import pandas as pd

CONFIDENCE = 0.99
FEWEST_INTERVALS = 3
"""Of the reference: with fewer nobody knows what is usual."""


def category_drift(shares: pd.DataFrame, interval: int, reference: Collection[int]) -> float | None:
    """How far an interval's category shares lie from those of the reference, beyond what is usual there.

    The distance d is Jensen-Shannon's to the mean of the reference intervals. What is usual, by chance at this number
    of events and by the shop's own ups and downs, is the distance of each reference interval to the mean of the
    others: m squared on average. Where d squared lies within the prediction interval of those (Student's t; Geisser,
    Predictive Inference, 1993), nothing has drifted; else what is beyond the usual counts: the root of d^2 - m^2.

    Args:
        shares: rows of `contracts.tables.CATEGORY_SHARES`; a category without a row has share 0.
        interval: the interval that is judged.
        reference: the intervals it is held against; those without rows, and the interval itself, are left out.

    Returns:
        Between 0 and 1 (base 2); None when the interval has no rows, the reference fewer than `FEWEST_INTERVALS`, or
        the shop a single category, with which nothing can be measured.
    """
    from scipy import stats

    if shares.empty or shares["category"].nunique() < 2:
        return None
    wide = shares.pivot_table(index="interval", columns="category", values="share", fill_value=0.0)
    held_against = [number for number in reference if number in wide.index and number != interval]
    if interval not in wide.index or len(held_against) < FEWEST_INTERVALS:
        return None
    before = wide.loc[held_against].to_numpy()
    num_intervals = len(before)
    usual = [_squared_distance(row, np.delete(before, place, 0).mean(0)) for place, row in enumerate(before)]
    squared = _squared_distance(wide.loc[interval].to_numpy(), before.mean(0))
    mean, deviation = float(np.mean(usual)), float(np.std(usual, ddof=1))
    quantile = float(stats.t.ppf(CONFIDENCE, num_intervals - 1))
    if squared <= mean + quantile * deviation * math.sqrt(1 + 1 / num_intervals):
        return 0.0
    return math.sqrt(squared - mean)


def lasting_drift(shares: pd.DataFrame, interval: int, reference: Collection[int]) -> float | None:
    """The drift that the interval and the one before it have in common; None when either's is unknown."""
    both = [category_drift(shares, each, reference) for each in (interval - 1, interval)]
    measured = [each for each in both if each is not None]
    return min(measured) if len(measured) == len(both) else None


def _squared_distance(one: np.ndarray, other: np.ndarray) -> float:
    from scipy.spatial.distance import jensenshannon

    distance = float(jensenshannon(one, other, base=2))
    return 0.0 if math.isnan(distance) else distance**2  # rounding can take the root of a tiny negative number
