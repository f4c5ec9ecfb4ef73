"""Features from clean events: `item_intervals`, `user_histories`, `training_lists`, `category_shares`, `item_features`.

Everything is strictly as of: a row of interval n or as_of n knows intervals before n only, back to the horizon (and the
plan of promotions for n itself). Item features are added up from the sums of each interval; no event is read twice. Only
what changed since a table was last made is computed again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from pyspark import StorageLevel
from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from contracts.dataset import load
from contracts.errors import reported
from contracts.settings import settings
from contracts.tables import (
    CATEGORY_SHARES,
    ITEM_FEATURES,
    ITEM_INTERVALS,
    ITEMS,
    NUM_USER_BUCKETS,
    PROMOTIONS,
    SILVER_EVENTS,
    TRAINING_LISTS,
    USER_HISTORIES,
)
from spark_jobs import pending, storage
from spark_jobs.arguments import add_interval
from spark_jobs.session import plain_failures, say, session

NO_CATEGORY = "(none)"
_DECIMALS = 6
"""Sums are rounded, so that they do not depend on the order of adding."""


def arg_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="features", description=__doc__)
    add_interval(parser, "--coming", "interval to recommend in; empty: the one after the last clean one")
    return parser


def user_bucket() -> Column:
    """The bucket of a row's user."""
    return F.pmod(F.xxhash64("user_id"), F.lit(NUM_USER_BUCKETS)).cast("int").alias("bucket")


def rows_before(rows: DataFrame, interval: int, horizon: int) -> DataFrame:
    """Rows of the intervals before `interval`, back to the horizon (in intervals)."""
    return rows.where(F.col("interval").between(interval - horizon, interval - 1))


def basket_entries(silver: DataFrame, histories: DataFrame, horizon: int) -> DataFrame:
    """One row for each item of each basket: its time, heaviest weight, sums, and the time since the user's previous one.

    A basket is the events of one user, session and interval; its time is that of its last event. `gap` is in
    intervals and null for a user's first entry of an item, back to the horizon.

    Args:
        silver: SILVER_EVENTS rows of some interval and later ones.
        histories: USER_HISTORIES rows of the intervals before that one, back to the horizon.
    """
    priced = F.col("price").isNotNull()
    basket = Window.partitionBy("user_id", "session_id", "interval")
    in_order = Window.partitionBy("user_id", "item_id").orderBy("at", "session_id")
    entries = (
        silver.repartition("user_id")  # all groups below lie within a user: one shuffle serves them all
        .groupBy("user_id", "session_id", "interval", "item_id")
        .agg(
            F.max("at").alias("at"),
            F.max("weight").alias("weight"),
            F.max("target").alias("target"),
            F.sum("quantity").alias("quantity"),
            F.sum(F.when(priced, F.col("quantity") * F.col("price"))).alias("spend"),
            F.sum(F.when(priced, F.col("quantity"))).alias("priced_quantity"),
        )
        .withColumn("at", F.max("at").over(basket))
        .withColumn("previous", F.lag("at").over(in_order))
    )
    shoppers = silver.select("user_id").distinct()
    purchases = histories.join(shoppers, "user_id", "left_semi").select(
        "user_id", F.explode(F.arrays_zip("item_ids", "at")).alias("entry")
    )
    last = purchases.groupBy("user_id", F.col("entry.item_ids").alias("item_id")).agg(F.max("entry.at").alias("last"))
    gap = F.col("at") - F.coalesce("previous", "last")
    return entries.join(last, ["user_id", "item_id"], "left").withColumn("gap", F.when(gap <= horizon, gap))


def item_intervals(entries: DataFrame) -> DataFrame:
    """ITEM_INTERVALS rows."""

    def total(value: Column) -> Column:
        return F.coalesce(F.round(F.sum(value), _DECIMALS), F.lit(0.0))

    gap = F.col("gap")
    return entries.groupBy("interval", "item_id").agg(
        F.count("*").alias("events"),
        F.sum(F.col("target").cast("int")).alias("target_events"),
        F.count_if(gap.isNull()).alias("first_events"),
        F.count(gap).alias("gaps"),
        total(gap).alias("gap_intervals"),
        *[total(F.col(name)).alias(name) for name in ("quantity", "spend", "priced_quantity")],
    )


