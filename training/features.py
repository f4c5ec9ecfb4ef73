"""Candidates and their user x item features, in TensorFlow: one code for the training cache and the SavedModel.

Flat tensors everywhere: `[num_entries]` of history, `[num_candidates]` of candidates, each with the id of its list
(a list is one user at one time). Ages are in intervals before the start of the interval to be predicted.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from training.config import RankerConfig

NEVER = 60.0
"""Age in intervals of what never happened, and the greatest age told apart."""


class Items(NamedTuple):
    """What is known of the items at the time of the lists."""

    types: tf.Tensor
    """int64 `[num_items]`"""
    categories: tf.Tensor
    """int64 `[num_items]`"""
    allowed: tf.Tensor
    """bool `[num_items]`"""
    statistics: tf.Tensor
    """float32 `[num_items, len(training.data.ITEM_STATISTICS)]`"""
    popular: tf.Tensor
    """int64 `[num_popular]`"""


class History(NamedTuple):
    """Entries of all lists, oldest first within a list; lists in ascending order."""

    list_ids: tf.Tensor
    """int64 `[num_entries]`"""
    items: tf.Tensor
    """int64 `[num_entries]`"""
    ages: tf.Tensor
    """float32 `[num_entries]`"""
    weights: tf.Tensor
    """float32 `[num_entries]`"""


class Candidates(NamedTuple):
    list_ids: tf.Tensor
    """int64 `[num_candidates]`, ascending"""
    items: tf.Tensor
    """int64 `[num_candidates]`"""
    features: tf.Tensor
    """float32 `[num_candidates, num_features]`"""


def feature_names(config: RankerConfig) -> list[str]:
    """The name of each feature, in order."""
    decays = [f"decay_{tau:g}" for tau in config.decay_intervals]
    windows = [f"age_{a:g}_{b:g}" for a, b in zip(config.window_edges, config.window_edges[1:], strict=False)]
    own = [
        "count",
        "weight",
        *decays,
        *[f"basket_decay_{d:g}" for d in config.basket_decays],
        *windows,
        "in_last_basket",
    ]
    derived = [
        "last_age", "first_age", "baskets_since", "own_gap", "shrunk_gap", "age_by_own_gap", "age_by_item_gap", "age_by_shrunk_gap",
        "due", "rate_by_basket", "rate_by_time", "share_of_events", "share_of_decay_8", "share_since_first", "is_own",
    ]  # fmt: skip
    group = ["count", "decay_4", "decay_16", "last_age", "share", "another_since"]
    groups = [f"{kind}_{name}" for kind in ("type", "category") for name in group]
    user = ["user_baskets", "user_last_age", "user_tenure", "user_basket_size", "user_events", "user_items", "user_gap"]
    item = [
        "item_1", "item_4", "item_13", "item_all", "item_target_4", "item_buyers", "item_trend_1_4", "item_trend_4_13",
        "item_first_share_4", "item_repeat_share", "item_gap", "item_price", "item_price_ratio", "item_events_by_buyer",
        "promotion_first", "promotion_second", "promotion_any", "item_relative_price",
    ]  # fmt: skip
    return own + derived + groups + user + item


def _lookup(keys: tf.Tensor, values: tf.Tensor, wanted: tf.Tensor, default: tf.Tensor) -> tf.Tensor:
    """Rows of `values` (`[num_keys, n]`, of distinct `keys`) for each wanted key, `default` (`[n]`) where absent."""
    _, places = tf.unique(tf.concat([keys, wanted], axis=0), out_idx=tf.int64)
    places = places[tf.size(keys) :]
    padded = tf.concat([values, default[None, :]], axis=0)
    return tf.gather(padded, tf.minimum(places, tf.size(keys, out_type=tf.int64)))


def _ratio(numerator: tf.Tensor, denominator: tf.Tensor) -> tf.Tensor:
    return numerator / tf.maximum(denominator, 1e-3)


def _groups(
    history: History, group_of: tf.Tensor, list_ids: tf.Tensor, items: tf.Tensor, own: tf.Tensor, own_age: tf.Tensor
) -> tf.Tensor:
    """What the user did in the candidate's type or category: `[num_candidates, 6]`."""
    num_groups = tf.reduce_max(group_of) + 1
    keys, place = tf.unique(history.list_ids * num_groups + tf.gather(group_of, history.items), out_idx=tf.int64)
    size = tf.size(keys)
    sums = tf.math.unsorted_segment_sum(
        tf.stack([tf.ones_like(history.ages), tf.exp(-history.ages / 4.0), tf.exp(-history.ages / 16.0)], axis=1),
        place,
        size,
    )
    last = tf.minimum(tf.math.unsorted_segment_min(history.ages, place, size), NEVER)
    values = tf.concat([sums, last[:, None]], axis=1)
    wanted = list_ids * num_groups + tf.gather(group_of, items)
    found = _lookup(keys, values, wanted, tf.constant([0.0, 0.0, 0.0, NEVER]))
    # Group 0 holds what has no group: it says nothing of substitutes.
    known = tf.cast(tf.gather(group_of, items) > 0, tf.float32)[:, None]
    found = found * known + (1.0 - known) * tf.constant([0.0, 0.0, 0.0, NEVER])
    count, age = found[:, 0], found[:, 3]
    return tf.stack(
        [
            tf.math.log1p(count),
            tf.math.log1p(found[:, 1]),
            tf.math.log1p(found[:, 2]),
            tf.math.log1p(age),
            _ratio(own, count + 1.0),
            tf.cast((age < own_age) & (own > 0), tf.float32),
        ],
        axis=1,
    )


