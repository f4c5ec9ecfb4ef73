"""From the shop's tables to trained rankers: examples, rolling folds, the final model."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from contracts.errors import InputError
from contracts.metrics import DECAYED_FREQUENCY, PERSONAL_FREQUENCY, POPULARITY, K
from contracts.names import CHAMPION
from contracts.tables import TRAINING_LISTS
from training import baselines, evaluation
from training.config import RankerConfig
from training.data import (
    ITEM_STATISTICS,
    Ints,
    Lists,
    Part,
    Shop,
    attainable,
    history_as_of,
    may_be_candidate,
    popular_items,
)
from training.evaluation import MODEL, Fold
from training.examples import Examples, Shard, find_shard, write_shard
from training.features import Candidates, History, Items, candidates, feature_names
from training.fitting import fit
from training.ranker import Ranker
from training.workers import wait_for, workers

LISTS_AT_ONCE = 64
"""Lists whose candidates are computed together."""

MODELS_AT_ONCE = min(4, os.cpu_count() or 1)
"""How many are trained side by side: a step is too small to keep two cores busy."""

Say = Callable[[str], None]


def items_as_of(shop: Shop, as_of: int, config: RankerConfig) -> Items:
    """What features need to know of the items before `as_of`."""
    statistics = shop.statistics[as_of].copy()
    statistics[:, ITEM_STATISTICS.index("mean_gap")] *= shop.interval_days
    return Items(
        types=tf.constant(shop.item_types),
        categories=tf.constant(shop.item_categories),
        allowed=tf.constant(may_be_candidate(shop, as_of)),
        statistics=tf.constant(statistics),
        popular=tf.constant(popular_items(shop, as_of, config.num_popular)),
    )


def stored_history(shop: Shop, users: Ints, as_of: int, config: RankerConfig) -> History:
    """The users' entries before `as_of`, a list each."""
    list_ids, items, ages, weights = history_as_of(shop, users, as_of, config.max_history)
    return History(*map(tf.constant, (list_ids, items, ages * np.float32(shop.interval_days), weights)))


class Retrieval:
    """Candidates and their features as of an interval: `features.candidates` as one graph for all sizes."""

    def __init__(self, shop: Shop, config: RankerConfig) -> None:
        def flat(dtype: tf.DType) -> tf.TensorSpec:
            return tf.TensorSpec([None], dtype)

        self.shop, self._config = shop, config
        self._items: dict[int, Items] = {}
        self._graph = tf.function(
            partial(candidates, config=config),
            autograph=False,
            input_signature=[
                History(flat(tf.int64), flat(tf.int64), flat(tf.float32), flat(tf.float32)),
                tf.TensorSpec([], tf.int64),
                Items(
                    flat(tf.int64),
                    flat(tf.int64),
                    flat(tf.bool),
                    tf.TensorSpec([None, None], tf.float32),
                    flat(tf.int64),
                ),
            ],
        )

    def __call__(self, shop: Shop, users: Ints, as_of: int) -> Candidates:
        """Candidates of some users of `shop`, whose items are those of this one; a list each, list ids from 0."""
        if as_of not in self._items:
            self._items[as_of] = items_as_of(self.shop, as_of, self._config)
        history = stored_history(shop, users, as_of, self._config)
        with tf.device("/CPU:0"):  # a GPU adds up in another order each time, and is no faster
            candidate: Candidates = self._graph(history, tf.constant(len(users), tf.int64), self._items[as_of])
        return candidate


def list_candidates(
    shop: Shop, lists: Lists, retrieve: Retrieval
) -> Iterator[tuple[npt.NDArray[np.int64], Candidates, npt.NDArray[np.bool_]]]:
    """Candidates of every list of one interval, some lists at a time.

    Yields:
        `chosen` `[num_chosen]` places in `lists`, their candidates (list ids from 0), and `[num_candidates]` labels.
    """
    num_items = len(shop.item_ids)
    target_keys = np.repeat(np.arange(len(lists)), lists.num_targets) * num_items + lists.targets
    target_keys.sort()
    for start in range(0, len(lists), LISTS_AT_ONCE):
        chosen = np.arange(start, min(start + LISTS_AT_ONCE, len(lists)))
        candidate = retrieve(shop, lists.users[chosen], lists.as_of)
        keys = (candidate.list_ids.numpy() + chosen[0]) * num_items + candidate.items.numpy()
        places = np.minimum(np.searchsorted(target_keys, keys), len(target_keys) - 1)
        yield chosen, candidate, target_keys[places] == keys


