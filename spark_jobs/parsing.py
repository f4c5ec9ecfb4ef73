"""From a shop's rows to BRONZE_EVENTS. Nothing is guessed: what cannot be read is null and said in `problems`."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import reduce
from itertools import chain
from operator import or_

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from contracts.dataset import Dataset, Events, Exclusion, Items
from contracts.settings import settings
from contracts.tables import BRONZE_EVENTS
from spark_jobs.pseudonyms import pseudonym_of
from spark_jobs.reading import CORRUPT, column, text

_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
_ISO_DATE = r"^\d{4}-\d{1,2}-\d{1,2}"
_ISO_ZONE = r"(?i):\d{2}(\.\d+)? ?(z|utc|gmt|[+-]\d{2}(:?\d{2})?)$"
_SHOWN = 60
"""Characters of a value that a problem shows."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_AHEAD = timedelta(days=1)
"""How far a clock may be ahead of ours, or a zone be mistaken."""
_YEARS = (datetime(2, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC))
"""Years that neither Python nor a person has a date for are typing errors."""
KNOWN_ID = "_event_id"
"""Column of a row that was read before, with the event_id it got then."""
Unread = tuple[str, Column, str | None]
"""A value that could not be read: column of the source, when that is so, what to say of it (None: nothing)."""
_EXCLUDED = "_excluded_"
"""Prefix of columns with the reason why a row is no event, told before user ids are replaced."""
_READ = "_read_"
"""Prefix of columns with values read from texts: they stand in many expressions, and are computed once so."""
ROW = "row"
"""Column beside the table's own: the source's row as JSON, where it has problems."""


def _quoted(value: Column) -> Column:
    return F.concat(F.lit("'"), F.substring(value, 1, _SHOWN), F.lit("'"))


def number(frame: DataFrame, name: str, decimal_comma: bool = False) -> Column:
    """A finite number, else null."""
    if isinstance(frame.schema[name].dataType, T.NumericType):
        value = column(name).cast("double")
        return F.when(F.abs(value) < float("inf"), value)
    written = text(frame, name)
    if decimal_comma:
        written = F.translate(F.translate(written, ".", ""), ",", ".")
    value = F.when(written.rlike(_NUMBER), written.try_cast("double"))
    return F.when(F.abs(value) < float("inf"), value)


def _has_zone(pattern: str) -> bool:
    return re.search("[VzOXxZ]", re.sub("'[^']*'", "", pattern)) is not None


def moment(frame: DataFrame, events: Events, time_zone: str) -> Column:
    """The instant of each row (UTC), else null. A zone written in the value wins over `time_is`."""
    name, pattern = events.columns.occurred_at, events.time_format
    kind = frame.schema[name].dataType
    if pattern in ("epoch_s", "epoch_ms"):
        seconds = number(frame, name) / (1 if pattern == "epoch_s" else 1000)
        return F.timestamp_micros(F.when(F.abs(seconds) < 1e11, F.round(seconds * 1_000_000)).cast("long"))
    zoned: Column = F.lit(False)
    if isinstance(kind, (T.TimestampType, T.TimestampNTZType, T.DateType)):
        parsed = column(name).cast("timestamp")
    else:
        written = text(frame, name)
        if pattern is None:
            parsed = F.when(written.rlike(_ISO_DATE), written.try_cast("timestamp"))
            zoned = written.rlike(_ISO_ZONE)
        else:
            parsed = F.try_to_timestamp(written, F.lit(pattern))
            zoned = F.lit(_has_zone(pattern))
    if events.time_is == "utc":
        return parsed
    return F.when(zoned, parsed).otherwise(F.to_utc_timestamp(parsed, time_zone))


def interval_time(occurred_at: Column, dataset: Dataset) -> Column:
    """Wall-clock time in intervals: n-1 is the start of interval n."""
    grid = dataset.interval
    first_us = (grid.first - datetime(1970, 1, 1)) // (datetime.resolution)
    length_us = grid.length // datetime.resolution
    is_utc = dataset.time_zone == "UTC"
    wall_clock_us = F.unix_micros(occurred_at if is_utc else F.from_utc_timestamp(occurred_at, dataset.time_zone))
    return (wall_clock_us - F.lit(first_us)) / F.lit(float(length_us))


def _excluded(frame: DataFrame, exclusion: Exclusion) -> Column:
    value = text(frame, exclusion.column)
    if exclusion.starts_with is not None:
        test = value.startswith(exclusion.starts_with)
    elif exclusion.one_of is not None:
        test = value.isin(*exclusion.one_of)
    else:
        test = value.rlike(str(exclusion.matches))
    return F.when(test, F.lit(f"excluded: {exclusion.reason}"))


def wanted_columns(events: Events, items: Items | None = None) -> list[str | None]:
    """The columns that a source must have; `items`: those told by columns of the events."""
    told = items is not None and items.path is None
    from_events = (
        [items.columns.item_id, *items.columns.name, items.columns.category, items.columns.type] if told else []
    )
    return [
        *events.columns.model_dump().values(),
        *(exclusion.column for exclusion in events.exclude),
        *from_events,
    ]


