"""Put what was recommended, by the model and by the baselines, beside what was then taken: `attributions`.

Each interval with exposures is computed as a whole and replaced in one commit. The baselines know what the model
could know: the features as of the interval, and items that are recommendable and known well enough.
"""

from __future__ import annotations

import argparse
import sys

from pyspark.sql import DataFrame, SparkSession, Window
from pyspark.sql import functions as F

from contracts.dataset import load
from contracts.errors import reported
from contracts.settings import settings
from contracts.tables import (
    ATTRIBUTIONS,
    EXPOSURES,
    ITEM_FEATURES,
    ITEM_INTERVALS,
    ITEMS,
    PROMOTIONS,
    SILVER_EVENTS,
    USER_HISTORIES,
)
from spark_jobs import pending, storage
from spark_jobs.arguments import add_interval
from spark_jobs.features import item_features, rows_before
from spark_jobs.session import plain_failures, say, session


def arg_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="attribute", description=__doc__)
    add_interval(parser, "--interval", "the interval; empty: all whose outcome is new")
    return parser


def statistics(spark: SparkSession, interval: int, horizon: int) -> DataFrame:
    """ITEM_FEATURES rows as of `interval`; those of an interval that no training looks at any more are made anew."""
    if interval in storage.files(ITEM_FEATURES):
        return storage.read(spark, ITEM_FEATURES).where(F.col("as_of") == interval)
    return item_features(storage.read(spark, ITEM_INTERVALS), storage.read(spark, PROMOTIONS), [interval], horizon)


def popular(attainable: DataFrame, k: int) -> list[str]:
    """The k items in most baskets of the last intervals (then ever, then by id), best first.

    Args:
        attainable: ITEM_FEATURES rows.
    """
    best = attainable.orderBy(F.desc("target_events_4"), F.desc("events_all"), "item_id")
    return [row["item_id"] for row in best.where("target_events_4 > 0").select("item_id").limit(k).collect()]


def frequent(histories: DataFrame, attainable: DataFrame, k: int) -> DataFrame:
    """`user_id` and the k items (`own`) that are in most of the user's baskets, then latest, then by id.

    Args:
        histories: USER_HISTORIES rows.
    """
    entries = histories.select("user_id", F.explode(F.arrays_zip("item_ids", "at")).alias("entry")).select(
        "user_id", F.col("entry.item_ids").alias("item_id"), F.col("entry.at").alias("at")
    )
    counted = (
        entries.join(attainable.select("item_id"), "item_id", "left_semi")
        .groupBy("user_id", "item_id")
        .agg(F.count("*").alias("baskets"), F.max("at").alias("latest"))
    )
    place = F.row_number().over(Window.partitionBy("user_id").orderBy(F.desc("baskets"), F.desc("latest"), "item_id"))
    best = counted.withColumn("place", place).where(F.col("place") <= k)
    listed = F.transform(F.array_sort(F.collect_list(F.struct("place", "item_id"))), lambda entry: entry["item_id"])
    return best.groupBy("user_id").agg(listed.alias("own"))


def attributions(
    exposures: DataFrame, silver: DataFrame, attainable: DataFrame, histories: DataFrame, k: int
) -> DataFrame:
    """ATTRIBUTIONS rows of one interval.

    `taken_items` holds what was taken in the interval after the list was shown, of attainable items only, as
    evaluation does. What no model answered, and what was shown to nobody who is known, is left out.

    Args:
        exposures: EXPOSURES rows of the interval.
        silver: SILVER_EVENTS rows of the interval.
        attainable: ITEM_FEATURES rows as of the interval, of the items that could be recommended.
        histories: USER_HISTORIES rows of the intervals before that one, back to the horizon.
    """
    exposures = exposures.where("user_id IS NOT NULL AND model_version IS NOT NULL")
    best_sellers = popular(attainable, 2 * k)
    shoppers = exposures.select("user_id").distinct()
    own = frequent(histories.join(shoppers, "user_id", "left_semi"), attainable, k)
    here = silver.where("target").join(attainable.select("item_id"), "item_id", "left_semi")
    requests = exposures.select("request_id", "user_id", "served_at")
    after = F.col("occurred_at") >= F.col("served_at")
    outcomes = (
        requests.join(here.select("user_id", "item_id", "occurred_at"), "user_id")
        .where(after)
        .groupBy("request_id")
        .agg(F.array_sort(F.collect_set("item_id")).alias("taken_items"))
    )
    none, best = F.array().cast("array<string>"), F.lit(best_sellers).cast("array<string>")
    own_items = F.coalesce("own", none)
    filled = F.concat(own_items, F.array_except(best, own_items))
    return (
        exposures.join(own, "user_id", "left")
        .join(outcomes, "request_id", "left")
        .select(
            "interval",
            "request_id",
            "user_id",
            "model_version",
            "latency_ms",
            "items",
            F.slice(best, 1, k).alias("popular_items"),
            F.slice(filled, 1, k).alias("frequent_items"),
            F.coalesce("taken_items", none).alias("taken_items"),
        )
    )


@storage.writing()
def main(interval: int | None) -> int:
    """Attribute one interval, or all whose outcome is new; the exit status.

    Args:
        interval: None means what `pending.attribute` says.
    """
    todo = pending.attribute() if interval is None else [interval]
    if not todo:
        print("nothing to do: every exposure is attributed")
        return 0
    dataset, spark = load(settings().dataset_path), session("attribute")
    # Before reading, so that what arrives meanwhile is found again next time.
    made_of, num_shown = pending.attribution_states(), storage.rows(EXPOSURES)
    for each in todo:
        if each not in made_of:
            print(f"nothing to do: no exposures in interval {each}")
            continue
        states = storage.recorded(ATTRIBUTIONS).get("intervals", {}) | {str(each): made_of[each]}
        sold = storage.read(spark, ITEMS).where("recommendable").select("item_id")
        before = statistics(spark, each, dataset.interval.horizon).where(
            F.col("events_all") >= dataset.minimum_item_events
        )
        attainable = before.join(sold, "item_id", "left_semi").persist()
        rows = attributions(
            storage.read(spark, EXPOSURES).where(F.col("interval") == each),
            storage.read(spark, SILVER_EVENTS).where(F.col("interval") == each),
            attainable,
            rows_before(storage.read(spark, USER_HISTORIES), each, dataset.interval.horizon),
            settings().top_k,
        )
        storage.write(rows.coalesce(1), ATTRIBUTIONS, replace=[each], record={"intervals": states})
        attainable.unpersist()
        say(f"interval {each}: {num_shown[each]:,} lists attributed")
    return 0


if __name__ == "__main__":
    arguments = arg_parser().parse_args()
    with reported(), plain_failures():
        sys.exit(main(arguments.interval))
