"""Files that are either whole or absent, also after a kill at any instant; and locks that die with their holder."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from contracts.errors import InputError


def read_json(path: Path) -> Any:
    """The content of a JSON file, or an empty dict when there is none.

    Raises:
        InputError: the file is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise InputError(
            f"not JSON ({error})", where=str(path), cure="put it back from a copy, or delete it to have it made anew"
        ) from None


def write_json(path: Path, value: Any, *, mode: int = 0o644) -> None:
    """Write a JSON file whole, by `write_text`."""
    write_text(path, json.dumps(value, indent=1) + "\n", mode=mode)


def write_text(path: Path, text: str, *, mode: int = 0o644) -> None:
    """Write a text in UTF-8 whole, by `write_bytes`."""
    write_bytes(path, text.encode(), mode=mode)


def write_bytes(path: Path, content: bytes, *, mode: int = 0o644, modified_ns: int | None = None) -> None:
    """Write `content` beside `path`, fsync, rename. `mode` holds from the first byte on, whatever the umask.

    Args:
        modified_ns: when the file shall say that it was modified; None: now.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.unlink(missing_ok=True)
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)
        file.write(content)
        file.flush()
        os.fsync(descriptor)
    if modified_ns is not None:
        os.utime(beside, ns=(modified_ns, modified_ns))
    beside.replace(path)
    sync(path.parent)


def sha256(path: Path) -> str:
    """Of a file's bytes, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """fsync one file or folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(
    path: Path, *, what: str = "", cure: str = "wait until it has ended", shared: bool = False
) -> Iterator[None]:
    """Hold `path` as a lock, which the kernel releases however this process ends. The file holds our process id, of
    several the latest.

    Args:
        what: what the other holder is doing, for the error; empty: wait for the lock instead.
        shared: others may hold it too, if they share it.

    Raises:
        InputError: another process holds the lock and `what` is given.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (fcntl.LOCK_NB if what else 0))
        except BlockingIOError:
            raise InputError(f"{what} (process {lock_holder(path) or 'unknown'})", where=str(path), cure=cure) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def lock_holder(path: Path) -> int | None:
    """The process that holds `path` by `locked`, of several that share it one; or None."""
    try:
        with path.open(encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(file.read() or 0) or None
    except FileNotFoundError:
        pass
    return None
