"""From the shop's tables to trained rankers: examples, rolling folds, the final model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from contracts.errors import InputError
from contracts.metrics import BASELINES, K
from contracts.tables import TRAINING_LISTS
from training import baselines, evaluation
from training.config import RankerConfig
from training.data import Ints, Lists, Shop, attainable, history_as_of, may_be_candidate, popular_items
from training.evaluation import MODEL, Fold
from training.features import Candidates, History, Items, candidates, feature_names
from training.ranker import Examples, Ranker, fit


def items_as_of(shop: Shop, as_of: int, config: RankerConfig) -> Items:
    """What features need to know of the items before `as_of`."""
    return Items(
        types=tf.constant(shop.item_types),
        categories=tf.constant(shop.item_categories),
        allowed=tf.constant(may_be_candidate(shop, as_of)),
        statistics=tf.constant(shop.statistics[as_of]),
        popular=tf.constant(popular_items(shop, as_of, config.num_popular)),
    )


def compiled_candidates(config: RankerConfig) -> Callable[[History, tf.Tensor, Items], Candidates]:
    """`features.candidates` as one graph for all sizes."""

    def flat(dtype: tf.DType) -> tf.TensorSpec:
        return tf.TensorSpec([None], dtype)

    statistics = tf.TensorSpec([None, None], tf.float32)

    @tf.function(
        input_signature=[
            History(flat(tf.int64), flat(tf.int64), flat(tf.float32), flat(tf.float32)),
            tf.TensorSpec([], tf.int64),
            Items(flat(tf.int64), flat(tf.int64), flat(tf.bool), statistics, flat(tf.int64)),
        ]
    )
    def graph(history: History, num_lists: tf.Tensor, items: Items) -> Candidates:
        return candidates(history, num_lists, items, config)

    return graph


def _chunks(lists: Lists, size: int) -> Iterator[tuple[Ints, npt.NDArray[np.int64]]]:
    for start in range(0, len(lists), size):
        chosen = np.arange(start, min(start + size, len(lists)))
        yield lists.users[chosen], chosen


def list_candidates(
    shop: Shop, lists: Lists, config: RankerConfig, graph: Callable[[History, tf.Tensor, Items], Candidates]
) -> Iterator[tuple[npt.NDArray[np.int64], Candidates, npt.NDArray[np.bool_]]]:
    """Candidates of every list of one interval, some lists at a time.

    Yields:
        `chosen` `[num_chosen]` places in `lists`, their candidates (list ids from 0), and `[num_candidates]` labels.
    """
    items = items_as_of(shop, lists.as_of, config)
    num_items = len(shop.item_ids)
    taken = np.repeat(np.arange(len(lists)), lists.num_targets) * num_items + lists.targets
    taken.sort()
    for users, chosen in _chunks(lists, config.lists_a_batch):
        history = History(*map(tf.constant, history_as_of(shop, users, lists.as_of, config.max_history)))
        found = graph(history, tf.constant(len(users), tf.int64), items)
        keys = (found.list_ids.numpy() + chosen[0]) * num_items + found.items.numpy()
        places = np.minimum(np.searchsorted(taken, keys), len(taken) - 1)
        yield chosen, found, taken[places] == keys


def build_examples(
    shop: Shop, as_of: int, config: RankerConfig, graph: Callable[[History, tf.Tensor, Items], Candidates]
) -> Examples:
    """Sampled candidates of all lists of one interval, which the intervals before it explain."""
    generator = np.random.default_rng([config.seed, as_of])
    count = feature_names(config).index("count")
    parts = []
    for chosen, found, labels in list_candidates(shop, shop.lists[as_of], config, graph):
        features = found.features.numpy()
        # Often-taken items are the hard negatives: they are kept more often (log1p(count) of 3 purchases is 1.4).
        chance = np.minimum(config.negative_share * (1.0 + features[:, count]), min(1.0, 4 * config.negative_share))
        kept = labels | (generator.random(len(labels)) < chance)
        chance = np.where(labels, 1.0, chance)
        ids = found.list_ids.numpy()[kept]
        parts.append(
            Examples(
                features[kept].astype(np.float16),
                found.items.numpy()[kept],
                labels[kept].astype(np.float32),
                np.log(chance[kept]).astype(np.float32),
                np.bincount(ids, minlength=len(chosen)),
            )
        )
    return Examples.concatenate(parts)


def recommend(
    shop: Shop,
    lists: Lists,
    ranker: Ranker,
    config: RankerConfig,
    graph: Callable[[History, tf.Tensor, Items], Candidates],
    *,
    num_places: int | None = None,
) -> Ints:
    """The ranker's lists, `[num_lists, k]` item rows, best first.

    Args:
        num_places: the most that a list may have; by default as many as are served.
    """
    rows = []
    for chosen, found, _ in list_candidates(shop, lists, config, graph):
        scores = ranker(found.features, found.items)
        ids = found.list_ids.numpy()
        order = np.lexsort((-scores.numpy(), ids))
        starts = np.searchsorted(ids[order], np.arange(len(chosen)))
        k = min(num_places or config.top_k, int(np.diff(np.append(starts, len(ids))).min()))
        rows.append(found.items.numpy()[order[starts[:, None] + np.arange(k)]])
    k = min(row.shape[1] for row in rows)
    return np.concatenate([row[:, :k] for row in rows])


def usable_folds(shop: Shop, config: RankerConfig) -> list[int]:
    """Intervals to evaluate on, latest first: those with attainable targets and lists before them to learn from."""
    wanted = (shop.coming - offset for offset in config.fold_offsets)
    return [
        fold
        for fold in wanted
        if fold in shop.lists
        and fold in shop.statistics
        and len(attainable(shop, shop.lists[fold]))
        and learning_intervals(shop, fold, config)
    ]


def learning_intervals(shop: Shop, as_of: int, config: RankerConfig) -> list[int]:
    """Intervals whose lists a model for `as_of` learns from."""
    return [i for i in range(as_of - config.training_intervals, as_of) if i in shop.lists and i in shop.statistics]


@dataclass(frozen=True)
class Trained:
    ranker: Ranker
    folds: list[Fold]


def train(shop: Shop, config: RankerConfig, say: Callable[[str], None]) -> Trained:
    """Evaluate on rolling folds, then train the model that will serve `shop.coming`.

    Each fold has a ranker of its own that has seen nothing of the fold's interval or after.

    Raises:
        InputError: there is nothing to learn from.
    """
    graph = compiled_candidates(config)
    cache: dict[int, Examples] = {}

    def fitted(as_of: int) -> Ranker:
        intervals = learning_intervals(shop, as_of, config)
        if not any(len(attainable(shop, shop.lists[interval])) for interval in intervals):
            raise InputError(
                f"of what was taken in the {config.training_intervals} intervals before {as_of}, nothing could have "
                "been recommended",
                where=f"table {TRAINING_LISTS.name}",
                cure="land more intervals, or lower minimum_item_events or not_recommended in the dataset file",
            )
        for interval in intervals:
            if interval not in cache:
                cache[interval] = build_examples(shop, interval, config, graph)
        examples = Examples.concatenate([cache[interval] for interval in intervals])
        say(
            f"as of {as_of}: {examples.num_lists} lists of {len(intervals)} intervals, {len(examples.labels)} candidates"
        )
        return fit(
            examples,
            config,
            len(shop.item_ids),
            lambda epoch, loss: say(f"as of {as_of}: epoch {epoch}, loss {loss:.4f}"),
        )

    folds = []
    for as_of in sorted(usable_folds(shop, config)):
        ranker = fitted(as_of)
        lists = attainable(shop, shop.lists[as_of])
        shown = {MODEL: recommend(shop, lists, ranker, config, graph, num_places=K)}
        for name, baseline in zip(BASELINES, (baselines.popularity, baselines.personal_frequency), strict=True):
            shown[name] = baseline(shop, lists, K)
        fold = Fold(as_of, {name: evaluation.score(rows, lists, len(shop.item_ids)) for name, rows in shown.items()})
        folds.append(fold)
        for name, metrics in fold.metrics.items():
            say(f"as of {as_of}: {name:<18} " + "  ".join(f"{k} {v:.4f}" for k, v in evaluation.means(metrics).items()))
        for interval in [i for i in cache if i < min(learning_intervals(shop, as_of, config))]:
            del cache[interval]
    return Trained(fitted(shop.coming), folds)
