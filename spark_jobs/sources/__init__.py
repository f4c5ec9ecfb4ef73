"""Where events come from: one module for each kind of source, found by its name.

A module holds a pydantic model `Options` (the content of the dataset file's `[events.KIND]`) and a class `Reader`
with the methods of the protocol here. Nothing else knows the kinds: a new one is one file and its test.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pydantic import ValidationError

from contracts.dataset import Dataset, Events
from contracts.errors import InputError
from spark_jobs.ledger import Position

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession


@dataclass(frozen=True)
class Batch:
    """Records to land together, in one commit.

    Attributes:
        rows: one column for each field, as text or with the source's own types (JSON: see `reading.json_rows`); rows
            that are no record of the usual shape have their text in `reading.CORRUPT`. Read once, but for a look at the
            keys of JSON.
        position: the parts of the source that are further than before once `rows` have landed; committed with them.
        where: what is read, for messages to people.
    """

    rows: DataFrame
    position: Position
    where: str = ""


Land = Callable[[Batch], None]
"""Lands one batch: all of it is committed when the call returns, and nothing of it when it raises."""


class Reader(Protocol):
    """Reads one source. Made by `Reader(name, declared, options, folder)`; making it touches nothing outside."""

    rereads: bool
    """Whether all that the source ever held can be read again, in one batch, from an empty position."""

    def news(self, position: Position) -> bool:
        """Whether there may be something to read, found without Spark.

        Raises:
            InputError: the source cannot be asked.
        """
        ...

    def run(self, spark: SparkSession, position: Position, land: Land) -> None:
        """Read everything there is after `position`, and `land` it in batches, each from where the one before ended.

        Raises:
            InputError: the source cannot be read, or lacks a declared column.
        """
        ...


def kinds() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def open_source(source: Events, dataset: Dataset, folder: Path) -> Reader:
    """The reader of one source of a dataset.

    Args:
        folder: what relative paths in the dataset file start from.

    Raises:
        InputError: there is no such kind of source, or its options do not fit.
    """
    name = dataset.source_name(source)
    if source.kind not in kinds():
        raise InputError(
            f"no kind of source {source.kind!r}",
            where=f"events {name!r} of the dataset file",
            cure=f"name one of {', '.join(kinds())}",
        )
    module = importlib.import_module(f"{__name__}.{source.kind}")
    try:
        options = module.Options.model_validate(source.options)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(["events", source.kind, *map(str, first["loc"])])
        raise InputError(
            f"{place}: {first['msg'].removeprefix('Value error, ')}",
            where=f"events {name!r} of the dataset file",
            cure="see docs/bring-your-own-data.md",
        ) from None
    reader: Reader = module.Reader(name, source, options, folder)
    return reader
