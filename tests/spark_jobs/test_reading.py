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
    with reading.readable(reading.paths(declared, folder)):
        rows = [row.asDict() for row in reading.read_all(spark, declared, folder, []).collect()]
        return [row | (row.pop(reading.FIELDS, None) or {}) for row in rows]


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
    """A row with a field too few or too many, or with broken quotes or text, is kept with its line and the reason."""
    text = b'when,who,what\n1,2,3\n1,2\n1,2,3,4\n1,"2" x,3\n1,\xff\xfe,3\n"1\n1",2,3\n'
    (tmp_path / "a.csv").write_bytes(text)
    rows = read(spark, tmp_path, "a.csv")
    assert [row["when"] for row in rows if row[reading.CORRUPT] is None] == ["1", "1\n1"]
    assert [row[reading.CORRUPT] for row in rows if row[reading.CORRUPT] is not None] == [
        "line 3, missing columns: 1,2",
        "line 4, too many columns: 1,2,3,4",
        'line 5, unquoted value: 1,"2" x,3',
        "line 6, invalid encoding: 1,??,3",
    ]


@pytest.mark.parametrize(
    ("text", "options", "rows"),
    [
        (b"when,who,\n1,ann,\n", {}, [("1", "ann")]),  # a comma at the end of each line
        (b"when,who\n1,ann,\n", {}, [("1", "ann")]),  # but not of the header
        (b"\xef\xbb\xbfwhen,who\r\n1,ann\r\n", {}, [("1", "ann")]),  # a mark of Windows
        (b"when,who\n1,ann\r\n2,bob\n", {}, [("1", "ann"), ("2", "bob")]),  # line ends of two kinds
        (b"when,who\r1,ann\r", {}, [("1", "ann")]),  # of an old Mac
        ("when\twho\r\n1\tJürgen\r\n".encode("utf-16"), {"separator": "\t", "encoding": "UTF-16"}, [("1", "Jürgen")]),
        ("when;who\n1;5 €\n".encode("cp1252"), {"separator": ";", "encoding": "cp1252"}, [("1", "5 €")]),
        (b'when,who\n1,"ann\n2,bob"\n', {}, [("1", "ann\n2,bob")]),  # lines in quotes
        (b'when,who\n1,5" pipe\n', {}, [("1", '5" pipe')]),  # a quote that is an inch
        (b"when,who,when\n1,ann,2\n", {}, [("1", "ann")]),  # a name twice
        (b"\n\nwhen,who\n1,ann\n", {}, [("1", "ann")]),  # blank lines before the header
        (b"when,who\n", {}, []),
    ],
)
def test_csv_as_people_export_it(
    spark: Any, tmp_path: Path, text: bytes, options: dict[str, str], rows: list[tuple[str, str]]
) -> None:
    """Whatever wrote the file, the rows are those that its author saw."""
    (tmp_path / "a.csv").write_bytes(text)
    assert [(row["when"], row["who"]) for row in read(spark, tmp_path, "a.csv", **options)] == rows


def test_json_lines(spark: Any, tmp_path: Path) -> None:
    """JSON lines are text; a broken line is told."""
    (tmp_path / "a.jsonl").write_text('{"when": 1, "who": 0.5, "what": "x", "more": {"a": [1]}}\n{"when": \n')
    good, bad = read(spark, tmp_path, "a.jsonl")
    assert (good["who"], good["what"], bad[reading.CORRUPT]) == ("0.5", "x", '{"when":')


OBJECTS = {
    '{"a": "x", "b": 1, "c": null, "d": true}': {"a": "x", "b": "1", "c": None, "d": "true"},
    '{"a": 1.10, "n": 123456789012345678901234567890}': {"a": "1.1", "n": "123456789012345678901234567890"},
    '{"a": {"b": [1.5, "ü", null]}, "c": [{}]}': {"a": '{"b":[1.5,"ü",null]}', "c": "[{}]"},
    '{"a": 1, "a": 2}': {"a": "2"},
    '{"a": 1, "A": 2, "": 3, "_fields": 4}': {"a": "1", "A": "2", "": "3", "_fields": "4"},
    "{}": {},
    '\ufeff {"a": "last"}\r\n': {"a": "last"},
}
NO_OBJECTS = (
    '{"a": 1', '{"a": NaN}', '{"a": -Infinity}', '[{"a": 1}]', '{"a": 1} {"a": 2}', '{"a": 1}, {"a": 2}', '{"a": 1}\n{"a": 2}',
    '{"a": 1} x', '{"a": 1}]', "{'a': 1}", '"text"', "null", "1", "{", '{"a": "\t"}', "[" * 5000,
)  # fmt: skip


