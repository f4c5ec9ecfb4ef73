"""Delta tables: what they hold, what changed in them, how they are written. Only reading and writing rows needs Spark.

The library deltalake says which Parquet files are the table's, and Spark reads these; Spark writes rows as such files,
and they become the table's by a commit of deltalake. Through Spark's own Delta each commit takes a second longer, and
each reading half a second: of such seconds a job of little data consists.

What a table was computed from is told by the user metadata of its commits: the state (`id@version`) of the table
upstream. The intervals that were written between that state and now are the ones to compute again. That is exact,
needs no clock, and reads transaction logs only.
"""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

import deltalake
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake.exceptions import TableNotFoundError
from deltalake.transaction import AddAction

from contracts.errors import InputError
from contracts.files import locked
from contracts.settings import settings
from contracts.tables import Column, Table
from spark_jobs.paths import literal
from spark_jobs.scratch import scratch

if TYPE_CHECKING:
    from pyspark.sql import Column as SparkColumn
    from pyspark.sql import DataFrame, SparkSession

Replaced = Collection[int] | Literal["all", "nothing"]
_HISTORY = 100
"""How many commits back the newest one of ours is looked for at first (others may optimise or vacuum)."""
_ROW_GROUP_BYTES = 2**20
"""Of files in the order of buckets: readers pass over the groups of others."""
_ARROW = {
    "string": pa.string(), "boolean": pa.bool_(), "int": pa.int32(), "bigint": pa.int64(), "double": pa.float64(),
    "timestamp": pa.timestamp("us", "UTC"), "array<string>": pa.list_(pa.string()), "array<double>": pa.list_(pa.float64()),
    "map<string,string>": pa.map_(pa.string(), pa.string()),
}  # fmt: skip
"""Arrow's types by Spark's names of them."""


@contextmanager
def writing(*, alone: bool = False) -> Iterator[None]:
    """Hold the tables while writing them: many may, but for whoever must be `alone`, as erasing a user must."""
    with locked(settings().home_dir / "run" / "tables.lock", shared=not alone):
        yield


def exists(table: Table) -> bool:
    """Whether the table has a commit; a folder that a killed creation left behind is none."""
    return bool(deltalake.DeltaTable.is_deltatable(str(table.path)))


def open_table(table: Table, version: int | None = None) -> deltalake.DeltaTable | None:
    """The table for reading without Spark; None when it has not been written yet."""
    try:
        return deltalake.DeltaTable(str(table.path), version=version)
    except TableNotFoundError:
        return None


def arrow_schema(table: Table) -> pa.Schema:
    return pa.schema([pa.field(c.name, _ARROW[c.type], c.nullable) for c in table.columns])


def state(table: Table) -> str:
    """`id@version` of what the table holds now; empty when there is no table."""
    opened = open_table(table)
    return "" if opened is None else f"{opened.metadata().id}@{opened.version()}"


def recorded(table: Table, key: str = "") -> dict[str, Any]:
    """What our newest commit (with `key`: that says something of it) says about itself; empty when there is none."""
    opened = open_table(table)
    if opened is None:
        return {}
    for limit in (_HISTORY, None):
        for commit in opened.history(limit):
            if commit.get("userMetadata"):
                record: dict[str, Any] = json.loads(commit["userMetadata"])
                if not key or key in record:
                    return record
    return {}


def _adds(opened: deltalake.DeltaTable) -> pa.Table:
    """A row for each file: `path`, `num_records`, `partition.COLUMN`."""
    return pa.table(opened.get_add_actions(flatten=True))


def _paths(opened: deltalake.DeltaTable, column: str) -> dict[int, frozenset[str]]:
    actions = _adds(opened)
    files: defaultdict[int, set[str]] = defaultdict(set)
    for value, path in zip(actions[f"partition.{column}"].to_pylist(), actions["path"].to_pylist(), strict=True):
        files[int(value)].add(path)
    return {value: frozenset(paths) for value, paths in files.items()}


def files(table: Table) -> dict[int, frozenset[str]]:
    """The files of each value of the last partition column (`interval` or `as_of`)."""
    opened = open_table(table)
    return {} if opened is None else _paths(opened, table.partition_by[-1])


def rows(table: Table, version: int | None = None) -> dict[int, int]:
    """Number of rows by the last partition column."""
    opened = open_table(table, version)
    if opened is None:
        return {}
    actions = _adds(opened)
    counts: defaultdict[int, int] = defaultdict(int)
    values = actions[f"partition.{table.partition_by[-1]}"].to_pylist()
    for value, number in zip(values, actions["num_records"].to_pylist(), strict=True):
        counts[int(value)] += number
    return dict(counts)


def total_rows(table: Table) -> int:
    opened = open_table(table)
    return 0 if opened is None else sum(_adds(opened)["num_records"].to_pylist())


