"""Land what a shop's sources hold: events into `bronze_events`, and what is known of items, users and promotions.

Each batch of a source is one atomic commit of its rows, of the position to read on from, and of the account of every
record: read = landed + quarantined + duplicates. A run may be repeated or killed at any instant: an event that is there
already, told by its `event_id`, is not landed again. Rows whose time cannot be read go to `quarantine`.
"""

from __future__ import annotations

import argparse
import sys
import uuid
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import reduce
from pathlib import Path

from pyspark import StorageLevel
from pyspark.sql import Column, DataFrame, Row, SparkSession, Window
from pyspark.sql import functions as F
from pyspark.sql import types as T

from contracts.dataset import Dataset, Events, Items, Promotions, Users, load
from contracts.errors import InputError, reported
from contracts.files import locked
from contracts.settings import settings
from contracts.tables import BRONZE_EVENTS, ITEMS, PROMOTIONS, QUARANTINE, USERS, Table
from spark_jobs import ledger, pending, reading, rules, sources, storage
from spark_jobs.arguments import add_interval
from spark_jobs.parsing import ROW, number, parse, wanted_columns, without_identities
from spark_jobs.pseudonyms import without_erased
from spark_jobs.session import plain_failures, say, session

SEPARATOR = " · "
_WORD_BITS = 60


def arg_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="land", description=__doc__)
    add_interval(parser, "--through", "last interval to land; empty: the last complete one")
    add_interval(parser, "--from-interval", "first one; empty: the first not yet landed")
    return parser


def read_events(spark: SparkSession, source: Events, dataset: Dataset, folder: Path, now: datetime) -> DataFrame:
    """All events of a source of files as BRONZE_EVENTS with `row`; `interval` is null where the time cannot be read.

    Raises:
        InputError: a file or a declared column is missing or cannot be read.
    """
    assert source.files is not None
    raw = reading.read_all(spark, source.files, folder, wanted_columns(source, dataset.items))
    return parse(raw, source, dataset, now)


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
        sound = storage.read(spark, BRONZE_EVENTS).where("item_id IS NOT NULL AND size(problems) = 0")
        if items is None or files is None:
            return all_items(items_of_events(sound, dataset), None, items.not_recommended if items is not None else ())
        columns = items.columns
        wanted = [columns.item_id, *columns.name, columns.category, columns.type]
        raw = reading.read_all(spark, files, folder, wanted)
        return all_items(items_of_file(raw, items), sound, items.not_recommended)

    bronze_state = storage.state(BRONZE_EVENTS)
    told = reading.fingerprint([items, *(source.columns for source in dataset.events), bronze_state], [files], folder)
    refresh(ITEMS, told, build, bronze=bronze_state)


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


def land_rest(dataset: Dataset, folder: Path) -> None:
    """Everything but events; ITEMS last, so that its record of bronze says that a landing is whole."""
    for land in (land_promotions, land_users, land_items):
        land(dataset, folder)


@dataclass(frozen=True)
class Span:
    """What a run may land.

    Attributes:
        through: last interval to land of a source that holds back the rest.
        again_from: first interval to land again, replacing what is there; None: only what is new.
        before: last interval that has landed as a whole. Each batch says it again: commits are looked through a while
            back only, and a stream makes many before an interval is over.
    """

    through: int
    again_from: int | None = None
    before: int | None = None


