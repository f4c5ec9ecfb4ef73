"""What is there to do: reconcile the tables, without Spark.

    python -m spark_jobs.pending land|clean|features|build|attribute|recommend

`build` is everything between landed events and features that passed their gate.

Exit status 0 with the pending intervals on the last line, comma separated (of `recommend`, the version), or 99 when
there is nothing to do. The answer comes from the tables alone, so a message that is lost or comes twice does no harm.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from contracts import lake, names
from contracts.champion import Champion, champion
from contracts.dataset import Dataset, load
from contracts.errors import reported
from contracts.gates import has_passed
from contracts.settings import settings
from contracts.tables import (
    ATTRIBUTIONS,
    BRONZE_EVENTS,
    CATEGORY_SHARES,
    EXPOSURES,
    ITEM_FEATURES,
    ITEM_INTERVALS,
    ITEMS,
    PROMOTIONS,
    QUARANTINE,
    RECOMMENDATIONS,
    SILVER_EVENTS,
    TRAINING_LISTS,
    UNTIMED,
    USER_HISTORIES,
)
from contracts.trainings import coming_interval
from spark_jobs import exposures, ledger, sources, storage
from spark_jobs.arguments import add_interval

if TYPE_CHECKING:
    from spark_jobs.sinks import Sink

RUNNING = "running"
"""What a commit of silver says of the intervals that are not over: the state of bronze that it has of them."""
PUBLISHED = "published"
"""What a commit of `recommendations` says of its sinks: by name, the state of the table that each has got."""


def landed_through() -> int | None:
    """The last interval of which everything there was has landed; None before the first landing."""
    through = storage.recorded(BRONZE_EVENTS, "through").get("through")
    return None if through is None else int(through)


def land(dataset: Dataset, folder: Path, from_interval: int | None, through: int | None, now: datetime) -> list[int]:
    """Intervals to land: up to `through` (None: the last complete one), from `from_interval` (None: the first not landed).

    The last one alone stands for news of unknown intervals: late events, or those of the running interval, which may have
    landed already and wait to be cleaned.
    """
    before = landed_through()
    end = through if through is not None else dataset.interval.number(dataset.wall_clock(now)) - 1
    if before is None:
        return [end]
    intervals = list(range(from_interval if from_interval is not None else before + 1, end + 1))
    if intervals:
        return intervals
    for source in dataset.events:
        position = ledger.latest(dataset.source_name(source)).position
        if sources.open_source(source, dataset, folder).news(position):
            return [before]
    return [before] if exposures.waiting() or running() else []


def build() -> list[int]:
    """Intervals that landed and have no features that passed their gate in this very version; the last one, too, when what
    is known of items has changed.
    """
    todo = features()
    open_intervals = {*clean(), *todo.item_intervals, *todo.training_lists, *todo.item_features, *todo.outdated}
    last = max(silver_files(silver_through()), default=None)
    if open_intervals or last is None:
        return sorted(open_intervals)
    from spark_jobs import items  # which needs PySpark, though no Spark

    if todo.category_shares or items.is_outdated(load(settings().dataset_path), settings().data_path):
        return [last]
    return [] if has_passed("features", ITEM_FEATURES.name, lake.version_of(ITEM_FEATURES)) else [last]


def meaning(dataset: Dataset) -> str:
    """A hash of what the dataset file says that silver is made by: weights and targets."""
    return storage.digest([dataset.types, dataset.target_types])[:16]


def clean() -> list[int]:
    """What of bronze silver was not made of: complete intervals, UNTIMED too, and the last one also when it is empty."""
    record, through = storage.recorded(SILVER_EVENTS, "through"), landed_through()
    if through is None:
        return []
    last_through = record.get("through", through)
    incomplete_then = {interval for interval in storage.files(BRONZE_EVENTS) if interval > last_through}
    as_declared = record.get("meaning") == meaning(load(settings().dataset_path))
    since = record.get("bronze", "") if as_declared else ""
    changed = {*storage.additions(BRONZE_EVENTS, since)} | incomplete_then
    if record.get("through", through - 1) < through:
        changed.add(through)
    return sorted(interval for interval in changed if interval <= through)


def running() -> dict[int, frozenset[str] | None]:
    """What of bronze silver lacks in the intervals that are not over: files to add, or None for an interval to make anew.

    Nothing before there are complete ones, and in a replay, where time stands still: nobody may know what is to come.
    """
    if not settings().ingest_schedule:
        return {}
    through, complete = landed_through(), storage.recorded(SILVER_EVENTS, "through")
    if through is None or not complete:
        return {}
    states = {storage.recorded(table, RUNNING).get(RUNNING, "") for table in (SILVER_EVENTS, QUARANTINE)}
    # Two, when a run was killed between its two commits.
    since = states.pop() if len(states) == 1 else ""
    news = storage.additions(BRONZE_EVENTS, since)
    if not since:
        news |= dict.fromkeys(storage.files(SILVER_EVENTS) | storage.files(QUARANTINE))
    return {interval: files for interval, files in news.items() if interval > through}


def silver_through() -> float:
    """The last interval of silver that is complete; what lies beyond is still coming in."""
    return float(storage.recorded(SILVER_EVENTS, "through").get("through", math.inf))


def silver_files(through: float) -> dict[int, frozenset[str]]:
    """The files of each complete interval of silver (`silver_through`): nothing is made of the others yet."""
    return {interval: files for interval, files in storage.files(SILVER_EVENTS).items() if interval <= through}


def silver_changes(made_of: dict[str, Any], through: float) -> set[int]:
    """The complete intervals of silver that are others than a table was made of, by what its commit says (`silver`)."""
    return {each for each in storage.changed(SILVER_EVENTS, made_of.get("silver", "")) if each <= through}


def named(intervals: Sequence[int]) -> str:
    """`3 intervals, 4 to 9, and the records without a time`."""
    timed = [interval for interval in intervals if interval != UNTIMED]
    words = [f"{len(timed)} intervals, {timed[0]} to {timed[-1]}"] if timed else []
    return ", and ".join([*words, *(["the records without a time"] if len(timed) < len(intervals) else [])])


class Features(NamedTuple):
    """What has to be computed again. Empty parts are up to date."""

    item_intervals: list[int]
    """Intervals; a changed one changes what is first and what is a repeat in later ones, as far as the horizon."""
    user_histories: list[int]
    """Changed intervals."""
    training_lists: list[int]
    category_shares: list[int]
    """Intervals; all back to the horizon when one changed, or what is known of items."""
    item_features: list[int]
    """Values of as_of to compute."""
    outdated: list[int]
    """Values of as_of that are out of date and not asked for any more: to be dropped."""

    def any(self) -> bool:
        return any(self)


def features(coming: int | None = None) -> Features:
    """What the feature tables lack, for a model that is to recommend in `coming` (None: the interval after the clean ones)."""
    through = silver_through()
    intervals, horizon = sorted(silver_files(through)), load(settings().dataset_path).interval.horizon
    if not intervals:
        return Features([], [], [], [], [], [])

    def since(made_of: dict[str, Any]) -> set[int]:
        return silver_changes(made_of, through)

    def onwards(changed: set[int]) -> list[int]:
        with_data = {*intervals, *storage.files(ITEM_INTERVALS)}
        last = max(changed, default=0) + horizon
        return sorted(interval for interval in with_data if min(changed) <= interval <= last) if changed else []

    if coming is None:
        coming = coming_interval(intervals[-1], intervals[-1] if through == math.inf else int(through))
    oldest = coming - max(settings().fold_offsets) - settings().training_intervals
    as_ofs = range(max(oldest, intervals[0] + 1), coming + 1)
    made_of = storage.recorded(CATEGORY_SHARES)
    shares = since(made_of)
    if shares or made_of.get("items") != storage.state(ITEMS):
        shares |= {interval for interval in intervals if interval > intervals[-1] - horizon}
    record = storage.recorded(ITEM_FEATURES)
    present = storage.files(ITEM_FEATURES).keys()
    changed = since(record)
    if record.get("promotions") != storage.state(PROMOTIONS):
        stale = set(present)
    else:
        stale = {as_of for as_of in present if changed and as_of > min(changed)}
    return Features(
        onwards(since(storage.recorded(ITEM_INTERVALS))),
        sorted(since(storage.recorded(USER_HISTORIES))),
        sorted(since(storage.recorded(TRAINING_LISTS))),
        sorted(shares),
        [as_of for as_of in as_ofs if as_of not in present or as_of in stale],
        sorted(stale - set(as_ofs)),
    )


def attribution_states() -> dict[int, str]:
    """What the attributions of each interval with exposures are made of: its files of exposures and of silver."""
    shown, silver = storage.files(EXPOSURES), silver_files(silver_through())
    made_of = {interval: [sorted(files), sorted(silver.get(interval, ()))] for interval, files in shown.items()}
    return {interval: storage.digest(files) for interval, files in made_of.items()}


def attribute() -> list[int]:
    """Intervals with exposures and silver events, and features of all before, whose attributions are missing or of others."""
    through = silver_through()
    silver, recorded = silver_files(through), storage.recorded(ATTRIBUTIONS).get("intervals", {})
    featureless = set[int]().union(
        *(silver_changes(storage.recorded(table), through) for table in (ITEM_INTERVALS, USER_HISTORIES))
    )
    return sorted(
        interval
        for interval, state in attribution_states().items()
        if interval in silver
        and recorded.get(str(interval)) != state
        and interval <= min(featureless, default=interval)
    )


def recommend() -> Champion | None:
    """The champion, when `recommendations` are not its answers."""
    model = champion()
    version = storage.recorded(RECOMMENDATIONS, "model_version").get("model_version")
    return None if model is None or model.version == version else model


def publish() -> dict[Sink, str]:
    """The sinks that have not got what `recommendations` holds, each with the state of that."""
    from spark_jobs.sinks import sinks

    state = storage.digest(sorted(map(sorted, storage.files(RECOMMENDATIONS).values())))
    states = storage.recorded(RECOMMENDATIONS, PUBLISHED).get(PUBLISHED, {})
    return {sink: state for sink in sinks() if lake.exists(RECOMMENDATIONS) and states.get(sink.name) != state}


def arg_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pending", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", choices=("land", "clean", "features", "build", "attribute", "recommend"))
    add_interval(parser, "--through", "of land: the last interval to land")
    add_interval(parser, "--from-interval", "of land: the first one")
    return parser


def main(step: str, from_interval: int | None, through: int | None) -> int:
    """Print what is pending for `step`; the exit status is 0 or NOTHING_TO_DO."""
    if step == "land":
        dataset = load(settings().dataset_path)
        for line in ledger.read_otherwise(dataset) if from_interval is None else ():
            print(line)
        intervals = land(dataset, settings().data_path, from_interval, through, datetime.now(UTC))
    elif step == "build":
        intervals = build()
    elif step == "features":
        todo = features()
        intervals = sorted({*todo.item_intervals, *todo.training_lists}) or sorted(
            {*todo.item_features, *todo.outdated}
        )
        if not todo.any():
            intervals = []
    elif step == "recommend":
        model = champion()
        intervals = [model.version] if model is not None and (recommend() or publish()) else []
    else:
        intervals = clean() if step == "clean" else attribute()
    if not intervals:
        print(f"{step}: nothing to do")
        return names.NOTHING_TO_DO
    print(f"{step}: {len(intervals)} pending")
    print(",".join("untimed" if interval == UNTIMED else str(interval) for interval in intervals))
    return 0


if __name__ == "__main__":
    with reported():
        sys.exit(main(**vars(arg_parser().parse_args())))
