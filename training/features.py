"""Candidates and their user x item features, in TensorFlow: one code for the training cache and the SavedModel.

Flat tensors everywhere: `[num_entries]` of history, `[num_candidates]` of candidates, each with the id of its list
(a list is one user at one time). Ages are in days before the start of the interval to be predicted, and so are all
constants of time, so that they mean the same in a shop of hours, days or weeks.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import tensorflow as tf

from training.config import RankerConfig
from training.data import ITEM_STATISTICS

WEEK_DAYS = 7.0
"""Features count time in weeks: logarithms and ratios of it are well spread."""
NEVER = 60.0
"""Age in weeks of what never happened, and the greatest age told apart."""
NEVER_BASKETS = 200.0
"""Baskets since what never happened."""
UNKNOWN_GAP = 12.0
"""Time between two purchases of an item, in weeks, while nobody has repeated it."""


class Items(NamedTuple):
    """What is known of the items at the time of the lists."""

    types: tf.Tensor
    """int64 `[num_items]`"""
    categories: tf.Tensor
    """int64 `[num_items]`"""
    allowed: tf.Tensor
    """bool `[num_items]`"""
    statistics: tf.Tensor
    """float32 `[num_items, len(training.data.ITEM_STATISTICS)]`, `mean_gap` in days"""
    popular: tf.Tensor
    """int64 `[num_popular]`"""


class History(NamedTuple):
    """Entries of all lists, oldest first within a list; lists in ascending order."""

    list_ids: tf.Tensor
    """int64 `[num_entries]`"""
    items: tf.Tensor
    """int64 `[num_entries]`"""
    ages: tf.Tensor
    """float32 `[num_entries]`, in days"""
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
    decays = [f"decay_{tau:g}" for tau in config.decay_days]
    windows = [f"age_{a:g}_{b:g}" for a, b in pairwise(config.window_days)]
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
        "due", "rate_by_basket", "rate_by_time", "share_of_events", "share_of_decay_56", "share_since_first", "is_own",
    ]  # fmt: skip
    group = ["count", "decay_28", "decay_112", "last_age", "share", "another_since"]
    groups = [f"{kind}_{name}" for kind in ("type", "category") for name in group]
    user = ["user_baskets", "user_last_age", "user_tenure", "user_basket_size", "user_events", "user_items", "user_gap"]
    item = [
        "item_1", "item_4", "item_13", "item_all", "item_target_4", "item_buyers", "item_trend_1_4", "item_trend_4_13",
        "item_first_share_4", "item_repeat_share", "item_gap", "item_price", "item_price_ratio", "item_events_by_buyer",
        "promotion_first", "promotion_second", "promotion_any", "item_relative_price",
    ]  # fmt: skip
    return own + derived + groups + user + item


def _lookup(keys: tf.Tensor, values: tf.Tensor, queries: tf.Tensor, default: tf.Tensor) -> tf.Tensor:
    """Rows of `values` (`[num_keys, n]`, of distinct `keys`) for each wanted key, `default` (`[n]`) where absent."""
    _, places = tf.unique(tf.concat([keys, queries], axis=0), out_idx=keys.dtype)
    places = places[tf.size(keys) :]
    padded = tf.concat([values, default[None, :]], axis=0)
    return tf.gather(padded, tf.minimum(places, tf.size(keys, out_type=keys.dtype)))


def _ratio(numerator: tf.Tensor, denominator: tf.Tensor) -> tf.Tensor:
    return numerator / tf.maximum(denominator, 1e-3)


class _Candidate(NamedTuple):
    list_ids: tf.Tensor
    items: tf.Tensor


def _groups(
    history: History, group_of: tf.Tensor, candidate: _Candidate, own: tf.Tensor, own_age: tf.Tensor
) -> tf.Tensor:
    """What the user did in the candidate's type or category: `[num_candidates, 6]`."""
    num_groups = tf.reduce_max(group_of) + 1
    keys, place = tf.unique(
        history.list_ids * num_groups + tf.gather(group_of, history.items), out_idx=history.items.dtype
    )
    size = tf.size(keys)
    sums = tf.math.unsorted_segment_sum(
        tf.stack([tf.ones_like(history.ages), tf.exp(-history.ages / 4.0), tf.exp(-history.ages / 16.0)], axis=1),
        place,
        size,
    )
    last = tf.minimum(tf.math.unsorted_segment_min(history.ages, place, size), NEVER)
    values = tf.concat([sums, last[:, None]], axis=1)
    group = tf.gather(group_of, candidate.items)
    absent = tf.constant([0.0, 0.0, 0.0, NEVER])
    values_found = _lookup(keys, values, candidate.list_ids * num_groups + group, absent)
    # Group 0 holds what has no group: it says nothing of substitutes.
    has_group = tf.cast(group > 0, tf.float32)[:, None]
    values_found = values_found * has_group + (1.0 - has_group) * absent
    count, age = values_found[:, 0], values_found[:, 3]
    return tf.stack(
        [
            tf.math.log1p(count),
            tf.math.log1p(values_found[:, 1]),
            tf.math.log1p(values_found[:, 2]),
            tf.math.log1p(age),
            _ratio(own, count + 1.0),
            tf.cast((age < own_age) & (own > 0), tf.float32),
        ],
        axis=1,
    )