def sampled_examples(
    shop: Shop, as_of: int, config: RankerConfig, retrieve: Retrieval, generator: np.random.Generator
) -> Iterator[Examples]:
    """Sampled candidates of the lists of one interval, which the intervals before it explain, some lists at a time."""
    count = feature_names(config).index("count")
    for chosen, candidate, labels in list_candidates(shop, shop.lists[as_of], retrieve):
        features = candidate.features.numpy()
        # Often-taken items are the hard negatives: they are kept more often (log1p(count) of 3 purchases is 1.4).
        num_candidates = np.bincount(candidate.list_ids.numpy(), minlength=len(chosen))
        share = (config.negatives_a_list / np.maximum(num_candidates, 1))[candidate.list_ids.numpy()]
        chance = np.minimum(share * np.minimum(1.0 + features[:, count], 4.0), 1.0)
        in_sample = labels | (generator.random(len(labels)) < chance)
        chance = np.where(labels, 1.0, chance)
        yield Examples(
            features[in_sample].astype(np.float16),
            candidate.items.numpy()[in_sample].astype(np.int32),
            labels[in_sample].astype(np.uint8),
            np.log(chance[in_sample]).astype(np.float32),
            np.bincount(candidate.list_ids.numpy()[in_sample], minlength=len(chosen)),
        )


def write_part(shop: Shop, paths: Mapping[int, Path], config: RankerConfig, retrieve: Retrieval) -> None:
    """Write the shards of one part, by interval."""
    for interval, path in paths.items():
        # By the name of the shard, so that it is the same whoever makes it, and however often.
        generator = np.random.default_rng([config.seed, *path.stem.encode()])
        lists = shop.lists.get(interval)
        examples = () if lists is None else sampled_examples(shop, interval, config, retrieve, generator)
        num_attainable = 0 if lists is None else len(attainable(shop, lists))
        write_shard(path, examples, num_attainable, len(feature_names(config)))


def write_examples(
    parts: Sequence[Part],
    intervals: Sequence[int],
    config: RankerConfig,
    retrieve: Retrieval,
    folder: Path,
    *,
    say: Say,
) -> dict[int, list[Shard]]:
    """The shards of each interval, one for each part; each worker makes its share, and waits for the others."""

    def path_of(interval: int, number: int) -> Path:
        return folder / f"{interval}-{number:05d}.tfrecord"

    own = workers()
    for number in own.share(range(len(parts))):
        missing = [interval for interval in intervals if find_shard(path_of(interval, number)) is None]
        if not missing:
            continue
        # The part is not named here, so that it is gone before the next one is read.
        write_part(parts[number](), {interval: path_of(interval, number) for interval in missing}, config, retrieve)
        say(f"examples of {len(missing)} intervals for part {number + 1} of {len(parts)}")
    shards = {}
    for interval in intervals:
        shards[interval] = [wait_for(partial(find_shard, path_of(interval, number))) for number in range(len(parts))]
    return shards


def recommend(
    shop: Shop,
    lists: Lists,
    ranker: Ranker,
    config: RankerConfig,
    retrieve: Retrieval,
    *,
    num_places: int | None = None,
) -> Ints:
    """The ranker's lists, `[num_lists, k]` item rows, best first.

    Args:
        num_places: the most that a list may have; by default as many as are served.
    """
    rows = []
    for chosen, candidate, _ in list_candidates(shop, lists, retrieve):
        scores = ranker(candidate.features, candidate.items)
        ids = candidate.list_ids.numpy()
        order = np.lexsort((-scores.numpy(), ids))
        starts = np.searchsorted(ids[order], np.arange(len(chosen)))
        k = min(num_places or config.top_k, int(np.diff(np.append(starts, len(ids))).min()))
        rows.append(candidate.items.numpy()[order[starts[:, None] + np.arange(k)]])
    k = min(row.shape[1] for row in rows)
    return np.concatenate([row[:, :k] for row in rows])


def learning_intervals(shop: Shop, as_of: int, config: RankerConfig) -> list[int]:
    """Intervals whose lists a model for `as_of` learns from."""
    return sorted(shop.usable_intervals & {*range(as_of - config.training_intervals, as_of)})


def possible_folds(shop: Shop, config: RankerConfig) -> list[int]:
    """Intervals to evaluate on, first ones first: those with lists, and with lists before them to learn from."""
    folds = sorted(shop.coming - offset for offset in config.fold_offsets)
    return [fold for fold in folds if fold in shop.usable_intervals and learning_intervals(shop, fold, config)]


def num_intervals(config: RankerConfig) -> int:
    """How many intervals before the coming one are looked at."""
    return max(config.fold_offsets, default=0) + config.training_intervals


@dataclass(frozen=True)
class Champion:
    """The model that serves: a challenger is scored beside it, on lists that neither has learned from."""

    version: int
    trained_as_of: int
    """It has learned from lists of intervals before this one."""
    ranker_for: Callable[[npt.NDArray[np.object_]], Ranker]
    """The ranker for these item ids."""
    config: RankerConfig


@dataclass(frozen=True)
class Trained:
    ranker: Ranker
    folds: list[Fold]
    losses: Mapping[int, Mapping[int, float]]
    """By `as_of` and epoch; those of epochs before a kill are not known."""


