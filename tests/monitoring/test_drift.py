"""Drift of category shares: by hand, and against chance."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from contracts.settings import Settings
from monitoring.drift import category_drift, lasting_drift


def _shares(**by_interval: dict[str, float]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"interval": int(name[1:]), "category": category, "share": share}
            for name, shares in by_interval.items()
            for category, share in shares.items()
        ],
        columns=["interval", "category", "share"],
    )


X, Y, BOTH = {"x": 1.0}, {"y": 1.0}, {"x": 0.5, "y": 0.5}
HALF = math.sqrt((math.log2(4 / 3) + 0.5 * math.log2(2 / 3) + 0.5 * math.log2(2)) / 2)
"""From (1, 0) to (1/2, 1/2) the mixture is (3/4, 1/4): D = (log2 4/3 + (log2 2/3 + log2 2) / 2) / 2."""


def test_the_same_shares_have_not_drifted() -> None:
    """Equal shares are at distance 0."""
    assert category_drift(_shares(i1=BOTH, i2=BOTH, i3=BOTH, i4=BOTH), 4, [1, 2, 3]) == 0.0


def test_nothing_in_common_is_one() -> None:
    """A category that was never there before takes the distance to 1."""
    assert category_drift(_shares(i1=X, i2=X, i3=X, i4=Y), 4, [1, 2, 3]) == pytest.approx(1.0)


def test_half_in_common() -> None:
    """Where the reference never moves, all of the distance counts."""
    assert category_drift(_shares(i1=X, i2=X, i3=X, i4=BOTH), 4, [1, 2, 3]) == pytest.approx(HALF)


def test_what_is_usual_is_no_drift() -> None:
    """In a shop that sells x and y by turns, y alone is nothing new."""
    assert category_drift(_shares(i1=X, i2=Y, i3=X, i4=Y, i5=Y), 5, [1, 2, 3, 4]) == 0.0


def test_beyond_what_is_usual_counts() -> None:
    """Three intervals of x and one of both: usual are the squared distances u, u, u of x to (5/6, 1/6) and HALF^2 of both to x."""
    shares = _shares(i1=X, i2=X, i3=X, i4=BOTH, i5=Y)
    u = (math.log2(12 / 11) + 5 / 6 * math.log2(10 / 11) + 1 / 6 * math.log2(2)) / 2
    # y to (7/8, 1/8): the mixture is (7/16, 9/16).
    squared = (math.log2(16 / 9) + 7 / 8 * math.log2(2) + 1 / 8 * math.log2(2 / 9)) / 2
    expected = math.sqrt(squared - (3 * u + HALF**2) / 4)
    assert category_drift(shares, 5, [1, 2, 3, 4]) == pytest.approx(expected, abs=1e-9)


def test_what_cannot_be_measured_is_unknown() -> None:
    """No rows for the interval, too few in the reference, one category only, or nothing at all: unknown, not 0."""
    shares = _shares(i1=X, i2=X, i3=BOTH, i4=X)
    assert category_drift(shares, 5, [1, 2, 3]) is None
    assert category_drift(shares, 4, [1, 2]) is None
    assert category_drift(shares, 3, [1, 2, 3]) is None  # not held against itself
    assert category_drift(_shares(i1=X, i2=X, i3=X, i4=X), 4, [1, 2, 3]) is None
    assert category_drift(_shares(), 1, [0]) is None


def test_drift_must_last() -> None:
    """One strange interval is none; the lesser of two is what lasts."""
    shares = _shares(i1=X, i2=X, i3=X, i4=X, i5=Y, i6=BOTH)
    assert lasting_drift(shares, 4, [1, 2, 3, 4]) == 0.0
    assert lasting_drift(shares, 5, [1, 2, 3, 4]) == 0.0
    assert lasting_drift(shares, 6, [1, 2, 3, 4]) == pytest.approx(HALF)
    assert lasting_drift(shares, 7, [1, 2, 3, 4]) is None


@pytest.mark.parametrize("num_events", [100, 1000, 100_000])
@pytest.mark.parametrize("num_categories", [10, 30, 300])
def test_chance_is_no_drift_and_a_change_is(num_categories: int, num_events: int) -> None:
    """Drawn from the same shares, at most one interval in fifty alarms; with half of what is taken moved, most do."""
    limit, draws = Settings(_env_file=None).retrain_drift, np.random.default_rng(0)
    usual = 1 / np.arange(1, num_categories + 1)
    usual /= usual.sum()
    moved = 0.5 * usual + 0.5 * usual[::-1]
    false_alarms, alarms = 0, 0
    for _ in range(50):
        counts = draws.multinomial(num_events, usual, size=16)
        counts[14:] = draws.multinomial(num_events, moved, size=2)
        rows = pd.DataFrame(counts / num_events).stack().rename_axis(["interval", "category"]).reset_index(name="share")
        rows = rows[rows["share"] > 0]
        false_alarms += (lasting_drift(rows, 13, range(12)) or 0.0) > limit
        alarms += (lasting_drift(rows, 15, range(12)) or 0.0) > limit
    assert false_alarms <= 1
    assert alarms >= 40
