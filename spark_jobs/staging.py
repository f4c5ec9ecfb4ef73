"""Text files as people export them, made Parquet by DuckDB, whose reader of CSV is the most forgiving one that is exact.

Source: Pollock, a benchmark of polluted CSV files (https://doi.org/10.14778/3594512.3594518).
"""

from __future__ import annotations

import bz2
import csv
import gzip
import hashlib
import io
import os
import re
import shutil
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from contracts.dataset import Files
from contracts.errors import InputError
from spark_jobs.scratch import scratch

CORRUPT = "_corrupt_record"
"""Column with the text of a record that does not have the shape of the others, and why."""
_LONGEST_RECORD = 8 * 1024**2
csv.field_size_limit(_LONGEST_RECORD)
_UNSAFE = re.compile(r"[:*?\[\]{},\\]")
"""What a path of Hadoop cannot hold, or takes for a pattern."""
_OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open}
_AS_IT_IS = ("UTF-8", "UTF8", "US-ASCII", "ASCII")


@dataclass(frozen=True)
class Staged:
    """A text file as Parquet: columns `c0`, `c1` and so on, then CORRUPT.

    Attributes:
        paths: of the Parquet files; none for an empty file.
        names: of the columns, as the header has them.
    """

    paths: tuple[str, ...]
    names: tuple[str, ...]


def _copy_of(path: str, stamp: object, ending: str) -> Path:
    """Where a copy of a file lies that has this stamp."""
    return scratch() / f"{hashlib.sha256(f'{path} {stamp}'.encode()).hexdigest()[:16]}{ending}"


def _stamp(path: str) -> tuple[int, int]:
    status = Path(path).stat()
    return status.st_size, status.st_mtime_ns


def fetched(path: str) -> str:
    """The file as Spark and DuckDB can open it: itself, or a copy of an address, of what zstd has packed, or of an odd name.

    Raises:
        InputError: it cannot be read.
    """
    is_packed = path.endswith(".zst")
    name = _UNSAFE.sub("_", path.removesuffix(".zst"))
    ending = "".join(Path(name).suffixes[-2:])
    if "://" not in path and not is_packed:
        if name == path:
            return path
        link = _copy_of(path, "", ending)
        if not link.is_symlink():
            link.symlink_to(path)
        return str(link)
    try:
        system, place = fs.FileSystem.from_uri(path)
        info = system.get_file_info(place)
        target = _copy_of(path, (info.size, info.mtime_ns), ending)
        if not target.exists():
            unfinished = target.with_name(f"{target.name}.unfinished")
            with (
                system.open_input_stream(place, compression="zstd" if is_packed else None) as source,
                unfinished.open("wb") as copy,
            ):
                shutil.copyfileobj(source, copy, 1 << 20)
            unfinished.rename(target)
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0][:200]
        raise InputError(f"cannot read the file: {reason}", where=path, cure="replace or correct the file") from None
    return str(target)


def fetched_text(files: Files, path: str) -> str:
    """The same for a text that is to be UTF-8.

    Raises:
        InputError: it cannot be read.
    """
    here = fetched(path)
    if files.encoding.upper() in _AS_IT_IS:
        return here
    try:
        return _plain_copy(files, here)
    except (UnicodeError, LookupError, OSError, EOFError, zlib.error) as error:
        raise _unreadable(error, path) from None


def _unreadable(error: Exception, path: str) -> InputError:
    return InputError(f"cannot read the file: {_reason(error, path)}", where=path, cure="replace or correct the file")


def staged_csv(files: Files, path: str, beside: dict[str, str] | None = None, *, without_tail: bool = False) -> Staged:
    """Make a CSV file Parquet, all of its values text; a blank one is null.

    Args:
        path: of the file, here.
        beside: columns with one value for all rows.
        without_tail: leave out a last line without its line feed: it may still be written.

    Raises:
        InputError: the file is damaged, or its text is not in the encoding that the dataset file says.
    """
    beside = beside or {}
    try:
        names, num_blank = _header(files, path)
        if not names:
            return Staged((), ())
        is_plain = files.encoding.upper() in _AS_IT_IS and not path.endswith(".bz2") and not without_tail
        source = path if is_plain else _plain_copy(files, path, without_tail=without_tail)
        try:
            paths = _convert(files, source, names, num_blank, beside)
        except duckdb.InvalidInputException as error:
            if "invalid state" not in str(error):  # what DuckDB says of line ends of two kinds
                raise
            paths = _convert(files, _plain_copy(files, path, same_line_ends=True), names, num_blank, beside)
    except (UnicodeError, LookupError, OSError, EOFError, csv.Error, zlib.error, duckdb.Error) as error:
        raise _unreadable(error, path) from None
    return Staged(paths, (*names, *beside))


