"""Say what is wrong with a dataset file and its data, before anything runs on them.

Reads with the very functions that land the data and judges with the rules that clean it; no table is written. Exit
status 2 when nothing could be built on the data.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import reduce
from pathlib import Path
from typing import Any

from pyspark import StorageLevel
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from contracts.dataset import Dataset, Events, Files, load
from contracts.errors import InputError, reported
from contracts.files import write_json
from contracts.settings import settings
from contracts.tables import MAX_PROBLEM_SHARE, UNTIMED
from spark_jobs import reading, rules, sources
from spark_jobs.landing import parsed_events
from spark_jobs.parsing import declared_columns, epoch_unit, number
from spark_jobs.session import plain_failures, session

MINIMUM_INTERVALS = 3
"""One to learn from, one to evaluate on, one to hold back."""
COMPLETE_SHARE = 0.9
"""An interval counts as complete when the data reaches this far into it."""
MUCH = 0.05
"""Share of rows from which on a defect is worth a warning."""
MUCH_OF_ONE = 0.1
"""Share of all events from which on one user is more than a person."""
MANY_USERS = 20
_BARS = 20
_BAR_WIDTH = 40
_UNITS = {"epoch_s": "seconds", "epoch_ms": "milliseconds", "epoch_us": "microseconds", "epoch_ns": "nanoseconds"}


def arg_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="check", description=__doc__)
    parser.add_argument("--json", type=Path, default=None, metavar="PATH", help="write what was found there too")
    parser.add_argument(
        "--users-of-last",
        type=int,
        default=0,
        metavar="N",
        help="list the active users of the last N complete intervals in it",
    )
    return parser


def read_events(spark: SparkSession, source: Events, dataset: Dataset, folder: Path, now: datetime) -> DataFrame:
    """All events of a source of files, as landing reads them.

    Raises:
        InputError: a file or a declared column is missing or cannot be read.
    """
    assert source.files is not None
    raw = reading.read_all(spark, source.files, folder, declared_columns(source, dataset.items))
    return parsed_events(raw, source, dataset, now, where=", ".join(source.files.path))


def judge(events: DataFrame) -> DataFrame:
    """BRONZE_EVENTS rows with the `reasons` why clean would set them aside, lean enough to keep."""
    judged = events.withColumn("quantity", F.coalesce("quantity", F.lit(1.0))).withColumn("reasons", rules.reasons())
    return judged.select(
        F.when(F.col("interval") != UNTIMED, F.col("interval")).alias("interval"),
        "at",
        "user_id",
        "item_id",
        "event_type",
        F.col("price").isNotNull().alias("priced"),
        F.xxhash64("interval", "event_id").alias("key"),
        ((F.size("problems") > 0) | (F.col("interval") == UNTIMED)).alias("unread"),
        "reasons",
        "record",
    )


def look(judged: DataFrame, dataset: Dataset, users_of_last: int) -> dict[str, Any]:
    """What the data holds, as JSON."""
    usable = F.size("reasons") == 0
    total = judged.agg(
        F.count("*").alias("rows"),
        F.count_if(usable).alias("usable_rows"),
        F.count_if(usable & F.col("priced")).alias("priced_rows"),
        F.count_if("unread").alias("unread_rows"),
        (F.count("*") - F.count_distinct("key")).alias("duplicate_rows"),
        F.min(F.when(usable, F.col("at"))).alias("first_at"),
        F.max(F.when(usable, F.col("at"))).alias("last_at"),
        F.count_distinct(F.when(usable, F.col("user_id"))).alias("users"),
        F.count_distinct(F.when(usable, F.col("item_id"))).alias("items"),
    ).first()
    assert total is not None
    facts: dict[str, Any] = {
        name: total[name]
        for name in ("rows", "usable_rows", "unread_rows", "duplicate_rows", "priced_rows", "users", "items")
    }
    facts["problems"] = rules.count_reasons(judged) if facts["usable_rows"] < facts["rows"] else []
    if not facts["usable_rows"]:
        return facts
    sound = judged.where(usable)
    counts = {
        (row["interval"], row["event_type"]): row["count"]
        for row in sound.groupBy("interval", "event_type").count().collect()
    }
    busiest = sound.groupBy("user_id").count().orderBy(F.desc("count"), "user_id").first()
    facts["busiest_user"] = {"user_id": busiest["user_id"], "events": busiest["count"]} if busiest is not None else None
    intervals = sorted({interval for interval, _ in counts})
    is_complete = total["last_at"] - (intervals[-1] - 1) >= COMPLETE_SHARE
    facts |= {
        "first_interval": intervals[0],
        "last_interval": intervals[-1],
        "last_complete_interval": intervals[-1] if is_complete else intervals[-1] - 1,
        "first_time": str(dataset.interval.first + total["first_at"] * dataset.interval.length),
        "last_time": str(dataset.interval.first + total["last_at"] * dataset.interval.length),
        "events_by_type": {
            kind: sum(count for (_, of), count in counts.items() if of == kind)
            for kind in sorted({k for _, k in counts})
        },
        "events_by_interval": {
            str(interval): sum(count for (of, _), count in counts.items() if of == interval) for interval in intervals
        },
    }
    if users_of_last:
        last = facts["last_complete_interval"]
        window = range(last - users_of_last + 1, intervals[-1] + 1)
        active = sound.where(F.col("interval").isin(*window) & F.col("event_type").isin(*dataset.target_types))
        by_interval = active.groupBy("interval").agg(F.array_sort(F.collect_set("user_id")).alias("users"))
        users = {row["interval"]: row["users"] for row in by_interval.collect()}
        facts["active_users"] = {str(interval): users.get(interval, []) for interval in window}
    return facts


def check_files(spark: SparkSession, dataset: Dataset, folder: Path, item_ids: DataFrame) -> int | None:
    """Check that the files of items, users and promotions have their columns.

    Returns:
        How many of the items seen in events their own file describes; None without such a file.

    Raises:
        InputError: a file or a column is missing or cannot be read.
    """

    def opened(files: Files, *columns: str | None) -> DataFrame:
        return reading.read_all(spark, files, folder, columns)

    if dataset.users is not None:
        opened(dataset.users, dataset.users.columns.user_id, *dataset.users.columns.description)
    if dataset.promotions is not None:
        plan = dataset.promotions.columns
        opened(dataset.promotions, plan.item_id, plan.interval, *plan.channels, plan.place)
    files = dataset.items.files if dataset.items is not None else None
    if dataset.items is None or files is None:
        return None
    columns = dataset.items.columns
    raw = opened(files, columns.item_id, *columns.name, columns.category, columns.type)
    described = raw.select(reading.text(raw, columns.item_id).alias("item_id"))
    with reading.readable(reading.paths(files, folder)):
        return int(item_ids.join(described, "item_id", "left_semi").count())


def looks_wrong(spark: SparkSession, source: Events, dataset: Dataset, folder: Path) -> Iterator[str]:
    """What is legal in a source of files, but hardly meant.

    Raises:
        InputError: most times are of another unit than the dataset file says.
    """
    assert source.files is not None
    columns, declared = source.columns, source.time_format or ""
    mapped = columns.model_dump().values()
    excluding = [name for name in dict.fromkeys(each.column for each in source.exclude) if name not in mapped]
    if not declared.startswith("epoch") and (columns.session_id is None or not excluding):
        return
    raw = reading.read_all(spark, source.files, folder, declared_columns(source, dataset.items))
    if declared.startswith("epoch"):
        units = raw.groupBy(epoch_unit(number(raw, columns.occurred_at)).alias("unit")).count().orderBy(F.desc("count"))
        most = units.where("unit IS NOT NULL").first()
        if most is not None and most["unit"] != declared:
            raise InputError(
                f"column {columns.occurred_at!r} looks like {_UNITS[most['unit']]}, and time_format says {declared}",
                where=", ".join(source.files.path),
                cure=f'set time_format = "{most["unit"]}"',
            )
    if columns.session_id is None:
        return
    for name in excluding:
        lines = raw.groupBy(reading.text(raw, columns.session_id).alias("session")).agg(
            F.count("*").alias("lines"), F.count(reading.text(raw, name)).alias("filled")
        )
        several = lines.where("lines > 1 AND filled > 0").agg(F.count("*"), F.max("filled")).first()
        if several is not None and several[0] and several[1] == 1:
            yield (
                f"{name!r} is filled in on one line of each {columns.session_id!r} only: a rule on it excludes that line, "
                "and not the rest of the order. Export it on each line"
            )


def counted(count: int, noun: str) -> str:
    """`1 user`, `1,234 users`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def warnings(facts: dict[str, Any], dataset: Dataset) -> Iterator[str]:
    """What is no error but worth a look."""
    unusable = 1 - facts["usable_rows"] / facts["rows"]
    if unusable > MUCH:
        yield f"{unusable:.0%} of the rows cannot be used: see the problems above"
    if facts["unread_rows"] > MAX_PROBLEM_SHARE * facts["rows"]:
        yield (
            f"{facts['unread_rows'] / facts['rows']:.0%} of the rows have problems: "
            f"the gate raw stops the run at {MAX_PROBLEM_SHARE:.0%}"
        )
    if facts["duplicate_rows"] > MUCH * facts["rows"]:
        named = [source.columns.event_id for source in dataset.events if source.columns.event_id is not None]
        why = (
            f"is {' or '.join(named)} unique? Leave event_id out, or name it session_id"
            if named
            else "they are equal in every column"
        )
        yield f"{facts['duplicate_rows']:,} of {facts['rows']:,} rows would count as duplicates: {why}"
    busiest = facts["busiest_user"]
    if busiest["events"] > MUCH_OF_ONE * facts["usable_rows"] and facts["users"] >= MANY_USERS:
        share = busiest["events"] / facts["usable_rows"]
        yield (
            f"user {busiest['user_id']!r} has {share:.0%} of all events: if that stands for guests, or is a machine, "
            "leave it out with a rule of [[events.exclude]]"
        )
    if all(source.columns.price is None for source in dataset.events):
        yield "no column of prices: what features know of price stays neutral"
    elif facts["usable_rows"] - facts["priced_rows"] > MUCH * facts["usable_rows"]:
        yield f"{facts['usable_rows'] - facts['priced_rows']:,} usable rows have no price: check columns.price and decimal_comma"
    if facts["users"] < MANY_USERS:
        yield f"only {counted(facts['users'], 'user')}: too few to learn from others"
    if facts["usable_rows"] < 2 * facts["users"]:
        yield f"{facts['usable_rows'] / facts['users']:.1f} events for each user: little to learn from; is columns.user_id right?"
    if facts["first_interval"] < 1:
        yield f"events lie before interval 1: set interval.first to {facts['first_time'][:10]} or before"
    num_events = facts["events_by_interval"]
    gaps = [each for each in range(facts["first_interval"], facts["last_interval"]) if str(each) not in num_events]
    if gaps:
        yield f"{counted(len(gaps), 'interval')} without events, the first is {dataset.interval.label(gaps[0])}"
    described = facts["items_described"]
    if described is not None and facts["items"] - described > MUCH * facts["items"]:
        yield f"{facts['items'] - described:,} of {facts['items']:,} items are not in the items file: their id is their name"


