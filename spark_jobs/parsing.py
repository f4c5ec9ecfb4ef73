"""From a shop's rows to BRONZE_EVENTS. Nothing is guessed: what cannot be read is null and said in `problems`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import reduce
from itertools import chain
from operator import or_

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from contracts.dataset import Dataset, Events, Exclusion, Items
from contracts.settings import settings
from contracts.tables import BRONZE_EVENTS, SILVER_EVENTS, UNTIMED
from spark_jobs import rules
from spark_jobs.pseudonyms import pseudonym_of
from spark_jobs.reading import CORRUPT, FIELDS, KEYS, column, float_text, text

INTERVAL = next(each for each in SILVER_EVENTS.columns if each.name == "interval")
TOO_LATE = "occurred_at: older than the lateness limit"
_DECIMAL_COMMA = r"^[+-]?(\d+|\d{1,3}(\.\d{3})+)?(,\d*)?([eE][+-]?\d+)?$"
_NESTED_TEXT = r'^(\[\s*["{\[\d].*\]|\{\s*".*\})$'
_SHORT_ZONE = "yyyy-M-d['T'][ ]H:mm:ss[.SSSSSS] z"
"""A time with the short name of a zone, as `date` writes it: `CEST`."""
_SHOWN = 60
"""Characters of a value that a problem shows."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_AHEAD = timedelta(days=1)
"""How far a clock may be ahead of ours, or a zone be mistaken."""
_YEARS = (datetime(2, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC))
"""Years that neither Python nor a person has a date for are typing errors."""
MESSAGE_ID = "_message_id"
"""Column with what a record without an id of its own is known by, such as its offset in a topic."""
_UNITS_US = {"epoch_s": 1e6, "epoch_ms": 1e3, "epoch_us": 1.0, "epoch_ns": 1e-3}
_EXCLUDED = "_excluded_"
"""Prefix of columns with the reason why a row is no event, told before user ids are replaced."""
_RAW = "_raw_"
"""Prefix of columns with values as the source has them."""
_NESTED = (T.StructType, T.ArrayType, T.MapType)
_READ = "_read_"
"""Prefix of columns with values read from texts: they stand in many expressions, and are computed once so."""


def _quoted(value: Column) -> Column:
    return F.concat(F.lit("'"), F.substring(value, 1, _SHOWN), F.lit("'"))


def number(frame: DataFrame, name: str, decimal_comma: bool = False) -> Column:
    """A finite number, else null."""
    if isinstance(frame.schema[name].dataType, T.NumericType):
        value = column(name).cast("double")
        return F.when(F.abs(value) < float("inf"), value)
    written = text(frame, name)
    if decimal_comma:  # a dot marks thousands where three digits follow; elsewhere it can only be a decimal point
        plain = F.translate(F.translate(written, ".", ""), ",", ".")
        written = F.when(written.rlike(_DECIMAL_COMMA), plain).otherwise(written)
    # Java reads `1d`, `0x1p3` and `NaN` too.
    first, last = F.left(written, F.lit(1)), F.right(written, F.lit(1))
    is_decimal = (last.between("0", "9") | (last == ".")) & (first.between("0", "9") | first.isin("+", "-", "."))
    is_decimal &= ~F.contains(F.lower(written), F.lit("x"))
    value = F.when(is_decimal, written.try_cast("double"))
    return F.when(F.abs(value) < float("inf"), value)


def _has_zone(pattern: str) -> bool:
    return re.search("[VzOXxZ]", re.sub("'[^']*'", "", pattern)) is not None


def _iso_moment(written: Column) -> tuple[Column, Column]:
    """The instant of a text in ISO 8601, and whether it names a zone: then it can be read, but not with one more.

    Spark reads a zone after seconds only, and none in brackets, as Java writes `+02:00[Europe/Berlin]`.
    """
    plain = F.when(written.endswith("]"), F.regexp_replace(written, r"([+-]\d\d:\d\d|Z)\[[^\]]*\]$", "$1")).otherwise(
        written
    )
    with_seconds = F.regexp_replace(plain, r"([T ]\d\d?:\d\d?)( ?(Z|[+-]).*)$", "$1:00$2")
    is_date = (F.substring(plain, 5, 1) == "-") & F.substring(plain, 7, 2).contains("-")  # `2024` and `12:30` are none
    parsed = F.when(
        is_date,
        F.coalesce(
            plain.try_cast("timestamp"),
            with_seconds.try_cast("timestamp"),
            F.try_to_timestamp(plain, F.lit(_SHORT_ZONE)),
        ),
    )
    names_zone = F.translate(F.substring(plain, 12, 99), "0123456789:.", "") != ""
    return parsed, names_zone & F.concat(plain, F.lit("Z")).try_cast("timestamp").isNull()


