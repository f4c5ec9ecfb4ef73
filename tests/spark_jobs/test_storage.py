"""Reading and writing tables."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import deltalake
import pytest

from contracts.errors import InputError
from contracts.settings import settings
from contracts.tables import Column, Table
from spark_jobs import storage
from spark_jobs.scratch import scratch

SHARES = Table(
    "shares",
    "Of each item.",
    (Column("interval", "int"), Column("item_id", "string")),
    key=("interval", "item_id"),
    partition_by=("interval",),
)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home whose name would be a pattern, were it not one."""
    home = tmp_path / "my shop [1] #{2} é"
    monkeypatch.setenv("CARTWHEEL_HOME", str(home))
    settings.cache_clear()
    yield home
    settings.cache_clear()


def frame(spark: Any, *intervals: int) -> Any:
    """A row in each of these intervals."""
    return spark.createDataFrame([(interval, "apple") for interval in intervals], "interval int, item_id string")


def intervals(spark: Any, version: int | None = None) -> list[int]:
    return sorted(row["interval"] for row in storage.read(spark, SHARES, version).collect())


def test_what_spark_spills_lies_where_it_is_cleared(spark: Any) -> None:
    """It holds ids as they came: after a kill the next process clears it, as it does nothing in `/tmp`."""
    folder = scratch()
    assert spark.conf.get("spark.local.dir") == str(folder)
    assert {path.name.partition("-")[0] for path in folder.iterdir()} >= {"blockmgr", "spark"}


def test_each_version_is_read_as_it_was(spark: Any, home: Path) -> None:
    """Rows of replaced partitions are of the versions before only, and a table without rows, or none, is empty."""
    assert intervals(spark) == []
    storage.create(SHARES)
    assert intervals(spark) == []
    storage.write(frame(spark, 1, 1, 2), SHARES)
    first = deltalake.DeltaTable(SHARES.uri).version()
    storage.write(frame(spark, 2, 2, 3), SHARES, replace=[2, 3])
    assert intervals(spark) == [1, 1, 2, 2, 3]
    assert intervals(spark, first) == [1, 1, 2]


def test_rows_that_its_files_do_not_tell_are_refused(spark: Any, home: Path) -> None:
    """A deletion vector hides rows of a file: who reads the file alone would bring them back."""
    deltalake.DeltaTable.create(
        SHARES.uri, storage.arrow_schema(SHARES), partition_by=list(SHARES.partition_by),
        configuration={"delta.enableDeletionVectors": "true"},
    )  # fmt: skip
    with pytest.raises(InputError, match="deletion vectors"):
        storage.read(spark, SHARES)