def user_histories(entries: DataFrame) -> DataFrame:
    """USER_HISTORIES rows."""
    entry = F.struct("at", "item_id", "weight")
    by_user = entries.groupBy("interval", "user_id").agg(F.array_sort(F.collect_list(entry)).alias("taken"))
    parts = {"item_ids": "item_id", "at": "at", "weights": "weight"}
    columns = [F.col(f"taken.{part}").alias(name) for name, part in parts.items()]
    return by_user.select("interval", "user_id", *columns, user_bucket())


def training_lists(silver: DataFrame) -> DataFrame:
    """TRAINING_LISTS rows of all intervals in `silver`."""
    target_items = F.array_sort(F.collect_set("item_id"))
    lists = (
        silver.where("target")
        .groupBy(F.col("interval").alias("as_of"), "user_id")
        .agg(target_items.alias("target_items"))
    )
    return lists.withColumn("bucket", user_bucket())


def category_shares(sums: DataFrame, items: DataFrame) -> DataFrame:
    """CATEGORY_SHARES rows of all intervals in ITEM_INTERVALS rows `sums`."""
    named = sums.join(items.select("item_id", "category"), "item_id", "left")
    by_category = named.groupBy("interval", F.coalesce("category", F.lit(NO_CATEGORY)).alias("category")).agg(
        F.sum("events").alias("events")
    )
    share = F.col("events") / F.sum("events").over(Window.partitionBy("interval"))
    return by_category.select("interval", "category", share.alias("share"))


def item_features(sums: DataFrame, promotions: DataFrame, as_ofs: Sequence[int], horizon: int) -> DataFrame:
    """ITEM_FEATURES rows of each item that has an event before as_of, back to the horizon, for each of `as_ofs`.

    Args:
        sums: ITEM_INTERVALS rows.
        promotions: PROMOTIONS rows.
    """
    as_of = F.col("as_of")

    def over_last(name: str, intervals: int | None = None) -> Column:
        value = (
            F.col(name)
            if intervals is None
            else F.when(F.col("interval") >= as_of - intervals, F.col(name)).otherwise(F.lit(0.0))
        )
        return F.round(F.sum(value), _DECIMALS)

    def ratio(part: Column, whole: Column, unknown: float) -> Column:
        return F.when(whole > 0, part / whole).otherwise(F.lit(unknown))

    instants = sums.sparkSession.range(1).select(F.explode(F.lit([*as_ofs]).cast("array<int>")).alias("as_of"))
    near = F.col("interval").between(min(as_ofs, default=0) - horizon, max(as_ofs, default=0) - 1)
    added = (
        sums.where(near)
        .join(F.broadcast(instants), F.col("interval").between(as_of - horizon, as_of - 1))
        .groupBy("as_of", "item_id")
        .agg(
            *[over_last("events", intervals).alias(f"events_{intervals}") for intervals in (1, 4, 13)],
            *[
                over_last(part, 4).alias(f"{part}_4")
                for part in ("target_events", "first_events", "spend", "priced_quantity")
            ],
            *[
                over_last(part).alias(f"{part}_all")
                for part in ("events", "first_events", "gaps", "gap_intervals", "spend", "priced_quantity")
            ],
        )
    )
    planned = promotions.join(F.broadcast(instants), F.col("interval") == as_of).select(
        "item_id", "as_of", *[F.col(f"{kind}_share").alias(f"promotion_{kind}") for kind in ("first", "second", "any")]
    )
    c = F.col
    mean_price = ratio(c("spend_all"), c("priced_quantity_all"), 0.0)
    recent_price = c("spend_4") / c("priced_quantity_4")
    return added.join(planned, ["item_id", "as_of"], "left").select(
        "as_of",
        "item_id",
        "events_1",
        "events_4",
        "events_13",
        "events_all",
        "target_events_4",
        c("first_events_all").alias("buyers_all"),
        ratio(c("first_events_4"), c("events_4"), 0.0).alias("first_share_4"),
        ratio(c("gaps_all"), c("events_all"), 0.0).alias("repeat_share"),
        ratio(c("gap_intervals_all"), c("gaps_all"), 0.0).alias("mean_gap"),
        mean_price.alias("mean_price"),
        F.when((c("priced_quantity_4") > 0) & (mean_price > 0), recent_price / mean_price)
        .otherwise(F.lit(1.0))
        .alias("price_ratio"),
        *[
            F.coalesce(f"promotion_{kind}", F.lit(0.0)).alias(f"promotion_{kind}")
            for kind in ("first", "second", "any")
        ],
    )


