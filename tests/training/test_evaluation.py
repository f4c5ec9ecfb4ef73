"""Metrics by fold and segment, on the tiny shop, worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from contracts.metrics import METRICS, NDCG, RECALL
from training.data import Shop, attainable
from training.evaluation import (
    MODEL,
    POPULAR_ITEMS,
    TAIL_ITEMS,
    Fold,
    Scores,
    by_users,
    report,
    scores,
    scores_by_items,
)

# As of interval 3 ann, with three entries before it, takes cheese (and fuel, which is excluded), cat, who is new, dates.
# Dates are 5 of the 8 sold that may be recommended: more than half, so they alone are the popular ones.
SHOWN = {
    MODEL: np.array([[2, 0], [0, 1]]),  # cheese for ann, nothing for cat
    "popularity": np.array([[3, 0], [3, 0]]),  # dates for both
}


def test_lists_by_their_users_and_their_items(shop: Shop) -> None:
    """ann's target is of the tail and cat's is popular; ann is a light user, cat a new one."""
    lists = attainable(shop, shop.lists[3])
    of_all = scores(shop, lists, SHOWN, first_user=10)
    assert of_all.users.tolist() == [10, 12]
    assert of_all.history_lengths.tolist() == [3, 0]
    assert {who: metrics[RECALL].tolist() for who, metrics in of_all.metrics.items()} == {
        MODEL: [1.0, 0.0],
        "popularity": [0.0, 1.0],
    }
    by_items = scores_by_items(shop, lists, SHOWN, of_all)
    assert {name: each.users.tolist() for name, each in by_items.items()} == {POPULAR_ITEMS: [12], TAIL_ITEMS: [10]}
    assert by_items[TAIL_ITEMS].metrics["popularity"][NDCG].tolist() == [0.0]
    of_kind = by_users(of_all)
    assert {name: each.users.tolist() for name, each in of_kind.items()} == {
        "new_users": [12],
        "light_users": [10],
        "heavy_users": [],
    }


def fold(as_of: int, users: list[int], **ndcg: list[float]) -> Fold:
    metrics = {who: dict.fromkeys(METRICS, np.array(values)) for who, values in ndcg.items()}
    of_all = Scores(np.array(users), np.arange(len(users)), metrics)
    return Fold(as_of, of_all, {TAIL_ITEMS: of_all})


def test_the_champion_counts_where_it_was_scored() -> None:
    """It has learned from interval 4, so only interval 5 compares it; all else is pooled, users counted once."""
    folds = [
        fold(4, [0, 1], model=[0.2, 0.4], popularity=[0.1, 0.1]),
        fold(5, [0, 1], model=[0.4, 0.2], popularity=[0.1, 0.1], champion=[0.5, 0.1]),
    ]
    evaluation = report(folds, 0.95)
    assert evaluation["means"]["model"][NDCG] == pytest.approx(0.3)
    assert "champion" not in evaluation["means"]
    assert evaluation["folds"][1]["means"]["champion"][NDCG] == pytest.approx(0.3)
    assert evaluation["paired"]["champion"][NDCG]["num_lists"] == 2
    assert evaluation["paired"]["champion"][NDCG]["theirs"] == pytest.approx(0.3)
    pair = evaluation["paired"]["popularity"][NDCG]
    assert (pair["num_lists"], pair["num_users"]) == (4, 2)
    # Each user's two lists add up to the same: whom we ask changes nothing.
    assert pair["lower"] == pytest.approx(pair["mean"]) == pytest.approx(0.2)
    assert [one["paired"].keys() for one in evaluation["folds"]] == [{"popularity"}, {"popularity", "champion"}]
    assert evaluation["segments"].keys() == {"new_users", "light_users", TAIL_ITEMS}
    assert evaluation["segments"]["new_users"]["paired"]["popularity"][NDCG] == {
        "mean": pytest.approx(0.2),
        "lower": None,
        "upper": None,
        "num_lists": 2,
        "num_users": 1,
        "theirs": pytest.approx(0.1),
    }


def test_nothing_to_evaluate_on() -> None:
    """Without a fold there is nothing, and no error."""
    assert report([], 0.95) == {"means": {}, "paired": {}, "folds": [], "segments": {}}
