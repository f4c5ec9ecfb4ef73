"""Baselines over the same lists and the same recommendable items: the two every model must beat, and stronger ones.

Each takes the shop, lists and k, and returns `[num_lists, k]` item rows, best first. What a method has no opinion on is
filled from popularity.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy import linalg, sparse

from training.data import Ints, Lists, Shop, history_as_of, may_be_candidate, popular_items

_LISTS_AT_ONCE = 256
_ALL = 2**31


def popularity(shop: Shop, lists: Lists, k: int) -> Ints:
    """G-TopFreq: the same best sellers of the last 4 intervals for everyone."""
    return np.tile(popular_items(shop, lists.as_of, k), (len(lists), 1))


def personal_frequency(shop: Shop, lists: Lists, k: int) -> Ints:
    """P-TopFreq: each user's most frequent items (then latest, then by id)."""
    list_ids, items, ages, _ = history_as_of(shop, lists.users, lists.as_of, max_entries=_ALL)
    allowed = may_be_candidate(shop, lists.as_of)[items]
    keys, inverse, counts = np.unique(
        list_ids[allowed] * len(shop.item_ids) + items[allowed], return_inverse=True, return_counts=True
    )
    latest = np.full(len(keys), np.inf)
    np.minimum.at(latest, inverse, ages[allowed])
    owner = keys // len(shop.item_ids)
    order = np.lexsort((keys, latest, -counts, owner))
    starts = np.searchsorted(owner[order], np.arange(len(lists) + 1))
    fill = popular_items(shop, lists.as_of, 2 * k)
    result = np.empty((len(lists), min(k, len(fill))), dtype=np.int64)
    for row in range(len(lists)):
        own = keys[order[starts[row] : starts[row + 1]][:k]] % len(shop.item_ids)
        result[row] = np.concatenate([own, fill[~np.isin(fill, own)]])[: result.shape[1]]
    return result


def decayed_frequency(shop: Shop, lists: Lists, k: int, time_constant_days: float = 112.0) -> Ints:
    """Each user's items by their number of purchases, each worth exp(-age / time constant)."""
    list_ids, items, ages, _ = history_as_of(shop, lists.users, lists.as_of, max_entries=_ALL)
    worth = np.exp(-ages * shop.interval_days / time_constant_days)
    scores = sparse.csr_matrix((worth, (list_ids, items)), shape=(len(lists), len(shop.item_ids)))
    return best(shop, lists, k, lambda rows: scores[rows].toarray())


def tifu_knn(
    shop: Shop,
    lists: Lists,
    k: int,
    *,
    num_neighbours: int = 100,
    basket_decay: float = 0.97,
    group_decay: float = 0.8,
    own_share: float = 0.5,
    num_groups: int = 5,
) -> Ints:
    """TIFU-KNN: a user's decayed baskets, mixed with those of the users who are nearest by them.

    Source: Hu, He, Gao, Zhang: Modeling Personalized Item Frequency Information for Next-basket Recommendation, SIGIR
    2020. The defaults are tuned on week 34 of the Complete Journey.
    """
    vectors = basket_vectors(
        shop, lists.as_of, basket_decay=basket_decay, group_decay=group_decay, num_groups=num_groups
    )
    norms = np.asarray(vectors.multiply(vectors).sum(axis=1)).ravel()
    has_history = norms > 0

    def scores(rows: slice) -> npt.NDArray[np.float64]:
        users = lists.users[rows]
        own = vectors[users]
        distance = norms[None, :] - 2.0 * (own @ vectors.T).toarray()  # the own norm is the same for all
        distance[:, ~has_history] = np.inf
        distance[np.arange(len(users)), users] = np.inf
        count = min(num_neighbours, int(has_history.sum()) - 1)
        if count < 1:
            return np.asarray(own_share * own.toarray())
        nearest = np.argsort(distance, axis=1, kind="stable")[:, :count]
        picks = sparse.csr_matrix(
            (np.full(nearest.size, 1.0 / count), (np.repeat(np.arange(len(users)), count), nearest.ravel())),
            shape=(len(users), vectors.shape[0]),
        )
        return np.asarray((own_share * own + (1.0 - own_share) * (picks @ vectors)).toarray())

    return best(shop, lists, k, scores)