def candidates(history: History, num_lists: tf.Tensor, items: Items, config: RankerConfig) -> Candidates:
    """All candidates of each list with their features.

    Candidates are the user's own items and `items.popular`, without those that are not allowed.

    Args:
        num_lists: int64 scalar; lists without any history are fine.
    """
    num_items = tf.shape(items.types, out_type=tf.int64)[0]
    ids, ages, weights = history.list_ids, tf.minimum(history.ages, NEVER), history.weights
    history = history._replace(ages=ages)
    lists = tf.cast(num_lists, tf.int32)

    # Baskets: entries of one list at one time. They are sorted, so a basket starts where list or time changes.
    starts = tf.concat(
        [tf.ones([tf.minimum(tf.size(ids), 1)], tf.bool), (ids[1:] != ids[:-1]) | (ages[1:] != ages[:-1])], axis=0
    )
    basket = tf.cumsum(tf.cast(starts, tf.int64))
    last_basket = tf.math.unsorted_segment_max(basket, ids, lists)
    since = tf.cast(tf.gather(last_basket, ids) - basket, tf.float32)

    # Users: one row a list.
    entries = tf.math.unsorted_segment_sum(tf.ones_like(ages), ids, lists)
    active = entries > 0
    baskets = tf.math.unsorted_segment_sum(tf.cast(starts, tf.float32), ids, lists)
    user_last = tf.where(active, tf.math.unsorted_segment_min(ages, ids, lists), NEVER)
    user_first = tf.where(active, tf.math.unsorted_segment_max(ages, ids, lists), NEVER)
    user_decay_8 = tf.math.unsorted_segment_sum(tf.exp(-ages / 8.0), ids, lists)

    # Own pairs: one row for each item of each list's history.
    keys, pair = tf.unique(ids * num_items + history.items, out_idx=tf.int64)
    num_pairs = tf.size(keys)
    columns = [tf.ones_like(ages), weights]
    columns += [weights * tf.exp(-ages / tau) for tau in config.decay_intervals]
    columns += [weights * tf.pow(decay, since) for decay in config.basket_decays]
    columns += [
        tf.cast((ages >= low) & (ages < high), tf.float32)
        for low, high in zip(config.window_edges, config.window_edges[1:], strict=False)
    ]
    columns += [tf.cast(since == 0.0, tf.float32)]
    sums = tf.math.unsorted_segment_sum(tf.stack(columns, axis=1), pair, num_pairs)
    pair_last = tf.math.unsorted_segment_min(ages, pair, num_pairs)
    pair_first = tf.math.unsorted_segment_max(ages, pair, num_pairs)
    pair_since = tf.math.unsorted_segment_min(since, pair, num_pairs)
    pairs = tf.concat([sums, tf.stack([pair_last, pair_first, pair_since], axis=1)], axis=1)

    # Candidates: own pairs, then popular items that are not among them; sorted by list.
    popular = tf.range(num_lists, dtype=tf.int64)[:, None] * num_items + items.popular[None, :]
    everything, _ = tf.unique(tf.concat([keys, tf.reshape(popular, [-1])], axis=0), out_idx=tf.int64)
    absent = tf.concat([tf.zeros(len(columns)), [NEVER, NEVER, 200.0]], axis=0)
    extra = tf.size(everything) - num_pairs
    pairs = tf.concat([pairs, tf.tile(absent[None, :], [extra, 1])], axis=0)
    chosen = tf.where(tf.gather(items.allowed, everything % num_items))[:, 0]
    chosen = tf.gather(chosen, tf.argsort(tf.gather(everything // num_items, chosen), stable=True))
    pairs, everything = tf.gather(pairs, chosen), tf.gather(everything, chosen)
    of_list, item = everything // num_items, everything % num_items

    own, last, first, baskets_since = pairs[:, 0], pairs[:, -3], pairs[:, -2], pairs[:, -1]
    statistics = tf.gather(items.statistics, item)
    (
        item_1, item_4, item_13, item_all, item_target_4, buyers, first_share, repeat_share, item_gap, price, price_ratio,
        promotion_first, promotion_second, promotion_any,
    ) = tf.unstack(statistics, num=14, axis=1)  # fmt: skip
    known_gap = tf.where(item_gap > 0, item_gap, 12.0)
    own_gap = tf.where(own > 1, _ratio(first - last, own - 1.0), known_gap)
    shrunk = tf.where(own > 0, ((own - 1.0) * own_gap + known_gap) / tf.maximum(own, 1.0), known_gap)
    by_shrunk = _ratio(last, shrunk + 0.1)
    user_entries, user_baskets = tf.gather(entries, of_list), tf.gather(baskets, of_list)
    tenure, recency = tf.gather(user_first, of_list), tf.gather(user_last, of_list)
    is_own = tf.cast(own > 0, tf.float32)
    derived = [
        tf.math.log1p(last),
        tf.math.log1p(first),
        tf.math.log1p(baskets_since),
        tf.math.log1p(own_gap),
        tf.math.log1p(shrunk),
        is_own * tf.math.log1p(_ratio(last, own_gap + 0.1)),
        is_own * tf.math.log1p(_ratio(last, known_gap + 0.1)),
        is_own * tf.math.log1p(by_shrunk),
        is_own * tf.exp(-tf.square(tf.math.log(by_shrunk + 0.05))),
        _ratio(own, user_baskets + 1.0),
        _ratio(own, tenure + 1.0),
        tf.math.log1p(100.0 * _ratio(own, user_entries + 1.0)),
        tf.math.log1p(
            100.0 * _ratio(pairs[:, 2 + config.decay_intervals.index(8.0)], tf.gather(user_decay_8, of_list) + 0.1)
        ),
        _ratio(own, first + 1.0) * is_own,
        is_own,
    ]
    items_of_user = tf.math.unsorted_segment_sum(tf.ones_like(keys, tf.float32), keys // num_items, lists)
    user = [
        tf.math.log1p(user_baskets),
        tf.math.log1p(recency),
        tf.math.log1p(tenure),
        tf.math.log1p(_ratio(user_entries, user_baskets)),
        tf.math.log1p(user_entries),
        tf.math.log1p(tf.gather(items_of_user, of_list)),
        tf.math.log1p(_ratio(tenure - recency, user_baskets)),
    ]
    log_price = tf.math.log1p(price)
    mean_log_price = tf.math.unsorted_segment_mean(log_price, of_list, lists)
    item_columns = [
        tf.math.log1p(item_1),
        tf.math.log1p(item_4),
        tf.math.log1p(item_13),
        tf.math.log1p(item_all),
        tf.math.log1p(item_target_4),
        tf.math.log1p(buyers),
        tf.math.log((item_1 + 1.0) / (item_4 / 4.0 + 1.0)),
        tf.math.log((item_4 + 1.0) / (item_13 * 4.0 / 13.0 + 1.0)),
        first_share,
        repeat_share,
        tf.math.log1p(item_gap),
        log_price,
        tf.math.log(tf.clip_by_value(price_ratio, 0.1, 10.0)),
        tf.math.log1p(_ratio(item_all, buyers + 1.0)),
        promotion_first,
        promotion_second,
        promotion_any,
        log_price - tf.gather(mean_log_price, of_list),
    ]
    features = tf.concat(
        [
            tf.math.log1p(pairs[:, : len(columns)]),
            tf.stack(derived, axis=1),
            _groups(history, items.types, of_list, item, own, last),
            _groups(history, items.categories, of_list, item, own, last),
            tf.stack(user + item_columns, axis=1),
        ],
        axis=1,
    )
    return Candidates(of_list, item, features)
