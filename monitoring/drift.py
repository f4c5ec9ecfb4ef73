"""Drift: has what people take moved away from what the model was trained on?"""

from __future__ import annotations

import math
from collections.abc import Collection

import pandas as pd


def category_drift(shares: pd.DataFrame, interval: int, reference: Collection[int]) -> float | None:
    """Jensen-Shannon distance between an interval's category shares and the mean of the reference intervals.

    Args:
        shares: rows of `contracts.tables.CATEGORY_SHARES`; a category without a row has share 0.
        interval: the interval that is judged.
        reference: the intervals it is held against; those without rows are left out.

    Returns:
        Between 0 (the same shares) and 1 (no category in common), base 2; None when either side has no rows.
    """
    from scipy.spatial.distance import jensenshannon

    if shares.empty:
        return None
    wide = shares.pivot_table(index="interval", columns="category", values="share", fill_value=0.0)
    known = [number for number in reference if number in wide.index]
    if interval not in wide.index or not known:
        return None
    distance = float(jensenshannon(wide.loc[interval], wide.loc[known].mean(), base=2))
    return 0.0 if math.isnan(distance) else distance  # rounding can take the root of a tiny negative number
