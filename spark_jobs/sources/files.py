"""Files: CSV, JSON lines, Parquet. New and changed ones are found by listing; what is landed is not read again."""

from __future__ import annotations

import shutil
import time
from collections import defaultdict
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from pydantic import BaseModel
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from contracts.dataset import Events
from spark_jobs import reading
from spark_jobs.sources import Batch, Land, Position

PARTIAL = (".tmp", ".part", ".partial", ".crdownload", ".inprogress")
"""Endings of files that somebody still writes."""


class Options(BaseModel, extra="forbid"):
    """Nothing: paths and formats are keys of `[events]` itself."""


class Reader:
    """Position: `{"files": {path: {"stamp": "SIZE MTIME", "through": N or None}}}`.

    `through` is the last interval landed of a file that held events after it; None: all of it has landed.
    """

    holds_back = True

    def __init__(self, name: str, source: Events, options: Options, folder: Path) -> None:
        assert source.files is not None
        self._source, self._files, self._folder = source, source.files, folder

    def news(self, position: Position, through: int) -> bool:
        return bool(self._to_read(position, through))

    def run(self, spark: SparkSession, position: Position, through: int, land: Land) -> None:
        to_read = self._to_read(position, through)
        while young := self._settles_in_s(stamp for stamp, _ in to_read.values()):
            time.sleep(young)
            to_read = self._to_read(position, through)
        known = dict(position.get("files", {}))
        groups: defaultdict[tuple[int | None, str], dict[str, str]] = defaultdict(dict)
        copies = {path: reading.fetched(path, stamp) for path, (stamp, _) in to_read.items()}
        for path, (_, after) in to_read.items():
            groups[after, reading.shape(self._files, Path(copies[path]))][copies[path]] = path
        # First what was held back: its intervals come before those of new files as a rule.
        for (after, _), group in sorted(groups.items(), key=lambda each: (each[0][0] is None, each[0])):
            with reading.readable(sorted(group)):
                rows = reading.read(spark, self._files, sorted(group), self._base())

                def landed(newest: dict[str, int], group: dict[str, str] = group) -> Position:
                    parts = {_local(part): interval for part, interval in newest.items()}
                    if strange := parts.keys() - group.keys():
                        raise RuntimeError(f"rows of files that were not asked for: {', '.join(sorted(strange)[:3])}")
                    beyond = {part for part, interval in parts.items() if interval > through}
                    for copy, path in group.items():
                        known[path] = {"stamp": to_read[path][0], "through": through if copy in beyond else None}
                    return {"files": dict(known)}

                where = ", ".join(sorted(group.values())[:3])
                land(Batch(rows, landed, after, F.col("_metadata.file_path"), where))
            for copy, path in group.items():
                if copy != path:
                    shutil.rmtree(Path(copy).parent)

    def _to_read(self, position: Position, through: int) -> dict[str, tuple[str, int | None]]:
        """Files with something to read: stamp, and the interval after which their rows are still to be landed."""
        known: dict[str, Any] = position.get("files", {})
        found = {}
        for path, stamp in reading.listed(self._files, self._folder).items():
            before = known.get(path)
            if path.endswith(PARTIAL):
                continue
            if before is None or before["stamp"] != stamp:
                found[path] = (stamp, None)
            elif before["through"] is not None and before["through"] < through:
                found[path] = (stamp, before["through"])
        return found

    def _settles_in_s(self, stamps: Any) -> float:
        """Seconds until the youngest file is old enough to be taken for finished."""
        youngest_s = max((int(stamp.split()[1]) / 1e9 for stamp in stamps), default=0.0)
        return max(0.0, self._source.settle_s - (time.time() - youngest_s))

    def _base(self) -> str | None:
        """The folder whose subfolders `key=value` are columns."""
        found = reading.paths(self._files, self._folder)
        return found[0] if len(found) == 1 and Path(found[0]).is_dir() else None


def _local(url: str) -> str:
    """The path in a `file:` URL, as Spark writes it."""
    return unquote(urlparse(url).path)
