"""Land what a shop's sources hold: events into `bronze_events`, what is known of users and promotions, and exposures.

A run may be repeated or killed at any instant: a record that has landed is not landed again. Everything that a source
holds lands; how far all of it is complete is written down beside it. What belongs to the interval that runs is cleaned at
once; all else once its gate has looked at it.
"""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

from contracts import lake
from contracts.dataset import Dataset, load
from contracts.errors import InputError, reported
from contracts.settings import settings
from contracts.tables import BRONZE_EVENTS
from spark_jobs import exposures, ledger, pending, references, sources, storage
from spark_jobs.arguments import add_flag, add_interval
from spark_jobs.clean import clean_running
from spark_jobs.landing import Landing, Range, landed_intervals, refuse_empty_range
from spark_jobs.session import plain_failures, say, session


def arg_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="land", description=__doc__)
    add_interval(parser, "--through", "last interval that is complete; empty: the last one that is over")
    add_interval(parser, "--from-interval", "first one to land again from sources that can be read again; empty: none")
    add_flag(parser, "--allow-fewer", "let fewer rows replace more when landing again")
    return parser


def main(
    dataset: Dataset,
    folder: Path,
    from_interval: int | None,
    through: int | None,
    now: datetime,
    *,
    allow_fewer: bool = False,
) -> int:
    """Land what is new in the sources, and what has changed of users and promotions.

    Args:
        folder: what relative paths in the dataset file start from.
        from_interval: replace what has landed of files, from this interval on up to `through`, by what they hold now.
        through: last interval that is complete; None means the last one that is over as of `now`.
        now: a moment in UTC.
        allow_fewer: whether fewer rows may replace more.

    Returns:
        The exit status.

    Raises:
        InputError: the data cannot be read, or holds nothing in that range.
    """
    with lake.lock("land"):
        with storage.writing():
            storage.require_layout(BRONZE_EVENTS)
            ledger.catch_up()
            for line in ledger.read_otherwise(dataset) if from_interval is None else ():
                say(line)
            failures = _land(dataset, folder, from_interval, through, now, allow_fewer=allow_fewer)
        clean_running(dataset)
        with storage.writing():
            storage.compact(BRONZE_EVENTS)
    if failures:
        raise failures[0]
    return 0


def _land(
    dataset: Dataset, folder: Path, from_interval: int | None, through: int | None, now: datetime, *, allow_fewer: bool
) -> list[InputError]:
    """Land; why some sources could not be read: what the others brought is there all the same."""
    other = storage.recorded(BRONZE_EVENTS).get("dataset", dataset.name)
    if other != dataset.name:
        raise InputError(
            f"these tables hold the shop {other!r}, not {dataset.name!r}",
            where=settings().lake_uri,
            cure="set CARTWHEEL_HOME to a folder for this shop, or delete the old one",
        )
    before = pending.landed_through()
    end = through if through is not None else dataset.interval.number(dataset.wall_clock(now)) - 1
    end = end if before is None else max(end, before)
    waiting = []
    failures: list[InputError] = []
    for source in dataset.events:
        reader = sources.open_source(source, dataset, folder)
        replace = Range(from_interval, through) if from_interval is not None and reader.rereads else None
        if from_interval is not None and replace is None:
            say(f"{dataset.source_name(source)}: cannot be read again, so what has landed of it stays")
        position = {} if replace is not None else ledger.latest(dataset.source_name(source)).position
        try:
            if replace is not None or reader.news(position):
                waiting.append((source, reader, replace, position))
        except InputError as error:  # the other sources land all the same
            failures.append(error)
    if not waiting and not failures and before is not None and before >= end:
        print(f"nothing to do: everything through interval {before} has landed")
        references.land_promotions(dataset, folder)
        references.land_users(dataset, folder)
        exposures.land(dataset)
        return []

    say(f"land {dataset.name} through interval {end}")
    spark, num_landed = session("land"), 0  # before the threads, which share it
    with ThreadPoolExecutor(2) as beside:
        others = [beside.submit(land, dataset, folder) for land in (references.land_promotions, references.land_users)]
        for source, reader, replace, position in waiting:
            landing = Landing(spark, dataset, source, now, before, replace, allow_fewer, is_complete=reader.rereads)
            try:
                reader.run(spark, position, landing)
            except InputError as error:
                failures.append(error)
            num_landed += landing.num_landed
        for each in others:
            each.result()
    exposures.land(dataset)
    if failures:
        return failures
    if through is not None and not num_landed:
        _refuse_empty_range(dataset, folder, from_interval, before, through)
    if lake.exists(BRONZE_EVENTS) and (before is None or end > before):
        storage.commit_metadata(BRONZE_EVENTS, {"dataset": dataset.name, "through": end})
    say(f"{BRONZE_EVENTS.name}: {num_landed:,} rows landed")
    return []


def _refuse_empty_range(
    dataset: Dataset, folder: Path, from_interval: int | None, before: int | None, end: int
) -> None:
    """A range that a person asked for and that lies beside all events is a mistake; between others one may be empty."""
    intervals = landed_intervals()
    if not intervals:
        for source in dataset.events:
            if sources.open_source(source, dataset, folder).news(ledger.latest(dataset.source_name(source)).position):
                return  # a file that is still being written
        raise InputError(
            "the sources hold no events", where=settings().dataset_path.name, cure="name sources with events"
        )
    first = from_interval if from_interval is not None else intervals[0] if before is None else before + 1
    if end < intervals[0] or intervals[-1] < first <= end:
        refuse_empty_range(first, end)


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
                allow_fewer=arguments.allow_fewer,
            )
        )
