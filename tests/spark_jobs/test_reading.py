"""Reading a shop's files."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from contracts.dataset import Events
from contracts.errors import InputError
from spark_jobs import reading

COLUMNS = {"user_id": "who", "item_id": "what", "occurred_at": "when"}
CSV = 'when,who,what\n2024-01-01,ann,"apple, ""red"""\n'


def events(path: Any, **options: Any) -> Events:
    return Events.model_validate({"path": path, "columns": COLUMNS} | options)


def read(spark: Any, folder: Path, path: Any, **options: Any) -> list[dict[str, Any]]:
    declared = events(path, **options).files
    assert declared is not None
    found = reading.paths(declared, folder)
    with reading.readable(found):
        return [row.asDict() for row in reading.read(spark, declared, found).collect()]


def test_csv_folder_glob_and_compression(spark: Any, tmp_path: Path) -> None:
    """One file, a glob, a list and a folder are read alike, compressed or not, quotes as the standard says."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.csv").write_text(CSV)
    (tmp_path / "in" / "b.csv.gz").write_bytes(gzip.compress(CSV.replace("ann", "bob").encode()))
    assert [row["what"] for row in read(spark, tmp_path, "in/a.csv")] == ['apple, "red"']
    for path, options in (
        ("in/*.csv*", {"format": "csv"}),
        (["in/a.csv", "in/b.csv.gz"], {}),
        ("in", {"format": "csv"}),
    ):
        assert sorted(row["who"] for row in read(spark, tmp_path, path, **options)) == ["ann", "bob"]


def test_encoding_and_separator(spark: Any, tmp_path: Path) -> None:
    """Another encoding and separator are honoured."""
    (tmp_path / "a.csv").write_bytes("when;who;what\n2024-01-01;Jürgen;Käse\n".encode("latin-1"))
    assert read(spark, tmp_path, "a.csv", separator=";", encoding="ISO-8859-1")[0]["who"] == "Jürgen"


def test_rows_of_another_shape_are_told(spark: Any, tmp_path: Path) -> None:
    """A row with a field too few or too many is kept as its text."""
    (tmp_path / "a.csv").write_text("when,who,what\n1,2,3\n1,2\n1,2,3,4\n")
    assert [row[reading.CORRUPT] for row in read(spark, tmp_path, "a.csv")] == [None, "1,2", "1,2,3,4"]


def test_json_lines(spark: Any, tmp_path: Path) -> None:
    """JSON lines are text; a broken line is told."""
    (tmp_path / "a.jsonl").write_text('{"when": 1, "who": 0.5, "what": "x", "more": {"a": [1]}}\n{"when": \n')
    good, bad = read(spark, tmp_path, "a.jsonl")
    assert (good["who"], good["what"], bad[reading.CORRUPT]) == ("0.5", "x", '{"when": ')


def test_parquet_nanoseconds(spark: Any, tmp_path: Path) -> None:
    """Times in nanoseconds stay times."""
    from datetime import datetime

    pq.write_table(
        pa.table({"when": pa.array([1704196800 * 10**9], pa.timestamp("ns")), "who": [1]}), tmp_path / "a.parquet"
    )
    assert read(spark, tmp_path, "a.parquet") == [{"when": datetime(2024, 1, 2, 12), "who": 1}]


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("bad.csv.gz", b"this is no gzip", "decompression failed"),
        ("torn.csv.gz", gzip.compress(os.urandom(9000).hex().encode())[:-2000], "decompression failed"),
        ("bad.parquet", b"PAR1 this is no parquet", "not a Parquet file"),
        ("empty.csv", b"", "empty"),
    ],
)
def test_damaged_file_is_one_line(spark: Any, tmp_path: Path, name: str, content: bytes, why: str) -> None:
    """A damaged file is one clear error that names it."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=why) as error:
        read(spark, tmp_path, name)
    assert name in error.value.where
    assert "\n" not in str(error.value)


def test_headers_that_differ_are_an_error(spark: Any, tmp_path: Path) -> None:
    """Columns are never silently taken for others."""
    (tmp_path / "a.csv").write_text("when,who,what\n1,2,3\n")
    (tmp_path / "b.csv").write_text("who,when,what\n1,2,3\n")
    with pytest.raises(InputError, match="header differs"):
        read(spark, tmp_path, "*.csv")


def test_fingerprint(tmp_path: Path) -> None:
    """It changes with the declaration, a file's size or time, or a file more."""
    file = tmp_path / "a.csv"
    file.write_text(CSV)
    declared = events("*.csv")
    before = reading.fingerprint([declared], [declared], tmp_path)
    assert reading.fingerprint([declared], [declared, None], tmp_path) == before
    assert reading.fingerprint([events("*.csv", separator=";")], [declared], tmp_path) != before
    os.utime(file, (1, 1))
    later = reading.fingerprint([declared], [declared], tmp_path)
    assert later != before
    (tmp_path / "b.csv").write_text(CSV)
    assert reading.fingerprint([declared], [declared], tmp_path) != later
