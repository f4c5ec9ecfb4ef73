"""Land what is known of users and promotions: tables written anew when what they come from has changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F
from pyspark.sql import types as T

from contracts.dataset import Dataset, Promotions, Users
from contracts.tables import PROMOTIONS, USERS, Table
from spark_jobs import reading, storage
from spark_jobs.items import SEPARATOR
from spark_jobs.parsing import number, without_identities
from spark_jobs.pseudonyms import without_erased
from spark_jobs.session import say, session

_WORD_BITS = 60


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


def _refresh(table: Table, declared: Users | Promotions | None, folder: Path, build: Callable[[], DataFrame]) -> None:
    """Write a table anew when what it comes from has changed."""
    fingerprint = reading.fingerprint([declared], [declared], folder)
    if declared is None and not storage.total_rows(table):
        storage.create(table)
    elif storage.recorded(table).get("source") != fingerprint:
        num_rows = storage.write(build().coalesce(1), table, record={"source": fingerprint})
        say(f"{table.name}: {num_rows:,} rows")


def land_users(dataset: Dataset, folder: Path) -> None:
    users = dataset.users

    def build() -> DataFrame:
        spark = session("land")
        if users is None:  # it is not declared any more
            return storage.empty(spark, USERS)
        raw = reading.read_all(spark, users, folder, [users.columns.user_id, *users.columns.description])
        return without_erased(users_of_file(raw, users, dataset.personal_user_id))

    _refresh(USERS, users, folder, build)


def land_promotions(dataset: Dataset, folder: Path) -> None:
    promotions = dataset.promotions

    def build() -> DataFrame:
        spark = session("land")
        if promotions is None:
            return storage.empty(spark, PROMOTIONS)
        columns = promotions.columns
        names = [columns.item_id, columns.interval, *columns.channels, columns.place]
        return promotion_shares(reading.read_all(spark, promotions, folder, names), promotions)

    _refresh(PROMOTIONS, promotions, folder, build)
