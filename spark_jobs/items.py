"""What is sold: ITEMS, of those that the items' own file or the events describe, and those that were only seen in events."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from contracts.dataset import Dataset, Items
from contracts.tables import ITEMS
from spark_jobs import reading, storage
from spark_jobs.session import say

SEPARATOR = " · "
"""Between the parts of a name, or of a description."""


def items_of_file(raw: DataFrame, items: Items) -> DataFrame:
    """ITEMS rows (without `recommendable` and `seen`) of the items' own file, one for each id."""
    names_of, columns = items.columns.name, items.columns
    described = raw.select(
        reading.text(raw, columns.item_id).alias("item_id"),
        (F.concat_ws(SEPARATOR, *[reading.text(raw, name) for name in names_of])).alias("name"),
        (reading.text(raw, columns.category) if columns.category else F.lit(None).cast("string")).alias("category"),
        (reading.text(raw, columns.type) if columns.type else F.lit(None).cast("string")).alias("type"),
    ).where("item_id IS NOT NULL")
    best = F.max(F.struct("name", "category", "type"))
    return described.groupBy("item_id").agg(best.alias("best")).select("item_id", "best.*")


def items_of_events(bronze: DataFrame, dataset: Dataset, items: Items) -> DataFrame:
    """ITEMS rows (without `recommendable` and `seen`) of columns of the events: the latest value of each that is not blank."""
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

    columns = items.columns
    return bronze.groupBy("item_id").agg(
        F.concat_ws(SEPARATOR, *[latest(part) for part in columns.name]).alias("name"),
        latest(columns.category).alias("category"),
        latest(columns.type).alias("type"),
    )


def all_items(described: DataFrame, item_ids: DataFrame, not_recommended: tuple[str, ...]) -> DataFrame:
    """ITEMS: those described and those only seen in events (`item_id`), named by their id where nothing is known."""
    described = described.drop("seen").join(item_ids.select("item_id", F.lit(True).alias("seen")), "item_id", "full")
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
        F.coalesce("seen", F.lit(False)).alias("seen"),
    )


def is_outdated(dataset: Dataset, folder: Path) -> bool:
    """Whether the items' file or its declaration has changed since ITEMS was written. Needs no Spark."""
    return bool(storage.recorded(ITEMS).get("source") != _fingerprint(dataset, folder))


def _fingerprint(dataset: Dataset, folder: Path) -> str:
    files = dataset.items.files if dataset.items is not None else None
    made_of = [dataset.items, *(source.columns for source in dataset.events), ITEMS.ddl]
    return reading.fingerprint(made_of, [files], folder)


def refresh_items(dataset: Dataset, folder: Path, fit: DataFrame, fresh: Collection[int]) -> None:
    """Write ITEMS anew when it lacks an item, or what it comes from has changed.

    Only events of `fresh` intervals are read, but where the events describe the items: then all are.

    Args:
        fit: rows of BRONZE_EVENTS that silver is made of: what lies beyond the last complete interval is still to come,
            and in a replay nobody may know of it.
        fresh: the intervals that are cleaned now.
    """
    items, spark, fingerprint = dataset.items, fit.sparkSession, _fingerprint(dataset, folder)
    new = fit.where(storage.ranges_predicate("interval", fresh)).select("item_id").distinct()
    if items is not None and items.files is None:
        described = items_of_events(fit, dataset, items)
        item_ids = described.select("item_id")
    else:
        before = storage.read(spark, ITEMS).where(F.coalesce("seen", F.lit(True))).select("item_id")
        is_same = storage.recorded(ITEMS).get("source") == fingerprint
        if is_same and new.join(before, "item_id", "left_anti").isEmpty():
            return
        item_ids = before.union(new).distinct()
        described = storage.empty(spark, ITEMS) if items is None else items_of_file(_read(spark, items, folder), items)
    rows = all_items(described, item_ids, items.not_recommended if items is not None else ())
    num_rows = storage.write(rows.coalesce(1), ITEMS, record={"source": fingerprint})
    say(f"{ITEMS.name}: {num_rows:,} rows")


def _read(spark: SparkSession, items: Items, folder: Path) -> DataFrame:
    assert items.files is not None
    columns = items.columns
    names = [columns.item_id, *columns.name, columns.category, columns.type]
    return reading.read_all(spark, items.files, folder, names)
