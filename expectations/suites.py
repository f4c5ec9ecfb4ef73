"""Suites of Great Expectations, built from `contracts.tables`: change the contract and the gate follows.

Each table has two frames and two suites: `TABLE` holds rows (a list shows as the number of its entries,
`num_COLUMN`), `TABLE_facts` holds one row with what only the whole table shows.
"""

from __future__ import annotations

from collections.abc import Sequence

import great_expectations as gx
import great_expectations.expectations as gxe
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from contracts.tables import TRAINING_LISTS, Column, Table
from expectations.facts import Measured, missing_columns
from expectations.snapshot import Snapshot

MISSING_COLUMNS = "missing_columns"
NOT_EMPTY = {TRAINING_LISTS.name: ("target_items",)}
"""Lists that must have an entry."""


def is_list(column: Column) -> bool:
    return column.type.startswith("array<")


def has_rule(column: Column, table: Table) -> bool:
    """Whether a row rule is about this column. Maps are seen by the schema rule only."""
    bounded = column.minimum is not None or column.maximum is not None
    return not column.type.startswith("map<") and (not column.nullable or bounded or column.name in table.key)


def read_columns(table: Table) -> list[str]:
    """Columns whose rows are looked at, and no others: reading them is most of what a gate costs on large tables."""
    return [column.name for column in table.columns if has_rule(column, table)]


def judged_name(column: Column) -> str:
    """Name of a column in the frame of rows."""
    return f"num_{column.name}" if is_list(column) else column.name


def row_expectations(table: Table) -> list[gxe.Expectation]:
    """Not null, within bounds, lists not empty, keys once each.

    Keys are held against the partitions that are checked now. For a table whose key names its partition that is all; an
    event_id that is a hash covers the time, so a repeated one lies in the same interval, and one that the source gave is
    looked for in all intervals once it is in silver (`repeated_elsewhere`).
    """
    columns = [column for column in table.columns if column.name in read_columns(table)]
    rules: list[gxe.Expectation] = [
        gxe.ExpectColumnValuesToNotBeNull(column=judged_name(c)) for c in columns if not c.nullable
    ]
    rules += [
        gxe.ExpectColumnValuesToBeBetween(column=c.name, min_value=c.minimum, max_value=c.maximum)
        for c in columns
        if c.minimum is not None or c.maximum is not None
    ]
    rules += [
        gxe.ExpectColumnValuesToBeBetween(column=f"num_{name}", min_value=1) for name in NOT_EMPTY.get(table.name, ())
    ]
    if len(table.key) == 1:
        rules.append(gxe.ExpectColumnValuesToBeUnique(column=table.key[0]))
    elif table.key:
        rules.append(gxe.ExpectCompoundColumnsToBeUnique(column_list=list(table.key)))
    return rules


def fact_expectations(measured: Measured) -> list[gxe.Expectation]:
    """Each fact in its range, and every column of the contract there."""
    rules: list[gxe.Expectation] = [
        gxe.ExpectColumnValuesToBeInSet(
            column=MISSING_COLUMNS, value_set=["none"], description="Columns are there as the contract types them."
        )
    ]
    rules += [
        gxe.ExpectColumnValuesToBeBetween(
            column=fact.name,
            min_value=fact.minimum,
            max_value=fact.maximum,
            description=f"{fact.allowed} {fact.words}",
            meta={"words": fact.words},
        )
        for fact, _ in measured
    ]
    return rules


def suite(name: str, expectations: Sequence[gxe.Expectation]) -> gx.ExpectationSuite:
    return gx.ExpectationSuite(name=name, expectations=list(expectations))


def row_frame(rows: pa.Table, table: Table) -> pd.DataFrame:
    """The rows as pandas sees them. Repeating strings become categories and keys stay Arrow's: a tenth of the memory."""
    arrays: dict[str, pa.ChunkedArray] = {}
    for column in table.columns:
        if column.name not in rows.column_names:
            continue
        values = rows[column.name]
        if is_list(column):
            values = pc.list_value_length(values)
        elif column.type == "string" and table.key != (column.name,):
            values = values.cast(pa.string()).dictionary_encode()
        elif column.type == "string":
            values = values.cast(pa.string())
        if pa.types.is_integer(values.type):
            values = values.cast(pa.int64())  # for others Great Expectations compares value by value in Python
        arrays[judged_name(column)] = values
    text = {pa.string(): pd.ArrowDtype(pa.string())}
    frame: pd.DataFrame = pa.table(arrays).to_pandas(types_mapper=text.get)
    return frame


def fact_frame(snapshot: Snapshot, measured: Measured) -> pd.DataFrame:
    """One row of facts; a fact that says nothing yet is null, which every range lets pass."""
    row: dict[str, object] = {MISSING_COLUMNS: missing_columns(snapshot.table, snapshot.types) or "none"}
    row.update({fact.name: float("nan") if value is None else float(value) for fact, value in measured})
    return pd.DataFrame([row])