def basket_vectors(
    shop: Shop, as_of: int, *, basket_decay: float, group_decay: float, num_groups: int
) -> sparse.csr_matrix:
    """TIFU's vector of every user before `as_of`, `[num_users, num_items]`; zero without a history.

    A user's baskets are parted into `num_groups` groups of equal size, oldest first (fewer baskets: one each). A group's
    vector is the mean of its baskets, each decayed by `basket_decay` for every later one of the group; the user's is the
    mean of the groups, decayed likewise.
    """
    num_users = len(shop.user_ids)
    users, items, ages, _ = history_as_of(shop, np.arange(num_users), as_of, max_entries=_ALL)
    is_first = np.ones(len(users), dtype=bool)
    is_first[1:] = (users[1:] != users[:-1]) | (ages[1:] != ages[:-1])
    baskets_before = np.cumsum(is_first) - 1
    per_user = np.bincount(users[is_first], minlength=num_users)
    basket = baskets_before - (np.cumsum(per_user) - per_user)[users]
    baskets = per_user[users]
    groups = np.minimum(num_groups, baskets)
    group = basket * groups // np.maximum(baskets, 1)
    start, end = (-(-(group + step) * baskets // np.maximum(groups, 1)) for step in (0, 1))
    worth = basket_decay ** (end - 1 - basket) / (end - start) * group_decay ** (groups - 1 - group) / groups
    return sparse.csr_matrix((worth, (users, items)), shape=(num_users, len(shop.item_ids)))


def ease(
    shop: Shop,
    lists: Lists,
    k: int,
    *,
    num_items: int = 6000,
    regularisation: float = 10.0,
    time_constant_days: float = 112.0,
) -> Ints:
    """EASE over the best sellers: what goes with what a user has taken, each purchase decayed by its age.

    Source: Steck: Embarrassingly Shallow Autoencoders for Sparse Data, WWW 2019. There a purchase counts 1 however often
    and long ago; on week 34 of the Complete Journey decay gives .287 instead of .157 NDCG@10.
    """
    columns = popular_items(shop, lists.as_of, num_items)
    users, items, ages, _ = history_as_of(shop, np.arange(len(shop.user_ids)), lists.as_of, max_entries=_ALL)
    worth = np.exp(-ages * shop.interval_days / time_constant_days)
    shape = (len(shop.user_ids), len(shop.item_ids))
    matrix = sparse.csr_matrix((worth, (users, items)), shape=shape)[:, columns]
    weights = ease_weights(matrix, regularisation)

    def scores(rows: slice) -> npt.NDArray[np.float64]:
        users = lists.users[rows]
        result = np.zeros((len(users), len(shop.item_ids)))
        result[:, columns] = matrix[users] @ weights
        return result

    return best(shop, lists, k, scores)


def ease_weights(matrix: sparse.csr_matrix, regularisation: float) -> npt.NDArray[np.float64]:
    """The item-to-item weights, `[num_items, num_items]` with a zero diagonal, of `taken` `[num_users, num_items]`."""
    gram = np.asarray((matrix.T @ matrix).toarray(), dtype=np.float64)
    gram[np.diag_indices_from(gram)] += regularisation
    inverse = linalg.inv(gram, overwrite_a=True)
    weights: npt.NDArray[np.float64] = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0.0)
    return weights


def best(shop: Shop, lists: Lists, k: int, scores: Callable[[slice], npt.NDArray[np.float64]]) -> Ints:
    """The k best items that may be recommended; those with equal scores by popularity.

    Args:
        scores: for some of the lists, `[num_rows, num_items]`.
    """
    popular_first = popular_items(shop, lists.as_of, len(shop.item_ids))
    best = []
    for start in range(0, len(lists), _LISTS_AT_ONCE):
        rows = slice(start, min(start + _LISTS_AT_ONCE, len(lists)))
        order = np.argsort(-scores(rows)[:, popular_first], axis=1, kind="stable")[:, :k]
        best.append(popular_first[order])
    return np.concatenate(best) if best else np.empty((0, min(k, len(popular_first))), dtype=np.int64)
