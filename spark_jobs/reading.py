"""The shop's own files: reading them as they are, and telling whether they changed."""

from __future__ import annotations

import bz2
import fnmatch
import gzip
import hashlib
import os
import re
import shutil
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from py4j.protocol import Py4JError
from pyarrow import fs
from pydantic import BaseModel
from pyspark.errors import AnalysisException, PySparkException
from pyspark.sql import Column, DataFrame, DataFrameReader, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from contracts.dataset import Files, resolve
from contracts.errors import InputError
from contracts.settings import settings

PARTIAL = (".tmp", ".part", ".partial", ".crdownload", ".inprogress")
"""Endings of files that somebody still writes."""
CORRUPT = "_corrupt_record"
"""Column with the text of a row that does not have the shape of the others."""


_FAILURES = {
    "AccessControlException|Permission denied": "no permission to read it",
    "CSV header does not conform|number of columns in CSV header": "its header differs from that of the other files",
    "FAILED_READ_FILE.*[.](gz|bz2)$": "it is damaged or not what its ending says (decompression failed)",
    "is not a Parquet file|CANNOT_READ_FILE_FOOTER|Could not read footer|FAILED_READ_FILE.*[.]parquet$": (
        "it is not a Parquet file, or is damaged"
    ),
    "UnsupportedCharset|INVALID_PARAMETER_VALUE.CHARSET|INVALID_CHARSET": "the encoding in the dataset file is not known",
    "MALFORMED_CHARACTER_CODING": "its text is not in the encoding that the dataset file says",
    "UnsatisfiedLinkError": "its compression is not supported: use gz, bz2 or zst",
    "FAILED_READ_FILE|PATH_NOT_FOUND": "it could not be read",
}
"""What a failure of Spark to read a file means, by a pattern of its text and the file's name; the first one counts."""


def column(name: str) -> Column:
    """A column by its exact name, dots and blanks included."""
    return F.col("`" + name.replace("`", "``") + "`")


def paths(files: Files, folder: Path) -> list[str]:
    return [resolve(path, folder) for path in files.path]


def listed(files: Files, folder: Path) -> dict[str, str]:
    """The files there are, by path or address, each with a stamp that changes with it: size and time in ns.

    As Spark does, those whose name begins with a dot or underscore are left out, and those that somebody still writes. An address (`s3://`, `gs://`) is
    listed by Arrow, with the credentials of the environment.

    Raises:
        InputError: an address cannot be listed.
    """
    found: dict[str, str] = {}
    for declared in paths(files, folder):
        scheme, there, path = declared.rpartition("://")
        prefix = re.split(r"[*?\[]", path, maxsplit=1)[0]
        is_glob = prefix != path
        start = prefix.rpartition("/")[0] if is_glob else path
        try:
            system, root = fs.FileSystem.from_uri(f"{scheme}{there}{start}" if there else str(Path(start).absolute()))
            info = system.get_file_info(root)
            if info.type == fs.FileType.File:
                infos = [info]
            else:
                selector = fs.FileSelector(root, recursive=not is_glob)
                infos = system.get_file_info(selector)
        except (OSError, pa.ArrowException) as error:
            reason = str(error).splitlines()[0][:200]
            raise InputError(
                f"cannot list: {reason}", where=declared, cure="correct the address or the credentials"
            ) from None
        wanted = f"{root.removesuffix(start)}{path}" if is_glob else None
        for each in infos:
            inside = Path(each.path.removeprefix(root).lstrip("/"))
            if (
                each.type != fs.FileType.File
                or each.path.endswith(PARTIAL)
                or (each is not info and _is_hidden(inside))
            ):
                continue
            if wanted is None or fnmatch.fnmatchcase(each.path, wanted):
                found[f"{scheme}{there}{each.path}" if there else each.path] = f"{each.size} {each.mtime_ns}"
    return dict(sorted(found.items()))


