"""Files: CSV, JSON lines, Parquet. New and changed ones are found by listing; what is landed is not read again."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel
from pyspark.sql import SparkSession

from contracts.dataset import Events
from spark_jobs import reading
from spark_jobs.ledger import Position
from spark_jobs.parsing import declared_columns
from spark_jobs.session import say
from spark_jobs.sources import Batch, Land

UNFINISHED_S = 300
"""A last line without its line feed is taken when the file has not changed for so long."""


class Options(BaseModel, extra="forbid"):
    """Nothing: paths and formats are keys of `[events]` itself."""


class Reader:
    """Position: the stamp (size and time) of each file when it was read, by its path."""

    rereads = True

    def __init__(self, name: str, source: Events, options: Options, folder: Path) -> None:
        assert source.files is not None
        self._source, self._files, self._folder = source, source.files, folder
        self._columns = declared_columns(source)

    def news(self, position: Position) -> bool:
        return bool(self._to_read(position))

    def run(self, spark: SparkSession, position: Position, land: Land) -> None:
        to_read = self._to_read(position)
        while young := self._settles_in_s(to_read.values()):
            time.sleep(young)
            to_read = self._to_read(position)
        if not to_read:
            return
        unfinished = [path for path, stamp in to_read.items() if self._is_unfinished(path, stamp)]
        for path in unfinished:
            say(f"{path}: its last line has no line feed, and waits until the file is {UNFINISHED_S // 60} minutes old")
        with reading.readable(list(to_read)):
            base = reading.base_of(self._files, self._folder)
            rows = reading.read(spark, self._files, list(to_read), self._columns, base=base, unfinished=unfinished)
            # What is unfinished is read again until it is whole.
            stamps = {path: f"{stamp} unfinished" if path in unfinished else stamp for path, stamp in to_read.items()}
            land(Batch(rows, stamps, reading.some(list(to_read))))

    def _to_read(self, position: Position) -> dict[str, str]:
        """Files that are new or have changed, with their stamps."""
        listed = reading.listed(self._files, self._folder)
        return {path: stamp for path, stamp in listed.items() if position.get(path) != stamp}

    def _is_unfinished(self, path: str, stamp: str) -> bool:
        """Whether a text may still be written: it is young, and its last line has no line feed."""
        age_s = time.time() - int(stamp.split()[1]) / 1e9
        is_text = self._files.file_format == "csv" and "://" not in path and not path.endswith((".gz", ".bz2", ".zst"))
        if not is_text or age_s > UNFINISHED_S or stamp.startswith("0 "):
            return False
        with Path(path).open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) not in b"\r\n\0"

    def _settles_in_s(self, stamps: Iterable[str]) -> float:
        """Seconds until the youngest file is old enough to be taken for finished."""
        youngest_s = max((int(stamp.split()[1]) / 1e9 for stamp in stamps), default=0.0)
        return max(0.0, self._source.settle_s - (time.time() - youngest_s))
