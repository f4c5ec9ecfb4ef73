"""Land a shop's files: events into `bronze_events`, and what is known of items, users and promotions.

Events are landed interval by interval, each run one atomic commit that replaces its intervals as a whole, so a
run may be repeated or killed at any instant. Rows whose time cannot be read go to `quarantine`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

from pyspark.sql import Column, DataFrame, SparkSession, Window
from pyspark.sql import functions as F
from pyspark.sql import types as T

from contracts.dataset import Dataset, Items, Promotions, Users, load
from contracts.errors import InputError, reported
from contracts.settings import settings
from contracts.tables import BRONZE_EVENTS, ITEMS, PROMOTIONS, QUARANTINE, USERS, Table
from spark_jobs import sources, storage
from spark_jobs.arguments import add_interval
from spark_jobs.parsing import ROW, number, parse, wanted_columns
from spark_jobs.session import plain_failures, say, session

SEPARATOR = " · "
_WORD_BITS = 60


def arg_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="land", description=__doc__)
    add_interval(parser, "--through", "last interval to land; empty: the last complete one")
    add_interval(parser, "--from-interval", "first one; empty: the first not yet landed")
    return parser


def read_events(spark: SparkSession, dataset: Dataset, folder: Path, ingested_at: datetime) -> DataFrame:
    """All events of the dataset as BRONZE_EVENTS with `row`; `interval` is null where the time cannot be read.

    Raises:
        InputError: a file or a declared column is missing or cannot be read.
    """
    raw = sources.read(spark, dataset.events, folder)
    sources.require(raw, wanted_columns(dataset), ", ".join(sources.paths(dataset.events, folder)))
    return parse(raw, dataset, ingested_at)


def without_time(events: DataFrame) -> DataFrame:
    """QUARANTINE rows of the events whose time cannot be read."""
    return events.where("interval IS NULL").select(
        F.lit("land").alias("stage"),
        F.lit(0).alias("interval"),
        "event_id",
        F.col("problems").alias("reasons"),
        F.col(ROW).alias("row"),
    )


def items_of_file(raw: DataFrame, items: Items) -> DataFrame:
    """ITEMS rows (without `recommendable`) of the items' own file, one for each id."""
    names_of, columns = items.columns.name, items.columns
    described = raw.select(
        sources.text(raw, columns.item_id).alias("item_id"),
        (F.concat_ws(SEPARATOR, *[sources.text(raw, name) for name in names_of])).alias("name"),
        (sources.text(raw, columns.category) if columns.category else F.lit(None).cast("string")).alias("category"),
        (sources.text(raw, columns.type) if columns.type else F.lit(None).cast("string")).alias("type"),
    ).where("item_id IS NOT NULL")
    best = F.max(F.struct("name", "category", "type"))
    return described.groupBy("item_id").agg(best.alias("best")).select("item_id", "best.*")


def items_of_events(bronze: DataFrame, dataset: Dataset) -> DataFrame:
    """ITEMS rows (without `recommendable`) of columns of the events: the latest value of each that is not blank."""
    fields = {source: own for own, source in dataset.events.columns.model_dump().items() if source is not None}

    def latest(name: str | None) -> Column:
        if name is None:
            return F.lit(None).cast("string")
        told = F.trim(F.col(fields[name]).cast("string") if name in fields else F.element_at("extra", name))
        value = F.when(told != "", told)
        return F.max_by(value, F.when(value.isNotNull(), F.struct("at", value)))

    columns = dataset.items.columns if dataset.items is not None else None
    parts = columns.name if columns is not None else ()
    return bronze.groupBy("item_id").agg(
        F.concat_ws(SEPARATOR, *[latest(part) for part in parts]).alias("name"),
        latest(columns.category if columns else None).alias("category"),
        latest(columns.type if columns else None).alias("type"),
    )


def all_items(described: DataFrame, seen: DataFrame | None, not_recommended: tuple[str, ...]) -> DataFrame:
    """ITEMS: those described and those only seen in events (`item_id`), named by their id where nothing is known."""
    if seen is not None:
        described = described.join(seen.select("item_id").distinct(), "item_id", "full")
    hidden = (
        [F.coalesce(F.col(name).isin(*not_recommended), F.lit(False)) for name in ("item_id", "category", "type")]
        if not_recommended
        else [F.lit(False)]
    )
    excluded = hidden[0]
    for test in hidden[1:]:
        excluded = excluded | test
    return described.select(
        "item_id",
        F.when(F.col("name") != "", F.col("name")).otherwise(F.col("item_id")).alias("name"),
        "category",
        "type",
        (~excluded).alias("recommendable"),
    )


