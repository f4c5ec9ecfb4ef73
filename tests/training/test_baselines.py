"""The stronger baselines, by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import sparse

from training import baselines
from training.data import Histories, Shop


def test_decayed_frequency(shop: Shop) -> None:
    """ann: apple twice, bread once before interval 3, then the best sellers; cat knows nothing and gets those alone."""
    assert baselines.decayed_frequency(shop, shop.lists[3], 3).tolist() == [[0, 1, 3], [3, 0, 1]]


def test_decay_makes_the_latest_win(shop: Shop) -> None:
    """Bread two intervals of 7 days ago, twice; cheese just now, once: exp(-14/7) * 2 = .27 < 1."""
    late = Histories(
        np.array([0, 3, 3, 3]), np.array([1, 1, 2]), np.array([0.0, 0.0, 2.0 - 1e-9]), np.ones(3, np.float32)
    )
    other = dataclasses.replace(shop, histories=late)
    assert baselines.decayed_frequency(other, shop.lists[3], 2, 7.0)[0].tolist() == [2, 1]
    assert baselines.decayed_frequency(other, shop.lists[3], 2, 700.0)[0].tolist() == [1, 2]


def test_basket_vectors(shop: Shop) -> None:
    """ann has two baskets, {apple, bread} and {apple}: a group each, the older worth half; bob one of fuel, cat none."""
    vectors = baselines.basket_vectors(shop, 3, basket_decay=0.9, group_decay=0.5, num_groups=3)
    assert vectors.toarray().tolist() == [[0.75, 0.25, 0, 0, 0], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]]


def test_baskets_in_groups(shop: Shop) -> None:
    """Five baskets of one item in two groups: three older, worth .81/3, .9/3, 1/3, and two, worth .9/2, 1/2; then halved."""
    five = Histories(np.array([0, 5, 5, 5]), np.arange(5), np.array([0.1, 0.2, 0.3, 0.4, 0.5]), np.ones(5, np.float32))
    other = dataclasses.replace(shop, histories=five)
    vectors = baselines.basket_vectors(other, 3, basket_decay=0.9, group_decay=0.5, num_groups=2)
    expected = [0.81 / 3 * 0.5 / 2, 0.9 / 3 * 0.5 / 2, 1 / 3 * 0.5 / 2, 0.9 / 2 / 2, 1 / 2 / 2]
    assert vectors.toarray()[0] == pytest.approx(expected)


def test_tifu_knn(shop: Shop) -> None:
    """ann's only neighbour took fuel, which is not recommended; cat is nearest to ann, who has the shorter vector."""
    lists = baselines.tifu_knn(shop, shop.lists[3], 3, num_neighbours=1, group_decay=0.5)
    assert lists.tolist() == [[0, 1, 3], [0, 1, 3]]


def test_tifu_knn_learns_from_neighbours_only_what_is_their_share(shop: Shop) -> None:
    """ann took bread, bob bread and cheese; with her own share at 1 cheese is no better than the best seller."""
    two = Histories(np.array([0, 1, 3, 3]), np.array([1, 1, 2]), np.array([1.0, 1.0, 1.0]), np.ones(3, np.float32))
    other = dataclasses.replace(shop, histories=two)
    assert baselines.tifu_knn(other, shop.lists[3], 2, num_neighbours=1, own_share=0.3)[0].tolist() == [1, 2]
    assert baselines.tifu_knn(other, shop.lists[3], 2, num_neighbours=1, own_share=1.0)[0].tolist() == [1, 3]


def test_ease_weights() -> None:
    """Two items, taken by 2 and 3 users, by 1 together, regularised by 1: from one to the other 1/(2+1) and 1/(3+1)."""
    matrix = sparse.csr_matrix(np.array([[1, 1], [1, 0], [0, 1], [0, 1]], dtype=float))
    weights = baselines.ease_weights(matrix, 1.0)
    np.testing.assert_allclose(weights, [[0, 1 / 3], [1 / 4, 0]])


def test_ease(shop: Shop) -> None:
    """What ann took goes together, so each speaks for the other; cat gets the best sellers."""
    assert baselines.ease(shop, shop.lists[3], 3, num_items=4, regularisation=1.0).tolist() == [[0, 1, 3], [3, 0, 1]]
