"""Exposures against what was taken."""

from __future__ import annotations

from typing import Any

import pytest

from contracts.tables import ATTRIBUTIONS
from spark_jobs import pending, storage


def test_only_what_was_taken_after_it_was_shown_counts(copied_shop: Any) -> None:
    """ann took bread at 12:00: a list shown before or then has that outcome, one shown after it has none."""
    times = {
        "before": "2024-01-03T11:59:59+00:00",
        "then": "2024-01-03T13:00:00+01:00",
        "after": "2024-01-03T12:00:01Z",
    }
    shown = {"interval": 3, "user_id": "ann", "items": ["bread"]}
    copied_shop.expose(*(shown | {"request_id": name, "served_at": time} for name, time in times.items()))
    assert copied_shop.attribute(3) == 0
    outcomes = dict(copied_shop.values(ATTRIBUTIONS, "request_id", "taken_items"))
    assert outcomes == {"before": ["bread"], "then": ["bread"], "after": []}


@pytest.mark.slow
def test_attributions(copied_shop: Any) -> None:
    """Requests count once, a torn line is left out, both baselines know earlier days only, a new user took nothing."""
    ann = {"request_id": "r1", "interval": 3, "user_id": "ann", "items": ["bread", "apple"]}
    carol = {"request_id": "r2", "interval": 3, "user_id": "carol", "items": ["apple"]}
    bob = {"request_id": "r3", "interval": 3, "user_id": "bob", "items": ["apple"]}
    copied_shop.expose(
        ann,
        carol,
        ann,
        bob,
        {"request_id": "r4", "interval": 9, "user_id": "ann", "items": []},
        torn='{"request_id": "r5", "inter',
    )
    assert pending.attribute() == [3]
    assert copied_shop.attribute(3) == 0
    columns = ("request_id", "user_id", "model_version", "items", "popular_items", "frequent_items", "taken_items")
    expected = [
        ("r1", "ann", 7, ["bread", "apple"], ["apple"], ["apple"], ["bread"]),
        ("r2", "carol", 7, ["apple"], ["apple"], ["apple"], []),
        ("r3", "bob", 7, ["apple"], ["apple"], ["apple", "bread"], []),
    ]
    assert copied_shop.values(ATTRIBUTIONS, *columns) == expected
    assert pending.attribute() == []
    assert copied_shop.attribute(3) == 0
    assert copied_shop.values(ATTRIBUTIONS, *columns) == expected

    copied_shop.expose(
        ann,
        ann | {"request_id": "r6"},
        bob | {"request_id": "r7", "fallback": "popular"},  # no model answered
        bob | {"request_id": "r8", "user_id": None},  # a history that was sent along
    )
    assert pending.attribute() == [3]
    assert copied_shop.attribute(8) == 0
    assert storage.rows(ATTRIBUTIONS) == {3: 3}
    assert copied_shop.attribute(None) == 0
    assert storage.rows(ATTRIBUTIONS) == {3: 4}
