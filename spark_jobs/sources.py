"""The shop's own files: reading them as they are, and telling whether they changed."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from py4j.protocol import Py4JError
from pydantic import BaseModel
from pyspark.errors import AnalysisException, PySparkException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from contracts.dataset import Files, resolve
from contracts.errors import InputError

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
    "native zStandard library not available|UnsatisfiedLinkError": "its compression is not supported: use gz or bz2",
    "FAILED_READ_FILE|PATH_NOT_FOUND": "it could not be read",
}
"""What a failure of Spark to read a file means, by a pattern of its text and the file's name; the first one counts."""


def column(name: str) -> Column:
    """A column by its exact name, dots and blanks included."""
    return F.col("`" + name.replace("`", "``") + "`")


def paths(files: Files, folder: Path) -> list[str]:
    return [resolve(path, folder) for path in files.path]


@contextmanager
def readable(files: Files, folder: Path) -> Iterator[None]:
    """Turn Spark's failure to read one of `files` into one line that names the file.

    Raises:
        InputError: a file is damaged, is of another format, or may not be read.
    """
    try:
        yield
    except (PySparkException, Py4JError) as error:
        text = str(error)
        named = re.search(r"(?:file:/*|path )(/?[^\s'\",]+)", text)
        where = "/" + named[1].strip("/.") if named else ", ".join(paths(files, folder))
        for pattern, reason in _FAILURES.items():
            if re.search(pattern, f"{text} {where}", flags=re.DOTALL | re.IGNORECASE):
                raise InputError(
                    f"cannot read the file: {reason}", where=where, cure="replace or correct the file"
                ) from None
        raise


def read(spark: SparkSession, files: Files, folder: Path) -> DataFrame:
    """The rows as they are: text for csv and jsonl, the file's own types for parquet.

    Raises:
        InputError: a file is missing or cannot be read.
    """
    found = paths(files, folder)
    with readable(files, folder):
        if files.file_format == "parquet":
            return _with_nanoseconds(spark.read.parquet(*found), found)
        if files.file_format == "jsonl":
            options: dict[str, Any] = {"primitivesAsString": True, "columnNameOfCorruptRecord": CORRUPT}
            return spark.read.json(found, encoding=files.encoding, lineSep="\n", **options)
        options = {
            "header": True,
            "sep": files.separator,
            "encoding": files.encoding,
            "escape": '"',
            "enforceSchema": False,
        }
        try:
            names = spark.read.csv(found, **options).columns
        except AnalysisException as error:
            if "UNABLE_TO_INFER_SCHEMA" not in str(error):
                raise
            names = []
        if not names:
            raise InputError("the file is empty", where=", ".join(found), cure="name a file with a header and rows")
        schema = T.StructType([T.StructField(name, T.StringType()) for name in [*names, CORRUPT]])
        return spark.read.csv(found, schema=schema, columnNameOfCorruptRecord=CORRUPT, **options)


def _with_nanoseconds(frame: DataFrame, found: list[str]) -> DataFrame:
    """Spark reads times in nanoseconds as whole numbers: make them times again."""
    import pyarrow as pa
    import pyarrow.dataset

    longs = {field.name for field in frame.schema if isinstance(field.dataType, T.LongType)}
    local = [path for path in found if Path(path).exists()]
    if not longs or not local:
        return frame
    for field in pa.dataset.dataset(local[0], format="parquet").schema:
        if field.name in longs and pa.types.is_timestamp(field.type):
            moment = F.timestamp_micros((column(field.name) / 1000).cast("long"))
            frame = frame.withColumn(field.name, moment)
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
        for path in paths(declared, folder) if declared is not None else ():
            parent = Path(path)
            found = (
                [parent]
                if parent.is_file()
                else sorted(parent.rglob("*") if parent.is_dir() else parent.parent.glob(parent.name))
            )
            for file in found:
                if file.is_file():
                    told.append(f"{os.path.relpath(file, folder)} {file.stat().st_size} {file.stat().st_mtime_ns}")
    return hashlib.sha256("\n".join(told).encode()).hexdigest()