class _Users(NamedTuple):
    """One row a list, float32 `[num_lists]`."""

    entries: tf.Tensor
    baskets: tf.Tensor
    last_age: tf.Tensor
    first_age: tf.Tensor
    decay_56: tf.Tensor

    def of(self, list_ids: tf.Tensor) -> _Users:
        """The same, one row a candidate."""
        return _Users(*(tf.gather(column, list_ids) for column in self))


def _basket_starts(history: History) -> tf.Tensor:
    """bool `[num_entries]`: entries of one list at one time are a basket, and they are sorted."""
    ids, ages = history.list_ids, history.ages
    first = tf.ones([tf.minimum(tf.size(ids), 1)], tf.bool)
    return tf.concat([first, (ids[1:] != ids[:-1]) | (ages[1:] != ages[:-1])], axis=0)


def _users(history: History, starts: tf.Tensor, num_lists: tf.Tensor) -> _Users:
    ids, ages = history.list_ids, history.ages
    entries = tf.math.unsorted_segment_sum(tf.ones_like(ages), ids, num_lists)
    return _Users(
        entries=entries,
        baskets=tf.math.unsorted_segment_sum(tf.cast(starts, tf.float32), ids, num_lists),
        last_age=tf.where(entries > 0, tf.math.unsorted_segment_min(ages, ids, num_lists), NEVER),
        first_age=tf.where(entries > 0, tf.math.unsorted_segment_max(ages, ids, num_lists), NEVER),
        decay_56=tf.math.unsorted_segment_sum(tf.exp(-ages / 8.0), ids, num_lists),
    )


def _own_pairs(
    history: History, starts: tf.Tensor, num_lists: tf.Tensor, num_items: tf.Tensor, config: RankerConfig
) -> tuple[tf.Tensor, tf.Tensor]:
    """One row for each item of each list's history.

    Returns:
        keys `list * num_items + item`, int64 `[num_pairs]`, and sums with last age, first age and baskets since in
        the last three columns, `[num_pairs, num_sums + 3]`.
    """
    ids, ages, weights = history.list_ids, history.ages, history.weights
    basket = tf.cumsum(tf.cast(starts, ids.dtype))
    since = tf.cast(tf.gather(tf.math.unsorted_segment_max(basket, ids, num_lists), ids) - basket, tf.float32)
    keys, pair = tf.unique(ids * num_items + history.items, out_idx=ids.dtype)
    size = tf.size(keys)
    columns = [tf.ones_like(ages), weights]
    columns += [weights * tf.exp(-ages * WEEK_DAYS / tau) for tau in config.decay_days]
    columns += [weights * tf.pow(decay, since) for decay in config.basket_decays]
    columns += [
        tf.cast((ages * WEEK_DAYS >= low) & (ages * WEEK_DAYS < high), tf.float32)
        for low, high in pairwise(config.window_days)
    ]
    columns += [tf.cast(since == 0.0, tf.float32)]
    sums = tf.math.unsorted_segment_sum(tf.stack(columns, axis=1), pair, size)
    latest = tf.math.unsorted_segment_min(ages, pair, size)
    earliest = tf.math.unsorted_segment_max(ages, pair, size)
    nearest = tf.math.unsorted_segment_min(since, pair, size)
    return keys, tf.concat([sums, tf.stack([latest, earliest, nearest], axis=1)], axis=1)


def _derived(pairs: tf.Tensor, users: _Users, item_gap: tf.Tensor, config: RankerConfig) -> list[tf.Tensor]:
    """Rates, gaps and how due an own item is, `[num_candidates]` each."""
    own, last, first, baskets_since = pairs[:, 0], pairs[:, -3], pairs[:, -2], pairs[:, -1]
    known_gap = tf.where(item_gap > 0, item_gap, UNKNOWN_GAP)
    own_gap = tf.where(own > 1, _ratio(first - last, own - 1.0), known_gap)
    shrunk = tf.where(own > 0, ((own - 1.0) * own_gap + known_gap) / tf.maximum(own, 1.0), known_gap)
    by_shrunk = _ratio(last, shrunk + 0.1)
    is_own = tf.cast(own > 0, tf.float32)
    decay_56 = pairs[:, 2 + config.decay_days.index(56.0)]
    return [
        tf.math.log1p(last),
        tf.math.log1p(first),
        tf.math.log1p(baskets_since),
        tf.math.log1p(own_gap),
        tf.math.log1p(shrunk),
        is_own * tf.math.log1p(_ratio(last, own_gap + 0.1)),
        is_own * tf.math.log1p(_ratio(last, known_gap + 0.1)),
        is_own * tf.math.log1p(by_shrunk),
        is_own * tf.exp(-tf.square(tf.math.log(by_shrunk + 0.05))),
        _ratio(own, users.baskets + 1.0),
        _ratio(own, users.first_age + 1.0),
        tf.math.log1p(100.0 * _ratio(own, users.entries + 1.0)),
        tf.math.log1p(100.0 * _ratio(decay_56, users.decay_56 + 0.1)),
        _ratio(own, first + 1.0) * is_own,
        is_own,
    ]