def fetched(path: str, stamp: str) -> str:
    """The file as Spark can read it here: itself, or a copy of an address or of what zstd has packed.

    Raises:
        InputError: it cannot be read.
    """
    packed = path.endswith(".zst")
    if "://" not in path and not packed:
        return path
    name = hashlib.sha256(f"{path} {stamp}".encode()).hexdigest()[:16]
    target = settings().home_dir / "spool" / "fetched" / name / Path(path).name.removesuffix(".zst")
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        beside = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            system, place = fs.FileSystem.from_uri(path)
            with (
                system.open_input_stream(place, compression="zstd" if packed else None) as source,
                beside.open("wb") as copy,
            ):
                shutil.copyfileobj(source, copy, 1 << 20)
        except (OSError, pa.ArrowException) as error:
            beside.unlink(missing_ok=True)
            reason = str(error).splitlines()[0][:200]
            raise InputError(
                f"cannot read the file: {reason}", where=path, cure="replace or correct the file"
            ) from None
        beside.rename(target)
    return str(target)


def shape(files: Files, path: Path) -> str:
    """What files that are read together have in common: a CSV's header, the schema of Parquet; empty for JSON lines."""
    if files.file_format == "jsonl":
        return ""
    try:
        if files.file_format == "parquet":
            return str(pq.read_schema(path).remove_metadata())
        with _OPENERS.get(path.suffix, open)(path, "rt", encoding=files.encoding, errors="replace") as file:
            return str(file.readline())
    except (OSError, EOFError, zlib.error, pa.ArrowException):
        return ""  # Spark says what is wrong with it


_OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open}


def _is_hidden(path: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.parts)


@contextmanager
def readable(where: Sequence[str]) -> Iterator[None]:
    """Turn Spark's failure to read one of the paths into one line that names it.

    Raises:
        InputError: a file is damaged, is of another format, or may not be read.
    """
    try:
        yield
    except (PySparkException, Py4JError) as error:
        text = str(error)
        named = re.search(r"(?:file:/*|path )(/?[^\s'\",]+)", text)
        place = "/" + named[1].strip("/.") if named else ", ".join(where)
        for pattern, reason in _FAILURES.items():
            if re.search(pattern, f"{text} {place}", flags=re.DOTALL | re.IGNORECASE):
                raise InputError(
                    f"cannot read the file: {reason}", where=place, cure="replace or correct the file"
                ) from None
        raise


def read_all(spark: SparkSession, files: Files, folder: Path, wanted: Iterable[str | None]) -> DataFrame:
    """All rows of `files`, as `read` gives them, with the declared columns.

    Raises:
        InputError: a file or column is missing, or a file cannot be read.
    """
    declared = paths(files, folder)
    found = [fetched(path, stamp) for path, stamp in listed(files, folder).items()]
    if not found:
        raise InputError("no such file", where=", ".join(declared), cure="correct `path` in the dataset file")
    frame = read(spark, files, found, base_of(files, folder))
    require(frame, wanted, ", ".join(declared))
    return frame


def base_of(files: Files, folder: Path) -> str | None:
    """The folder whose subfolders `key=value` are columns."""
    found = paths(files, folder)
    return found[0] if len(found) == 1 and Path(found[0]).is_dir() else None


def read(spark: SparkSession, files: Files, found: list[str], base: str | None = None) -> DataFrame:
    """The rows as they are: text for csv and jsonl, the file's own types for parquet.

    Columns are put together by name. One that is not of the same type in all files is text.

    Args:
        files: how to read them.
        found: which ones.
        base: the folder whose subfolders `key=value` are columns.

    Raises:
        InputError: a file is missing or cannot be read.
    """
    alike: defaultdict[str, list[str]] = defaultdict(list)
    for path in found:
        alike[shape(files, Path(path))].append(path)
    return united([_read_alike(spark, files, group, base) for group in alike.values()])


def united(frames: Sequence[DataFrame]) -> DataFrame:
    """The rows of all, columns by name; one that has several types is text."""
    kinds: defaultdict[str, set[T.DataType]] = defaultdict(set)
    for frame in frames:
        for each in frame.schema:
            kinds[each.name].add(each.dataType)
    mixed = {name for name, types in kinds.items() if len(types) > 1}
    same = [frame.withColumns({name: text(frame, name) for name in mixed & set(frame.columns)}) for frame in frames]
    return reduce(lambda left, right: left.unionByName(right, allowMissingColumns=True), same)


