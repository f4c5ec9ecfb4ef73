"""What training again, and newer data alone, would have been worth: the same intervals recommended in, by each way to keep
a model fresh.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from contracts.errors import InputError
from contracts.metrics import BASELINES, METRICS, NDCG, Floats, K, paired_difference
from training import baselines, evaluation
from training.config import RankerConfig
from training.data import Lists, Part, Shop, attainable
from training.fitting import fit
from training.ranker import Ranker
from training.trainer import Retrieval, Say, learning_intervals, recommend, write_examples

REFRESHED, LEFT_ALONE = "never retrained, refreshed", "left alone"


def retrained(every: int) -> str:
    """The name of a way: a model trained in the first interval and each `every` intervals after, on data of each interval."""
    return "retrained each interval" if every == 1 else f"retrained every {every} intervals"


def backtest(
    shop: Shop,
    parts: Sequence[Part],
    config: RankerConfig,
    intervals: range,
    *,
    retrain_every: Sequence[int],
    folder: Path,
    confidence: float,
    say: Say,
) -> dict[str, Any]:
    """Recommend in each of `intervals` to all who took something, knowing what was known before it.

    A model that is left alone recommends with the data of the first interval, as a deployed one does that nobody refreshes.

    Args:
        shop: what is known of the items; `parts` are the same with users.
        retrain_every: each gives a way of its own.
        folder: for examples.

    Returns:
        As JSON: `intervals`; `curves` of each metric by way, with the baselines, one number an interval; `num_lists`;
        and `gain_of_refresh`, the paired difference of ndcg_at_10 to the model left alone, in the intervals after the
        first.

    Raises:
        InputError: of one of the intervals, or of those before it, there are no lists.
    """
    first, retrieve = intervals[0], Retrieval(shop, config)
    trained_in = sorted({first, *chain.from_iterable(intervals[::every] for every in retrain_every)})
    learned = {as_of: learning_intervals(shop, as_of, config) for as_of in trained_in}
    for interval in intervals:
        if interval not in shop.usable_intervals or not learned.get(interval, [interval]):
            raise InputError(
                f"there is nothing to recommend by in interval {interval}, or nothing taken",
                where="--from, --to",
                cure=f"name intervals of {min(shop.usable_intervals) + 1} to {max(shop.usable_intervals)}",
            )
    wanted = sorted({*chain.from_iterable(learned.values())})
    shards = write_examples(parts, wanted, config, retrieve, folder, say=say)
    rankers = {}
    for as_of, of_intervals in learned.items():
        examples = [shard for interval in of_intervals for shard in shards[interval]]
        rankers[as_of] = fit(examples, config, len(shop.item_ids), lambda epoch, loss: None)
        say(f"trained as of {as_of}")
    metrics: dict[int, dict[str, list[Mapping[str, Floats]]]] = {interval: {} for interval in intervals}
    for part in parts:
        of_part = part()
        for interval in intervals:
            if interval in of_part.lists and len(lists := attainable(of_part, of_part.lists[interval])):
                for name, scores in _scores(
                    of_part, lists, rankers, config, retrieve, retrain_every=retrain_every
                ).items():
                    metrics[interval].setdefault(name, []).append(scores)
    pooled = {
        interval: {
            name: {metric: np.concatenate([each[metric] for each in scores]) for metric in METRICS}
            for name, scores in by_name.items()
        }
        for interval, by_name in metrics.items()
    }
    ways = [*pooled[first]]
    later = {
        name: np.concatenate([pooled[interval][name][NDCG] for interval in intervals[1:]] or [np.empty(0)])
        for name in (REFRESHED, LEFT_ALONE)
    }
    is_measured = len(later[REFRESHED]) > 1
    gain = paired_difference(later[REFRESHED], later[LEFT_ALONE], confidence) if is_measured else None
    return {
        "intervals": [*intervals],
        "num_lists": [len(pooled[interval][ways[0]][NDCG]) for interval in intervals],
        "curves": {
            metric: {name: [float(pooled[interval][name][metric].mean()) for interval in intervals] for name in ways}
            for metric in METRICS
        },
        "gain_of_refresh": gain._asdict() if gain else None,
    }


def _scores(
    shop: Shop,
    lists: Lists,
    rankers: Mapping[int, Ranker],
    config: RankerConfig,
    retrieve: Retrieval,
    *,
    retrain_every: Sequence[int],
) -> dict[str, dict[str, Floats]]:
    """The metrics of each list, by way."""
    first = min(rankers)

    def scored(ranker: Ranker, known_as_of: int) -> dict[str, Floats]:
        asked = replace(lists, as_of=known_as_of)
        rows = recommend(shop, asked, ranker, config, retrieve, num_places=K)
        return evaluation.score(rows, lists, len(shop.item_ids))

    now = lists.as_of
    found = {}
    for every in retrain_every:
        found[retrained(every)] = scored(rankers[first + (now - first) // every * every], now)
    found[REFRESHED], found[LEFT_ALONE] = scored(rankers[first], now), scored(rankers[first], first)
    for name, baseline in zip(BASELINES, (baselines.popularity, baselines.personal_frequency), strict=True):
        found[name] = evaluation.score(baseline(shop, lists, K), lists, len(shop.item_ids))
    return found


def plot(result: Mapping[str, Any], path: Path) -> None:
    """Draw ndcg_at_10 by interval, a line for each way, named where it ends."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    curves, intervals = result["curves"][NDCG], result["intervals"]
    for name, values in curves.items():
        axes.plot(intervals, values, marker="o", linestyle="--" if name in BASELINES else "-", label=name)
    axes.set(xlabel="interval", ylabel=NDCG, xticks=intervals, title="What keeps a recommender fresh, by interval")
    # In the order of the last points, so that the eye finds its line.
    handles, labels = axes.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda place: -curves[labels[place]][-1])
    axes.legend(
        [handles[place] for place in order], [labels[place].replace("_", " ") for place in order],
        loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False,
    )  # fmt: skip
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})