def _reason(error: Exception, path: str) -> str:
    if isinstance(error, LookupError):
        return "the encoding in the dataset file is not known"
    if isinstance(error, UnicodeError):
        return "its text is not in the encoding that the dataset file says"
    if isinstance(error, PermissionError):
        return "no permission to read it"
    if path.endswith((".gz", ".bz2")):
        return "it is damaged or not what its ending says (decompression failed)"
    return str(error).splitlines()[0][:200]


def _opened(files: Files, path: str, **more: Any) -> io.TextIOBase:
    opened: io.TextIOBase = _OPENERS.get(Path(path).suffix, open)(path, "rt", encoding=_codec(files), **more)
    return opened


def _codec(files: Files) -> str:
    """UTF-8 with or without the mark that Windows writes before it."""
    return "utf-8-sig" if files.encoding.upper() in _AS_IT_IS else files.encoding


def _header(files: Files, path: str) -> tuple[list[str], int]:
    """The names in the first line that is not blank, and the number of lines before it. No names: an empty file.

    A blank name, and one that is there already, get the number of their column.
    """
    with _opened(files, path, newline="", errors="replace") as text:
        rows, num_blank = csv.reader(text, delimiter=files.separator), 0
        for row in rows:
            if any(row):
                break
            num_blank = rows.line_num
        else:
            return [], 0
    names: list[str] = []
    for place, name in enumerate(row, 1):
        own = name.strip() or f"column {place}"
        names.append(own if own not in names else f"{own} {place}")
    return names, num_blank


def _plain_copy(files: Files, path: str, *, without_tail: bool = False, same_line_ends: bool = False) -> str:
    """The text in UTF-8, not packed."""
    target = _copy_of(path, (_stamp(path), files, without_tail, same_line_ends), ".csv")
    with (
        _opened(files, path, newline=None if same_line_ends else "") as source,
        target.open("w", encoding="utf-8", newline="") as copy,
    ):
        shutil.copyfileobj(source, copy, 1 << 20)
    if without_tail:
        _cut_tail(target)
    return str(target)


def _cut_tail(path: Path) -> None:
    """Cut off what comes after the last end of a line."""
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - (1 << 16))
            file.seek(start)
            block = file.read(end - start)
            last = max(block.rfind(b"\n"), block.rfind(b"\r"))
            end = start + last + 1 if last >= 0 else start
            if last >= 0:
                break
        file.truncate(end)


def _convert(files: Files, source: str, names: list[str], num_blank: int, beside: dict[str, str]) -> tuple[str, ...]:
    """Write the records of a text in UTF-8, and in a file of their own those that do not have its shape."""
    made_of = (_stamp(source), files, tuple(names), num_blank, tuple(beside.items()))
    target, texts = _copy_of(source, made_of, ".parquet"), [f"c{place}" for place in range(len(names))]
    aside, unfinished = target.with_suffix(".rejected.parquet"), target.with_suffix(".unfinished")
    if target.exists():
        return (str(target), str(aside)) if aside.exists() else (str(target),)
    text, nothing = duckdb.sqltype("VARCHAR"), duckdb.ConstantExpression(None)
    with duckdb.connect(config={"memory_limit": "1GB"}) as database:
        records = database.read_csv(
            source, header=True, sep=files.separator, quotechar='"', escapechar='"', auto_detect=False,
            columns=dict.fromkeys(texts, "VARCHAR"), skiprows=num_blank, store_rejects=True, max_line_size=_LONGEST_RECORD,
        )  # fmt: skip
        constants = [
            duckdb.ConstantExpression(value).cast(text).alias(f"c{len(texts) + place}")
            for place, value in enumerate(beside.values())
        ]
        records.select(
            *[duckdb.ColumnExpression(name) for name in texts], *constants, nothing.cast(text).alias(CORRUPT)
        ).write_parquet(str(unfinished))
        # A record with several defects is there once for each.
        rejected = {
            record[:2]: record[2:]
            for record in database.table("reject_errors")
            .select("line", "line_byte_position", "error_type", "csv_line")
            .fetchall()
        }
    if rejected:
        constant = {f"c{len(texts) + place}": value for place, value in enumerate(beside.values())}
        rows = []
        for (line, _), (reason, record) in sorted(rejected.items()):
            # As far as it can be read: a user who was erased, or is personal, must be known here too.
            fields = next(csv.reader(io.StringIO(record, newline=""), delimiter=files.separator), [])
            rows.append(
                dict(zip(texts, fields, strict=False))
                | constant
                | {CORRUPT: f"line {line}, {reason.lower()}: {record}"}
            )
        columns = [(name, pa.string()) for name in [*texts, *constant, CORRUPT]]
        pq.write_table(pa.Table.from_pylist(rows, pa.schema(columns)), aside)
    unfinished.rename(target)
    return (str(target), str(aside)) if rejected else (str(target),)
