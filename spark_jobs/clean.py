"""Clean what landed: `bronze_events` into `silver_events`, and every row set aside into `quarantine` with its reasons.
What is sold goes into `items`, by its file or by these events.

Only intervals that changed since silver was last made are read. The rules are those of `spark_jobs.rules`.
"""

from __future__ import annotations

import argparse
import sys
from itertools import chain

from pyspark import StorageLevel
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from contracts import lake
from contracts.dataset import Dataset, load
from contracts.errors import reported
from contracts.settings import settings
from contracts.tables import BRONZE_EVENTS, QUARANTINE, SILVER_EVENTS, UNTIMED
from spark_jobs import items, pending, rules, storage
from spark_jobs.session import plain_failures, say, session


def arg_parser() -> argparse.ArgumentParser:
    return argparse.ArgumentParser(prog="clean", description=__doc__)


def judge(bronze: DataFrame, dataset: Dataset) -> DataFrame:
    """Every row of bronze as SILVER_EVENTS with its `reasons` (empty for the ones to keep), and its record in `row`."""
    weights = F.create_map(*[F.lit(part) for part in chain(*dataset.types.items())])
    judged = bronze.withColumn("quantity", F.coalesce("quantity", F.lit(1.0))).withColumn("reasons", rules.reasons())
    return judged.select(
        "event_id",
        "source",
        "interval",
        "user_id",
        "item_id",
        "event_type",
        F.element_at(weights, F.col("event_type")).alias("weight"),
        F.col("event_type").isin(*dataset.target_types).alias("target"),
        "occurred_at",
        "at",
        F.coalesce("session_id", F.concat_ws("|", "user_id", F.col("occurred_at").cast("string"))).alias("session_id"),
        "quantity",
        "price",
        F.col("ingested_at").alias("bronze_ingested_at"),
        "reasons",
        F.coalesce("record", F.when(F.size("reasons") > 0, F.to_json(F.struct(*BRONZE_EVENTS.column_names)))).alias(
            "row"
        ),
    )


def fit(judged: DataFrame) -> DataFrame:
    """SILVER_EVENTS rows."""
    return judged.where(F.size("reasons") == 0)


def set_aside(judged: DataFrame) -> DataFrame:
    """QUARANTINE rows."""
    return judged.where(F.size("reasons") > 0).select("interval", "source", "event_id", "reasons", "row")


def main(dataset: Dataset) -> int:
    """Clean the pending intervals; the exit status is 0, also when there was nothing to do.

    Raises:
        RuntimeError: rows read are not rows kept plus rows set aside; then nothing was written.
    """
    with lake.lock("clean"), storage.writing():
        return _clean(dataset)


def _clean(dataset: Dataset) -> int:
    storage.require_layout(SILVER_EVENTS)
    storage.require_layout(QUARANTINE)
    # Before asking what is pending: what lands from here on is for the next run.
    bronze_state, through = storage.state(BRONZE_EVENTS), pending.landed_through()
    intervals = pending.clean()
    folder = settings().data_path
    if through is None or not (intervals or items.is_outdated(dataset, folder)):
        print("nothing to do: silver is made of all that landed")
        return 0
    spark = session("clean")
    these = storage.ranges_predicate("interval", intervals)
    version = int(bronze_state.partition("@")[2])
    bronze = storage.read(spark, BRONZE_EVENTS, version)
    complete = bronze.where(F.col("interval").between(UNTIMED + 1, through) & F.col("record").isNull())
    items.refresh_items(dataset, folder, complete, intervals)
    if not intervals:
        return 0
    if storage.recorded(SILVER_EVENTS).get("meaning", pending.meaning(dataset)) != pending.meaning(dataset):
        say(
            "the dataset file gives types of events other weights, or has other targets: all intervals are cleaned again"
        )
    say(f"clean {pending.named(intervals)}")
    judged = judge(bronze.where(these), dataset).persist(StorageLevel.MEMORY_AND_DISK)
    try:
        aside = set_aside(judged)
        rows_of = storage.rows(BRONZE_EVENTS, version)
        num_read = sum(rows_of.get(interval, 0) for interval in intervals)
        record = {"bronze": bronze_state, "through": through, "meaning": pending.meaning(dataset)}
        with (
            storage.staged_files(aside.coalesce(1), QUARANTINE) as bad,
            storage.staged_files(fit(judged).repartition("interval"), SILVER_EVENTS) as good,
        ):
            num_kept, num_aside = storage.num_rows(good), storage.num_rows(bad)
            if num_read != num_kept + num_aside:
                raise RuntimeError(f"{num_read} rows were read, but {num_kept} kept and {num_aside} set aside")
            # Silver last: its commit says that the intervals are done, so a run that is killed before it is repeated.
            storage.commit(bad, QUARANTINE, replace=intervals)
            storage.commit(good, SILVER_EVENTS, replace=intervals, record=record)
        say(f"{num_read:,} read = {num_kept:,} kept + {num_aside:,} set aside")
        reasons = rules.count_reasons(aside.withColumnRenamed("row", "record")) if num_aside else []
        for kind in reasons[:12]:
            say(f"  {kind['rows']:,} {kind['kind']}")
    finally:
        judged.unpersist()
    return 0


if __name__ == "__main__":
    arg_parser().parse_args()
    with reported(), plain_failures():
        sys.exit(main(load(settings().dataset_path)))
