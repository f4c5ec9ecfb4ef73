"""The shop's own files: reading them as they are, and telling whether they changed."""

from __future__ import annotations

import fnmatch
import glob
import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import reduce
from operator import add
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq
from py4j.protocol import Py4JError
from pyarrow import fs
from pydantic import BaseModel
from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame, DataFrameReader, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from contracts.dataset import Files, resolve
from contracts.errors import InputError
from spark_jobs import staging
from spark_jobs.paths import for_spark
from spark_jobs.staging import CORRUPT

_DATA = r"^(-?\d+([.,]\d+)?|\d{4}-\d\d-\d\d.*)$"
"""A number or a date, which names no column."""
FIELDS = "_fields"
"""Column with the fields of a record in JSON that have no column of their own, by their names: a map of text, or null."""
KEYS = "_keys"
"""Column with the names of all fields of a record in JSON."""
_HEAD = 1000
"""Records that are looked at first for the names of fields."""
_AROUND_JSON = " \t\r\n"
"""What may stand before and after a record."""
_BYTE_ORDER_MARK = "\ufeff"
"""What Windows writes before a text."""
_STRICT_JSON = {"allowSingleQuotes": "false", "allowNonNumericNumbers": "false"}
PARTIAL = (".tmp", ".part", ".partial", ".crdownload", ".inprogress")
"""Endings of files that somebody still writes."""
_FAILURES = {
    "AccessControlException|Permission denied": "no permission to read it",
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

    As Spark does, those whose name begins with a dot or underscore are left out, and those that somebody still writes.
    An address (`s3://`, `gs://`) is listed by Arrow, with the credentials of the environment.

    Raises:
        InputError: an address cannot be listed.
    """
    versions: dict[str, str] = {}
    for declared in paths(files, folder):
        scheme, host, path = declared.rpartition("://")
        is_glob = glob.has_magic(path) and not Path(declared).exists()
        start = _start(path) if is_glob else path
        try:
            system, root = fs.FileSystem.from_uri(f"{scheme}{host}{start}" if host else str(Path(start).absolute()))
            info = system.get_file_info(root)
            if info.type == fs.FileType.File:
                infos = [info]
            else:
                is_deep = not is_glob or path.count("/") > start.count("/") + 1
                infos = system.get_file_info(fs.FileSelector(root, recursive=is_deep))
        except (OSError, pa.ArrowException) as error:
            reason = str(error).splitlines()[0][:200]
            raise InputError(
                f"cannot list: {reason}", where=declared, cure="correct the address or the credentials"
            ) from None
        pattern = f"{root.removesuffix(start)}{path}" if is_glob else None
        for each in infos:
            inside = Path(each.path.removeprefix(root).lstrip("/"))
            if (
                each.type != fs.FileType.File
                or each.path.endswith(PARTIAL)
                or (each is not info and _is_hidden(inside))
            ):
                continue
            if pattern is None or _fits(each.path, pattern):
                versions[f"{scheme}{host}{each.path}" if host else each.path] = f"{each.size} {each.mtime_ns}"
    return dict(sorted(versions.items()))


def _start(pattern: str) -> str:
    """The folder in which a pattern begins to be one, by its name; `[[]` stands for a bracket."""
    literal = next(re.finditer(r"(?:\[[*?\[]\]|[^*?\[])*", pattern))[0]
    return re.sub(r"\[([*?\[])\]", r"\1", literal.rpartition("/")[0])


def _fits(path: str, pattern: str) -> bool:
    """Whether each part of a path fits that of the pattern: `*` does not go beyond a folder."""
    parts, patterns = path.split("/"), pattern.split("/")
    return len(parts) == len(patterns) and all(map(fnmatch.fnmatchcase, parts, patterns))


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


def read_all(spark: SparkSession, files: Files, folder: Path, columns: Sequence[str | None]) -> DataFrame:
    """All rows of `files`, as `read` gives them.

    Raises:
        InputError: a file or a declared column is missing, or a file cannot be read.
    """
    file_paths = list(listed(files, folder))
    if not file_paths:
        where = ", ".join(paths(files, folder))
        raise InputError("no such file", where=where, cure="correct `path` in the dataset file")
    return read(spark, files, file_paths, columns, base=base_of(files, folder))


def base_of(files: Files, folder: Path) -> str | None:
    """The folder whose subfolders `key=value` are columns."""
    file_paths = paths(files, folder)
    return file_paths[0] if len(file_paths) == 1 and Path(file_paths[0]).is_dir() else None


def read(
    spark: SparkSession,
    files: Files,
    file_paths: Sequence[str],
    columns: Sequence[str | None],
    *,
    base: str | None = None,
    unfinished: Collection[str] = (),
) -> DataFrame:
    """The rows as they are: text for csv and jsonl (see `json_rows`), the file's own types for parquet.

    Columns are put together by name. One that is not of the same type in all files is text.

    Args:
        files: how to read them.
        found: which ones, as `listed` names them. Empty ones are passed over.
        wanted: columns that each of them must have.
        base: the folder whose subfolders `key=value` are columns.
        unfinished: those of which a last line without its line feed is left out.

    Raises:
        InputError: a file or column is missing, or a file cannot be read.
    """
    if files.file_format == "csv":
        groups = _csv(spark, files, file_paths, base, unfinished)
    elif files.file_format == "parquet":
        groups = _parquet(spark, file_paths, base)
    else:
        groups = _json_lines(spark, files, file_paths, base, columns)
    frames = []
    for frame, where in groups:
        require(frame, columns, some(where))
        frames.append(frame)
    if not frames:
        names = [*dict.fromkeys(name for name in columns if name is not None), CORRUPT]
        return spark.createDataFrame([], T.StructType([T.StructField(name, T.StringType()) for name in names]))
    return united(frames)


def _csv(
    spark: SparkSession, files: Files, file_paths: Sequence[str], base: str | None, unfinished: Collection[str]
) -> Iterator[tuple[DataFrame, list[str]]]:
    """The rows of files with the same header, and which these are."""
    alike: defaultdict[tuple[str, ...], list[tuple[str, tuple[str, ...]]]] = defaultdict(list)
    for path in file_paths:
        beside = partitions(path, base)
        staged = staging.staged_csv(files, staging.fetched(path), beside, without_tail=path in unfinished)
        if staged.names:
            alike[staged.names].append((path, staged.paths))
    for names, group in alike.items():
        rows = spark.read.parquet(*for_spark(path for _, paths_ in group for path in paths_))
        yield rows.toDF(*names, CORRUPT), [path for path, _ in group]


def some(paths_: Sequence[str]) -> str:
    """A few of many paths, for a message."""
    return ", ".join([*paths_[:3], *(["..."] if len(paths_) > 3 else [])])


def partitions(path: str, base: str | None) -> dict[str, str]:
    """The columns that the folders `key=value` between `base` and a file stand for."""
    if base is None or not path.startswith(f"{base.rstrip('/')}/"):
        return {}
    folders = path.removeprefix(base).strip("/").split("/")[:-1]
    return {key: unquote(value) for key, sign, value in (each.partition("=") for each in folders) if sign}


def _parquet(spark: SparkSession, file_paths: Sequence[str], base: str | None) -> Iterator[tuple[DataFrame, list[str]]]:
    """The rows of files of one schema, and which these are."""
    alike: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for path in file_paths:
        here = staging.fetched(path)
        schema = ""
        with suppress(OSError, pa.ArrowException):  # Spark says what is wrong with it
            schema = str(pq.read_schema(here).remove_metadata())
        alike[schema][here] = path
    for group in alike.values():
        with readable(list(group.values())):
            reader = _reader(spark, group, base)
            yield _with_nanoseconds(reader.parquet(*for_spark(group)), list(group)), list(group.values())


def _reader(spark: SparkSession, paths_: Mapping[str, str], base: str | None) -> DataFrameReader:
    """For files by where they are here: subfolders are columns where none was copied."""
    is_here = base is not None and all(here == path for here, path in paths_.items())
    return spark.read.option("basePath", base) if is_here else spark.read


def _json_lines(
    spark: SparkSession, files: Files, file_paths: Sequence[str], base: str | None, columns: Sequence[str | None]
) -> Iterator[tuple[DataFrame, list[str]]]:
    """The records of all files."""
    here = {staging.fetched_text(files, path): path for path in file_paths}
    declared = list(dict.fromkeys(name for name in columns if name is not None))
    with readable(file_paths):
        lines = _reader(spark, here, base).text(for_spark(here), lineSep="\n")
        beside = [name for name in lines.columns if name != "value"]
        lines = lines.where(_bare("value") != "")
        rows = json_rows(lines, [name for name in declared if name not in beside])
        absent = _absent(rows, [name for name in declared if name not in beside])
        yield rows.drop(*absent), list(file_paths)


def _absent(rows: DataFrame, names: Sequence[str]) -> list[str]:
    """Those names that no record has. Nearly always the first records have all of them."""
    heads = {key for row in rows.select(KEYS).limit(_HEAD).collect() for key in row[KEYS] or ()}
    return [name for name in names if name not in heads and rows.where(F.array_contains(KEYS, name)).isEmpty()]


def _bare(name: str) -> Column:
    """A record without what stands around it. The mark is taken off whole: trimming would take single bytes of it, too."""
    value = F.btrim(name, F.lit(_AROUND_JSON))
    unmarked = F.btrim(F.substring(value, 2, 2**31 - 1), F.lit(_AROUND_JSON))
    return F.when(F.startswith(value, F.lit(_BYTE_ORDER_MARK)), unmarked).otherwise(value)


def json_rows(frame: DataFrame, declared: Sequence[str], *, with_paths: bool = False) -> DataFrame:
    """Records in JSON (text, in column `value`) as a column for each declared name, FIELDS, KEYS and CORRUPT.

    Other columns of `frame` stay. All values are text, nested ones JSON. What is not one whole object has its text in
    CORRUPT.

    Args:
        with_paths: whether a declared name with dots may be a path into a record.
    """
    frame = frame.withColumn("value", _bare("value"))
    text_, beside = F.col("value"), [column(name) for name in frame.columns if name != "value"]
    # As the one element of a list, since Spark's parser does not look at what follows an object.
    parsed = F.from_json(F.concat(F.lit("["), text_, F.lit("]")), "array<map<string,string>>", _STRICT_JSON)
    rows = frame.select("value", *beside, parsed.alias("_list"))
    is_object = text_.startswith("{") & text_.endswith("}") & (F.size("_list") == 1) & F.is_valid_utf8(text_)
    rows = rows.select("value", *beside, F.when(is_object, F.element_at("_list", 1)).alias("_map"))
    keys = F.map_keys("_map")
    is_double = _has_others("_map", declared) & (F.size(F.array_distinct(keys)) < F.size(keys))
    last_counts = F.map_from_entries(F.map_entries("_map"))  # by spark.sql.mapKeyDedupPolicy
    rows = rows.select("value", *beside, F.when(is_double, last_counts).otherwise(F.col("_map")).alias("_map"))
    listed = F.array(*map(F.lit, declared)).cast("array<string>")
    # Higher-order functions are slow: the usual record has none.
    others = F.when(
        _has_others("_map", declared), F.map_filter("_map", lambda name, _: ~F.array_contains(listed, name))
    )
    corrupt = F.when(
        F.col("_map").isNull(), F.make_valid_utf8(F.coalesce(F.nullif(text_, F.lit("")), F.lit("no value")))
    )

    def value(name: str) -> Column:
        own = F.element_at("_map", F.lit(name))
        if not with_paths or "." not in name:
            return own
        return F.coalesce(own, F.get_json_object("value", "$" + "".join(f"['{key}']" for key in name.split("."))))

    values = [value(name).alias(name) for name in declared]
    return rows.select(*values, *beside, others.alias(FIELDS), keys.alias(KEYS), corrupt.alias(CORRUPT))


def _has_others(fields: str, names: Iterable[str]) -> Column:
    """Whether a map has, or may have, other keys than these, or one twice: cheap, and false for the usual record."""
    counted = [F.element_at(fields, F.lit(name)).isNotNull().cast("int") for name in names]
    return F.size(fields) > reduce(add, counted, F.lit(0))


def keys_of(rows: DataFrame) -> list[str]:
    """The names of the fields of all records in JSON."""
    return sorted(row["name"] for row in rows.select(F.explode(KEYS).alias("name")).distinct().collect())


def united(frames: Sequence[DataFrame]) -> DataFrame:
    """The rows of all, columns by name; one that has several types is text."""
    kinds: defaultdict[str, set[T.DataType]] = defaultdict(set)
    for frame in frames:
        for each in frame.schema:
            kinds[each.name].add(each.dataType)
    mixed = {name for name, types in kinds.items() if len(types) > 1}
    same = [frame.withColumns({name: text(frame, name) for name in mixed & set(frame.columns)}) for frame in frames]
    return reduce(lambda left, right: left.unionByName(right, allowMissingColumns=True), same)


def _with_nanoseconds(frame: DataFrame, file_paths: list[str]) -> DataFrame:
    """Spark reads times in nanoseconds as whole numbers: make them times again."""
    import pyarrow.dataset as pads

    longs = {field.name for field in frame.schema if isinstance(field.dataType, T.LongType)}
    local = [path for path in file_paths if Path(path).exists()]
    if not longs or not local:
        return frame
    for field in pads.dataset(local[0], format="parquet").schema:
        if field.name in longs and pa.types.is_timestamp(field.type):
            moment = F.timestamp_micros(F.expr(f"`{field.name.replace('`', '``')}` div 1000"))
            frame = frame.withColumn(field.name, moment if field.type.tz else moment.cast("timestamp_ntz"))
    return frame


def require(frame: DataFrame, columns: Iterable[str | None], where: str) -> None:
    """Check that the declared columns are there.

    Raises:
        InputError: one is not; the ones that are there are named.
    """
    present = [name for name in frame.columns if name not in (CORRUPT, FIELDS, KEYS)]
    absent = next((name for name in columns if name is not None and name not in present), None)
    if absent is None:
        return
    if KEYS in frame.columns:
        present = [*dict.fromkeys([*present, *keys_of(frame)])]
    if any(re.match(_DATA, name) for name in present):
        raise InputError(
            f"no column {absent!r}: the file seems to have no header, its first line looks like data: {', '.join(present)}",
            where=where,
            cure="put a line with the names of the columns before it",
        )
    raise InputError(
        f"no column {absent!r}; there are: {', '.join(present)}",
        where=where,
        cure="correct the column's name in the dataset file",
    )


def float_text(value: Column) -> Column:
    """A double as text: whole ones without `.0`."""
    whole = (value == F.floor(value)) & (F.abs(value) < 2**53)
    return F.when(whole, value.cast("long").cast("string")).otherwise(value.cast("string"))


def text(frame: DataFrame, name: str) -> Column:
    """A column as trimmed text; null where it is blank. Whole numbers kept as doubles lose their `.0`."""
    kind = frame.schema[name].dataType
    value = column(name)
    if isinstance(kind, T.StringType):
        trimmed = F.trim(value)
        return F.when(trimmed != "", trimmed)
    if isinstance(kind, (T.DoubleType, T.FloatType)):
        return F.when(F.isnan(value), None).otherwise(float_text(value))
    if isinstance(kind, (T.StructType, T.ArrayType, T.MapType)):
        return F.to_json(value)
    return value.cast("string")


def fingerprint(parts: Iterable[BaseModel | str | None], files: Iterable[Files | None], folder: Path) -> str:
    """A hash that changes when a declaration changes, or path, size or time of a file."""
    made_of = [part.model_dump_json() if isinstance(part, BaseModel) else str(part) for part in parts]
    for declared in files:
        for path, stamp in listed(declared, folder).items() if declared is not None else ():
            made_of.append(f"{path if '://' in path else os.path.relpath(path, folder)} {stamp}")
    return hashlib.sha256("\n".join(made_of).encode()).hexdigest()
