"""One Delta table at one version: which partitions it has, and the rows of some of them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from deltalake import DeltaTable
from deltalake.schema import ArrayType, MapType, StructType

from contracts.errors import InputError
from contracts.lake import open_table
from contracts.tables import BRONZE_EVENTS, SILVER_EVENTS, UNTIMED, Table

WHOLE = "whole"
"""Label of the only partition of a table that has none."""
TELLS_THROUGH = (BRONZE_EVENTS, SILVER_EVENTS)
"""Tables whose commits say through which interval they are complete."""
_HISTORY = (20, None)
"""How many commits to look through for it: nearly always it is in one of the newest."""


def spark_type(delta_type: object) -> str:
    """Spark SQL's name of a Delta type: `int`, `array<string>`."""
    if isinstance(delta_type, ArrayType):
        return f"array<{spark_type(delta_type.element_type)}>"
    if isinstance(delta_type, MapType):
        return f"map<{spark_type(delta_type.key_type)},{spark_type(delta_type.value_type)}>"
    if isinstance(delta_type, StructType):
        return "struct<" + ",".join(f"{f.name}:{spark_type(f.type)}" for f in delta_type.fields) + ">"
    name = str(getattr(delta_type, "type", delta_type))
    return {"integer": "int", "long": "bigint", "short": "smallint", "byte": "tinyint"}.get(name, name)


@dataclass(frozen=True)
class Snapshot:
    """A table as it was when the gate opened it; every read sees this version."""

    table: Table
    delta: DeltaTable
    through: int | None = None
    """The last complete interval, where the table tells: what lies beyond is still coming in and is not looked at."""

    @property
    def version(self) -> int:
        return int(self.delta.version())

    @cached_property
    def types(self) -> dict[str, str]:
        """Spark SQL's type of each column that is there."""
        return {field.name: spark_type(field.type) for field in self.delta.schema().fields}

    @cached_property
    def _all_files(self) -> list[tuple[str, str, int]]:
        """`(partition, path, rows)` of each live file."""
        actions = pa.table(self.delta.get_add_actions(flatten=True)).to_pydict()
        labels = actions.get(f"partition.{self.partition_column}", [WHOLE] * len(actions["path"]))
        return [
            (str(label), path, int(rows))
            for label, path, rows in zip(labels, actions["path"], actions["num_records"], strict=True)
        ]

    @cached_property
    def _files(self) -> list[tuple[str, str, int]]:
        """Those of complete intervals. Records without a time are in none."""
        if self.table not in TELLS_THROUGH:
            return self._all_files
        through = math.inf if self.through is None else self.through
        return [file for file in self._all_files if UNTIMED < int(file[0]) <= through]

    @property
    def untimed_share(self) -> float:
        """Share of the records without a time among all."""
        untimed = sum(rows for label, _, rows in self._all_files if label == str(UNTIMED))
        return untimed / max(1, sum(rows for _, _, rows in self._all_files))

    @property
    def partition_column(self) -> str | None:
        return self.table.partition_by[0] if self.table.partition_by else None

    @cached_property
    def partitions(self) -> dict[str, str]:
        """A fingerprint of each partition's files: it changes whenever the partition is written again."""
        paths: dict[str, list[str]] = {}
        for label, path, _ in self._files:
            paths.setdefault(label, []).append(path)
        return {
            label: hashlib.sha256("\n".join(sorted(entries)).encode()).hexdigest()[:12]
            for label, entries in paths.items()
        }

    @property
    def digest(self) -> str:
        """Of all complete partitions: it stays while others are still coming in."""
        return hashlib.sha256(json.dumps(self.partitions, sort_keys=True).encode()).hexdigest()[:12]

    @cached_property
    def num_rows(self) -> dict[int, int]:
        """Rows of each interval of a partitioned table, oldest first; from the Delta log, no data is read."""
        totals: dict[int, int] = {}
        for label, _, rows in self._files:
            totals[int(label)] = totals.get(int(label), 0) + rows
        return dict(sorted(totals.items()))

    @property
    def total_rows(self) -> int:
        return sum(rows for _, _, rows in self._files)

    @property
    def newest(self) -> int | None:
        """The newest interval (`interval` or `as_of`) of a partitioned table."""
        return max(self.num_rows, default=None)

    def read(self, columns: Collection[str], partitions: Collection[str] | None = None) -> pa.Table:
        """Rows of some partitions (None: all complete ones); columns the table does not have are left out."""
        present = [name for name in columns if name in self.types]
        partitions = self.partitions if partitions is None else partitions
        if set(partitions) == {label for label, _, _ in self._all_files}:
            return self.delta.to_pyarrow_table(columns=present)
        if not partitions or self.partition_column is None:
            return self.delta.to_pyarrow_dataset().schema.empty_table().select(present)
        chosen = [(self.partition_column, "in", sorted(map(int, partitions)))]
        return self.delta.to_pyarrow_table(filters=chosen, columns=present)

    def count(self, column: str, values: pa.Array, partitions: Collection[str]) -> int:
        """Rows of some partitions that hold one of the values; read in batches, so that memory does not grow."""
        if not partitions or self.partition_column is None:
            return 0
        condition = ds.field(self.partition_column).isin(sorted(map(int, partitions))) & ds.field(column).isin(values)
        return int(self.delta.to_pyarrow_dataset().count_rows(filter=condition))

    def distinct(self, column: str) -> pa.Array:
        """Distinct values of a column of the whole table, as strings."""
        return pc.unique(self.read([column])[column]).cast(pa.string())


def complete_through(delta: DeltaTable) -> int | None:
    """The last complete interval by the newest commit that tells one; None when none does."""
    for limit in _HISTORY:
        for commit in delta.history(limit):
            try:
                metadata = json.loads(commit.get("userMetadata") or "{}")
            except ValueError:  # somebody else's note
                continue
            if isinstance(metadata, dict) and metadata.get("through") is not None:
                return int(metadata["through"])
    return None


def open_snapshot(table: Table) -> Snapshot:
    """Open a table at its newest version.

    Raises:
        InputError: there is no such table.
    """
    delta = open_table(table)
    if delta is None:
        raise InputError(
            f"table {table.name} does not exist yet", where=table.uri, cure="run the job that writes it first"
        )
    return Snapshot(table, delta, complete_through(delta) if table in TELLS_THROUGH else None)