def _moment_by(pattern: str, written: Column) -> tuple[Column, Column]:
    """The instant of a text by one of Spark's patterns, and whether it names a zone, which may be optional."""
    parsed = F.try_to_timestamp(written, F.lit(pattern))
    without_zone = re.sub(r"\[[^\[\]]*[VzOXxZ][^\[\]]*\]", "", pattern)
    if _has_zone(without_zone) or without_zone == pattern:
        return parsed, F.lit(_has_zone(pattern))
    return parsed, F.try_to_timestamp(written, F.lit(without_zone)).isNull()


def _epoch_moment(value: Column) -> Column:
    """The instant of a number since 1970 in seconds, milliseconds, microseconds or nanoseconds, as its size tells.

    Clients mix them. The ranges do not overlap for any time from 1973 to 2286.
    """
    unit_us = F.element_at(F.create_map(*map(F.lit, chain(*_UNITS_US.items()))), epoch_unit(value))
    return F.timestamp_micros(F.round(value * unit_us).cast("long"))


def epoch_unit(value: Column) -> Column:
    """`epoch_s`, `epoch_ms`, `epoch_us` or `epoch_ns`, by the size of a number; null of one that is no time."""
    size = F.abs(value)
    return (
        F.when(size < 1e11, "epoch_s")
        .when(size < 1e14, "epoch_ms")
        .when(size < 1e17, "epoch_us")
        .when(size < 1e20, "epoch_ns")
    )


def moment(frame: DataFrame, events: Events, time_zone: str) -> Column:
    """The instant of each row (UTC), else null. A zone written in the value wins over `time_is`."""
    name, pattern = events.columns.occurred_at, events.time_format
    kind = frame.schema[name].dataType
    if pattern is not None and pattern.startswith("epoch"):
        return _epoch_moment(number(frame, name))
    if isinstance(kind, T.TimestampType):  # an instant already
        return column(name)
    if isinstance(kind, (T.TimestampNTZType, T.DateType)):
        parsed, zoned = column(name).cast("timestamp"), F.lit(False)
    else:
        written = text(frame, name)
        parsed, zoned = _iso_moment(written) if pattern is None else _moment_by(pattern, written)
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


def declared_columns(events: Events, items: Items | None = None) -> list[str | None]:
    """The columns that a source must have; `items`: those told by columns of the events."""
    in_events = items is not None and items.path is None
    from_events = (
        [items.columns.item_id, *items.columns.name, items.columns.category, items.columns.type] if in_events else []
    )
    return [
        *events.columns.model_dump().values(),
        *(exclusion.column for exclusion in events.exclude),
        *from_events,
    ]


def without_identities(frame: DataFrame, user_id: str) -> DataFrame:
    """The rows with pseudonyms for user ids. The text of rows of no shape is dropped: an id may stand anywhere in it."""
    hidden = frame.withColumn(user_id, pseudonym_of(text(frame, user_id), settings().secret("pseudonym_key")))
    if CORRUPT in frame.columns:
        length = F.concat(
            F.length(column(CORRUPT)).cast("string"), F.lit(" characters, not kept: user ids are personal")
        )
        hidden = hidden.withColumn(CORRUPT, F.when(column(CORRUPT).isNotNull(), length))
    return hidden


def _types(frame: DataFrame, events: Events) -> tuple[Column, Column]:
    """The type as told, by its name here, and the type of the event: null where it is not known."""
    name = events.columns.event_type
    name_of_type = text(frame, name) if name else F.lit(None).cast("string")
    if events.type_names:
        renamed = F.create_map(*[F.lit(part) for part in chain(*events.type_names.items())])
        name_of_type = F.coalesce(F.element_at(renamed, name_of_type), name_of_type)
    type_ = F.when(name_of_type.isin(*events.types), name_of_type)
    if events.only_type is not None:
        type_ = F.when(name_of_type.isNull(), F.lit(events.only_type)).otherwise(type_)
    return name_of_type, type_