def _read_alike(spark: SparkSession, files: Files, found: list[str], base: str | None) -> DataFrame:
    """The rows of files of one shape."""
    reader = spark.read if base is None else spark.read.option("basePath", base)
    with readable(found):
        if files.file_format == "parquet":
            return _with_nanoseconds(reader.parquet(*found), found)
        if files.file_format == "jsonl":
            keys = [name for name in _json_keys(reader, files.encoding, found) if name != CORRUPT]
            fields = T.StructType([T.StructField(name, T.StringType()) for name in [*keys, CORRUPT]])
            return reader.json(
                found, schema=fields, encoding=files.encoding, lineSep="\n", columnNameOfCorruptRecord=CORRUPT
            )
        options: dict[str, Any] = {
            "header": True,
            "sep": files.separator,
            "encoding": files.encoding,
            "escape": '"',
            "enforceSchema": False,
        }
        try:
            names = reader.csv(found, **options).columns
        except AnalysisException as error:
            if "UNABLE_TO_INFER_SCHEMA" not in str(error):
                raise
            names = []
        if not names:
            raise InputError("the file is empty", where=", ".join(found), cure="name a file with a header and rows")
        schema = T.StructType([T.StructField(name, T.StringType()) for name in [*names, CORRUPT]])
        return (spark.read if base is None else spark.read.option("basePath", base)).csv(
            found, schema=schema, columnNameOfCorruptRecord=CORRUPT, **options
        )


def _json_keys(reader: DataFrameReader, encoding: str, found: list[str]) -> list[str]:
    """The keys of the objects in JSON lines. Spark's own guess at a schema fails where an object has one twice."""
    if encoding.upper() not in ("UTF-8", "US-ASCII", "ISO-8859-1"):  # a line feed is more than one byte
        return reader.json(found, encoding=encoding, lineSep="\n", columnNameOfCorruptRecord=CORRUPT).columns
    line = F.col("value")
    if encoding.upper() == "ISO-8859-1":
        line = F.decode(line.cast("binary"), encoding)
    keys = reader.text(found, lineSep="\n").select(F.explode(F.json_object_keys(line)).alias("key")).distinct()
    return sorted(row["key"] for row in keys.collect())


def _with_nanoseconds(frame: DataFrame, found: list[str]) -> DataFrame:
    """Spark reads times in nanoseconds as whole numbers: make them times again."""
    import pyarrow.dataset as pads

    longs = {field.name for field in frame.schema if isinstance(field.dataType, T.LongType)}
    local = [path for path in found if Path(path).exists()]
    if not longs or not local:
        return frame
    for field in pads.dataset(local[0], format="parquet").schema:
        if field.name in longs and pa.types.is_timestamp(field.type):
            moment = F.timestamp_micros(F.expr(f"`{field.name.replace('`', '``')}` div 1000"))
            frame = frame.withColumn(field.name, moment if field.type.tz else moment.cast("timestamp_ntz"))
    return frame


def require(frame: DataFrame, wanted: Iterable[str | None], where: str) -> None:
    """Check that the declared columns are there.

    Raises:
        InputError: one is not; the ones that are there are named.
    """
    there = [name for name in frame.columns if name != CORRUPT]
    for name in wanted:
        if name is not None and name not in there:
            raise InputError(
                f"no column {name!r}; there are: {', '.join(there)}",
                where=where,
                cure="correct the column's name in the dataset file",
            )


def text(frame: DataFrame, name: str) -> Column:
    """A column as trimmed text; null where it is blank. Whole numbers kept as doubles lose their `.0`."""
    kind = frame.schema[name].dataType
    value = column(name)
    if isinstance(kind, T.StringType):
        trimmed = F.trim(value)
        return F.when(trimmed != "", trimmed)
    if isinstance(kind, (T.DoubleType, T.FloatType)):
        whole = (value == F.floor(value)) & (F.abs(value) < 2**53)
        return (
            F.when(F.isnan(value), None).when(whole, value.cast("long").cast("string")).otherwise(value.cast("string"))
        )
    if isinstance(kind, (T.StructType, T.ArrayType, T.MapType)):
        return F.to_json(value)
    return value.cast("string")


def fingerprint(parts: Iterable[BaseModel | str | None], files: Iterable[Files | None], folder: Path) -> str:
    """A hash that changes when a declaration changes, or path, size or time of a file."""
    told = [part.model_dump_json() if isinstance(part, BaseModel) else str(part) for part in parts]
    for declared in files:
        for path, stamp in listed(declared, folder).items() if declared is not None else ():
            told.append(f"{path if '://' in path else os.path.relpath(path, folder)} {stamp}")
    return hashlib.sha256("\n".join(told).encode()).hexdigest()
