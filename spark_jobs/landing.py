"""Land the batches of one source: each is one atomic commit of `bronze_events`.

The commit holds the rows that are new, the position to read on from, and the account of every record. A record is known
by its interval and event_id, so duplicates are looked for in the intervals of the batch only, never in all of history.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime
from typing import NoReturn

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from contracts.dataset import Dataset, Events
from contracts.errors import InputError
from contracts.settings import settings
from contracts.tables import BRONZE_EVENTS, UNTIMED
from spark_jobs import ledger, reading, rules, sources, storage
from spark_jobs.parsing import MESSAGE_ID, declared_columns, parse
from spark_jobs.pseudonyms import without_erased
from spark_jobs.scratch import staging_folder
from spark_jobs.session import say

_KEY = ["interval", "event_id"]


def parsed_events(
    rows: DataFrame,
    source: Events,
    dataset: Dataset,
    now: datetime,
    *,
    where: str,
    identity: list[str] | None = None,
    oldest: int | None = None,
) -> DataFrame:
    """Rows of a source as BRONZE_EVENTS, without those of erased users.

    Raises:
        InputError: a declared column is missing.
    """
    # Records in JSON, and rows of databases, need not tell of items.
    is_table = source.kind == "files" and reading.FIELDS not in rows.columns
    reading.require(rows, declared_columns(source, dataset.items if is_table else None), where)
    return without_erased(parse(rows, source, dataset, now, identity=identity or (), oldest=oldest))


def landed_intervals() -> list[int]:
    """The intervals of bronze that hold events, in order."""
    return sorted(interval for interval in storage.files(BRONZE_EVENTS) if interval != UNTIMED)


def oldest_in_time(dataset: Dataset) -> int | None:
    """First interval that is not too late to land; None before the first landing."""
    intervals = landed_intervals()
    grid = dataset.interval
    return intervals[-1] - -(-grid.lateness_limit // grid.length) if intervals else None


def refuse_empty_range(first: int, last: int) -> NoReturn:
    """Say that a range that a person asked for holds nothing.

    Raises:
        InputError: always.
    """
    intervals = landed_intervals()
    raise InputError(
        f"no events in intervals {first} to {last}: there are intervals {intervals[0]} to {intervals[-1]}",
        where=settings().dataset_path.name,
        cure="land a range that holds events, or correct interval.first and time_zone",
    )


@dataclass(frozen=True)
class Range:
    """The intervals to land again, with the records without a time. `last` None: all from `first` on."""

    first: int
    last: int | None

    @property
    def predicate(self) -> str:
        until = "" if self.last is None else f" AND interval <= {self.last}"
        return f"(interval >= {self.first}{until}) OR interval = {UNTIMED}"

    def __str__(self) -> str:
        return f"intervals from {self.first}" + ("" if self.last is None else f" to {self.last}")


@dataclass
class Landing:
    """Lands the batches of one source. Call it with each in order.

    Attributes:
        through: last interval that has landed as a whole. Each batch repeats it, so that it is found near the log's end.
        replace: the batch is all that the source holds, and replaces what has landed of it in these intervals.
        allow_fewer: whether fewer rows may replace more.
        is_complete: whether the source gives all of its records at once, so that a wrong declaration shows.
    """

    spark: SparkSession
    dataset: Dataset
    source: Events
    now: datetime
    through: int | None = None
    replace: Range | None = None
    allow_fewer: bool = False
    is_complete: bool = False
    num_landed: int = 0
    _token: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __call__(self, batch: sources.Batch) -> None:
        """Land one batch; see `sources.Land`.

        Raises:
            InputError: a declared column is missing, nothing can be used, or fewer rows would replace more.
            RuntimeError: another run has landed a batch meanwhile, or other rows were written than counted.
        """
        name = self.dataset.source_name(self.source)
        number, position, identity, _ = ledger.latest(name)
        if identity is None:
            columns = {*batch.rows.columns, *declared_columns(self.source)}
            if reading.KEYS in columns and self.source.columns.event_id is None and MESSAGE_ID not in columns:
                columns |= {*reading.keys_of(batch.rows)}
            identity = sorted(filter(None, columns - {reading.CORRUPT, reading.FIELDS, reading.KEYS, MESSAGE_ID}))
        # The first batch of a source is its history, which is never late.
        oldest = oldest_in_time(self.dataset) if number and self.replace is None else None
        events = parsed_events(
            batch.rows, self.source, self.dataset, self.now,
            where=batch.where or name, identity=identity, oldest=oldest,
        )  # fmt: skip
        if self.replace is not None:
            events = events.where(self.replace.predicate)
        with staging_folder() as folder:
            storage.stage(events.repartition("interval"), BRONZE_EVENTS, f"{folder}/all")
            staged = storage.staged(self.spark, BRONZE_EVENTS, f"{folder}/all")
            if number == 0 and self.is_complete:
                self._refuse_unusable(staged, batch.where or name)
            new, accounts = self._new(staged, folder)
            moved = {part: value for part, value in batch.position.items() if position.get(part) != value}
            if self.replace is not None and self.replace.last is not None:
                moved = {}  # what lies beyond is still to be read
            ours = {ledger.IDENTITY: identity, ledger.READING: ledger.reading_of(self.source)}
            entry = ledger.Entry(name, number + 1, moved | ours, accounts, self._token)
            if number and self.replace is None and not moved and not entry.num_new:
                say(f"{name}: nothing new")
                return
            self._commit(new, entry)
        read, landed, aside, twice = (
            sum(getattr(account, kind) for account in accounts)
            for kind in ("read", "landed", "quarantined", "duplicates")
        )
        self.num_landed += landed
        say(
            f"{name}, batch {number + 1}: {read:,} read = {landed:,} landed + {aside:,} quarantined + {twice:,} duplicates"
        )

    def _new(self, staged: DataFrame, folder: str) -> tuple[str, tuple[ledger.Account, ...]]:
        """Where in `folder` the rows lie that are not there yet, and the account of all.

        The usual batch has no duplicate: a look at its narrow keys shows that, and it is taken as it lies.
        """
        keys = _keys(staged)
        counts = keys.groupBy("interval", "hash").count().groupBy("interval")
        counts = counts.agg(F.sum("count").alias("read"), F.count("*").alias("distinct")).collect()
        read = {row["interval"]: int(row["read"]) for row in sorted(counts)}
        repeated = any(row["read"] > row["distinct"] for row in counts)
        bronze = self._bronze(read.keys())
        hits: list[int] = []
        if bronze is not None:
            hit = _keys(bronze).join(keys, ["interval", "hash"], "left_semi").select("interval").distinct()
            hits = [row["interval"] for row in hit.collect()]
        if not repeated and not hits:
            return f"{folder}/all", tuple(ledger.Account.of(interval, count, count) for interval, count in read.items())
        new = staged.withColumn("again", rules.is_duplicate()).where("NOT again").drop("again")
        if hits and bronze is not None:
            old = bronze.where(storage.ranges_predicate("interval", hits)).select(*_KEY)
            new = new.join(old, _KEY, "left_anti")
        storage.stage(new.repartition("interval"), BRONZE_EVENTS, f"{folder}/new")
        new = storage.staged(self.spark, BRONZE_EVENTS, f"{folder}/new")
        if hits and bronze is not None and self.source.columns.event_id is None:
            self._warn_of_versions(new, bronze)
        num_new = {row["interval"]: int(row["count"]) for row in new.groupBy("interval").count().collect()}
        return f"{folder}/new", tuple(
            ledger.Account.of(interval, count, num_new.get(interval, 0)) for interval, count in read.items()
        )

    def _warn_of_versions(self, new: DataFrame, bronze: DataFrame) -> None:
        """Say how many new rows mean the same as one that has landed: a status has changed, and they count twice."""
        meaning = ["interval", "user_id", "item_id", "event_type", "occurred_at", "session_id", "quantity", "price"]
        pairs = [F.col(f"new.{name}").eqNullSafe(F.col(f"old.{name}")) for name in meaning]
        again = new.where("record IS NULL").alias("new").join(bronze.alias("old"), pairs, "left_semi").count()
        if again:
            say(
                f"warning: {again:,} rows are equal to one that has landed already but for columns that mean nothing here, "
                "and count as other events: declare columns.event_id, or land the files again with --from-interval"
            )

    def _bronze(self, intervals: Collection[int]) -> DataFrame | None:
        """What bronze holds in these intervals, but for what the batch replaces; None: nothing."""
        common = storage.files(BRONZE_EVENTS).keys() & intervals
        if not common:
            return None
        bronze = storage.read(self.spark, BRONZE_EVENTS).where(storage.ranges_predicate("interval", common))
        return bronze if self.replace is None else bronze.where(f"NOT ({self._replaced})")

    @property
    def _replaced(self) -> str:
        assert self.replace is not None
        return f"source = '{self.dataset.source_name(self.source)}' AND ({self.replace.predicate})"

    def _refuse_unusable(self, events: DataFrame, where: str) -> None:
        """Where one thing is wrong with every row of a first batch, it is the dataset file that is wrong."""
        if not events.where("record IS NULL").isEmpty():
            return
        reasons = rules.count_reasons(events.withColumn("reasons", rules.reasons()))
        num_rows = events.count()
        if reasons and reasons[0]["rows"] == num_rows:
            raise InputError(rules.none_usable(num_rows, reasons[0]), where=where, cure=rules.NONE_USABLE_CURE)

    def _refuse_fewer(self, entry: ledger.Entry, num_before: int) -> None:
        assert self.replace is not None
        if all(account.interval == UNTIMED for account in entry.accounts) and self.replace.last is not None:
            files = storage.files(BRONZE_EVENTS)
            if not any(self.replace.first <= interval <= self.replace.last for interval in files):
                refuse_empty_range(self.replace.first, self.replace.last)
        if entry.num_new < num_before and not self.allow_fewer:
            raise InputError(
                f"{entry.num_new:,} rows would replace {num_before:,}",
                where=f"{entry.source}, {self.replace}",
                cure="bring the missing files back, or land with --allow-fewer (`allow_fewer` of ingest_events)",
            )

    def _commit(self, new: str, entry: ledger.Entry) -> None:
        through = {} if self.through is None else {"through": self.through}
        record = {"dataset": self.dataset.name, **through, **entry.record()}
        if self.replace is not None:
            replaced = storage.read(self.spark, BRONZE_EVENTS).where(self._replaced)
            counts = replaced.groupBy("interval").count().collect()
            self._refuse_fewer(entry, sum(row["count"] for row in counts))
            touched = {row["interval"] for row in counts} | {each.interval for each in entry.accounts}
            rows, others = storage.staged(self.spark, BRONZE_EVENTS, new), self._bronze(touched)
            rows = rows if others is None else others.unionByName(rows)  # what other sources have landed stays
            storage.write(rows.repartition("interval"), BRONZE_EVENTS, replace=touched, record=record)
        else:
            storage.append(new, BRONZE_EVENTS, record=record, application=entry.source, number=entry.batch)
        entries = [each for each in ledger.catch_up() if (each.source, each.batch) == (entry.source, entry.batch)]
        if [each.token for each in entries] != [self._token]:
            raise RuntimeError(f"another run has landed batch {entry.batch} of {entry.source}: run it again")


def _keys(events: DataFrame) -> DataFrame:
    """Interval and hash of the id of each row."""
    return events.select("interval", F.xxhash64("event_id").alias("hash"))