def _prepared(frame: DataFrame, events: Events, dataset: Dataset) -> DataFrame:
    """The rows with a column for each exclusion, told before user ids are replaced by pseudonyms."""
    for place, exclusion in enumerate(events.exclude):
        frame = frame.withColumn(f"{_EXCLUDED}{place}", _excluded(frame, exclusion))
    return without_identities(frame, events.columns.user_id) if dataset.personal_user_id else frame


def _map_of(values: Mapping[str, Column]) -> Column:
    return F.create_map(*chain(*((F.lit(name), value) for name, value in values.items()))).cast("map<string,string>")


def _extra_hash_record(
    frame: DataFrame, theirs: list[str], mapped: set[str], identity: Sequence[str]
) -> tuple[Column, Column, Column]:
    """Of rows with `_RAW` columns: the fields without a place of their own, the hash of a record, and all of it as JSON."""
    raw = {name: (frame.schema[name].dataType, column(f"{_RAW}{name}")) for name in theirs}
    beside = {name: _plain(frame, name, column(name)) for name in theirs if name not in mapped}
    extra, hashed = _map_of(beside), {name: raw[name] for name in {*(identity or theirs), CORRUPT} if name in raw}
    record = F.to_json(F.struct(*[value.alias(name) for name, (_, value) in raw.items()]))
    if FIELDS in frame.columns:
        others = F.coalesce(FIELDS, _map_of({}))
        extra = F.map_concat(others, extra) if beside else others
        hashed |= {name: (T.StringType(), F.element_at(FIELDS, name)) for name in identity if name not in raw}
        if not identity:
            hashed[FIELDS] = (T.StringType(), F.to_json(FIELDS))
        record = F.to_json(F.map_concat(others, _map_of({name: value for name, (_, value) in raw.items()})))
    by_hash = _hash_of(hashed)
    return extra, by_hash, record


def _hash_of(values: Mapping[str, tuple[T.DataType, Column]]) -> Column:
    """What a record without an id is known by. By name, in small letters, so that neither order nor spelling matters."""
    names = sorted(values, key=lambda name: (name.lower(), name))
    written = [F.concat(F.lit(f"{name.lower()}="), _canonical(*values[name])) for name in names]
    return F.substring(F.sha2(F.concat_ws("\x1f", *written), 256), 1, 32)


def _canonical(kind: T.DataType, value: Column) -> Column:
    """A value as text that is the same however a file types it: `5.0` and `5`, a date and its midnight."""
    if isinstance(kind, (T.TimestampType, T.TimestampNTZType, T.DateType)):
        return F.unix_micros(value.cast("timestamp")).cast("string")
    if isinstance(kind, T.DecimalType):
        return F.regexp_replace(value.cast("string"), r"\.?0+$", "") if kind.scale else value.cast("string")
    if isinstance(kind, (T.DoubleType, T.FloatType)):
        return float_text(value)
    return F.to_json(value) if isinstance(kind, _NESTED) else value.cast("string")