def errors(facts: dict[str, Any], dataset: Dataset) -> Iterator[tuple[str, str]]:
    """What forbids to go on, each with its cure."""
    if not facts["rows"]:
        yield "there are no rows", "name files with events in events.path"
    elif not facts["usable_rows"]:
        yield rules.none_usable(facts["rows"], facts["problems"][0]), rules.NONE_USABLE_CURE
    elif len(facts["events_by_interval"]) < MINIMUM_INTERVALS:
        intervals = len(facts["events_by_interval"])
        lie = f"all events lie in {'one interval' if intervals == 1 else f'{intervals} intervals'} of {dataset.interval.length}"
        when = f"from {facts['first_time'][:19]} to {facts['last_time'][:19]}"
        yield (
            f"{lie}, {when}; at least {MINIMUM_INTERVALS} are needed",
            "set a shorter interval.length, or bring more history",
        )


def bars(by_interval: dict[int, int]) -> Iterator[str]:
    """Events by interval as a few bars, neighbours put together."""
    first, last = min(by_interval), max(by_interval)
    size = -(-(last - first + 1) // _BARS)
    groups = [range(low, min(low + size, last + 1)) for low in range(first, last + 1, size)]
    sums = [sum(by_interval.get(interval, 0) for interval in group) for group in groups]
    for group, events in zip(groups, sums, strict=True):
        name = str(group[0]) if len(group) == 1 else f"{group[0]}-{group[-1]}"
        yield f"  {name:>12} {events:>12,} {'█' * round(_BAR_WIDTH * events / max(sums))}".rstrip()


def report(facts: dict[str, Any], dataset: Dataset) -> Iterator[str]:
    """What a person reads."""
    yield f"{dataset.title or dataset.name}: {counted(facts['rows'], 'row')}, {facts['usable_rows']:,} of them usable"
    for problem in facts["problems"]:
        yield f"  {problem['rows']:>10,} {'row ' if problem['rows'] == 1 else 'rows'}  {problem['kind']}"
        yield f"              e.g. {problem['example'][:160]}"
    if not facts["usable_rows"]:
        return
    yield f"  from {facts['first_time'][:19]} to {facts['last_time'][:19]} in the shop's time ({dataset.time_zone})"
    complete = dataset.interval.label(facts["last_complete_interval"])
    length = dataset.interval.length
    yield f"  intervals of {length}: {facts['first_interval']} to {facts['last_interval']}; the last complete one is {complete}"
    described = "" if facts["items_described"] is None else f" ({facts['items_described']:,} of them in the items file)"
    yield f"  {counted(facts['users'], 'user')}, {counted(facts['items'], 'item')}{described}"
    yield "  events: " + ", ".join(f"{count:,} {name}" for name, count in facts["events_by_type"].items())
    yield "  events by interval:"
    yield from bars({int(interval): count for interval, count in facts["events_by_interval"].items()})


def main(dataset: Dataset, folder: Path, path: Path | None = None, users_of_last: int = 0) -> int:
    """Check the data of a dataset; the exit status.

    Args:
        path: where to write what was found as JSON.
        users_of_last: number of complete intervals whose active users to list in it.

    Raises:
        InputError: the data cannot be read, or nothing could be built on it.
    """
    spark = session("check")
    for source in dataset.events:  # told at once: options that do not fit, a server that does not answer
        sources.open_source(source, dataset, folder).news({})
    in_files = [source for source in dataset.events if source.files is not None]
    if not in_files:
        raise InputError(
            "no source has files, whose past can be looked at",
            where=str(settings().dataset_path),
            cure="run `make up` with CARTWHEEL_INGEST_SCHEDULE set: what comes is checked as it lands",
        )
    where = [path for source in in_files if source.files for path in reading.paths(source.files, folder)]
    now = datetime.now(UTC)
    with reading.readable(where):
        events = [judge(read_events(spark, source, dataset, folder, now)) for source in in_files]
        judged = reduce(DataFrame.unionByName, events).persist(StorageLevel.MEMORY_AND_DISK)
        facts = look(judged, dataset, users_of_last)
    warned = [warning for source in in_files for warning in looks_wrong(spark, source, dataset, folder)]
    item_ids = judged.where(F.size("reasons") == 0).select("item_id").distinct()
    facts["items_described"] = check_files(spark, dataset, folder, item_ids)
    print("\n".join(report(facts, dataset)), flush=True)
    for what, cure in errors(facts, dataset):
        raise InputError(what, where=", ".join(where), cure=cure)
    for line in (*warnings(facts, dataset), *warned):
        print(f"  warning: {line}")
    if path is not None:
        del facts["busiest_user"]  # named to whoever reads this, and in no file
        write_json(path, facts)
    print("the data can be used", flush=True)
    return 0


if __name__ == "__main__":
    arguments = arg_parser().parse_args()
    with reported(), plain_failures():
        sys.exit(main(load(settings().dataset_path), settings().data_path, arguments.json, arguments.users_of_last))
