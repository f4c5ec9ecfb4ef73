"""Files: CSV, JSON lines, Parquet. New and changed ones are found by listing; what is landed is not read again."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel
from pyspark.sql import SparkSession

from contracts.dataset import Events
from spark_jobs import reading
from spark_jobs.ledger import Position
from spark_jobs.sources import Batch, Land


class Options(BaseModel, extra="forbid"):
    """Nothing: paths and formats are keys of `[events]` itself."""


class Reader:
    """Position: the stamp (size and time) of each file when it was read, by its path."""

    rereads = True

    def __init__(self, name: str, source: Events, options: Options, folder: Path) -> None:
        assert source.files is not None
        self._source, self._files, self._folder = source, source.files, folder

    def news(self, position: Position) -> bool:
        return bool(self._to_read(position))

    def run(self, spark: SparkSession, position: Position, land: Land) -> None:
        to_read = self._to_read(position)
        while young := self._settles_in_s(to_read.values()):
            time.sleep(young)
            to_read = self._to_read(position)
        if not to_read:
            return
        copies = {reading.fetched(path, stamp): path for path, stamp in to_read.items()}
        where = ", ".join([*list(to_read)[:3], *(["..."] if len(to_read) > 3 else [])])
        with reading.readable(list(copies)):
            rows = reading.read(spark, self._files, list(copies), reading.base_of(self._files, self._folder))
            land(Batch(rows, dict(to_read), where))
        for copy, path in copies.items():
            if copy != path:
                shutil.rmtree(Path(copy).parent)

    def _to_read(self, position: Position) -> dict[str, str]:
        """Files that are new or have changed, with their stamps."""
        return {
            path: stamp
            for path, stamp in reading.listed(self._files, self._folder).items()
            if position.get(path) != stamp
        }

    def _settles_in_s(self, stamps: Iterable[str]) -> float:
        """Seconds until the youngest file is old enough to be taken for finished."""
        youngest_s = max((int(stamp.split()[1]) / 1e9 for stamp in stamps), default=0.0)
        return max(0.0, self._source.settle_s - (time.time() - youngest_s))
