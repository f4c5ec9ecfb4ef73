"""Where a process keeps files of its own for as long as it runs."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import socket
from pathlib import Path

import psutil

from contracts.settings import settings

STAGING = "staging"
"""Folder of the lake for what is on its way into a table; each process has one of its own in it."""
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
        if is_abandoned(other.name):
            shutil.rmtree(other, ignore_errors=True)
    folder = spool / own_name()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def own_name() -> str:
    """A name for what belongs to this process, on this host and all others."""
    return f"{_PREFIX}{os.getpid()}-{socket.gethostname()}"


def is_abandoned(name: str) -> bool:
    """Whether `name` is the `own_name` of a process of this host that runs no more."""
    pid, _, host = name.removeprefix(_PREFIX).partition("-")
    is_ours = name.startswith(_PREFIX) and host == socket.gethostname()
    return is_ours and not psutil.pid_exists(int(pid))