def changed(table: Table, since: str) -> set[int]:
    """The intervals of `table` whose rows were written or removed after `since` (a `state`), gone ones included.

    A commit that only puts files together (OPTIMIZE) says so itself, and changes nothing.
    Source: https://github.com/delta-io/delta/blob/master/PROTOCOL.md#add-file-and-remove-file
    """
    opened = open_table(table)
    if opened is None:
        return set()
    same_id, _, version = since.partition("@")
    commits = [
        table.path / "_delta_log" / f"{n:020d}.json" for n in range(int(version or -1) + 1, opened.version() + 1)
    ]
    if same_id != opened.metadata().id or not all(path.exists() for path in commits):
        return set(_paths(opened, table.partition_by[-1]))  # the log does not reach back that far: all is new
    values = set()
    for path in commits:
        for line in path.read_text(encoding="utf-8").splitlines():
            action = json.loads(line)
            written = action.get("add") or action.get("remove")
            if written is not None and written["dataChange"]:
                values.add(int(written["partitionValues"][table.partition_by[-1]]))
    return values


def ranges_predicate(column: str, values: Iterable[int]) -> str:
    """A predicate, as ranges so that it stays short."""
    ranges: list[list[int]] = []
    for value in sorted(values):
        if ranges and value == ranges[-1][1] + 1:
            ranges[-1][1] = value
        else:
            ranges.append([value, value])
    return " OR ".join(f"({column} >= {low} AND {column} <= {high})" for low, high in ranges) or "false"


def empty(spark: SparkSession, table: Table) -> DataFrame:
    """The table's columns without rows."""
    from pyspark.sql import functions as F

    return spark.range(0).select(*[F.lit(None).cast(column.type).alias(column.name) for column in table.columns])


def read(spark: SparkSession, table: Table, version: int | None = None) -> DataFrame:
    """The table; without rows when it has not been written yet. A column that it does not have yet is null.

    Raises:
        InputError: another tool has written it so that its files alone do not say which rows it has.
    """
    opened = open_table(table, version)
    if opened is None:
        return empty(spark, table)
    if opened.protocol().min_reader_version > 1:
        raise InputError(
            f"the table {table.name} has features of Delta that are not read here, as deletion vectors or mapped columns",
            where=str(table.path),
            cure="drop these features with the tool that added them",
        )
    paths = [table.path / path for path in _adds(opened)["path"].to_pylist()]
    if not paths:
        return empty(spark, table)
    return _parquet(spark, table, table.path, paths)


def _parquet(spark: SparkSession, table: Table, folder: Path, paths: Iterable[Path]) -> DataFrame:
    """The rows of files below a folder."""
    schema = ", ".join(f"{column.name} {column.type}" for column in table.columns)
    return (
        spark.read.schema(schema).option("basePath", str(folder)).parquet(*literal(paths)).select(*table.column_names)
    )


def require_layout(table: Table) -> None:
    """Check that a table that is there has the partitions of the contract, and columns that can be null where it says so.

    Raises:
        InputError: it is of an older layout.
    """
    opened = open_table(table)
    if opened is None:
        return
    nullable = {field.name: field.nullable for field in opened.schema().fields}
    missing = [column.name for column in table.columns if not column.nullable and column.name not in nullable]
    strict = [column.name for column in table.columns if column.nullable and not nullable.get(column.name, True)]
    if missing or strict or tuple(opened.metadata().partition_columns) != table.partition_by:
        raise InputError(
            f"the table {table.name} is of an older layout",
            where=str(settings().tables_dir),
            cure="delete this folder and run `ingest_events` again: all sources are landed anew",
        )


def write(frame: DataFrame, table: Table, *, replace: Replaced = "all", record: dict[str, Any] | None = None) -> int:
    """Put rows in the place of those of the table, in one atomic commit; the number of rows written.

    Args:
        frame: has the table's columns; others are left out.
        replace, record: as in `commit`.

    Raises:
        PySparkException: a value is missing that the contract wants.
        RuntimeError: see `commit`.
    """
    with staged_files(frame, table) as folder:
        return commit(folder, table, replace=replace, record=record)


@contextmanager
def staged_files(frame: DataFrame, table: Table) -> Iterator[Path]:
    """Rows as `stage` writes them, for `commit`: a folder that is gone afterwards."""
    with TemporaryDirectory(prefix="staged-", dir=scratch(), ignore_cleanup_errors=True) as folder:
        stage(frame, table, Path(folder))
        yield Path(folder)


def stage(frame: DataFrame, table: Table, folder: Path, *, beside: bool = False) -> None:
    """Write rows as files beside the table, for `commit`. No reader of the table sees them.

    Args:
        folder: what is there already is replaced.
        beside: only the partitions that the rows lie in are replaced.

    Raises:
        PySparkException: a value is missing that the contract wants.
    """
    columns = [_required(frame[column.name].cast(column.type), column, table) for column in table.columns]
    writer = frame.select(*columns).write.mode("overwrite").partitionBy(*table.partition_by)
    if _is_by_bucket(table):
        writer.option("parquet.block.size", _ROW_GROUP_BYTES)
    writer.option("partitionOverwriteMode", "dynamic" if beside else "static").parquet(str(folder))


