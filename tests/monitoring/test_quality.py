"""Live metrics, by hand."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from contracts.metrics import HIT_RATE, NDCG, PERSONAL_FREQUENCY, POPULARITY, RECALL
from monitoring.quality import MODEL, by_version, measure, user_metrics

SECOND = 1 / math.log2(3)
"""The gain of a hit at the second place."""


def _rows(*rows: tuple[str, str, str, str, str]) -> pd.DataFrame:
    """Rows as (user, model's list, popular, frequent, taken), an item being one letter."""
    return pd.DataFrame(
        {
            "user_id": user,
            "model_version": 1,
            "latency_ms": float(place),
            "items": list(items),
            "popular_items": list(popular),
            "frequent_items": list(frequent),
            "taken_items": list(taken),
        }
        for place, (user, items, popular, frequent, taken) in enumerate(rows)
    )


def test_metrics_of_two_users_and_one_who_took_nothing() -> None:
    """Means are over the users who took something; latency is over every request."""
    live = measure(_rows(("a", "xy", "yx", "pq", "x"), ("b", "pq", "xq", "qz", "q"), ("c", "xy", "xy", "xy", "")), 0.95)
    assert live is not None
    assert (live.num_requests, live.num_users) == (3, 2)
    assert live.means[MODEL] == pytest.approx({HIT_RATE: 1.0, RECALL: 1.0, NDCG: (1 + SECOND) / 2})
    assert live.means[POPULARITY] == pytest.approx({HIT_RATE: 1.0, RECALL: 1.0, NDCG: SECOND})
    assert live.means[PERSONAL_FREQUENCY] == pytest.approx({HIT_RATE: 0.5, RECALL: 0.5, NDCG: 0.5})
    assert (live.latency_p50_ms, live.latency_p99_ms) == pytest.approx((1.0, 1.98))


def test_a_user_who_asks_twice_counts_once() -> None:
    """Two requests of one user weigh as much as one of another: (1 + 0) / 2 and 1 make 0.75."""
    scores = user_metrics(_rows(("a", "x", "x", "x", "x"), ("a", "y", "x", "x", "x"), ("b", "x", "x", "x", "x")))
    np.testing.assert_allclose(scores[MODEL][NDCG], [0.5, 1.0])
    live = measure(_rows(("a", "x", "x", "x", "x"), ("a", "y", "x", "x", "x"), ("b", "x", "x", "x", "x")), 0.95)
    assert live is not None
    assert live.means[MODEL][NDCG] == pytest.approx(0.75)


def test_half_width_is_students() -> None:
    """Of the values 1 and 0 the standard error is 0.5 and t(0.95, 1) is 6.314, so the half width is 3.157."""
    live = measure(_rows(("a", "x", "x", "x", "x"), ("b", "y", "x", "x", "x")), 0.95)
    assert live is not None
    assert live.ndcg_half_width == pytest.approx(6.3138 * 0.5, abs=1e-3)
    assert live.ndcg_behind[POPULARITY] == pytest.approx(0.5 - 6.3138 * 0.5, abs=1e-3)


def test_nobody_took_anything() -> None:
    """Without a user to judge by there are no means, and the bounds exclude nothing."""
    live = measure(_rows(("a", "x", "x", "x", "")), 0.95)
    assert live is not None
    assert live.means == {}
    assert live.ndcg_half_width == math.inf
    assert measure(_rows().reindex(columns=["taken_items"]), 0.95) is None


def test_each_version_by_itself() -> None:
    """Rows of two versions are never mixed."""
    rows = _rows(("a", "x", "x", "x", "x"), ("b", "y", "x", "x", "x"))
    rows["model_version"] = [3, 4]
    live_by_version = by_version(rows, 0.95)
    assert {version: live.means[MODEL][NDCG] for version, live in live_by_version.items()} == {3: 1.0, 4: 0.0}