def test_records_in_json(spark: Any) -> None:
    """Fields are text, nested parts JSON, of a key given twice the last counts; what is no one object keeps its text."""
    frame = spark.createDataFrame([[text] for text in (*OBJECTS, *NO_OBJECTS, "", None)], "value string")
    rows = [row.asDict() for row in reading.json_rows(frame, ["a", "z"]).collect()]
    for row, fields in zip(rows, OBJECTS.values(), strict=False):
        own = {"a": row["a"]} if "a" in fields else {}
        assert (own | (row[reading.FIELDS] or {}), row["z"]) == (fields, None)
        assert sorted(row[reading.KEYS]) == sorted(fields)
    assert [row[reading.CORRUPT] for row in rows] == [None] * len(OBJECTS) + [*NO_OBJECTS, "no value", "no value"]
    assert {row[reading.KEYS] is None for row in rows[len(OBJECTS) :]} == {True}


def test_a_field_of_the_last_records_only(spark: Any, tmp_path: Path) -> None:
    """A declared field that the first thousand records lack is looked for in all, and missing only where none has it."""
    declared = events("a.jsonl").files
    assert declared is not None
    (tmp_path / "a.jsonl").write_text('{"who": "ann"}\n' * 1500 + '\ufeff{"who": "bob", "visit": "v"}\r\n\n')
    rows = reading.read_all(spark, declared, tmp_path, ["who", "visit"])
    assert rows.where("visit = 'v'").select("who").collect() == [("bob",)]
    with pytest.raises(InputError, match="no column 'price'; there are: who, visit"):
        reading.read_all(spark, declared, tmp_path, ["who", "visit", "price"])


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
    ],
)
def test_damaged_file_is_one_line(spark: Any, tmp_path: Path, name: str, content: bytes, why: str) -> None:
    """A damaged file is one clear error that names it."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=why) as error:
        read(spark, tmp_path, name)
    assert name in error.value.where
    assert "\n" not in str(error.value)


def test_headers_that_differ(spark: Any, tmp_path: Path) -> None:
    """Columns are put together by name, never by place, and an empty file says nothing."""
    (tmp_path / "a.csv").write_text("when,who,what\n1,2,3\n")
    (tmp_path / "b.csv").write_text("who,when,what,colour\n2,1,3,red\n")
    (tmp_path / "c.csv").touch()
    rows = read(spark, tmp_path, "*.csv")
    assert {(row["when"], row["who"], row["what"]) for row in rows} == {("1", "2", "3")}
    assert [row["colour"] for row in rows] == [None, "red"]


def test_types_that_differ(spark: Any, tmp_path: Path) -> None:
    """A number, a float and a text are one column of text; times of three units are one column of times."""
    for name, user, unit in (("a", pa.array([7]), "us"), ("b", pa.array([7.0]), "ns"), ("c", pa.array(["7"]), "ms")):
        moment = pa.array([1704196800 * {"ms": 10**3, "us": 10**6, "ns": 10**9}[unit]], pa.timestamp(unit))
        pq.write_table(pa.table({"who": user, "when": moment}), tmp_path / f"{name}.parquet")
    rows = read(spark, tmp_path, "*.parquet")
    assert [row["who"] for row in rows] == ["7", "7", "7"]
    assert len({row["when"] for row in rows}) == 1


def test_names_and_folders_that_spark_cannot_say(spark: Any, tmp_path: Path) -> None:
    """Colons and brackets in names are no trouble; folders `key=value` are columns of text."""
    folder = tmp_path / "in" / "store=007"
    folder.mkdir(parents=True)
    (folder / "a_2025-03-03T00:00:00 [x].csv").write_text("when,who\n1,ann\n")
    assert [(row["who"], row["store"]) for row in read(spark, tmp_path, "in", format="csv")] == [("ann", "007")]
    (tmp_path / "b:1.jsonl").write_text('{"who": "bob"}\n')
    (tmp_path / "b [2] {x}.jsonl").write_text('{"who": "eve"}\n')
    pq.write_table(pa.table({"who": ["pat"]}), tmp_path / "b[3].parquet")
    assert sorted(row["who"] for row in read(spark, tmp_path, "*.jsonl")) == ["bob", "eve"]
    assert [row["who"] for row in read(spark, tmp_path, "*.parquet")] == ["pat"]


@pytest.mark.parametrize("path", ["in/a[1].csv", "in/*.csv", "in/a[[]?].csv", "in", "*/a*", ["in/a[1].csv"]])
def test_a_folder_that_is_named_like_a_pattern(tmp_path: Path, path: Any) -> None:
    """The folder of the shop is where it is, whatever it is called; so is a file that is named exactly."""
    folder = tmp_path / "export [final] (2)*?" / "shop[1]"
    (folder / "in").mkdir(parents=True)
    (folder / "in" / "a[1].csv").write_text(CSV)
    (tmp_path / "export final").mkdir()
    declared = events(path, format="csv").files
    assert declared is not None
    assert list(reading.listed(declared, folder)) == [str(folder / "in" / "a[1].csv")]


def test_a_file_without_a_header_is_said_to_be(spark: Any, tmp_path: Path) -> None:
    """Nobody is led to name columns after the first event."""
    (tmp_path / "a.csv").write_text("1000,2025-03-03T09:00:00Z,214530001\n1001,2025-03-03T09:00:00Z,214530002\n")
    files = events("a.csv").files
    assert files is not None
    with pytest.raises(InputError, match="seems to have no header"):
        reading.read_all(spark, files, tmp_path, ["who"])


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
