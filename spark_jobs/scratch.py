"""Where a process keeps files of its own for as long as it runs."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
from pathlib import Path

import psutil

from contracts.settings import settings


def scratch() -> Path:
    """A folder for copies, gone when this process ends. They hold user ids as they came."""
    folder = _own_folder()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


@functools.cache
def _own_folder() -> Path:
    """Its name, once what killed processes have left is cleared."""
    spool = settings().home_dir / "spool"
    for other in spool.glob("process-*"):
        if not psutil.pid_exists(int(other.name.removeprefix("process-"))):  # it was killed
            shutil.rmtree(other, ignore_errors=True)
    folder = spool / f"process-{os.getpid()}"
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