def users_of_file(raw: DataFrame, users: Users) -> DataFrame:
    """USERS rows, one for each id."""
    description = F.concat_ws(SEPARATOR, *[sources.text(raw, name) for name in users.columns.description])
    described = raw.select(sources.text(raw, users.columns.user_id).alias("user_id"), description.alias("description"))
    return described.where("user_id IS NOT NULL").groupBy("user_id").agg(F.max("description").alias("description"))


def promotion_shares(raw: DataFrame, promotions: Promotions) -> DataFrame:
    """PROMOTIONS rows: of the places that the plan of an interval names, the share that promotes each item."""
    columns = promotions.columns

    def key(name: str) -> Column:
        """Whole numbers as they are: millions of rows group faster by them than by text."""
        return (
            sources.column(name) if isinstance(raw.schema[name].dataType, T.IntegralType) else sources.text(raw, name)
        )

    def used(name: str) -> Column:
        value = sources.text(raw, name)
        return F.coalesce(~value.isin(*promotions.not_promoted), F.lit(False)).cast("long")

    channels = [used(name) for name in columns.channels]
    plan = raw.select(
        key(columns.item_id).alias("item_id"),
        number(raw, columns.interval).cast("int").alias("interval"),
        (key(columns.place) if columns.place else F.lit(0)).alias("place"),
        channels[0].alias("first"),
        (channels[1] if len(channels) > 1 else F.lit(0).cast("long")).alias("second"),
    ).where("item_id IS NOT NULL AND interval IS NOT NULL AND place IS NOT NULL")
    places = plan.groupBy("interval").agg(F.countDistinct("place").alias("places"))
    # Distinct places are counted as bits of words, many times faster than one group for each place.
    numbered = (
        plan.select("place")
        .distinct()
        .select("place", (F.row_number().over(Window.orderBy("place")) - 1).alias("number"))
    )
    bit = f"shiftleft({{}}, number % {_WORD_BITS})"
    words = (
        plan.where("first + second > 0")
        .join(F.broadcast(numbered), "place")
        .groupBy("item_id", "interval", F.floor(F.col("number") / _WORD_BITS).alias("word"))
        .agg(*[F.bit_or(F.expr(bit.format(kind))).alias(kind) for kind in ("first", "second")])
    )
    counted = words.groupBy("item_id", "interval").agg(
        *[
            F.sum(F.bit_count(bits)).alias(kind)
            for kind, bits in {
                "first": F.col("first"),
                "second": F.col("second"),
                "any": F.expr("first | second"),
            }.items()
        ]
    )
    return counted.join(F.broadcast(places), "interval").select(
        F.col("item_id").cast("string").alias("item_id"),
        "interval",
        *[(F.col(kind) / F.col("places")).alias(f"{kind}_share") for kind in ("first", "second", "any")],
    )


def refresh(table: Table, fingerprint: str, build: Callable[[], DataFrame], **record: str) -> None:
    """Write a table anew, with `record`, when what it comes from has changed."""
    if storage.recorded(table).get("source") == fingerprint:
        return
    storage.write(build().coalesce(1), table, record={"source": fingerprint, **record})
    say(f"{table.name}: {storage.total_rows(table):,} rows")


def land_items(dataset: Dataset, folder: Path) -> None:
    """Write ITEMS when the file, the dataset file or the landed events have changed."""
    items = dataset.items
    files = items.files if items is not None else None

    def build() -> DataFrame:
        spark = session("land")
        sound = storage.read(spark, BRONZE_EVENTS).where("item_id IS NOT NULL AND size(problems) = 0")
        if items is None or files is None:
            return all_items(items_of_events(sound, dataset), None, items.not_recommended if items is not None else ())
        raw = sources.read(spark, files, folder)
        columns = items.columns
        sources.require(
            raw,
            [columns.item_id, *columns.name, columns.category, columns.type],
            ", ".join(sources.paths(files, folder)),
        )
        return all_items(items_of_file(raw, items), sound, items.not_recommended)

    bronze_state = storage.state(BRONZE_EVENTS)
    told = sources.fingerprint([items, dataset.events.columns, bronze_state], [files], folder)
    refresh(ITEMS, told, build, bronze=bronze_state)


def land_users(dataset: Dataset, folder: Path) -> None:
    users = dataset.users

    def build() -> DataFrame:
        spark = session("land")
        if users is None:
            return storage.empty(spark, USERS)
        raw = sources.read(spark, users, folder)
        sources.require(
            raw, [users.columns.user_id, *users.columns.description], ", ".join(sources.paths(users, folder))
        )
        return users_of_file(raw, users)

    refresh(USERS, sources.fingerprint([users], [users], folder), build)


