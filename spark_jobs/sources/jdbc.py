"""A table or query of a database, read by JDBC from one watermark to the next.

A batch is one window of the watermark column: from a little before the last watermark (`overlap`) to the highest value
there is, which is asked first; rows that come below it meanwhile are read again, as all are whose transaction was open.
Rows without a watermark cannot be told old from new: each batch reads all of them, and landing drops those that are
there already.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Self

from py4j.java_gateway import is_instance_of
from py4j.protocol import Py4JError
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import types as T

from contracts.dataset import Events, look_back
from contracts.errors import InputError
from contracts.settings import settings
from spark_jobs import reading
from spark_jobs.ledger import Position
from spark_jobs.parsing import declared_columns
from spark_jobs.session import say
from spark_jobs.sources import Batch, Land

_DRIVERS = {"jdbc:postgresql:": "org.postgresql.Driver"}
_OVERLAP, _OVERLAP_NUMBER = timedelta(minutes=10), Decimal(1000)
ALL = "all"
"""Stands for a watermark below which nothing can come any more: there is no asking for one."""
_AHEAD = timedelta(days=1)
"""Watermarks further ahead of our clock wait until their time: one wrong date would hide all rows to come."""


class Options(BaseModel):
    """`[events.jdbc]` of the dataset file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str = Field(pattern="^jdbc:")
    """Address as the driver wants it: `jdbc:postgresql://HOST:PORT/DATABASE`. Without a password."""
    user: str = ""
    password_secret: str = ""
    """Name of the secret that is the password (`Settings.secret`). Empty: none is given."""
    driver: str = ""
    """The driver's class, for databases other than PostgreSQL. Its jar belongs beside Spark's."""
    table: str = ""
    """A table or view, as SQL names it."""
    query: str = ""
    """A SELECT instead of a table."""
    watermark: str
    """Column that grows as rows are inserted: a timestamp, a date or a number. An index on it is worth having."""
    overlap: Annotated[timedelta | Decimal | None, BeforeValidator(look_back)] = None
    """How far behind the last watermark to read again, for rows whose transaction was committed late: a length of time
    for timestamps and dates, a number for numbers. None: 10 min, or 1000."""
    partition_column: str = ""
    """Number, date or timestamp by whose ranges several connections read at once."""
    partitions: int = Field(1, ge=1, le=256)
    """How many connections read at once."""
    fetch_size: int = Field(10_000, ge=1)
    """Rows that the driver fetches at a time."""

    @field_validator("url")
    @classmethod
    def _no_password(cls, url: str) -> str:
        if re.search(r"(?i)(password|passwd|pwd)\s*=|//[^/@?;]*:[^/@?;]*@|:[^/@:;?]+/[^/@:;?]+@", url):
            raise ValueError("holds a password: keep it as a secret and give its name as password_secret")
        return url

    @field_validator("query")
    @classmethod
    def _bare(cls, query: str) -> str:
        return query.strip().rstrip(";").rstrip()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if bool(self.table) == bool(self.query):
            raise ValueError("give either table or query")
        if (self.partitions > 1) != bool(self.partition_column):
            raise ValueError("partition_column and partitions (2 or more) belong together")
        return self


