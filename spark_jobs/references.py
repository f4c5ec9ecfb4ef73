"""Land what is known of items, users and promotions: tables written anew when what they come from has changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F
from pyspark.sql import types as T

from contracts.dataset import Dataset, Items, Promotions, Users
from contracts.tables import BRONZE_EVENTS, ITEMS, PROMOTIONS, UNTIMED, USERS, Table
from spark_jobs import pending, reading, storage
from spark_jobs.parsing import number, without_identities
from spark_jobs.pseudonyms import without_erased
from spark_jobs.session import say, session

SEPARATOR = " · "
_WORD_BITS = 60


def items_of_file(raw: DataFrame, items: Items) -> DataFrame:
    """ITEMS rows (without `recommendable`) of the items' own file, one for each id."""
    names_of, columns = items.columns.name, items.columns
    described = raw.select(
        reading.text(raw, columns.item_id).alias("item_id"),
        (F.concat_ws(SEPARATOR, *[reading.text(raw, name) for name in names_of])).alias("name"),
        (reading.text(raw, columns.category) if columns.category else F.lit(None).cast("string")).alias("category"),
        (reading.text(raw, columns.type) if columns.type else F.lit(None).cast("string")).alias("type"),
    ).where("item_id IS NOT NULL")
    best = F.max(F.struct("name", "category", "type"))
    return described.groupBy("item_id").agg(best.alias("best")).select("item_id", "best.*")


def items_of_events(bronze: DataFrame, dataset: Dataset) -> DataFrame:
    """ITEMS rows (without `recommendable`) of columns of the events: the latest value of each that is not blank."""
    fields = {
        theirs: own
        for source in dataset.events
        for own, theirs in source.columns.model_dump().items()
        if theirs is not None
    }

    def latest(name: str | None) -> Column:
        if name is None:
            return F.lit(None).cast("string")
        written = F.trim(F.col(fields[name]).cast("string") if name in fields else F.element_at("extra", name))
        value = F.when(written != "", written)
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


def users_of_file(raw: DataFrame, users: Users, personal: bool) -> DataFrame:
    """USERS rows, one for each id; `personal`: with pseudonyms for ids."""
    if personal:
        raw = without_identities(raw, users.columns.user_id)
    description = F.concat_ws(SEPARATOR, *[reading.text(raw, name) for name in users.columns.description])
    described = raw.select(reading.text(raw, users.columns.user_id).alias("user_id"), description.alias("description"))
    return described.where("user_id IS NOT NULL").groupBy("user_id").agg(F.max("description").alias("description"))


def promotion_shares(raw: DataFrame, promotions: Promotions) -> DataFrame:
    """PROMOTIONS rows: of the places that the plan of an interval names, the share that promotes each item."""
    columns = promotions.columns

    def key(name: str) -> Column:
        """Whole numbers as they are: millions of rows group faster by them than by text."""
        return (
            reading.column(name) if isinstance(raw.schema[name].dataType, T.IntegralType) else reading.text(raw, name)
        )

    def used(name: str) -> Column:
        value = reading.text(raw, name)
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
        # What lies beyond the last complete interval is still to come: in a replay nobody may know of it.
        through = pending.landed_through()
        complete = F.col("interval").between(UNTIMED + 1, UNTIMED if through is None else through)
        sound = storage.read(spark, BRONZE_EVENTS).where("item_id IS NOT NULL AND size(problems) = 0").where(complete)
        if items is None or files is None:
            return all_items(items_of_events(sound, dataset), None, items.not_recommended if items is not None else ())
        columns = items.columns
        wanted = [columns.item_id, *columns.name, columns.category, columns.type]
        raw = reading.read_all(spark, files, folder, wanted)
        return all_items(items_of_file(raw, items), sound, items.not_recommended)

    bronze_state = storage.state(BRONZE_EVENTS)
    made_of = [items, *(source.columns for source in dataset.events), bronze_state]
    refresh(ITEMS, reading.fingerprint(made_of, [files], folder), build, bronze=bronze_state)


def land_users(dataset: Dataset, folder: Path) -> None:
    users = dataset.users

    def build() -> DataFrame:
        spark = session("land")
        if users is None:
            return storage.empty(spark, USERS)
        raw = reading.read_all(spark, users, folder, [users.columns.user_id, *users.columns.description])
        return without_erased(users_of_file(raw, users, dataset.personal_user_id))

    refresh(USERS, reading.fingerprint([users], [users], folder), build)


def land_promotions(dataset: Dataset, folder: Path) -> None:
    promotions = dataset.promotions

    def build() -> DataFrame:
        spark = session("land")
        if promotions is None:
            return storage.empty(spark, PROMOTIONS)
        columns = promotions.columns
        wanted = [columns.item_id, columns.interval, *columns.channels, columns.place]
        return promotion_shares(reading.read_all(spark, promotions, folder, wanted), promotions)

    refresh(PROMOTIONS, reading.fingerprint([promotions], [promotions], folder), build)


def land_all(dataset: Dataset, folder: Path) -> None:
    """Everything but events; ITEMS last, so that its record of bronze says that a landing is whole."""
    for land in (land_promotions, land_users, land_items):
        land(dataset, folder)
