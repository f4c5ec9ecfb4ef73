"""Jensen-Shannon distance of category shares, by hand."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from monitoring.drift import category_drift


def _shares(**by_interval: dict[str, float]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"interval": int(name[1:]), "category": category, "share": share}
            for name, shares in by_interval.items()
            for category, share in shares.items()
        ],
        columns=["interval", "category", "share"],
    )


def test_the_same_shares_have_not_drifted() -> None:
    """Equal shares are at distance 0, also where the reference only equals them on average."""
    shares = _shares(i1={"x": 1.0}, i2={"y": 1.0}, i3={"x": 0.5, "y": 0.5})
    assert category_drift(shares, 3, [1, 2]) == pytest.approx(0.0, abs=1e-7)


def test_nothing_in_common_is_one() -> None:
    """A category that was never there before takes the distance to 1."""
    assert category_drift(_shares(i1={"x": 1.0}, i2={"y": 1.0}), 2, [1]) == pytest.approx(1.0)


def test_half_in_common() -> None:
    """From (1, 0) to (1/2, 1/2) the mixture is (3/4, 1/4): D = (log2 4/3 + (log2 2/3 + log2 2) / 2) / 2."""
    divergence = (math.log2(4 / 3) + 0.5 * math.log2(2 / 3) + 0.5 * math.log2(2)) / 2
    shares = _shares(i1={"x": 1.0}, i2={"x": 0.5, "y": 0.5})
    assert category_drift(shares, 2, [1]) == pytest.approx(math.sqrt(divergence))


def test_without_either_side_it_is_unknown() -> None:
    """No rows for the interval, for the reference, or at all: unknown, not 0."""
    shares = _shares(i1={"x": 1.0})
    assert category_drift(shares, 2, [1]) is None
    assert category_drift(shares, 1, [0]) is None
    assert category_drift(_shares(), 1, [0]) is None
