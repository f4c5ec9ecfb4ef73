"""`make bench-model`: the ranker beside every baseline, on the same lists of the same intervals.

Reads the feature tables of the installation at CARTWHEEL_HOME, which `make run` has filled. Writes
`docs/benchmarks/model.json`: records of method, week, segment, num_lists, recall_at_10, ndcg_at_10, low, high,
cpu_seconds, peak_mib. `low` and `high` bound, with 95 % confidence, by how much the ranker's ndcg_at_10 is above the
method's, list by list. CPU seconds and memory are those of a process that fits the method and recommends to all lists
of the week, its share of loading the tables included.

Segments are of lists (users without, with little, with much history) or of targets (taken before or never, popular or
not): then a list counts with those of its targets alone.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from contracts import dataset as datasets
from contracts.files import write_json
from contracts.metrics import METRICS, NDCG, RECALL, K
from contracts.settings import REPOSITORY, settings
from tests.benchmarks.family import Family
from training import baselines, evaluation
from training.config import RankerConfig
from training.data import Ints, Lists, Shop, attainable, history_as_of, load_shop, popular_items

RESULT = REPOSITORY / "docs" / "benchmarks" / "model.json"
RANKER = "ranker"
TRAINING_INTERVALS = 12
NUM_POPULAR = 1000
"""Best sellers of 4 intervals that count as popular in the segments of targets."""

Method = Callable[[Shop, Lists], Ints]


def ranker(shop: Shop, lists: Lists) -> Ints:
    """The model, trained on the lists before."""
    from training import trainer
    from training.fitting import fit

    config = RankerConfig(training_intervals=TRAINING_INTERVALS)
    retrieve, intervals = trainer.Retrieval(shop, config), trainer.learning_intervals(shop, lists.as_of, config)
    with tempfile.TemporaryDirectory() as folder:
        shards = trainer.write_examples(
            [lambda: shop], intervals, config, retrieve, Path(folder), say=lambda line: None
        )
        examples = [*chain.from_iterable(shards.values())]
        fitted = fit(examples, config, len(shop.item_ids), lambda epoch, loss: None)
    return trainer.recommend(shop, lists, fitted, config, retrieve)


def als(shop: Shop, lists: Lists, rank: int = 64, regularisation: float = 0.1, alpha: float = 10.0) -> Ints:
    """Implicit ALS of Spark's MLlib over numbers of purchases."""
    import pandas as pd
    from pyspark.ml.recommendation import ALS
    from pyspark.sql import functions as F

    from spark_jobs.session import session

    users, items, _, _ = history_as_of(shop, np.arange(len(shop.user_ids)), lists.as_of, max_entries=2**31)
    spark = session("bench")
    pairs, counts = np.unique(users * len(shop.item_ids) + items, return_counts=True)
    ratings = spark.createDataFrame(
        pd.DataFrame(
            {"user": pairs // len(shop.item_ids), "item": pairs % len(shop.item_ids), "count": counts.astype(float)}
        )
    ).select(F.col("user").cast("int"), F.col("item").cast("int"), "count")
    model = ALS(
        rank=rank, maxIter=10, regParam=regularisation, alpha=alpha, implicitPrefs=True, seed=0,
        userCol="user", itemCol="item", ratingCol="count",
    ).fit(ratings)  # fmt: skip
    of_users, of_items = np.zeros((len(shop.user_ids), rank)), np.zeros((len(shop.item_ids), rank))
    for factors, rows in ((of_users, model.userFactors), (of_items, model.itemFactors)):
        rows_of_factors = rows.toPandas()
        factors[rows_of_factors["id"].to_numpy()] = np.stack(rows_of_factors["features"].to_numpy())
    return baselines.best(shop, lists, K, lambda rows: of_users[lists.users[rows]] @ of_items.T)


METHODS: dict[str, Method] = {
    "popularity": lambda shop, lists: baselines.popularity(shop, lists, K),
    "personal_frequency": lambda shop, lists: baselines.personal_frequency(shop, lists, K),
    "decayed_frequency": lambda shop, lists: baselines.decayed_frequency(shop, lists, K),
    "tifu_knn": lambda shop, lists: baselines.tifu_knn(shop, lists, K),
    "ease": lambda shop, lists: baselines.ease(shop, lists, K),
    "als": als,
    RANKER: ranker,
}


def apart(method: Method, shop: Shop, lists: Lists) -> tuple[Ints, float, float]:
    """What the method recommends, in a process of its own, with its CPU seconds and highest memory in MiB."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()

    def work() -> None:
        theirs.send(method(shop, lists))
        theirs.recv()  # wait until it has been looked at for the last time

    process = context.Process(target=work)
    process.start()
    theirs.close()  # so that the end of the process is seen here
    with Family(process.pid) as family:
        shown: Ints = ours.recv()
    ours.send(None)
    process.join()
    return shown, family.cpu_s, family.peak_mib


def segments(shop: Shop, lists: Lists) -> Iterator[tuple[str, np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """Name, `[num_lists]` whether a list counts, `[num_targets]` whether a target does."""
    owner, items, _, _ = history_as_of(shop, lists.users, lists.as_of, max_entries=2**31)
    entries = np.bincount(owner, minlength=len(lists))
    middle = np.median(entries[entries > 0]) if (entries > 0).any() else 0
    every_list, every_target = np.ones(len(lists), bool), np.ones(len(lists.targets), bool)
    num_items = len(shop.item_ids)
    target_keys = np.repeat(np.arange(len(lists)), lists.num_targets) * num_items + lists.targets
    before = np.isin(target_keys, owner * num_items + items)
    popular = np.isin(lists.targets, popular_items(shop, lists.as_of, NUM_POPULAR))
    yield "all", every_list, every_target
    yield "new users", entries == 0, every_target
    yield "light users", (entries > 0) & (entries <= middle), every_target
    yield "heavy users", entries > middle, every_target
    yield "repeat targets", every_list, before
    yield "new targets", every_list, ~before
    yield "popular targets", every_list, popular
    yield "tail targets", every_list, ~popular


def part(lists: Lists, counts: np.ndarray[Any, Any], targets: np.ndarray[Any, Any]) -> tuple[Lists, Ints]:
    """The lists that count, with the targets that do, without those left with none; and their places."""
    owner = np.repeat(np.arange(len(lists)), lists.num_targets)
    in_part = targets & counts[owner]
    lengths = np.bincount(owner[in_part], minlength=len(lists))
    places = np.flatnonzero(lengths)
    offsets = np.concatenate([[0], np.cumsum(lengths[places])])
    return Lists(lists.as_of, lists.users[places], offsets, lists.targets[in_part]), places


def measured(shop: Shop, weeks: list[int], names: list[str]) -> Iterator[dict[str, Any]]:
    """The records."""
    for week in weeks:
        lists = attainable(shop, shop.lists[week])
        shown, costs = {}, {}
        for name in names:
            shown[name], *costs[name] = apart(METHODS[name], shop, lists)
        for segment, counts, targets in segments(shop, lists):
            chosen, places = part(lists, counts, targets)
            if not len(chosen):
                continue
            scores = {name: evaluation.score(rows[places], chosen, len(shop.item_ids)) for name, rows in shown.items()}
            for name in names:
                low = high = None
                if name != RANKER and RANKER in scores and len(chosen) > 1:
                    above = stats.ttest_rel(scores[RANKER][NDCG], scores[name][NDCG]).confidence_interval()
                    low, high = round(float(above.low), 4), round(float(above.high), 4)
                means = {metric: round(value, 4) for metric, value in evaluation.means(scores[name]).items()}
                yield {
                    "method": name,
                    "week": week,
                    "segment": segment,
                    "num_lists": len(chosen),
                    **{metric: means[metric] for metric in METRICS if metric in (RECALL, NDCG)},
                    "low": low,
                    "high": high,
                    "cpu_seconds": round(costs[name][0], 1),
                    "peak_mib": round(costs[name][1]),
                }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weeks", type=int, nargs="+", default=[40, 46, 52])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--write", type=Path, default=RESULT, help="where the records go")
    chosen = parser.parse_args()
    shop = load_shop(datasets.load(settings().dataset_path), {})
    records = []
    for record in measured(shop, chosen.weeks, chosen.methods):
        records.append(record)
        if record["segment"] == "all":
            print(json.dumps(record), flush=True)
    write_json(chosen.write, records)


if __name__ == "__main__":
    main()