def _by_bucket(rows: DataFrame, partition: str) -> DataFrame:
    """In order, so that whoever reads one bucket passes over most of the others."""
    return rows.repartition(partition).sortWithinPartitions(partition, "bucket", "user_id")


@storage.writing()
def main(coming: int | None) -> int:
    """Bring all feature tables up to date; the exit status is 0, also when there was nothing to do.

    Args:
        coming: the interval to recommend in. None: the one after the last clean one.
    """
    # Before asking what is pending.
    silver_state, promotions_state, items_state = map(storage.state, (SILVER_EVENTS, PROMOTIONS, ITEMS))
    todo = pending.features(coming)
    if not todo.any():
        print("nothing to do: features are made of all clean events")
        return 0
    for table in (USER_HISTORIES, TRAINING_LISTS):
        storage.require_layout(table)
    record, horizon = {"silver": silver_state}, load(settings().dataset_path).interval.horizon
    spark = session("features")
    silver = storage.read(spark, SILVER_EVENTS)
    changed = [*todo.item_intervals, *todo.user_histories]
    if changed:
        # Histories before the first change are right in any case, also when a run was killed between two tables.
        histories = rows_before(storage.read(spark, USER_HISTORIES), min(changed), horizon)
        events = silver.where(F.col("interval").between(min(changed), max(changed)))
        entries = basket_entries(events, histories, horizon).persist(StorageLevel.MEMORY_AND_DISK)
        if todo.item_intervals:
            these = storage.ranges_predicate("interval", todo.item_intervals)
            sums = item_intervals(entries.where(these)).repartition("interval")
            storage.write(sums, ITEM_INTERVALS, replace=todo.item_intervals, record=record)
            say(f"{ITEM_INTERVALS.name}: intervals {todo.item_intervals[0]} to {todo.item_intervals[-1]}")
        if todo.user_histories:
            these = storage.ranges_predicate("interval", todo.user_histories)
            rows = _by_bucket(user_histories(entries.where(these)), "interval")
            num_rows = storage.write(rows, USER_HISTORIES, replace=todo.user_histories, record=record)
            say(f"{USER_HISTORIES.name}: {num_rows:,} rows of {len(todo.user_histories)} intervals")
        entries.unpersist()
    if todo.training_lists:
        these = storage.ranges_predicate("interval", todo.training_lists)
        lists = _by_bucket(training_lists(silver.where(these)), "as_of")
        storage.write(lists, TRAINING_LISTS, replace=todo.training_lists, record=record)
        say(f"{TRAINING_LISTS.name}: {len(todo.training_lists)} intervals")
    sums = storage.read(spark, ITEM_INTERVALS)
    if todo.category_shares:
        shares = category_shares(sums.where(F.col("interval").isin(todo.category_shares)), storage.read(spark, ITEMS))
        made_of = record | {"items": items_state}
        num_rows = storage.write(shares.coalesce(1), CATEGORY_SHARES, replace=todo.category_shares, record=made_of)
        say(f"{CATEGORY_SHARES.name}: {num_rows:,} rows")
    if todo.item_features or todo.outdated:
        promotions = storage.read(spark, PROMOTIONS)
        computed = item_features(sums, promotions, todo.item_features, horizon).repartition("as_of")
        as_ofs, made_of = {*todo.item_features, *todo.outdated}, record | {"promotions": promotions_state}
        storage.write(computed, ITEM_FEATURES, replace=as_ofs, record=made_of)
        say(f"{ITEM_FEATURES.name}: as of {', '.join(str(as_of) for as_of in todo.item_features)}")
    return 0


if __name__ == "__main__":
    arguments = arg_parser().parse_args()
    with reported(), plain_failures():
        sys.exit(main(arguments.coming))