def without_identities(frame: DataFrame, user_id: str) -> DataFrame:
    """The rows with pseudonyms for user ids. The text of rows of no shape is dropped: an id may stand anywhere in it."""
    told = frame.withColumn(user_id, pseudonym_of(text(frame, user_id), settings().secret("pseudonym_key")))
    if CORRUPT in frame.columns:
        length = F.concat(
            F.length(column(CORRUPT)).cast("string"), F.lit(" characters, not kept: user ids are personal")
        )
        told = told.withColumn(CORRUPT, F.when(column(CORRUPT).isNotNull(), length))
    return told


def _types(frame: DataFrame, events: Events) -> tuple[Column, Column]:
    """The type as told, by its name here, and the type of the event: null where it is not known."""
    name = events.columns.event_type
    told = text(frame, name) if name else F.lit(None).cast("string")
    if events.type_names:
        renamed = F.create_map(*[F.lit(part) for part in chain(*events.type_names.items())])
        told = F.coalesce(F.element_at(renamed, told), told)
    known = F.when(told.isin(*events.types), told)
    if events.only_type is not None:
        known = F.when(told.isNull(), F.lit(events.only_type)).otherwise(known)
    return told, known


def _prepared(frame: DataFrame, events: Events, dataset: Dataset) -> DataFrame:
    """The rows with a column for each exclusion, told before user ids are replaced by pseudonyms."""
    for place, exclusion in enumerate(events.exclude):
        frame = frame.withColumn(f"{_EXCLUDED}{place}", _excluded(frame, exclusion))
    return without_identities(frame, events.columns.user_id) if dataset.personal_user_id else frame


def _extra(frame: DataFrame, events: Events, theirs: list[str], unread: list[Unread]) -> Column:
    """The columns of the source that have no place of their own, and the texts of values that could not be read."""
    mapped = {name for name in events.columns.model_dump().values() if name is not None}
    others = [name for name in theirs if name not in mapped]
    extra = F.create_map(*chain(*((F.lit(name), _plain(frame, name, column(name))) for name in others))).cast(
        "map<string,string>"
    )
    # Higher-order functions are slow: only rows with something unread go through them.
    any_unread = reduce(or_, [fails for _, fails, _ in unread])
    by_name: dict[str, Column] = {}
    for name, fails, _ in unread:
        by_name[name] = by_name[name] | fails if name in by_name else fails
    unread_texts = F.create_map(
        *chain(*((F.lit(name), F.when(fails, _plain(frame, name, column(name)))) for name, fails in by_name.items()))
    )
    return F.when(
        any_unread, F.map_concat(extra, F.map_filter(unread_texts, lambda _, value: value.isNotNull()))
    ).otherwise(extra)


def _event_id(frame: DataFrame, events: Events, source: str, theirs: list[str]) -> Column:
    """The event's id: known from before, the source's own, or a hash of the row."""
    if KNOWN_ID in frame.columns:
        return column(KNOWN_ID)
    # By name, so that a column that appears later does not change the ids of rows without it.
    whole_row = F.concat_ws(
        "\x1f", *[F.concat(F.lit(f"{name}="), _plain(frame, name, column(name))) for name in sorted(theirs)]
    )
    event_id = F.substring(F.sha2(whole_row, 256), 1, 32)
    if events.columns.event_id:
        event_id = F.coalesce(text(frame, events.columns.event_id), event_id)
    if events.event_ids_are == "of the source":
        event_id = F.concat(F.lit(f"{source}:"), event_id)
    return event_id


