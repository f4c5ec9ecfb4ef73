"""What was set aside: look at it, and drive it in again after a correction.

    python -m spark_jobs.quarantine list                     how many rows for each reason
    python -m spark_jobs.quarantine show --reason TEXT       some of them, as they came
    python -m spark_jobs.quarantine redrive --reason TEXT    read them again by the dataset file of today

`redrive` puts what can be read now in the place of what could not, in one commit, and leaves the rest where it is, so it
may be run again and killed at any instant. What was excluded is not re-driven, and a value out of bounds stays so:
correct the source, and land its intervals again (`ingest_events` with `from_interval`).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import reduce
from typing import TYPE_CHECKING, Any

from contracts import lake
from contracts.dataset import Dataset, Events, load
from contracts.errors import InputError, reported
from contracts.settings import settings
from contracts.tables import BRONZE_EVENTS, QUARANTINE, UNTIMED
from spark_jobs import ledger, pending, storage

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

Row = dict[str, Any]
_SHOWN = 20
_FORMER = "_former_id"
"""Column of rows that are read again, with what they were known by."""


def arg_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="quarantine", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, meaning in {
        "list": "count the rows for each reason",
        "show": "print some rows",
        "redrive": "read rows again by the dataset file of today",
    }.items():
        added = verbs.add_parser(verb, help=meaning)
        added.add_argument("--reason", default="", metavar="TEXT", help="only rows with a reason that begins with it")
        added.add_argument("--source", default="", metavar="NAME", help="only rows of this source")
    return parser


def rows(reason: str = "", source: str = "") -> list[Row]:
    """Rows of QUARANTINE, those chosen; a reason is chosen by how it begins."""
    opened = storage.open_table(QUARANTINE)
    if opened is None:
        return []
    filters = [("source", "=", source)] if source else None
    rows_there: list[Row] = opened.to_pyarrow_table(filters=filters).to_pylist()
    return [row for row in rows_there if any(each.startswith(reason) for each in row["reasons"])]


def kind(reason: str) -> str:
    """A reason without the value it names."""
    return reason.split(": '", maxsplit=1)[0]


def listed(chosen: list[Row]) -> Iterator[str]:
    """A line for each source and kind of reason."""
    counts = Counter((row["source"], kind(reason)) for row in chosen for reason in row["reasons"])
    yield f"{'rows':>10}  {'source':<16} reason"
    for (source, reason), count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        yield f"{count:>10,}  {source:<16} {reason}"
    yield f"{len(chosen):>10,}  rows together"


def shown(chosen: list[Row]) -> Iterator[str]:
    """Some rows, as they came."""
    for row in chosen[:_SHOWN]:
        place = "without a time" if row["interval"] == UNTIMED else f"interval {row['interval']}"
        yield f"{row['event_id']}  {row['source']}, {place}: {'; '.join(row['reasons'])}"
        yield f"    {row['row']}"
    if len(chosen) > _SHOWN:
        yield f"... and {len(chosen) - _SHOWN:,} more"


def redrive(dataset: Dataset, reason: str, source: str, now: datetime) -> tuple[int, int]:
    """Read rows of quarantine again, by the dataset file of today.

    Returns:
        How many rows were chosen, and how many of these are fit now.

    Raises:
        InputError: a source of the rows is not in the dataset file any more.
    """
    from spark_jobs.landing import oldest_in_time
    from spark_jobs.parsing import TOO_LATE

    chosen = rows(reason, source)
    declared = {dataset.source_name(each): each for each in dataset.events}
    for name in sorted({row["source"] for row in chosen} - declared.keys()):
        raise InputError(
            f"rows of the source {name!r}, which the dataset file does not declare",
            where=str(settings().dataset_path),
            cure="declare it again, or choose others with --source",
        )
    # Whether a row is excluded was decided before its user became a pseudonym, and cannot be decided again.
    redriven = [row for row in chosen if not any(each.startswith("excluded:") for each in row["reasons"])]
    with lake.lock("land"), storage.writing():
        ledger.catch_up()
        oldest, num_fit = oldest_in_time(dataset), 0
        for name, each in declared.items():
            own = [row for row in redriven if row["source"] == name]
            late, in_time = [], []  # when they landed, which stays so
            for row in own:
                (late if any(why.startswith(TOO_LATE) for why in row["reasons"]) else in_time).append(row)
            for part, limit in ((in_time, None), (late, oldest)):
                num_fit += _replace(part, each, dataset, now, limit) if part else 0
        return len(chosen), num_fit


def _replace(redriven: list[Row], source: Events, dataset: Dataset, now: datetime, oldest: int | None) -> int:
    """Put rows that are fit now in the place of what they were, in one commit of bronze; their number."""
    from pyspark.sql import DataFrame
    from pyspark.sql import functions as F

    from spark_jobs.landing import parsed_events
    from spark_jobs.session import session

    spark = session("redrive")
    chosen = spark.createDataFrame(
        [[row["interval"], row["event_id"]] for row in redriven], "interval int, event_id string"
    )
    intervals = storage.ranges_predicate("interval", {row["interval"] for row in redriven})
    unfit = storage.read(spark, BRONZE_EVENTS).where(intervals).join(chosen, ["interval", "event_id"], "left_semi")
    as_text = F.col("occurred_at").cast("string").alias("occurred_at")
    unfit_rows = unfit.where("record IS NOT NULL").select("interval", "event_id", as_text, "record").collect()
    # What lies in bronze holds pseudonyms already.
    name, stored = dataset.source_name(source), dataset.model_copy(update={"personal_user_id": False})
    # A time that could be read stays: the dataset file may say by now how later ones are written.
    timed = source.model_copy(update={"time_format": None, "time_is": "utc"})
    read_again = [
        parsed_events(_records(spark, part, declared, dataset), declared, stored, now, where=name, oldest=oldest)
        for declared, part in (
            (source, [row for row in unfit_rows if row["occurred_at"] is None]),
            (timed, [row for row in unfit_rows if row["occurred_at"] is not None]),
        )
    ]
    fit = reduce(DataFrame.unionByName, read_again).where("record IS NULL")
    fit = fit.withColumn("former", F.element_at("extra", _FORMER))
    fit = fit.withColumn("extra", F.map_filter("extra", lambda key, _: key != _FORMER)).localCheckpoint()
    old = {row["former"] for row in fit.select("former").collect()}
    if not old:
        return 0
    former_rows = spark.createDataFrame(
        [[row["interval"], row["event_id"]] for row in unfit_rows if row["event_id"] in old], chosen.schema
    )
    touched = {row["interval"] for row in unfit_rows if row["event_id"] in old}
    touched |= {row["interval"] for row in fit.select("interval").distinct().collect()}
    these = storage.ranges_predicate("interval", touched)
    others = storage.read(spark, BRONZE_EVENTS).where(these).join(former_rows, ["interval", "event_id"], "left_anti")
    new = fit.drop("former").dropDuplicates(["interval", "event_id"])
    new = new.join(others.select("interval", "event_id"), ["interval", "event_id"], "left_anti")
    through = pending.landed_through()
    record = {"dataset": dataset.name, **({} if through is None else {"through": through})}
    storage.write(others.unionByName(new).repartition("interval"), BRONZE_EVENTS, replace=touched, record=record)
    return len(old)


def _records(spark: SparkSession, unfit_rows: list[Any], source: Events, dataset: Dataset) -> DataFrame:
    """Records of bronze as the source had them; those with a time keep it."""
    from spark_jobs.parsing import MESSAGE_ID, declared_columns

    name, records = dataset.source_name(source), []
    for row in unfit_rows:
        record = {name: _text(value) for name, value in json.loads(row["record"]).items()}
        if row["occurred_at"] is not None:
            record[source.columns.occurred_at] = row["occurred_at"]
        records.append(record | {MESSAGE_ID: row["event_id"].removeprefix(f"{name}:"), _FORMER: row["event_id"]})
    # JSON leaves out what is null.
    own = [*filter(None, declared_columns(source, dataset.items)), MESSAGE_ID, _FORMER]
    columns = list(dict.fromkeys([*(name for record in records for name in record), *own]))
    schema = ", ".join(f"`{column.replace('`', '``')}` string" for column in columns)
    return spark.createDataFrame([[record.get(column) for column in columns] for record in records], schema)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) or value is None else json.dumps(value)


def main(dataset: Dataset, verb: str, reason: str, source: str, now: datetime) -> int:
    """Run a verb; the exit status."""
    if verb == "redrive":
        num_chosen, num_done = redrive(dataset, reason, source, now)
        print(f"{num_chosen:,} rows read again, {num_done:,} of them can be used now")
        if num_done:
            print("trigger build_features to take them up")
        return 0
    chosen = rows(reason, source)
    print("\n".join(listed(chosen) if verb == "list" else shown(chosen)))
    return 0


if __name__ == "__main__":
    from spark_jobs.session import plain_failures

    arguments = arg_parser().parse_args()
    with reported(), plain_failures():
        sys.exit(
            main(load(settings().dataset_path), arguments.verb, arguments.reason, arguments.source, datetime.now(UTC))
        )
