"""What training again, and newer data alone, would have been worth: the same intervals recommended in, by each way to keep
a model fresh.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from contracts.errors import InputError
from contracts.metrics import METRICS, NDCG, K, paired_difference
from training import evaluation
from training.config import RankerConfig
from training.data import Ints, Lists, Part, Shop
from training.fitting import fit
from training.ranker import Ranker
from training.trainer import BASELINES, Retrieval, Say, learning_intervals, recommend, write_examples

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
    as_ofs = sorted({*chain.from_iterable(learned.values())})
    shards = write_examples(parts, as_ofs, config, retrieve, folder, say=say)
    rankers = {}
    for as_of, of_intervals in learned.items():
        examples = [shard for interval in of_intervals for shard in shards[interval]]
        rankers[as_of] = fit(examples, config, len(shop.item_ids), lambda epoch, loss: None)
        say(f"trained as of {as_of}")

    def show(of_part: Shop, lists: Lists) -> dict[str, Ints]:
        return _recommended(of_part, lists, rankers, config, retrieve, retrain_every=retrain_every)

    pooled = evaluation.pooled(parts, intervals, show)
    ways, gain = [*pooled[first].metrics], None
    if intervals[1:]:
        later = evaluation.joined([pooled[interval] for interval in intervals[1:]])
        gain = paired_difference(
            later.metrics[REFRESHED][NDCG], later.metrics[LEFT_ALONE][NDCG], confidence, later.users
        )
    return {
        "intervals": [*intervals],
        "num_lists": [len(pooled[interval].users) for interval in intervals],
        "curves": {
            metric: {
                name: [float(pooled[interval].metrics[name][metric].mean()) for interval in intervals] for name in ways
            }
            for metric in METRICS
        },
        "gain_of_refresh": gain._asdict() if gain else None,
    }


def _recommended(
    shop: Shop,
    lists: Lists,
    rankers: Mapping[int, Ranker],
    config: RankerConfig,
    retrieve: Retrieval,
    *,
    retrain_every: Sequence[int],
) -> dict[str, Ints]:
    """The lists, `[num_lists, k]`, by way."""
    first = min(rankers)

    def by(ranker: Ranker, known_as_of: int) -> Ints:
        return recommend(shop, replace(lists, as_of=known_as_of), ranker, config, retrieve, num_places=K)

    now = lists.as_of
    shown = {retrained(every): by(rankers[first + (now - first) // every * every], now) for every in retrain_every}
    shown[REFRESHED], shown[LEFT_ALONE] = by(rankers[first], now), by(rankers[first], first)
    return shown | {name: baseline(shop, lists, K) for name, baseline in BASELINES.items()}


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
