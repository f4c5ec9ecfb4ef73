"""Delta tables: what they hold, what changed in them, how they are written. Only reading and writing rows needs Spark.

The library deltalake says which Parquet files are the table's, and Spark reads these; Spark writes rows as such files,
and they become the table's by a commit of deltalake. Through Spark's own Delta each commit takes a second longer, and
each reading half a second: of such seconds a job of little data consists.

What a table was computed from is told by the user metadata of its commits: the state (`id@version`) of the table
upstream. The intervals that are others now than in that state are the ones to compute again. That is exact, needs no
clock, and reads transaction logs only.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote

import deltalake
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake.exceptions import DeltaError
from deltalake.transaction import AddAction
from pyarrow import fs

from contracts import lake
from contracts.errors import InputError
from contracts.lake import open_table
from contracts.settings import settings
from contracts.tables import Column, Table
from spark_jobs.paths import for_spark
from spark_jobs.scratch import staging_folder

if TYPE_CHECKING:
    from pyspark.sql import Column as SparkColumn
    from pyspark.sql import DataFrame, SparkSession

Replaced = Collection[int] | Literal["all", "nothing"]
_AT_ONCE = 8
"""Files that are looked at or moved at once: a store takes its time for each, not for all."""
MANY_FILES = 100
"""Of one partition: with more, they are put together."""
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
    with lake.lock("tables", shared=not alone):
        yield


def arrow_schema(table: Table) -> pa.Schema:
    return pa.schema([pa.field(c.name, _ARROW[c.type], c.nullable) for c in table.columns])


def state(table: Table) -> str:
    """`id@version` of what the table holds now; empty when there is no table."""
    opened = open_table(table)
    return "" if opened is None else f"{opened.metadata().id}@{opened.version()}"


def digest(value: Any) -> str:
    """A hash of what can be JSON, to keep with a commit."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


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


def rows(table: Table, version: int | None = None, paths: Collection[str] | None = None) -> dict[int, int]:
    """Number of rows by the last partition column; of some files, or of all."""
    opened = open_table(table, version)
    if opened is None:
        return {}
    actions = _adds(opened)
    counts: defaultdict[int, int] = defaultdict(int)
    columns = (actions[name].to_pylist() for name in (f"partition.{table.partition_by[-1]}", "path", "num_records"))
    for value, path, number in zip(*columns, strict=True):
        if paths is None or path in paths:
            counts[int(value)] += number
    return dict(counts)


def total_rows(table: Table) -> int:
    opened = open_table(table)
    return 0 if opened is None else sum(_adds(opened)["num_records"].to_pylist())


def changed(table: Table, since: str) -> set[int]:
    """The intervals of `table` whose files are others than at `since` (a `state`), gone ones included.

    Costs the same however many commits lie between. Files that were put together are others, too: see `additions`.
    """
    opened = open_table(table)
    if opened is None:
        return set()
    same_id, _, version = since.partition("@")
    before: dict[int, frozenset[str]] = {}
    if same_id == opened.metadata().id:
        with suppress(DeltaError):  # the log does not reach back that far: all is new
            before = _paths(deltalake.DeltaTable(table.uri, version=int(version)), table.partition_by[-1])
    present = _paths(opened, table.partition_by[-1])
    return {value for value in present.keys() | before.keys() if present.get(value) != before.get(value)}


def additions(table: Table, since: str) -> dict[int, frozenset[str] | None]:
    """The intervals of `table` whose rows were written or removed after `since` (a `state`), each with the files that hold
    what is new; None where rows went, or are not told apart any more.

    A commit that only puts files together (OPTIMIZE) says so itself, and changes nothing.
    Source: https://github.com/delta-io/delta/blob/master/PROTOCOL.md#add-file-and-remove-file
    """
    opened = open_table(table)
    if opened is None:
        return {}
    same_id, _, version = since.partition("@")
    system, root = lake.filesystem()
    log = f"{root}/{table.name}/_delta_log"
    commits = [f"{log}/{n:020d}.json" for n in range(int(version or -1) + 1, opened.version() + 1)]
    present = _paths(opened, table.partition_by[-1])
    if same_id != opened.metadata().id or not all(info.is_file for info in system.get_file_info(commits)):
        return dict.fromkeys(present)  # the log does not reach back that far: all is new
    added: defaultdict[int, set[str]] = defaultdict(set)
    removed = set()
    for path in commits:
        with system.open_input_stream(path) as file:
            lines = file.read().decode().splitlines()
        for line in lines:
            action = json.loads(line)
            written = action.get("add") or action.get("remove")
            if written is not None and written["dataChange"]:
                value = int(written["partitionValues"][table.partition_by[-1]])
                added[value].update([unquote(written["path"])] if "add" in action else [])
                removed.update([value] if "remove" in action else [])
    return {
        value: None if value in removed or paths - present.get(value, frozenset()) else frozenset(paths)
        for value, paths in added.items()
    }


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