@dataclass
class Landing:
    """Lands the batches of one source. Call it with each in order.

    Attributes:
        holds_back: as the source's reader says.
        redriven: the rows come from quarantine, and stay there if their time cannot be read still.
        seen: intervals of the rows so far, landed or held back.
    """

    spark: SparkSession
    dataset: Dataset
    source: Events
    span: Span
    now: datetime
    holds_back: bool = False
    redriven: bool = False
    num_landed: int = 0
    seen: set[int] = field(default_factory=set)
    _token: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def _name(self) -> str:
        return self.dataset.source_name(self.source)

    @property
    def _account(self) -> str:
        """The source's name in the ledger."""
        return f"{self._name}:redriven" if self.redriven else self._name

    def __call__(self, batch: sources.Batch) -> None:
        """Land one batch; see `sources.Land`.

        Raises:
            InputError: a declared column is missing.
            RuntimeError: another run has landed a batch meanwhile, or the accounts do not balance.
        """
        number = ledger.latest(self._account)[0] + 1
        judged = self._judged(batch, number).persist(StorageLevel.MEMORY_AND_DISK)
        try:
            counted = judged.groupBy("part", "interval", "again", "beyond").count().collect()
            newest: dict[str, int] = {}
            for row in counted:
                if row["interval"] is not None:
                    newest[row["part"]] = max(row["interval"], newest.get(row["part"], row["interval"]))
            self.seen |= {row["interval"] for row in counted if row["interval"] is not None}
            accounts = _accounts(counted)
            self._refuse_unreadable(accounts, batch.where)
            if not accounts and newest:
                return  # all of it is held back
            position = batch.position(newest) if callable(batch.position) else batch.position
            if self.span.again_from is not None:  # what is landed again was not new: the source is as far as it was
                _, position = ledger.latest(self._name)
            entry = ledger.Entry(self._account, number, position, accounts, self._token)
            self._commit(judged.where("NOT again AND NOT beyond"), entry)
        finally:
            judged.unpersist()
        landed, read = (sum(getattr(account, kind) for account in accounts) for kind in ("landed", "read"))
        self.num_landed += landed
        aside, twice = (sum(getattr(account, kind) for account in accounts) for kind in ("quarantined", "duplicates"))
        say(
            f"{self._account}, batch {number}: {read:,} read = {landed:,} landed + {aside:,} quarantined + {twice:,} duplicates"
        )

    def _refuse_unreadable(self, accounts: Sequence[ledger.Account], where: str) -> None:
        read = sum(account.read for account in accounts)
        if self.holds_back and not self.seen and read and ledger.latest(self._name)[0] == 0:
            raise InputError(
                f"none of {read:,} rows has a time that can be read",
                where=where or self._name,
                cure="correct columns.occurred_at or time_format",
            )

    def _judged(self, batch: sources.Batch, number: int) -> DataFrame:
        """Rows of the batch with `part`, and whether they are there already (`again`) or not meant yet (`beyond`)."""
        rows = batch.rows
        if self.source.kind != "files" and self.dataset.items is not None:  # a batch of JSON has what its records have
            told = set(wanted_columns(self.source, self.dataset.items)) - set(wanted_columns(self.source))
            for name in sorted(name for name in told if name is not None and name not in rows.columns):
                rows = rows.withColumn(name, F.lit(None).cast("string"))
        reading.require(rows, wanted_columns(self.source, self.dataset.items), batch.where or self._name)
        part = (batch.part if batch.part is not None else F.lit("")).alias("part")
        events = without_erased(parse(rows, self.source, self.dataset, self.now, part))
        if batch.after is not None:
            events = events.where(F.col("interval") > batch.after)
        if self.span.again_from is not None:
            events = events.where(F.col("interval") >= self.span.again_from)
        beyond = F.col("interval") > self.span.through if self.holds_back else F.lit(False)
        events = events.withColumn("beyond", F.coalesce(beyond, F.lit(False)))
        scope = ["event_id"] if self._has_ids else ["interval", "event_id"]
        events = events.repartition("interval") if not self._has_ids else events
        events = events.withColumn("again", rules.is_duplicate(*scope))
        known = self._known(number, batch.after)
        if known is None:
            return events
        found = events.join(known, "event_id", "left")
        return found.withColumn("again", F.col("again") | F.coalesce("known", F.lit(False))).drop("known")

    @property
    def _has_ids(self) -> bool:
        """Whether ids are the source's own. One made of the row holds its time, so that equal ones lie in one interval."""
        return self.source.columns.event_id is not None

    def _known(self, number: int, after: int | None) -> DataFrame | None:
        """Ids that have landed or are in quarantine, but for those that this very batch replaces."""
        ids = []
        first = after + 1 if after is not None and not self._has_ids else None
        if any(first is None or interval >= first for interval in storage.files(BRONZE_EVENTS)):
            bronze = storage.read(self.spark, BRONZE_EVENTS)
            if first is not None:
                bronze = bronze.where(F.col("interval") >= first)
            if self.span.again_from is not None:
                bronze = bronze.where(f"NOT ({self._replaced()})")
            ids.append(bronze.select("event_id"))
        if storage.total_rows(QUARANTINE) and not self.redriven:
            there = storage.read(self.spark, QUARANTINE).where("stage = 'land'")
            ids.append(there.where((F.col("source") != self._name) | (F.col("batch") != number)).select("event_id"))
        if not ids:
            return None
        return reduce(DataFrame.unionByName, ids).distinct().withColumn("known", F.lit(True))

    def _replaced(self) -> str:
        low, high = self.span.again_from, self.span.through
        return f"source = '{self._name}' AND interval >= {low} AND interval <= {high}"

    def _commit(self, rows: DataFrame, entry: ledger.Entry) -> None:
        aside = rows.where("interval IS NULL")
        if not self.redriven and (
            any(account.quarantined for account in entry.accounts) or not storage.exists(QUARANTINE)
        ):
            these = f"stage = 'land' AND source = '{self._name}' AND batch = {entry.batch}"
            storage.write(_without_time(aside, entry.batch).coalesce(1), QUARANTINE, where=these)
        sound = rows.where("interval IS NOT NULL").repartition("interval")
        landed = {} if self.span.before is None else {"through": self.span.before}
        record = {"dataset": self.dataset.name, **landed, **entry.told()}
        if self.span.again_from is not None:
            storage.write(sound, BRONZE_EVENTS, where=self._replaced(), record=record)
        else:
            storage.append(sound, BRONZE_EVENTS, record=record, application=self._account, number=entry.batch)
        entries = [each for each in ledger.catch_up() if (each.source, each.batch) == (self._account, entry.batch)]
        if [each.token for each in entries] != [self._token]:
            raise RuntimeError(f"another run has landed batch {entry.batch} of {self._name}: run it again")