def land_promotions(dataset: Dataset, folder: Path) -> None:
    promotions = dataset.promotions

    def build() -> DataFrame:
        spark = session("land")
        if promotions is None:
            return storage.empty(spark, PROMOTIONS)
        raw = sources.read(spark, promotions, folder)
        columns = promotions.columns
        sources.require(
            raw,
            [columns.item_id, columns.interval, *columns.channels, columns.place],
            ", ".join(sources.paths(promotions, folder)),
        )
        return promotion_shares(raw, promotions)

    refresh(PROMOTIONS, sources.fingerprint([promotions], [promotions], folder), build)


def land_rest(dataset: Dataset, folder: Path) -> None:
    """Everything but events; ITEMS last, so that its record of bronze says that a landing is whole."""
    for land in (land_promotions, land_users, land_items):
        land(dataset, folder)


def land_quarantine(spark: SparkSession, events: DataFrame, afresh: bool) -> None:
    """Set aside the rows without a time: as a whole from the beginning, else those that are not there yet."""
    rows = without_time(events)
    if not afresh:
        there = storage.read(spark, QUARANTINE).where("stage = 'land' AND interval = 0")
        rows = there.unionByName(rows.join(there, "event_id", "left_anti"))
    storage.write(rows.coalesce(1), QUARANTINE, where="stage = 'land' AND interval = 0")


def main(dataset: Dataset, folder: Path, from_interval: int | None, through: int | None, now: datetime) -> int:
    """Land intervals `from_interval` to `through` and what has changed of items, users and promotions.

    Args:
        folder: what relative paths in the dataset file start from.
        from_interval: None means the first one not yet landed.
        through: None means the last complete interval as of `now`.
        now: a moment in UTC.

    Returns:
        The exit status.

    Raises:
        InputError: the data cannot be read, or holds nothing in that range.
    """
    landed = storage.files(BRONZE_EVENTS)
    other = storage.recorded(BRONZE_EVENTS).get("dataset", dataset.name)
    if other != dataset.name:
        raise InputError(
            f"these tables hold the shop {other!r}, not {dataset.name!r}",
            where=str(settings().tables_dir),
            cure="set CARTWHEEL_HOME to a folder for this shop, or delete the old one",
        )
    start = from_interval if from_interval is not None else (max(landed) + 1 if landed else None)
    end = through if through is not None else dataset.interval.number(dataset.wall_clock(now)) - 1
    if start is not None and start > end:
        print(f"nothing to do: interval {start} comes after {end}")
        land_rest(dataset, folder)
        return 0

    say(f"land {dataset.name} through interval {end}")
    spark = session("land")
    events = read_events(spark, dataset, folder, now)
    with sources.readable(dataset.events, folder):
        counts = {row["interval"]: row["count"] for row in events.groupBy("interval").count().collect()}
    unreadable = counts.pop(None, 0)
    where = ", ".join(sources.paths(dataset.events, folder))
    if not counts:
        raise InputError(
            f"none of {unreadable:,} rows has a time that can be read",
            where=where,
            cure="correct columns.occurred_at or time_format",
        )
    num_rows = sum(counts.values()) + unreadable
    say(f"read {num_rows:,} rows, intervals {min(counts)} to {max(counts)}, {unreadable:,} without a time")

    low = start if start is not None else min(counts)
    wanted = {interval: count for interval, count in counts.items() if low <= interval <= end}
    if not wanted and through is None:
        print(f"nothing to do: no events in intervals {low} to {end}")
        land_rest(dataset, folder)
        return 0
    if not wanted:
        raise InputError(
            f"no events in intervals {low} to {end}: the data has intervals {min(counts)} to {max(counts)}",
            where=where,
            cure="land a range that holds events, or correct interval.first and time_zone",
        )

    afresh = low <= min(counts)
    with ThreadPoolExecutor(2) as beside:
        others = [beside.submit(land, dataset, folder) for land in (land_promotions, land_users)]
        with sources.readable(dataset.events, folder):
            if unreadable or not storage.exists(QUARANTINE):
                land_quarantine(spark, events, afresh)
            spread = events.where(F.col("interval").between(low, end)).repartition("interval")
            storage.write(
                spread,
                BRONZE_EVENTS,
                where=f"interval >= {low} AND interval <= {end}",
                record={"dataset": dataset.name, "from": low, "through": end},
            )
        num_landed = sum(wanted.values())
        say(f"{BRONZE_EVENTS.name}: {num_landed:,} rows in {len(wanted)} intervals, {min(wanted)} to {max(wanted)}")
        for other in others:
            other.result()
    land_items(dataset, folder)
    return 0


if __name__ == "__main__":
    arguments = arg_parser().parse_args()
    with reported(), plain_failures():
        sys.exit(
            main(
                load(settings().dataset_path),
                settings().data_path,
                arguments.from_interval,
                arguments.through,
                datetime.now(UTC),
            )
        )