def _user_columns(users: _Users, num_own_items: tf.Tensor) -> list[tf.Tensor]:
    return [
        tf.math.log1p(users.baskets),
        tf.math.log1p(users.last_age),
        tf.math.log1p(users.first_age),
        tf.math.log1p(_ratio(users.entries, users.baskets)),
        tf.math.log1p(users.entries),
        tf.math.log1p(num_own_items),
        tf.math.log1p(_ratio(users.first_age - users.last_age, users.baskets)),
    ]


def _item_columns(statistics: tf.Tensor, list_ids: tf.Tensor, num_lists: tf.Tensor) -> list[tf.Tensor]:
    (
        item_1, item_4, item_13, item_all, item_target_4, buyers, first_share, repeat_share, item_gap, price, price_ratio,
        promotion_first, promotion_second, promotion_any,
    ) = tf.unstack(statistics, num=len(ITEM_STATISTICS), axis=1)  # fmt: skip
    log_price = tf.math.log1p(price)
    mean_log_price = tf.math.unsorted_segment_mean(log_price, list_ids, num_lists)
    return [
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
        tf.math.log1p(item_gap / WEEK_DAYS),
        log_price,
        tf.math.log(tf.clip_by_value(price_ratio, 0.1, 10.0)),
        tf.math.log1p(_ratio(item_all, buyers + 1.0)),
        promotion_first,
        promotion_second,
        promotion_any,
        log_price - tf.gather(mean_log_price, list_ids),
    ]


def candidates(history: History, num_lists: tf.Tensor, items: Items, config: RankerConfig) -> Candidates:
    """All candidates of each list with their features.

    Candidates are the user's own items and `items.popular`, without those that are not allowed.

    Args:
        num_lists: scalar; lists without any history are fine. All integers are int64, or all int32, where
            `num_lists * num_items` is small enough.
    """
    history = history._replace(ages=tf.minimum(history.ages / WEEK_DAYS, NEVER))
    integer = history.items.dtype
    num_items = tf.shape(items.types, out_type=integer)[0]
    lists = tf.cast(num_lists, tf.int32)
    starts = _basket_starts(history)
    keys, pairs = _own_pairs(history, starts, lists, num_items, config)

    # Own pairs come first and keep their places; best sellers that are not among them follow without any history.
    popular = tf.range(num_lists, dtype=integer)[:, None] * num_items + items.popular[None, :]
    everything, _ = tf.unique(tf.concat([keys, tf.reshape(popular, [-1])], axis=0), out_idx=integer)
    num_sums = pairs.shape[1] - 3
    absent = tf.concat([tf.zeros(num_sums), [NEVER, NEVER, NEVER_BASKETS]], axis=0)
    pairs = tf.concat([pairs, tf.tile(absent[None, :], [tf.size(everything) - tf.size(keys), 1])], axis=0)
    chosen = tf.where(tf.gather(items.allowed, everything % num_items))[:, 0]
    chosen = tf.gather(chosen, tf.argsort(tf.gather(everything // num_items, chosen), stable=True))
    pairs, everything = tf.gather(pairs, chosen), tf.gather(everything, chosen)
    candidate = _Candidate(everything // num_items, everything % num_items)

    users = _users(history, starts, lists).of(candidate.list_ids)
    num_own_items = tf.math.unsorted_segment_sum(tf.ones_like(keys, tf.float32), keys // num_items, lists)
    statistics = tf.gather(items.statistics, candidate.items)
    item_gap = statistics[:, ITEM_STATISTICS.index("mean_gap")] / WEEK_DAYS
    own, last = pairs[:, 0], pairs[:, -3]
    features = tf.concat(
        [
            tf.math.log1p(pairs[:, :num_sums]),
            tf.stack(_derived(pairs, users, item_gap, config), axis=1),
            _groups(history, items.types, candidate, own, last),
            _groups(history, items.categories, candidate, own, last),
            tf.stack(_user_columns(users, tf.gather(num_own_items, candidate.list_ids)), axis=1),
            tf.stack(_item_columns(statistics, candidate.list_ids, lists), axis=1),
        ],
        axis=1,
    )
    return Candidates(candidate.list_ids, candidate.items, features)