class Reader:
    """Position: `{"watermark": text or None, "settled": see `_settled`, "column": name, "type": type}`."""

    rereads = False

    def __init__(self, name: str, source: Events, options: Options, folder: Path) -> None:
        self._name, self._source, self._options = name, source, options

    def news(self, position: Position) -> bool:
        return True

    def run(self, spark: SparkSession, position: Position, land: Land) -> None:
        options = self._options
        with _utc(spark), self._plain_failures(spark):
            columns = self._load(spark, _select("*", self._from))
            names = [*declared_columns(self._source), options.watermark, options.partition_column or None]
            reading.require(columns, names, self._where)
            kind = self._kind(columns, options.watermark)
            before = self._before(position, kind)
            low = self._start(kind, before, position.get("settled", ALL))
            settled = self._settled(spark, kind, low)  # before the rows themselves are asked for
            high = self._highest(spark, kind, before, low)
            watermark = _quoted(spark, options.url, options.watermark)
            bounds = [(">=", low), ("<=", high)]
            tests = [f"{watermark} {sign} {_literal(kind, value)}" for sign, value in bounds if value]
            inside = f"{watermark} IS NULL OR ({' AND '.join(tests)})" if high is not None else f"{watermark} IS NULL"
            window = _select("*", self._from, inside)
            rows = self._load(spark, window, self._ranges(spark, columns, window))
            if high is not None or not rows.isEmpty():
                reached = {"watermark": high, "settled": settled, "column": options.watermark, "type": kind}
                land(Batch(rows, reached, where=self._where))

    def _highest(self, spark: SparkSession, kind: str, before: str | None, low: str | None) -> str | None:
        """The highest watermark there is, but never less than `before`. None: no row has one.

        Raises:
            InputError: it has gone back by more than the overlap.
        """
        watermark = _quoted(spark, self._options.url, self._options.watermark)
        maximum = f"MAX({watermark}) AS highest"
        highest = self._bounds(spark, _select(maximum, self._from), kind)[0]
        if highest is not None and kind != "number":
            limit = _limit()
            if _sortable(kind, highest) > limit:
                say(f"{self._name}: rows with {self._options.watermark} after {limit:%Y-%m-%d %H:%M} wait until then")
                in_time = f"{watermark} <= {_literal(kind, _written(kind, limit))}"
                highest = self._bounds(spark, _select(maximum, self._from, in_time), kind)[0]
        if before is None or low is None or highest is None:
            return highest if highest is not None else before
        if _sortable(kind, highest) < _sortable(kind, low):
            raise InputError(
                f"the highest {self._options.watermark} was {before} and is {highest} now: the table was replaced, "
                "and its new rows cannot be told from those read before",
                where=self._where,
                cure="give the source another name to read the table from its start: what has landed is not "
                "landed again if event_ids_are = 'of the shop'",
            )
        return max(highest, before, key=lambda text: _sortable(kind, text))

    def _start(self, kind: str, watermark: str | None, settled: str | None) -> str | None:
        """Where reading goes on after a window that ended at `watermark`; None: at the start."""
        overlap = self._overlap_of(kind)
        if watermark is None or settled is None:
            return None
        earlier = _earlier(kind, watermark, overlap)
        return earlier if settled == ALL else min(earlier, settled, key=lambda text: _sortable(kind, text))

    def _settled(self, spark: SparkSession, kind: str, low: str | None) -> str | None:
        """The highest watermark of rows that are older than all open transactions; ALL where that cannot be asked.

        An open transaction may hold a lower watermark than rows that can be seen, so reading goes on from there. Below
        `low` all was settled before, and the table is not looked through for it again.
        Source: https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-INFO-SNAPSHOT
        """
        options = self._options
        if not options.url.startswith("jdbc:postgresql:") or not options.table:
            return ALL
        name = options.table.replace("'", "''")
        query = _select("relkind::text AS kind", "pg_class", f"oid = to_regclass('{name}')")
        if [row["kind"] for row in self._load(spark, query).collect()] not in (["r"], ["p"]):  # a view has no xmin
            return ALL
        watermark = _quoted(spark, options.url, options.watermark)
        tests = ["age(xmin) > age((pg_snapshot_xmin(pg_current_snapshot())::text::bigint % 4294967296)::text::xid)"]
        if kind != "number":
            tests.append(f"{watermark} <= {_literal(kind, _written(kind, _limit()))}")
        if low is not None:
            tests.append(f"{watermark} >= {_literal(kind, low)}")
        highest = _select(f"MAX({watermark}) AS highest", self._from, " AND ".join(tests))
        return self._bounds(spark, highest, kind)[0] or low

    def _before(self, position: Position, kind: str) -> str | None:
        """The last watermark.

        Raises:
            InputError: it was one of another column, or the column's type has changed.
        """
        before = (position.get("column"), position.get("type"))
        if position and before != (self._options.watermark, kind):
            raise InputError(
                f"the watermark was {before[0]} ({before[1]}) so far and is {self._options.watermark} ({kind}) now",
                where=self._where,
                cure="put the old one back, or give the source another name to read it from its start",
            )
        return position.get("watermark")

    def _overlap_of(self, kind: str) -> timedelta | Decimal:
        default, type_ = (_OVERLAP_NUMBER, Decimal) if kind == "number" else (_OVERLAP, timedelta)
        overlap = self._options.overlap
        if overlap is None or isinstance(overlap, type_):
            return default if overlap is None else overlap
        if overlap == 0 and kind != "number":
            return timedelta(0)
        raise InputError(
            f"overlap does not fit {self._options.watermark}, which is a {kind}",
            where=f"events {self._name!r} of the dataset file",
            cure="write a number" if kind == "number" else "write a length of time, such as 10min",
        )

    def _ranges(self, spark: SparkSession, columns: DataFrame, window: str) -> list[str] | None:
        """Conditions that split the window among connections; each row fulfils exactly one."""
        options = self._options
        if not options.partition_column:
            return None
        kind, name = (
            self._kind(columns, options.partition_column),
            _quoted(spark, options.url, options.partition_column),
        )
        bounds = f"MIN({name}) AS lowest, MAX({name}) AS highest"
        low, high = self._bounds(spark, _select(bounds, f"({window}) bounded"), kind)
        if low is None or high is None or low == high:
            return None
        first, last = _sortable(kind, low), _sortable(kind, high)
        cuts = [_written(kind, first + (last - first) * n / options.partitions) for n in range(1, options.partitions)]
        literals = [_literal(kind, cut) for cut in dict.fromkeys(cuts)]
        between = [f"{name} >= {a} AND {name} < {b}" for a, b in pairwise(literals)]
        return [f"{name} < {literals[0]} OR {name} IS NULL", *between, f"{name} >= {literals[-1]}"]

    def _bounds(self, spark: SparkSession, select: str, kind: str) -> Sequence[str | None]:
        """The one row of a query, each value as exact text."""
        frame = self._load(spark, select)
        exact = "double" if frame.schema[0].dataType == T.FloatType() else frame.schema[0].dataType
        row = frame.select(*[reading.column(name).cast(exact).cast("string") for name in frame.columns]).collect()[0]
        for value in row:
            if value is not None and kind == "number" and not Decimal(value).is_finite():
                raise InputError(
                    f"there is a value {value}", where=self._where, cure="read by a column of real numbers"
                )
        return tuple(row)

    def _kind(self, columns: DataFrame, name: str) -> str:
        """`number`, `date`, `timestamp` (an instant) or `timestamp_ntz` (without a zone)."""
        type_ = columns.schema[name].dataType
        if isinstance(type_, T.NumericType):
            return "number"
        if isinstance(type_, (T.DateType, T.TimestampType, T.TimestampNTZType)):
            return str(type_.typeName())
        raise InputError(
            f"column {name!r} is of type {type_.simpleString()}",
            where=self._where,
            cure="name a column of numbers, dates or timestamps",
        )

    @property
    def _from(self) -> str:
        return self._options.table or f"({self._options.query}) queried"

    @property
    def _where(self) -> str:
        return f"{self._options.table or 'the query'} at {self._options.url}"

    def _load(self, spark: SparkSession, select: str, conditions: list[str] | None = None) -> DataFrame:
        options = self._options
        driver = options.driver or next((name for url, name in _DRIVERS.items() if options.url.startswith(url)), "")
        login = {
            "user": options.user,
            "password": settings().secret(options.password_secret) if options.password_secret else "",
            "driver": driver,
        }
        properties = {name: value for name, value in login.items() if value}
        properties |= {"fetchsize": str(options.fetch_size), "preferTimestampNTZ": "true"}
        table = f"({select}) asked"
        if conditions:
            return spark.read.jdbc(options.url, table, predicates=conditions, properties=properties)
        return spark.read.jdbc(options.url, table, properties=properties)

    @contextmanager
    def _plain_failures(self, spark: SparkSession) -> Iterator[None]:
        """Turn the database's failures into one line.

        Raises:
            InputError: the database cannot be reached, refuses us, or does not have what is asked for.
        """
        try:
            yield
        except (PySparkException, Py4JError) as error:
            failure = _sql_failure(spark, error)
            if failure is None:
                raise
            state, message = failure
            secret = self._options.password_secret
            cures = {
                "driver": f"put the driver's jar into {settings().cache_dir / 'spark-jars'} and its class into `driver`",
                "28": f"correct user, or the secret {secret!r}" if secret else "correct user, and give password_secret",
                "08": "see that the database runs and can be reached from here",
                "3D": "correct the database in url",
            }
            cure = cures.get(state, "correct the source in the dataset file, or see the database's log")
            raise InputError(message, where=self._where, cure=cure) from None