def parse(frame: DataFrame, events: Events, dataset: Dataset, ingested_at: datetime, *beside: Column) -> DataFrame:
    """Rows of a source as BRONZE_EVENTS, a row with problems itself as JSON in `row`, and the columns `beside`.

    `occurred_at`, `at` and `interval` are null where the time cannot be read; such rows cannot be landed.
    """
    names, theirs = events.columns, [name for name in frame.columns if name != KNOWN_ID]
    frame = _prepared(frame, events, dataset)
    read = {
        "quantity": number(frame, names.quantity, events.decimal_comma) if names.quantity else F.lit(1.0),
        "price": number(frame, names.price, events.decimal_comma) if names.price else F.lit(None).cast("double"),
        "occurred_at": moment(frame, events, dataset.time_zone),
    }
    frame = frame.withColumns({f"{_READ}{name}": value for name, value in read.items()})
    quantity, price, occurred_at = (column(f"{_READ}{name}") for name in read)
    frame = frame.withColumn(f"{_READ}at", interval_time(occurred_at, dataset))
    at = column(f"{_READ}at")
    unit_price = price
    if events.price_is == "line" and names.price:
        pieces = F.coalesce(quantity, F.lit(1.0))
        unit_price = F.when(pieces != 0, price / pieces)

    told_type, event_type = _types(frame, events)

    interval = next(c for c in BRONZE_EVENTS.columns if c.name == "interval")
    assert interval.minimum is not None
    assert interval.maximum is not None
    oldest, newest = (F.lit(year).cast("timestamp") for year in _YEARS)
    is_time = (at >= interval.minimum) & (at < interval.maximum) & (occurred_at >= oldest) & (occurred_at < newest)
    ahead = is_time & (occurred_at > F.lit(ingested_at + _AHEAD).cast("timestamp"))
    unset = is_time & (occurred_at.between(F.lit(_EPOCH).cast("timestamp"), F.lit(_EPOCH + _AHEAD).cast("timestamp")))
    in_grid = is_time & ~ahead & ~unset

    unread: list[Unread] = [
        (names.occurred_at, ~F.coalesce(is_time, F.lit(False)), "occurred_at: not a time"),
        (names.occurred_at, ahead, "occurred_at: in the future"),
        (names.occurred_at, unset, "occurred_at: of a clock that was not set"),
    ]
    if names.quantity:
        unread.append(
            (names.quantity, text(frame, names.quantity).isNotNull() & quantity.isNull(), "quantity: not a number")
        )
    if names.price:
        written = text(frame, names.price).isNotNull()
        unread.append((names.price, written & price.isNull(), "price: not a number"))
        if events.price_is == "line":
            unread.append((names.price, written & unit_price.isNull(), None))
    if names.event_type:
        unread.append((names.event_type, told_type.isNotNull() & event_type.isNull(), "event_type: not known"))

    problems = [
        F.when(fails, F.concat(F.lit(f"{what}: "), F.coalesce(_quoted(text(frame, name)), F.lit("missing"))))
        for name, fails, what in unread
        if what is not None
    ]
    if CORRUPT in frame.columns:
        problems.append(F.when(column(CORRUPT).isNotNull(), F.lit("row: not in the shape of the other rows")))
    problems += [column(f"{_EXCLUDED}{place}") for place in range(len(events.exclude))]

    extra = _extra(frame, events, theirs, unread)
    any_problem = reduce(or_, [problem.isNotNull() for problem in problems])
    listed = F.when(any_problem, F.array_compact(F.array(*problems))).otherwise(F.array().cast("array<string>"))

    event_id = _event_id(frame, events, dataset.source_name(events), theirs)
    return frame.select(
        event_id.alias("event_id"),
        F.lit(dataset.source_name(events)).alias("source"),
        F.when(in_grid, (F.floor(at) + 1).cast("int")).alias("interval"),
        text(frame, names.user_id).alias("user_id"),
        text(frame, names.item_id).alias("item_id"),
        event_type.alias("event_type"),
        F.when(in_grid, occurred_at).alias("occurred_at"),
        F.when(in_grid, at).alias("at"),
        (text(frame, names.session_id) if names.session_id else F.lit(None).cast("string")).alias("session_id"),
        quantity.alias("quantity"),
        unit_price.alias("price"),
        listed.alias("problems"),
        extra.alias("extra"),
        F.lit(ingested_at).cast("timestamp").alias("ingested_at"),
        F.when(any_problem, F.to_json(F.struct(*[column(name) for name in theirs]))).alias(ROW),
        *beside,
    )


def _plain(frame: DataFrame, name: str, value: Column) -> Column:
    """Text of a value as the source has it."""
    if isinstance(frame.schema[name].dataType, (T.StructType, T.ArrayType, T.MapType)):
        return F.to_json(value)
    return value.cast("string")


def repaired(bronze: DataFrame, events: Events) -> DataFrame:
    """BRONZE_EVENTS rows with values read again whose text stayed in `extra`; `repaired` tells whether one could be."""
    names = events.columns
    texts = bronze.select(
        *bronze.columns,
        *[
            F.element_at("extra", name).alias(f"text.{name}")
            for name in dict.fromkeys([names.quantity, names.price, names.event_type])
            if name is not None
        ],
    )

    def told(name: str) -> str:
        return f"text.{name}"

    quantity, price, event_type = F.col("quantity"), F.col("price"), F.col("event_type")
    if names.quantity:
        quantity = F.coalesce(quantity, number(texts, told(names.quantity), events.decimal_comma))
    if names.price:
        read = number(texts, told(names.price), events.decimal_comma)
        pieces = F.coalesce(quantity, F.lit(1.0))
        price = F.coalesce(price, F.when(pieces != 0, read / pieces) if events.price_is == "line" else read)
    if names.event_type:
        own = events.model_copy(update={"columns": names.model_copy(update={"event_type": told(names.event_type)})})
        event_type = F.coalesce(event_type, _types(texts, own)[1])
    found = {"quantity": quantity, "price": price, "event_type": event_type}
    solved = {own: value.isNotNull() & F.col(own).isNull() for own, value in found.items()}
    problems: Column = F.col("problems")
    for own, is_solved in solved.items():
        problems = F.when(is_solved, F.filter(problems, _is_not_about(own))).otherwise(problems)
    return texts.select(
        *[name for name in bronze.columns if name not in (*found, "problems")],
        *[value.alias(own) for own, value in found.items()],
        problems.alias("problems"),
        reduce(or_, solved.values()).alias("repaired"),
    )


def _is_not_about(own: str) -> Callable[[Column], Column]:
    return lambda problem: ~problem.startswith(f"{own}:")