def read(
    spark: SparkSession, table: Table, version: int | None = None, paths: Collection[str] | None = None
) -> DataFrame:
    """The table; without rows when it has not been written yet. A column that it does not have yet is null.

    Args:
        paths: only these of its files.

    Raises:
        InputError: another tool has written it so that its files alone do not say which rows it has.
    """
    opened = open_table(table, version)
    if opened is None:
        return empty(spark, table)
    if opened.protocol().min_reader_version > 1:
        raise InputError(
            f"the table {table.name} has features of Delta that are not read here, as deletion vectors or mapped columns",
            where=table.uri,
            cure="drop these features with the tool that added them",
        )
    paths = _adds(opened)["path"].to_pylist() if paths is None else paths
    if not paths:
        return empty(spark, table)
    return _parquet(spark, table, table.uri, [f"{table.uri}/{path}" for path in paths])


def _parquet(spark: SparkSession, table: Table, folder: str, paths: Iterable[str]) -> DataFrame:
    """The rows of files below a folder."""
    schema = ", ".join(f"{column.name} {column.type}" for column in table.columns)
    return spark.read.schema(schema).option("basePath", folder).parquet(*for_spark(paths)).select(*table.column_names)


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
            where=settings().lake_uri,
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
def staged_files(frame: DataFrame, table: Table) -> Iterator[str]:
    """Rows as `stage` writes them, for `commit`: a folder that is gone afterwards."""
    with staging_folder() as folder:
        stage(frame, table, folder)
        yield folder


def stage(frame: DataFrame, table: Table, folder: str, *, beside: bool = False) -> None:
    """Write rows as files beside the tables, for `commit`. No reader of a table sees them.

    Args:
        folder: of the lake. What is there already is replaced.
        beside: only the partitions that the rows lie in are replaced.

    Raises:
        PySparkException: a value is missing that the contract wants.
    """
    columns = [_required(frame[column.name].cast(column.type), column, table) for column in table.columns]
    writer = frame.select(*columns).write.mode("overwrite").partitionBy(*table.partition_by)
    if _is_by_bucket(table):
        writer.option("parquet.block.size", _ROW_GROUP_BYTES)
    writer.option("partitionOverwriteMode", "dynamic" if beside else "static").parquet(
        f"{settings().lake_uri}/{folder}"
    )


def _is_by_bucket(table: Table) -> bool:
    """Whether the rows of a file are in the order of the users' buckets."""
    return "bucket" in table.column_names and "bucket" not in table.partition_by


def _required(value: SparkColumn, column: Column, table: Table) -> SparkColumn:
    from pyspark.sql import functions as F

    if column.nullable:
        return value.alias(column.name)
    missing = F.raise_error(F.lit(f"{table.name}: {column.name} is missing in some rows"))
    return F.coalesce(value, missing).alias(column.name)


def staged(spark: SparkSession, table: Table, folder: str) -> DataFrame:
    """The rows that `stage` has written."""
    path = f"{settings().lake_uri}/{folder}"
    return _parquet(spark, table, path, [path])


@dataclass(frozen=True)
class _File:
    """One that `stage` has written. `place` is relative to the folder."""

    path: str
    place: PurePosixPath
    num_rows: int
    size_bytes: int


def _files(folder: str) -> list[_File]:
    system, root = lake.filesystem()

    def file(info: fs.FileInfo) -> _File:
        place = PurePosixPath(info.path).relative_to(f"{root}/{folder}")
        return _File(info.path, place, pq.read_metadata(info.path, filesystem=system).num_rows, info.size)

    infos = system.get_file_info(fs.FileSelector(f"{root}/{folder}", recursive=True, allow_not_found=True))
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(file, [info for info in infos if info.extension == "parquet"]))