def _sql_failure(spark: SparkSession, error: Exception) -> tuple[str, str] | None:
    """Class of the SQLSTATE (`driver`: there is none) and message of what lies below a failure of Spark."""
    cause = getattr(error, "java_exception", None) or getattr(error, "_origin", None)
    gateway = spark.sparkContext._gateway
    while cause is not None:
        message = (cause.getMessage() or cause.getClass().getName()).splitlines()[0]
        if is_instance_of(gateway, cause, "java.lang.ClassNotFoundException") or message == "No suitable driver":
            return "driver", "no driver for this address"
        if is_instance_of(gateway, cause, "java.sql.SQLException"):
            root = cause.getCause()
            if root is not None and is_instance_of(gateway, root, "java.net.UnknownHostException"):
                message = f"no host {root.getMessage()}"
            state = cause.getSQLState() or ""
            # 08004: there is a server, and it wants a password.
            return "28" if state == "08004" else state[:2], message.removeprefix("FATAL: ").removeprefix(
                "ERROR: "
            ).rstrip(".")
        cause = cause.getCause()
    return None


@contextmanager
def _utc(spark: SparkSession) -> Iterator[None]:
    """The JVM's own zone is UTC meanwhile: drivers hand over times by it, and its clock changes would shift some."""
    zones = spark._jvm.java.util.TimeZone
    before = zones.getDefault()
    zones.setDefault(zones.getTimeZone("UTC"))
    try:
        yield
    finally:
        zones.setDefault(before)