def _accounts(counted: list[Row]) -> tuple[ledger.Account, ...]:
    """One for each interval, of the counts by interval, `again` and `beyond`."""
    sums: defaultdict[int, list[int]] = defaultdict(lambda: [0, 0, 0])
    for row in counted:
        if not row["beyond"]:
            kind = 2 if row["again"] else 1 if row["interval"] is None else 0
            sums[row["interval"] if row["interval"] is not None else 0][kind] += row["count"]
    return tuple(
        ledger.Account(interval, landed + aside + twice, landed, aside, twice)
        for interval, (landed, aside, twice) in sorted(sums.items())
    )


def _without_time(rows: DataFrame, batch: int) -> DataFrame:
    """QUARANTINE rows of events whose time cannot be read."""
    return rows.select(
        F.lit("land").alias("stage"),
        F.lit(0).alias("interval"),
        "source",
        F.lit(batch).alias("batch"),
        "event_id",
        F.col("problems").alias("reasons"),
        F.col(ROW).alias("row"),
    )


def _refuse_empty_range(dataset: Dataset, landings: Sequence[Landing], after: int | None, through: int) -> None:
    seen = sorted(set[int]().union(*(landing.seen for landing in landings), storage.files(BRONZE_EVENTS)))
    if not seen:
        raise InputError(
            "the sources hold no events", where=settings().dataset_path.name, cure="name sources with events"
        )
    # Between others an interval may well be empty.
    if through < seen[0] or (after is not None and after >= seen[-1]):
        raise InputError(
            f"no events in intervals {seen[0] if after is None else after + 1} to {through}: "
            f"there are intervals {seen[0]} to {seen[-1]}",
            where=settings().dataset_path.name,
            cure="land a range that holds events, or correct interval.first and time_zone",
        )


def main(dataset: Dataset, folder: Path, from_interval: int | None, through: int | None, now: datetime) -> int:
    """Land what is new in the sources, and what has changed of items, users and promotions.

    Args:
        folder: what relative paths in the dataset file start from.
        from_interval: land the files' intervals from this one on again, replacing what is there.
        through: last interval to land of files; None means the last complete one as of `now`.
        now: a moment in UTC.

    Returns:
        The exit status.

    Raises:
        InputError: the data cannot be read, or holds nothing in that range.
    """
    with locked(settings().home_dir / "run" / "land.lock"), storage.writing():
        return _main(dataset, folder, from_interval, through, now)


def _main(dataset: Dataset, folder: Path, from_interval: int | None, through: int | None, now: datetime) -> int:
    ledger.catch_up()
    other = storage.recorded(BRONZE_EVENTS).get("dataset", dataset.name)
    if other != dataset.name:
        raise InputError(
            f"these tables hold the shop {other!r}, not {dataset.name!r}",
            where=str(settings().tables_dir),
            cure="set CARTWHEEL_HOME to a folder for this shop, or delete the old one",
        )
    end = through if through is not None else dataset.interval.number(dataset.wall_clock(now)) - 1
    before = pending.landed_through()
    through_now = end if before is None or from_interval is not None else max(end, before)
    span = Span(through_now, from_interval, before)
    readers = [(source, sources.open_source(source, dataset, folder)) for source in dataset.events]
    waiting = [
        (source, reader)
        for source, reader in readers
        if (from_interval is not None and reader.holds_back)
        or reader.news(ledger.latest(dataset.source_name(source))[1], span.through)
    ]
    if not waiting and before is not None and before >= span.through:
        print(f"nothing to do: everything through interval {before} has landed")
        land_rest(dataset, folder)
        return 0

    say(f"land {dataset.name} through interval {span.through}")
    spark = session("land")
    with ThreadPoolExecutor(2) as beside:
        others = [beside.submit(land, dataset, folder) for land in (land_promotions, land_users)]
        landings = []
        for source, reader in waiting:
            landing = Landing(spark, dataset, source, span, now, holds_back=reader.holds_back)
            position = {} if from_interval is not None else ledger.latest(dataset.source_name(source))[1]
            reader.run(spark, position, span.through, landing)
            landings.append(landing)
        for other in others:
            other.result()
    asks_for_more = from_interval is not None or before is None or span.through > before
    if through is not None and asks_for_more and not sum(landing.num_landed for landing in landings):
        _refuse_empty_range(dataset, landings, from_interval - 1 if from_interval is not None else before, span.through)
    if storage.exists(BRONZE_EVENTS) and (before is None or span.through > before):
        storage.note(BRONZE_EVENTS, {"dataset": dataset.name, "through": span.through})
    say(f"{BRONZE_EVENTS.name}: {sum(landing.num_landed for landing in landings):,} rows landed")
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
