"""The two baselines every model must beat, over the same lists and the same recommendable items."""

from __future__ import annotations

import numpy as np

from training.data import Ints, Lists, Shop, history_as_of, may_be_candidate, popular_items


def popularity(shop: Shop, lists: Lists, k: int) -> Ints:
    """G-TopFreq: the same best sellers of the last 4 intervals for everyone, `[num_lists, k]` item rows."""
    return np.tile(popular_items(shop, lists.as_of, k), (len(lists), 1))


def personal_frequency(shop: Shop, lists: Lists, k: int) -> Ints:
    """P-TopFreq: each user's most frequent items (then latest, then by id), filled from popularity.

    Returns:
        `[num_lists, k]` item rows.
    """
    list_ids, items, ages, _ = history_as_of(shop, lists.users, lists.as_of, max_entries=2**31)
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
