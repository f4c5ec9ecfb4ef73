"""The metrics, against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from contracts.metrics import HIT_RATE, METRICS, NDCG, RECALL, list_metrics, paired_difference, score_lists

# Lists of three for three users; a place counts 1/log2(place + 1): 1, 1/log2(3) = 0.63093, 1/log2(4) = 0.5.
#
# ann is shown bread, milk, eggs and takes milk, eggs, tea, rice: places 2 and 3 hit.
#   hit rate 1; recall 2/4 = 0.5
#   dcg = 0.63093 + 0.5 = 1.13093; ideal: four targets, three places: 1 + 0.63093 + 0.5 = 2.13093; ndcg = 0.53072
# bob is shown bread, milk, eggs and takes bread only: place 1 hits.
#   hit rate 1; recall 1/1 = 1; dcg = 1; ideal = 1; ndcg = 1
# cat is shown bread, milk, eggs and takes fish, salt: nothing hits.
#   hit rate 0; recall 0; ndcg 0
SHOWN = [["bread", "milk", "eggs"]] * 3
TAKEN = [{"milk", "eggs", "tea", "rice"}, {"bread"}, {"fish", "salt"}]
BY_HAND = {HIT_RATE: [1, 1, 0], RECALL: [0.5, 1.0, 0.0], NDCG: [0.530721, 1.0, 0.0]}


def test_three_users_by_hand() -> None:
    """Hit rate, recall and NDCG of the three users above."""
    scores = score_lists(SHOWN, TAKEN, k=3)
    assert set(scores) == set(METRICS)
    for metric, expected in BY_HAND.items():
        assert scores[metric] == pytest.approx(expected, abs=1e-6), metric


def test_lists_are_cut_at_k_and_repeated_targets_count_once() -> None:
    """With k = 1 only the first place counts; taking bread twice is taking it once."""
    scores = score_lists([["milk", "bread"], ["bread", "milk"]], [["bread", "bread"], ["bread", "bread"]], k=1)
    assert scores[RECALL].tolist() == [0.0, 1.0]
    assert scores[NDCG].tolist() == [0.0, 1.0]


def test_a_list_shorter_than_k_is_measured_against_the_full_ideal() -> None:
    """One right item where three were possible: 1 / (1 + 0.63093 + 0.5)."""
    scores = score_lists([["bread"]], [["bread", "milk", "eggs"]], k=3)
    assert scores[NDCG][0] == pytest.approx(1 / (1 + 1 / math.log2(3) + 0.5))
    assert scores[RECALL][0] == pytest.approx(1 / 3)


def test_as_many_answers_as_questions() -> None:
    """A list without its targets is a mistake of the caller, not a zero."""
    with pytest.raises(ValueError, match="zip"):
        score_lists(SHOWN, TAKEN[:2])


@given(st.integers(1, 30), st.integers(1, 10))
def test_a_perfect_list_has_ndcg_one(num_targets: int, k: int) -> None:
    """Every place that can hit does: NDCG is 1 however many targets there are."""
    hits = [[place < num_targets for place in range(k)]]
    scores = list_metrics(hits, [num_targets])
    assert scores[NDCG][0] == pytest.approx(1.0)
    assert scores[RECALL][0] == pytest.approx(min(k, num_targets) / num_targets)


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_the_bound_is_that_of_a_one_sided_paired_t_test(confidence: float) -> None:
    """SciPy's own test of the differences has the same mean and the same lower end of its interval."""
    generator = np.random.default_rng(7)
    ours, theirs = generator.random(200), generator.random(200)
    expected = stats.ttest_1samp(ours - theirs, 0.0, alternative="greater")
    pair = paired_difference(ours, theirs, confidence)
    assert pair.num_users == 200
    assert pair.mean == pytest.approx((ours - theirs).mean())
    assert pair.lower == pytest.approx(expected.confidence_interval(confidence).low)


def test_lists_of_one_user_are_not_independent() -> None:
    """ann's two lists differ by 0.2, bob's by -0.1, cat's by 0: the mean is 0.075, their sums of what differs from it are
    0.25, -0.175, -0.075, so the error is sqrt(0.09875 * 3 / 2) / 4 = 0.09622, and t(0.95, 2) is 2.92.
    """
    pair = paired_difference(np.array([0.2, 0.2, -0.1, 0.0]), np.zeros(4), 0.95, ["ann", "ann", "bob", "cat"])
    assert (pair.num_lists, pair.num_users) == (4, 3)
    assert pair.mean == pytest.approx(0.075)
    assert pair.lower == pytest.approx(0.075 - 2.91999 * 0.0962175, abs=1e-5)
    assert pair.upper == pytest.approx(0.075 + 2.91999 * 0.0962175, abs=1e-5)


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=20), st.integers(1, 4))
def test_the_same_list_again_proves_nothing(differences: list[float], times: int) -> None:
    """However often each user's list is repeated, the bounds are those of one list each."""
    once, zeros = np.array(differences), np.zeros(len(differences))
    again = paired_difference(np.tile(once, times), np.tile(zeros, times), 0.95, np.tile(np.arange(len(once)), times))
    assert again[:3] == pytest.approx(paired_difference(once, zeros, 0.95)[:3], abs=1e-9)


def test_the_bound_agrees_with_the_p_value() -> None:
    """The lower bound is above zero exactly when the test's p is below 1 - confidence."""
    differences = np.array([0.3, -0.1, 0.2, 0.25, 0.1, -0.05, 0.15, 0.2])
    p = float(stats.ttest_1samp(differences, 0.0, alternative="greater").pvalue)
    zeros = np.zeros_like(differences)
    assert paired_difference(differences, zeros, 1 - p - 1e-4).lower > 0
    assert paired_difference(differences, zeros, 1 - p + 1e-4).lower < 0


@pytest.mark.parametrize("values", [[], [0.5]])
def test_too_few_users_prove_nothing(values: list[float]) -> None:
    """Without two users there is no spread: the bound is minus infinity and no gate opens."""
    pair = paired_difference(np.array(values), np.zeros(len(values)), 0.95)
    assert pair.lower == -math.inf
    assert pair.num_users == len(values)
