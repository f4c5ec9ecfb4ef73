"""What was set aside: look at it, and drive it in again after a correction.

    python -m spark_jobs.quarantine list                     how many rows for each reason
    python -m spark_jobs.quarantine show --reason TEXT       some of them, as they came
    python -m spark_jobs.quarantine redrive --reason TEXT    read them again by the dataset file of today

`redrive` changes what it can read now and leaves the rest where it is. Rows keep their event_id, so each lands once,
however often it is run and wherever it is killed. What was excluded, or has a value out of bounds, is not re-driven:
correct the source, and land its intervals again (`ingest_events` with `from_interval`).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from contracts.dataset import Dataset, Events, load
from contracts.errors import InputError, reported
from contracts.files import locked
from contracts.settings import settings
from contracts.tables import BRONZE_EVENTS, QUARANTINE
from spark_jobs import pending, storage

Row = dict[str, Any]
_SHOWN = 20


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
    found: list[Row] = opened.to_pyarrow_table(filters=filters).to_pylist()
    return [row for row in found if any(each.startswith(reason) for each in row["reasons"])]


def kind(reason: str) -> str:
    """A reason without the value it names."""
    return reason.split(": '", maxsplit=1)[0]


def listed(found: list[Row]) -> Iterator[str]:
    """A line for each source, stage and kind of reason."""
    counts = Counter((row["source"], row["stage"], kind(reason)) for row in found for reason in row["reasons"])
    yield f"{'rows':>10}  {'source':<16} {'set aside by':<12} reason"
    for (source, stage, reason), count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        yield f"{count:>10,}  {source:<16} {stage:<12} {reason}"
    yield f"{len(found):>10,}  rows together"


def shown(found: list[Row]) -> Iterator[str]:
    """Some rows, as they came."""
    for row in found[:_SHOWN]:
        yield f"{row['event_id']}  {row['source']}, interval {row['interval']}: {'; '.join(row['reasons'])}"
        yield f"    {row['row']}"
    if len(found) > _SHOWN:
        yield f"... and {len(found) - _SHOWN:,} more"


def redrive(dataset: Dataset, reason: str, source: str, now: datetime) -> tuple[int, int]:
    """Read rows of quarantine again: those without a time anew, those in bronze for the values that could not be read.

    Returns:
        How many rows were chosen, and how many of these landed or were repaired now.

    Raises:
        InputError: nothing has landed yet, or a source of the rows is not in the dataset file any more.
    """
    chosen = rows(reason, source)
    known = {dataset.source_name(each): each for each in dataset.events}
    for name in sorted({row["source"] for row in chosen}):
        if name not in known:
            raise InputError(
                f"rows of the source {name!r}, which the dataset file does not declare",
                where=str(settings().dataset_path),
                cure="declare it again, or choose others with --source",
            )
    done = 0
    with locked(settings().home_dir / "run" / "land.lock"), storage.writing():
        for name, each in known.items():
            of_source = [row for row in chosen if row["source"] == name]
            untimed = [row for row in of_source if row["stage"] == "land"]
            timed = [row for row in of_source if row["stage"] == "clean"]
            done += _land(untimed, each, dataset, now) if untimed else 0
            done += _repair(timed, each) if timed else 0
    return len(chosen), done


def _land(untimed: list[Row], source: Events, dataset: Dataset, now: datetime) -> int:
    """Land rows whose time could not be read, and take those that landed out of quarantine."""
    from spark_jobs import land, ledger
    from spark_jobs.parsing import KNOWN_ID
    from spark_jobs.session import session
    from spark_jobs.sources import Batch

    ledger.catch_up()
    spark = session("redrive")
    told = [
        {name: _text(value) for name, value in json.loads(row["row"]).items()} | {KNOWN_ID: row["event_id"]}
        for row in untimed
    ]
    names = list(dict.fromkeys([*(name for row in told for name in row), *_declared(source)]))
    schema = ", ".join(f"`{name.replace('`', '``')}` string" for name in names)
    raw = spark.createDataFrame([[row.get(name) for name in names] for row in told], schema)
    # What lies in quarantine holds pseudonyms already.
    stored = dataset.model_copy(update={"personal_user_id": False})
    through = pending.landed_through()
    landing = land.Landing(
        spark, stored, source, land.Span(0 if through is None else through, before=through), now, redriven=True
    )
    landing(Batch(raw, {}))
    _forget_landed(spark)
    return landing.num_landed


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) or value is None else json.dumps(value)


def _declared(source: Events) -> list[str]:
    return [name for name in source.columns.model_dump().values() if name is not None]


def _forget_landed(spark: Any) -> None:
    """Take rows out of quarantine that are in bronze by now: also those of a run that was killed before it could."""
    there = storage.read(spark, QUARANTINE).where("stage = 'land'")
    landed = storage.read(spark, BRONZE_EVENTS).select("event_id")
    left = there.join(landed, "event_id", "left_anti").localCheckpoint()
    storage.write(left.coalesce(1), QUARANTINE, where="stage = 'land'")


def _repair(timed: list[Row], source: Events) -> int:
    """Read the values again that could not be read when these rows of bronze landed; the next cleaning takes them up."""
    from delta.tables import DeltaTable
    from pyspark.sql import functions as F

    from spark_jobs.parsing import repaired
    from spark_jobs.session import session

    spark = session("redrive")
    ids = spark.createDataFrame([[row["event_id"]] for row in timed], "event_id string")
    intervals = {row["interval"] for row in timed}
    bronze = storage.read(spark, BRONZE_EVENTS).where(storage.one_of("interval", intervals))
    better = repaired(bronze.join(ids, "event_id", "left_semi"), source).where("repaired").localCheckpoint()
    count = better.count()
    if count:
        changed = {name: F.col(f"better.{name}") for name in ("event_type", "quantity", "price", "problems", "extra")}
        these = storage.one_of("bronze.interval", intervals)
        merge = DeltaTable.forPath(spark, str(BRONZE_EVENTS.path)).alias("bronze")
        (
            merge.merge(better.alias("better"), f"bronze.event_id = better.event_id AND ({these})")
            .whenMatchedUpdate(set=changed)
            .execute()
        )
    return int(count)


def main(dataset: Dataset, verb: str, reason: str, source: str, now: datetime) -> int:
    """Run a verb; the exit status."""
    if verb == "redrive":
        num_chosen, num_done = redrive(dataset, reason, source, now)
        print(f"{num_chosen:,} rows read again, {num_done:,} of them can be used now")
        if num_done:
            print("trigger build_features to take them up")
        return 0
    found = rows(reason, source)
    print("\n".join(listed(found) if verb == "list" else shown(found)))
    return 0


if __name__ == "__main__":
    from spark_jobs.session import plain_failures

    arguments = arg_parser().parse_args()
    with reported(), plain_failures():
        sys.exit(
            main(load(settings().dataset_path), arguments.verb, arguments.reason, arguments.source, datetime.now(UTC))
        )
