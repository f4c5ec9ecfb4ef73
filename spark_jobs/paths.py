"""Paths as Spark wants them."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable
from pathlib import Path

from pyarrow import fs

from contracts import lake
from contracts.settings import settings
from spark_jobs.scratch import own_staging


def for_spark(paths: Iterable[object]) -> list[str]:
    """Files and folders there are, as Spark takes them: it takes a path for a pattern, and `a[1].csv` for `a1.csv`.

    Of a lake in a store, hosts share the lake and need share no folder: our own copies of what was read go there first.
    """
    shared = lake.is_remote() and not settings().spark_is_one_process
    places = [_put_into_lake(str(path)) if shared and _is_ours(str(path)) else str(path) for path in paths]
    return [re.sub(r"([\\*?\[\]{}])", r"\\\1", place) for place in places]


def _is_ours(path: str) -> bool:
    return Path(path).is_relative_to(settings().home_dir)


def _put_into_lake(path: str) -> str:
    """Copy a file to the lake for as long as this process runs; its address."""
    system, root = lake.filesystem()
    place = f"{own_staging()}/{uuid.uuid4().hex}/{Path(path).name}"
    fs.copy_files(path, f"{root}/{place}", destination_filesystem=system)
    return f"{settings().lake_uri}/{place}"
