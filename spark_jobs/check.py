"""Say what is wrong with a dataset file and its data, before anything runs on them.

Reads with the very functions that land the data. Exit status 2 when nothing could be built on the data.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.storagelevel import StorageLevel

from contracts.dataset import Dataset, load
from contracts.errors import InputError, reported
from contracts.settings import settings
from spark_jobs import sources
from spark_jobs.land import read_events
from spark_jobs.session import plain_failures, session

MINIMUM_INTERVALS = 3
COMPLETE_SHARE = 0.9
"""An interval counts as complete when the data reaches this far into it."""


def arg_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="check", description=__doc__)
    parser.add_argument("--json", type=Path, default=None, metavar="PATH", help="write what was found there too")
    parser.add_argument("--users-of-last", type=int, default=0, metavar="N", help="list the active users of the last N complete intervals in it")
    return parser


def is_usable() -> Any:
    """Whether a row can become a clean event."""
    present = F.col("interval").isNotNull() & F.col("user_id").isNotNull() & F.col("item_id").isNotNull() & F.col("event_type").isNotNull()
    return F.coalesce(present & (F.size("problems") == 0) & (F.coalesce("quantity", F.lit(1.0)) > 0), F.lit(False))


def problem_counts(events: DataFrame) -> list[dict[str, Any]]:
    """Each kind of problem with its number of rows and an example, most frequent first."""
    missing = [F.when(F.col(name).isNull(), F.lit(f"{name}: missing")) for name in ("user_id", "item_id")]
    returned = F.when(F.col("quantity") <= 0, F.lit("returned (quantity not above 0)"))
    said = F.explode(F.concat("problems", F.array_compact(F.array(*missing, returned))))
    problems = events.select(said.alias("problem"), "row")
    # `price: not a number: '12,x'`: the kind is what stands before the value.
    kind = F.regexp_replace("problem", r": '.*$", "")
    found = problems.groupBy(kind.alias("kind")).agg(F.count("*").alias("rows"), F.first("row").alias("example"))
    return [row.asDict() for row in found.orderBy(F.desc("rows"), "kind").collect()]


def look(events: DataFrame, dataset: Dataset, users_of_last: int) -> dict[str, Any]:
    """What the data holds, as JSON."""
    usable = is_usable()
    total = events.agg(
        F.count("*").alias("rows"),
        F.count_if(usable).alias("usable_rows"),
        F.count_if(usable & F.col("price").isNotNull()).alias("priced_rows"),
        F.min(F.when(usable, F.col("at"))).alias("first_at"),
        F.max(F.when(usable, F.col("at"))).alias("last_at"),
        F.count_distinct(F.when(usable, F.col("user_id"))).alias("users"),
        F.count_distinct(F.when(usable, F.col("item_id"))).alias("items"),
    ).first()
    assert total is not None
    found: dict[str, Any] = {name: total[name] for name in ("rows", "usable_rows", "priced_rows", "users", "items")}
    found["problems"] = problem_counts(events) if found["usable_rows"] < found["rows"] else []
    if not found["usable_rows"]:
        return found
    sound = events.where(usable)
    by_interval = {row["interval"]: row["count"] for row in sound.groupBy("interval").count().collect()}
    last = max(by_interval)
    is_complete = total["last_at"] - (last - 1) >= COMPLETE_SHARE
    found |= {
        "first_interval": min(by_interval),
        "last_interval": last,
        "last_complete_interval": last if is_complete else last - 1,
        "first_time": str(dataset.interval.first + total["first_at"] * dataset.interval.length),
        "last_time": str(dataset.interval.first + total["last_at"] * dataset.interval.length),
        "events_by_type": {row["event_type"]: row["count"] for row in sound.groupBy("event_type").count().collect()},
        "events_by_interval": {str(interval): by_interval[interval] for interval in sorted(by_interval)},
    }
    since = found["last_complete_interval"] - users_of_last
    active = sound.where((F.col("interval") > since) & F.col("event_type").isin(*dataset.events.target_types))
    if users_of_last:
        found["active_users"] = {
            str(row["interval"]): sorted(row["users"]) for row in active.groupBy("interval").agg(F.collect_set("user_id").alias("users")).collect()
        }
    return found


def warnings(found: dict[str, Any], dataset: Dataset) -> list[str]:
    """What is no error but worth a look."""
    said = []
    unusable = 1 - found["usable_rows"] / found["rows"]
    if unusable > 0.05:
        said.append(f"{unusable:.0%} of the rows cannot be used: see the problems above")
    if dataset.events.columns.price and found["priced_rows"] < 0.5 * found["usable_rows"]:
        said.append("most events have no price: check columns.price and decimal_comma")
    if found["users"] < 20:
        said.append(f"only {found['users']} users: too few to learn from others")
    gaps = [i for i in range(found["first_interval"], found["last_interval"]) if str(i) not in found["events_by_interval"]]
    if gaps:
        said.append(f"{len(gaps)} intervals without events, the first is {dataset.interval.label(gaps[0])}")
    return said


def errors(found: dict[str, Any], dataset: Dataset) -> list[tuple[str, str]]:
    """What forbids to go on, each with its cure."""
    if not found["rows"]:
        return [("there are no rows", "name files with events in `events.path`")]
    if not found["usable_rows"]:
        worst = found["problems"][0]
        return [(f"none of {found['rows']:,} rows can be used: {worst['kind']} ({worst['rows']:,} rows)", "correct [events.columns], types or time_format")]
    intervals = len(found["events_by_interval"])
    if intervals < MINIMUM_INTERVALS:
        length = dataset.interval.length
        return [
            (
                f"all events lie in {intervals} intervals of {length}, from {found['first_time']} to {found['last_time']}; at least {MINIMUM_INTERVALS} are needed",
                "set a shorter interval.length, or bring more history",
            )
        ]
    return []


def report(found: dict[str, Any], dataset: Dataset) -> str:
    """What a person reads."""
    lines = [f"{dataset.title or dataset.name}: {found['rows']:,} rows, {found['usable_rows']:,} of them usable"]
    if found["usable_rows"]:
        lines += [
            f"  from {found['first_time'][:19]} to {found['last_time'][:19]} in the shop's time ({dataset.time_zone})",
            f"  intervals of {dataset.interval.length}: {found['first_interval']} to {found['last_interval']}, the last complete one is {found['last_complete_interval']}",
            f"  {found['users']:,} users, {found['items']:,} items",
            "  events: " + ", ".join(f"{count:,} {name}" for name, count in sorted(found["events_by_type"].items())),
        ]
    for problem in found["problems"]:
        lines += [f"  {problem['rows']:>10,} rows  {problem['kind']}", f"              e.g. {problem['example'][:160]}"]
    return "\n".join(lines)


def main(dataset: Dataset, folder: Path, path: Path | None, users_of_last: int) -> int:
    """Check the data of a dataset; the exit status.

    Raises:
        InputError: the data cannot be read, or nothing could be built on it.
    """
    spark = session("check")
    events = read_events(spark, dataset, folder, datetime.now(UTC))
    with sources.readable(dataset.events, folder):
        # Only what is looked at is kept; a row itself only where it may be shown.
        slim = events.select(
            "interval", "at", "user_id", "item_id", "event_type", "quantity", "price", "problems", F.when(~is_usable(), F.col("row")).alias("row")
        )
        found = look(slim.persist(StorageLevel.MEMORY_AND_DISK), dataset, users_of_last)
    for part in (dataset.items.files if dataset.items else None, dataset.users, dataset.promotions):
        if part is not None:
            columns = getattr(dataset, next(name for name in ("items", "users", "promotions") if part in (getattr(dataset, name), getattr(getattr(dataset, name), "files", None)))).columns
            names = [name for value in columns.model_dump().values() if value for name in ([value] if isinstance(value, str) else value)]
            sources.require(sources.read(spark, part, folder), names, ", ".join(sources.paths(part, folder)))
    print(report(found, dataset))
    for what, cure in errors(found, dataset):
        raise InputError(what, where=", ".join(sources.paths(dataset.events, folder)), cure=cure)
    for line in warnings(found, dataset):
        print(f"  warning: {line}")
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(json.dumps(found, indent=1), encoding="utf-8")
        os.replace(partial, path)
    print("the data can be used")
    return 0


if __name__ == "__main__":
    arguments = arg_parser().parse_args()
    with reported(), plain_failures():
        sys.exit(main(load(settings().dataset_path), settings().data_path, arguments.json, arguments.users_of_last))
