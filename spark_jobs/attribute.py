"""Put what was recommended, by the model and by the baselines, beside what was then taken: `attributions`.

Each interval with exposures is computed as a whole and replaced in one commit. The baselines know what the model
could know: clean events before the interval, and items that are recommendable and known well enough.
"""

from __future__ import annotations

import argparse
import sys

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from contracts.dataset import load
from contracts.errors import reported
from contracts.settings import settings
from contracts.tables import ATTRIBUTIONS, EXPOSURES, ITEMS, SILVER_EVENTS
from spark_jobs import pending, storage
from spark_jobs.arguments import add_interval
from spark_jobs.session import plain_failures, say, session

RECENT_INTERVALS = 4


def arg_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="attribute", description=__doc__)
    add_interval(parser, "--interval", "the interval; empty: all whose outcome is new")
    return parser


def attainable_items(before: DataFrame, items: DataFrame, minimum_events: int) -> DataFrame:
    """`item_id` of the items that could be recommended: not excluded, and in enough baskets by then.

    Args:
        before: SILVER_EVENTS rows before the interval.
    """
    baskets = before.select("user_id", "session_id", "interval", "item_id").distinct()
    known = baskets.groupBy("item_id").count().where(F.col("count") >= minimum_events).select("item_id")
    return known.join(items.where("recommendable").select("item_id"), "item_id")


def popular(before: DataFrame, interval: int, k: int) -> list[str]:
    """The k items in most baskets of the last intervals (then by id), best first.

    Args:
        before: SILVER_EVENTS rows of attainable items before the interval.
    """
    recent = before.where((F.col("interval") >= interval - RECENT_INTERVALS) & F.col("target"))
    counts = recent.select("user_id", "session_id", "interval", "item_id").distinct().groupBy("item_id").count()
    return [row["item_id"] for row in counts.orderBy(F.desc("count"), "item_id").limit(k).collect()]


def frequent(before: DataFrame, k: int) -> DataFrame:
    """`user_id` and the k items (`own`) that are in most of the user's baskets, then latest, then by id."""
    counted = before.groupBy("user_id", "item_id").agg(
        F.countDistinct("session_id", "interval").alias("baskets"), F.max("at").alias("latest")
    )
    place = F.row_number().over(Window.partitionBy("user_id").orderBy(F.desc("baskets"), F.desc("latest"), "item_id"))
    best = counted.withColumn("place", place).where(F.col("place") <= k)
    listed = F.transform(F.array_sort(F.collect_list(F.struct("place", "item_id"))), lambda entry: entry["item_id"])
    return best.groupBy("user_id").agg(listed.alias("own"))


def attributions(
    exposures: DataFrame, silver: DataFrame, items: DataFrame, interval: int, *, minimum_events: int, k: int
) -> DataFrame:
    """ATTRIBUTIONS rows of one interval.

    `taken_items` holds what was taken in the interval after the list was shown, of attainable items only, as
    evaluation does. What no model answered, and what was shown to nobody who is known, is left out.

    Args:
        exposures: EXPOSURES rows of the interval.
    """
    exposures = exposures.where("user_id IS NOT NULL AND model_version IS NOT NULL")
    before = silver.where(F.col("interval") < interval)
    attainable = attainable_items(before, items, minimum_events)
    known = before.join(attainable, "item_id", "left_semi")
    best_sellers = popular(known, interval, 2 * k)
    shoppers = exposures.select("user_id").distinct()
    own = frequent(known.join(shoppers, "user_id", "left_semi"), k)
    here = silver.where((F.col("interval") == interval) & F.col("target")).join(attainable, "item_id", "left_semi")
    requests = exposures.select("request_id", "user_id", "served_at")
    after = F.col("occurred_at") >= F.col("served_at")
    taken = (
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
        .join(taken, "request_id", "left")
        .select(
            F.lit(interval).alias("interval"),
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
        rows = attributions(
            storage.read(spark, EXPOSURES).where(F.col("interval") == each),
            storage.read(spark, SILVER_EVENTS),
            storage.read(spark, ITEMS),
            each,
            minimum_events=dataset.minimum_item_events,
            k=settings().top_k,
        )
        storage.write(rows.coalesce(1), ATTRIBUTIONS, where=f"interval = {each}", record={"intervals": states})
        say(f"interval {each}: {num_shown[each]:,} lists attributed")
    return 0


if __name__ == "__main__":
    arguments = arg_parser().parse_args()
    with reported(), plain_failures():
        sys.exit(main(arguments.interval))