def _quoted(spark: SparkSession, url: str, name: str) -> str:
    dialects: Any = spark._jvm.org.apache.spark.sql.jdbc.JdbcDialects
    return str(dialects.get(url).quoteIdentifier(name))


def _limit() -> datetime:
    return (datetime.now(UTC) + _AHEAD).replace(tzinfo=None)


def _select(what: str, source: str, where: str = "") -> str:
    """The dataset file is the shop's own, and so is the SQL in it."""
    return f"SELECT {what} FROM {source}" + (f" WHERE {where}" if where else "")  # noqa: S608


def _sortable(kind: str, text: str) -> Any:
    if kind == "number":
        return Decimal(text)
    try:
        return datetime.fromisoformat(text)
    except ValueError:  # `infinity`, or a year of five digits
        return datetime.min if text.startswith("-") else datetime.max


def _written(kind: str, value: Any) -> str:
    if kind == "number":
        return format(value, "f")
    return str(value.date()) if kind == "date" else value.isoformat(sep=" ")


def _literal(kind: str, text: str) -> str:
    """As SQL. Text in quotes takes the type of the column that it is compared with."""
    return text if kind == "number" else f"'{text}+00:00'" if kind == "timestamp" else f"'{text}'"


def _earlier(kind: str, text: str, by: timedelta | Decimal) -> str:
    return _written(kind, _sortable(kind, text) - by)