def train(
    shop: Shop,
    parts: Sequence[Part],
    config: RankerConfig,
    say: Say,
    folder: Path,
    *,
    strategy: tf.distribute.Strategy | None = None,
    champion: Champion | None = None,
) -> Trained:
    """Train a ranker for each rolling fold, and the one that will serve `shop.coming`; then evaluate the folds.

    A fold's ranker has seen nothing of the fold's interval or after. Killed and called again with the same folder, it
    goes on from the last checkpoint.

    Args:
        shop: what is known of the items.
        parts: the same with users, of a bucket each.
        folder: for examples and checkpoints; all workers share it. Delete it when the training is done.
        champion: scored in the folds that it has not learned from.

    Raises:
        InputError: there is nothing to learn from.
    """
    retrieve = Retrieval(shop, config)
    folds, coming = possible_folds(shop, config), shop.coming
    learned = {as_of: learning_intervals(shop, as_of, config) for as_of in [*folds, coming]}
    intervals = sorted({*folds, *chain.from_iterable(learned.values())})
    shards = write_examples(parts, intervals, config, retrieve, folder / "examples", say=say)
    num_attainable = {
        interval: sum(shard.num_attainable_lists for shard in of_interval) for interval, of_interval in shards.items()
    }
    models = [*(fold for fold in folds if num_attainable[fold]), coming]
    for as_of in models:
        if not any(num_attainable[interval] for interval in learned[as_of]):
            raise InputError(
                f"of what was taken in the {config.training_intervals} intervals before {as_of}, nothing could have "
                "been recommended",
                where=f"table {TRAINING_LISTS.name}",
                cure="land more intervals, or lower minimum_item_events or not_recommended in the dataset file",
            )
    losses: dict[int, dict[int, float]] = {as_of: {} for as_of in models}

    def fitted(as_of: int) -> Ranker:
        examples = [shard for interval in learned[as_of] for shard in shards[interval]]
        num_lists, num_candidates = (
            sum(getattr(each, name) for each in examples) for name in ("num_lists", "num_candidates")
        )
        say(f"as of {as_of}: {num_lists} lists of {len(learned[as_of])} intervals, {num_candidates} candidates")

        def progress(epoch: int, loss: float) -> None:
            say(f"as of {as_of}: epoch {epoch}, loss {loss:.4f}")
            losses[as_of][epoch] = loss

        return fit(
            examples, config, len(shop.item_ids), progress, strategy=strategy,
            checkpoints=folder / "checkpoints" / f"{as_of}-of-{own.count}",
        )  # fmt: skip

    own = workers()
    strategy = strategy or tf.distribute.get_strategy()
    # Where several replicas add up together, all must do so in one order.
    with ThreadPoolExecutor(MODELS_AT_ONCE if strategy.num_replicas_in_sync == 1 else 1) as pool:
        rankers = dict(zip(models, pool.map(fitted, models), strict=True))
    ranker = rankers.pop(coming)
    folds_scored = evaluate(rankers, parts, config, retrieve, champion=champion, say=say) if own.is_chief else []
    return Trained(ranker, folds_scored, losses)


BASELINES = {
    POPULARITY: baselines.popularity,
    PERSONAL_FREQUENCY: baselines.personal_frequency,
    DECAYED_FREQUENCY: baselines.decayed_frequency,
}


def evaluate(
    rankers: Mapping[int, Ranker],
    parts: Sequence[Part],
    config: RankerConfig,
    retrieve: Retrieval,
    *,
    champion: Champion | None,
    say: Say,
) -> list[Fold]:
    """Each ranker, the baselines, and the champion, on the lists of the interval that the ranker is for."""
    if champion:
        champion_ranker = champion.ranker_for(retrieve.shop.item_ids)
        retrieve_for_champion = Retrieval(retrieve.shop, champion.config)
    scores: dict[int, list[Fold]] = {as_of: [] for as_of in rankers}
    num_users = 0
    for part in parts:
        shop = part()
        for as_of, ranker in rankers.items():
            if as_of not in shop.lists or not len(lists := attainable(shop, shop.lists[as_of])):
                continue
            shown = {MODEL: recommend(shop, lists, ranker, config, retrieve, num_places=K)}
            shown |= {name: baseline(shop, lists, K) for name, baseline in BASELINES.items()}
            if champion and champion.trained_as_of <= as_of:
                shown[CHAMPION] = recommend(
                    shop, lists, champion_ranker, champion.config, retrieve_for_champion, num_places=K
                )
            whole = evaluation.scores(shop, lists, shown, first_user=num_users)
            scores[as_of].append(Fold(as_of, whole, evaluation.scores_by_items(shop, lists, shown, whole)))
        num_users += len(shop.user_ids)
    folds = []
    for as_of, of_parts in scores.items():
        lists_of_fold = evaluation.joined([each.lists for each in of_parts])
        by_items = {
            name: evaluation.joined([each.by_items[name] for each in of_parts]) for name in of_parts[0].by_items
        }
        folds.append(Fold(as_of, lists_of_fold, by_items))
        for name, by_metric in lists_of_fold.metrics.items():
            say(
                f"as of {as_of}: {name:<18} "
                + "  ".join(f"{k} {v:.4f}" for k, v in evaluation.means(by_metric).items())
            )
    return folds
