"""The tables: names, keys and schemas fit together, and Spark accepts them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from contracts import tables
from contracts.settings import REPOSITORY
from contracts.tables import TABLES, Column, Table


def names_of(table: Table) -> str:
    return table.name


def test_every_table_is_in_the_list_once() -> None:
    """TABLES holds each table that the module defines, and no two have one name."""
    defined = {value.name for value in vars(tables).values() if isinstance(value, Table)}
    listed = [table.name for table in TABLES]
    assert len(listed) == len(set(listed))
    assert set(listed) == defined


@pytest.mark.parametrize("table", TABLES, ids=names_of)
def test_keys_and_partitions_are_columns(table: Table) -> None:
    """What a table is keyed and partitioned by are columns of it, never null, and no column comes twice."""
    columns = {column.name: column for column in table.columns}
    assert len(columns) == len(table.columns)
    for name in (*table.key, *table.partition_by):
        assert not columns[name].nullable
    assert table.description.endswith(".")


@pytest.mark.parametrize("table", TABLES, ids=names_of)
def test_bounds_are_of_numbers_and_leave_room(table: Table) -> None:
    """Only numbers have bounds, and the lower one is below the upper one."""
    for column in table.columns:
        if column.minimum is not None or column.maximum is not None:
            assert column.type in {"int", "bigint", "double"}, column.name
        if column.minimum is not None and column.maximum is not None:
            assert column.minimum < column.maximum, column.name


def test_the_ddl_says_what_must_not_be_null() -> None:
    """A schema as Spark SQL writes it."""
    table = Table("t", "T.", (Column("a", "int"), Column("b", "array<string>", nullable=True)), key=("a",))
    assert table.ddl == "a int NOT NULL, b array<string>"
    assert table.column_names == ["a", "b"]


def test_tables_lie_in_the_home_folder(tmp_path) -> None:
    """A table's place follows CARTWHEEL_HOME."""
    script = "from contracts.tables import ITEMS; print(ITEMS.uri)"
    environment = os.environ | {"CARTWHEEL_HOME": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == str(tmp_path / "tables" / "items")