def _is_by_bucket(table: Table) -> bool:
    """Whether the rows of a file are in the order of the users' buckets."""
    return "bucket" in table.column_names and "bucket" not in table.partition_by


def _required(value: SparkColumn, column: Column, table: Table) -> SparkColumn:
    from pyspark.sql import functions as F

    if column.nullable:
        return value.alias(column.name)
    missing = F.raise_error(F.lit(f"{table.name}: {column.name} is missing in some rows"))
    return F.coalesce(value, missing).alias(column.name)


def staged(spark: SparkSession, table: Table, folder: Path) -> DataFrame:
    """The rows that `stage` has written."""
    return _parquet(spark, table, folder, [folder])


def num_rows(folder: Path) -> int:
    """Number of rows that `stage` has written."""
    return sum(pq.read_metadata(path).num_rows for path in folder.rglob("*.parquet"))


def append(folder: Path, table: Table, *, record: dict[str, Any], application: str, number: int) -> None:
    """Add the files of `stage` to the table, unless `application` has committed this `number` or a later one.

    Source: https://github.com/delta-io/delta/blob/master/PROTOCOL.md#transaction-identifiers
    """
    commit(folder, table, replace="nothing", record=record, transaction=deltalake.Transaction(application, number))


def commit(
    folder: Path,
    table: Table,
    *,
    replace: Replaced,
    record: dict[str, Any] | None = None,
    transaction: deltalake.Transaction | None = None,
) -> int:
    """Make the files of `stage` the table's, in one atomic commit; the number of their rows.

    Args:
        replace: what is the table's no longer: all or nothing, or the rows with these values of the partition column.
            All files must lie in these.
        record: kept with the commit, for `recorded`.
        transaction: where the table has it already, or a later one of the application, nothing is committed.

    Raises:
        RuntimeError: a file lies beside what is replaced. None was moved then.
    """
    create(table)
    opened = deltalake.DeltaTable(str(table.path))
    if transaction is not None:  # asked of the very version that the commit is for: another writer's is a conflict
        last = opened.transaction_version(transaction.app_id)
        if last is not None and last >= transaction.version:
            return 0
    names = {field.name for field in opened.schema().fields}
    later = [field for field in arrow_schema(table) if field.name not in names]
    if later:
        opened.alter.add_columns(deltalake.Schema.from_arrow(pa.schema(later)).fields)
    rows_of = {path.relative_to(folder): pq.read_metadata(path).num_rows for path in sorted(folder.rglob("*.parquet"))}
    partitions = [] if isinstance(replace, str) else [str(value) for value in replace]
    if not isinstance(replace, str):
        beside = {_values(place)[table.partition_by[-1]] for place in rows_of}.difference(partitions)
        if beside:
            raise RuntimeError(f"{table.name}: rows of {', '.join(sorted(beside))} lie beside what is replaced")
    actions = [_taken_up(folder / place, place, table, count) for place, count in rows_of.items()]
    opened.create_write_transaction(
        actions,
        "overwrite" if partitions or replace == "all" else "append",
        opened.schema(),
        list(table.partition_by),
        partition_filters=[(table.partition_by[-1], "in", partitions)] if partitions else None,
        commit_properties=deltalake.CommitProperties(
            custom_metadata={} if record is None else {"userMetadata": json.dumps(record)},
            app_transactions=[] if transaction is None else [transaction],
        ),
    )
    return sum(rows_of.values())


def _values(place: Path) -> dict[str, str]:
    """Of the partition columns, by a file's place in the table."""
    return dict(part.split("=", 1) for part in place.parent.parts)


def _taken_up(path: Path, place: Path, table: Table, num_rows: int) -> AddAction:
    """Move a file to its place in the table; what a commit says of it."""
    target = table.path / place
    target.parent.mkdir(exist_ok=True)
    shutil.move(path, target)
    status, stats = target.stat(), json.dumps({"numRecords": num_rows})
    return AddAction(str(place), status.st_size, _values(place), int(status.st_mtime * 1000), True, stats)


def commit_metadata(table: Table, record: dict[str, Any]) -> None:
    """Commit `record` alone. No Spark needed."""
    opened = deltalake.DeltaTable(str(table.path))
    nothing = pa.Table.from_batches([], pa.schema(opened.schema().to_arrow()))
    properties = deltalake.CommitProperties(custom_metadata={"userMetadata": json.dumps(record)})
    deltalake.write_deltalake(opened, nothing, mode="append", commit_properties=properties)


def create(table: Table) -> None:
    """Make an empty table by its contract, where there is none."""
    with locked(settings().home_dir / "run" / "create.lock"):
        if exists(table):
            return
        shutil.rmtree(table.path, ignore_errors=True)  # what a killed creation left behind, which Delta stumbles over
        deltalake.DeltaTable.create(
            str(table.path),
            arrow_schema(table),
            partition_by=list(table.partition_by),
            # Lowest and highest values of columns: nothing is found by any but those that tables are partitioned by.
            configuration={"delta.dataSkippingNumIndexedCols": "0"},
        )
