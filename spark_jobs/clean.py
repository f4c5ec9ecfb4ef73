"""Clean what landed: `bronze_events` into `silver_events`, and every row set aside into `quarantine` with its reasons.
What is sold goes into `items`, by its file or by these events.

Only intervals that changed since silver was last made are read. The rules are those of `spark_jobs.rules`. Of the
intervals that are not over yet, landing has what is new cleaned at once: that is there to be looked at, and nothing is
made of it. Once an interval is over and its gate has looked at it, it is cleaned as a whole.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection
from itertools import chain
from typing import Any

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
    intervals, meaning = pending.clean(), pending.meaning(dataset)
    folder = settings().data_path
    if through is None or not (intervals or items.is_outdated(dataset, folder)):
        print("nothing to do: silver is made of all that landed")
        return 0
    spark = session("clean")
    version = _version(bronze_state)
    bronze = storage.read(spark, BRONZE_EVENTS, version)
    complete = bronze.where(F.col("interval").between(UNTIMED + 1, through) & F.col("record").isNull())
    items.refresh_items(dataset, folder, complete, intervals)
    if not intervals:
        return 0
    is_same_meaning = storage.recorded(SILVER_EVENTS).get("meaning", meaning) == meaning
    if not is_same_meaning:
        say(
            "the dataset file gives types of events other weights, or has other targets: all intervals are cleaned again"
        )
    say(f"clean {pending.named(intervals)}")
    record = {"bronze": bronze_state, "through": through, "meaning": meaning}
    if not is_same_meaning:
        record[pending.RUNNING] = ""  # the intervals that run are to be made anew, too
    _take_in(dataset, version, intervals, record)
    return 0


def clean_running(dataset: Dataset) -> None:
    """Bring what has landed of intervals that are not over into silver: what is new is added to what is there.

    Raises:
        RuntimeError: as `main`.
    """
    with lake.lock("clean"), storage.writing():
        bronze_state, news = storage.state(BRONZE_EVENTS), pending.running()
        if not news:
            return
        record = storage.recorded(SILVER_EVENTS, "through") | {pending.RUNNING: bronze_state}
        if not pending.clean():
            record["bronze"] = bronze_state  # so that no log is read again from the last whole cleaning on
        added = [files for files in news.values() if files is not None]
        paths = frozenset[str]().union(*added) if len(added) == len(news) else None
        _take_in(dataset, _version(bronze_state), news, record, paths)
        for table in (SILVER_EVENTS, QUARANTINE):
            storage.compact(table)


def _version(state: str) -> int:
    return int(state.partition("@")[2])


def _take_in(
    dataset: Dataset,
    version: int,
    intervals: Collection[int],
    record: dict[str, Any],
    paths: Collection[str] | None = None,
) -> None:
    """Clean rows of some intervals of a version of bronze, and write them to silver and quarantine, each in one commit.

    Args:
        paths: only these files of bronze, whose rows are added. None: all, in the place of what there is.
    """
    these = storage.ranges_predicate("interval", intervals)
    bronze = storage.read(session("clean"), BRONZE_EVENTS, version, paths).where(these)
    rows_of = storage.rows(BRONZE_EVENTS, version, paths)
    num_read = sum(rows_of.get(interval, 0) for interval in intervals)
    replace: storage.Replaced = intervals if paths is None else "nothing"
    judged = judge(bronze, dataset).persist(StorageLevel.MEMORY_AND_DISK)
    try:
        aside = set_aside(judged)
        with (
            storage.staged_files(aside.coalesce(1), QUARANTINE) as bad,
            storage.staged_files(fit(judged).repartition("interval"), SILVER_EVENTS) as good,
        ):
            num_kept, num_aside = storage.num_rows(good), storage.num_rows(bad)
            if num_read != num_kept + num_aside:
                raise RuntimeError(f"{num_read} rows were read, but {num_kept} kept and {num_aside} set aside")
            # Silver last: its commit says that all is done, so a run that is killed before it is repeated.
            storage.commit(bad, QUARANTINE, replace=replace, record=record)
            storage.commit(good, SILVER_EVENTS, replace=replace, record=record)
        say(f"{num_read:,} read = {num_kept:,} kept + {num_aside:,} set aside")
        reasons = rules.count_reasons(aside.withColumnRenamed("row", "record")) if num_aside else []
        for kind in reasons[:12]:
            say(f"  {kind['rows']:,} {kind['kind']}")
    finally:
        judged.unpersist()


if __name__ == "__main__":
    arg_parser().parse_args()
    with reported(), plain_failures():
        sys.exit(main(load(settings().dataset_path)))