def num_rows(folder: str) -> int:
    """Number of rows that `stage` has written."""
    return sum(file.num_rows for file in _files(folder))


def append(folder: str, table: Table, *, record: dict[str, Any], application: str, number: int) -> None:
    """Add the files of `stage` to the table, unless `application` has committed this `number` or a later one.

    Source: https://github.com/delta-io/delta/blob/master/PROTOCOL.md#transaction-identifiers
    """
    commit(folder, table, replace="nothing", record=record, transaction=deltalake.Transaction(application, number))


def commit(
    folder: str,
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
    opened = create(table)
    if transaction is not None:  # asked of the very version that the commit is for: another writer's is a conflict
        last = opened.transaction_version(transaction.app_id)
        if last is not None and last >= transaction.version:
            return 0
    names = {field.name for field in opened.schema().fields}
    later = [field for field in arrow_schema(table) if field.name not in names]
    if later:
        opened.alter.add_columns(deltalake.Schema.from_arrow(pa.schema(later)).fields)
    staged_files = _files(folder)
    partitions = [] if isinstance(replace, str) else [str(value) for value in replace]
    if not isinstance(replace, str):
        beside = {_values(file.place)[table.partition_by[-1]] for file in staged_files}.difference(partitions)
        if beside:
            raise RuntimeError(f"{table.name}: rows of {', '.join(sorted(beside))} lie beside what is replaced")
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        actions = list(pool.map(partial(_take_up, table, *lake.filesystem()), staged_files))
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
    return sum(file.num_rows for file in staged_files)


def _values(place: PurePosixPath) -> dict[str, str]:
    """Of the partition columns, by a file's place in the table."""
    return dict(part.split("=", 1) for part in place.parent.parts)


def _take_up(table: Table, system: fs.FileSystem, root: str, file: _File) -> AddAction:
    """Move a file to its place in the table; what a commit says of it."""
    target = f"{root}/{table.name}/{file.place}"
    if not lake.is_remote():  # a store has no folders
        system.create_dir(f"{root}/{table.name}/{file.place.parent}")
    system.move(file.path, target)
    stats = json.dumps({"numRecords": file.num_rows})
    return AddAction(str(file.place), file.size_bytes, _values(file.place), time.time_ns() // 1_000_000, True, stats)


def commit_metadata(table: Table, record: dict[str, Any]) -> None:
    """Commit `record` alone. No Spark needed."""
    opened = create(table)
    nothing = pa.Table.from_batches([], pa.schema(opened.schema().to_arrow()))
    properties = deltalake.CommitProperties(custom_metadata={"userMetadata": json.dumps(record)})
    deltalake.write_deltalake(opened, nothing, mode="append", commit_properties=properties)


def compact(table: Table) -> None:
    """Put files together where there are many: each batch adds one. What is left of a week ago is removed from the disk.

    No row changes, and `changed` says so; whoever reads an older version has a week to end.
    """
    opened = open_table(table)
    if opened is None:
        return
    filters: list[tuple[str, str, Any]] | None = None
    if table.partition_by:
        column = table.partition_by[-1]
        num_files = Counter(_adds(opened)[f"partition.{column}"].to_pylist())
        crowded = [str(value) for value, number in num_files.items() if number > MANY_FILES]
        filters = [(column, "in", crowded)]
    else:
        crowded = opened.file_uris()[MANY_FILES:]
    if crowded:
        opened.optimize.compact(partition_filters=filters)
        opened.vacuum(dry_run=False)


def create(table: Table) -> deltalake.DeltaTable:
    """The table; where there is none, an empty one made by its contract."""
    opened = open_table(table)
    if opened is not None:
        return opened
    with lake.lock("create"):
        opened = open_table(table)
        if opened is not None:
            return opened
        system, root = lake.filesystem()
        with suppress(FileNotFoundError):
            system.delete_dir(f"{root}/{table.name}")  # what a killed creation left behind, which Delta stumbles over
        return deltalake.DeltaTable.create(
            table.uri,
            arrow_schema(table),
            partition_by=list(table.partition_by),
            # Lowest and highest values of columns: nothing is found by any but those that tables are partitioned by.
            configuration={"delta.dataSkippingNumIndexedCols": "0"},
        )