def parse(
    frame: DataFrame,
    events: Events,
    dataset: Dataset,
    ingested_at: datetime,
    *,
    identity: Sequence[str] = (),
    oldest: int | None = None,
) -> DataFrame:
    """Records of a source as BRONZE_EVENTS.

    Args:
        identity: columns whose hash is the id of a record that has none or is unfit; empty: all.
        oldest: first interval that is not too late to land; None: all are in time.
    """
    names, theirs = events.columns, [name for name in frame.columns if name not in (MESSAGE_ID, FIELDS, KEYS)]
    mapped = {name for name in names.model_dump().values() if name is not None} | {CORRUPT}
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

    named_type, event_type = _types(frame, events)

    lowest, highest = (F.lit(year).cast("timestamp") for year in _YEARS)
    is_time = (at >= INTERVAL.minimum) & (at < INTERVAL.maximum) & (occurred_at >= lowest) & (occurred_at < highest)
    ahead = is_time & (occurred_at > F.lit(ingested_at + _AHEAD).cast("timestamp"))
    unset = is_time & (occurred_at.between(F.lit(_EPOCH).cast("timestamp"), F.lit(_EPOCH + _AHEAD).cast("timestamp")))
    late = is_time & ~unset & (at < oldest - 1) if oldest is not None else F.lit(False)
    in_grid = F.coalesce(is_time & ~ahead & ~unset & ~late, F.lit(False))

    problems = [
        _problem(frame, names.occurred_at, ~F.coalesce(is_time, F.lit(False)), "occurred_at: not a time"),
        _problem(frame, names.occurred_at, ahead, "occurred_at: in the future"),
        _problem(frame, names.occurred_at, unset, "occurred_at: of a clock that was not set"),
    ]
    if oldest is not None:
        problems.append(_problem(frame, names.occurred_at, late, TOO_LATE))
    for name, value, what in (
        (names.quantity, quantity, "quantity: not a number"),
        (names.price, price, "price: not a number"),
    ):
        if name:
            problems.append(_problem(frame, name, text(frame, name).isNotNull() & value.isNull(), what))
    if names.event_type:
        unknown = named_type.isNotNull() & event_type.isNull()
        problems.append(_problem(frame, names.event_type, unknown, "event_type: not known"))
    for own, name in (("user_id", names.user_id), ("item_id", names.item_id)):
        written = text(frame, name)
        nested = F.when(written.startswith("[") | written.startswith("{"), written.rlike(_NESTED_TEXT)).otherwise(False)
        problems.append(_problem(frame, name, nested, f"{own}: a list or an object, not an id"))
    if CORRUPT in theirs:
        problems.append(F.when(column(CORRUPT).isNotNull(), F.lit("row: not in the shape of the other rows")))
    problems += [column(f"{_EXCLUDED}{place}") for place in range(len(events.exclude))]
    any_problem = reduce(or_, [problem.isNotNull() for problem in problems])

    extra, by_hash, record = _extra_hash_record(frame, theirs, mapped, identity)
    nothing = F.lit(None).cast("string")
    scope = F.lit(f"{dataset.source_name(events)}:" if events.event_ids_are == "of the source" else "")
    parsed = frame.select(
        *[column(name).alias(f"{_RAW}{name}") for name in theirs],
        *([FIELDS] if FIELDS in frame.columns else []),
        (text(frame, names.event_id) if names.event_id else nothing).alias("_own_id"),
        (column(MESSAGE_ID) if MESSAGE_ID in frame.columns else nothing).alias(MESSAGE_ID),
        F.lit(dataset.source_name(events)).alias("source"),
        F.when(in_grid, (F.floor(at) + 1).cast("int")).otherwise(UNTIMED).alias("interval"),
        text(frame, names.user_id).alias("user_id"),
        text(frame, names.item_id).alias("item_id"),
        event_type.alias("event_type"),
        F.when(in_grid, occurred_at).alias("occurred_at"),
        F.when(in_grid, at).alias("at"),
        (text(frame, names.session_id) if names.session_id else nothing).alias("session_id"),
        quantity.alias("quantity"),
        unit_price.alias("price"),
        # Higher-order functions are slow: only rows with a problem go through them.
        F.when(any_problem, F.array_compact(F.array(*problems)))
        .otherwise(F.array().cast("array<string>"))
        .alias("problems"),
        extra.alias("extra"),
        F.lit(ingested_at).cast("timestamp").alias("ingested_at"),
    ).withColumn("_fit", rules.is_fit())
    own_id = F.coalesce(F.when(F.col("_fit"), F.col("_own_id")), column(MESSAGE_ID), by_hash)
    return parsed.withColumns({"event_id": F.concat(scope, own_id), "record": F.when(~F.col("_fit"), record)}).select(
        *BRONZE_EVENTS.column_names
    )


def _problem(frame: DataFrame, name: str, fails: Column, what: str) -> Column:
    """What to say of a value of column `name` where it `fails`; else null."""
    return F.when(fails, F.concat(F.lit(f"{what}: "), F.coalesce(_quoted(text(frame, name)), F.lit("missing"))))


def _plain(frame: DataFrame, name: str, value: Column) -> Column:
    """Text of a value as the source has it."""
    return F.to_json(value) if isinstance(frame.schema[name].dataType, _NESTED) else value.cast("string")
