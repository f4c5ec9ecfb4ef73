"""Where a process keeps files of its own for as long as it runs: on this host, and in the lake."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from pyarrow import fs

from contracts import lake
from contracts.settings import settings

STAGING = "staging"
"""Folder of the lake for what is on its way into a table."""
_PREFIX = "process-"


def scratch() -> Path:
    """A folder for copies, gone when this process ends. They hold user ids as they came."""
    folder = _own_folder()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


@functools.cache
def _own_folder() -> Path:
    """Its name, once what killed processes have left is cleared."""
    spool = settings().home_dir / "spool"
    for other in spool.glob(f"{_PREFIX}*"):
        if _is_abandoned(other.name):
            shutil.rmtree(other, ignore_errors=True)
    folder = spool / _own_name()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def own_staging() -> str:
    """The folder of the lake that this process stages in, gone when it ends."""
    folder = f"{STAGING}/{_own_name()}"
    atexit.register(clear_staging, folder)
    return folder


@contextmanager
def staging_folder() -> Iterator[str]:
    """A folder of the lake to stage rows in, gone afterwards. What killed processes of this host have left goes, too."""
    system, root = lake.filesystem()
    for info in system.get_file_info(fs.FileSelector(f"{root}/{STAGING}", allow_not_found=True)):
        if _is_abandoned(info.base_name):
            clear_staging(f"{STAGING}/{info.base_name}")
    folder = f"{own_staging()}/{uuid.uuid4().hex}"
    try:
        yield folder
    finally:
        clear_staging(folder)


def clear_staging(folder: str = STAGING) -> None:
    """Remove what is staged in a folder of the lake, or all that is staged: nobody may be writing then."""
    system, root = lake.filesystem()
    with suppress(FileNotFoundError):
        system.delete_dir(f"{root}/{folder}")


def _own_name() -> str:
    """A name for what belongs to this process, on this host and all others."""
    return f"{_PREFIX}{os.getpid()}-{socket.gethostname()}"


def _is_abandoned(name: str) -> bool:
    """Whether `name` is the `_own_name` of a process of this host that runs no more."""
    pid, _, host = name.removeprefix(_PREFIX).partition("-")
    is_ours = name.startswith(_PREFIX) and host == socket.gethostname()
    return is_ours and not psutil.pid_exists(int(pid))
