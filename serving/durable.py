"""Changes to files that either happened wholly or not at all, whenever the process or machine stops."""

from __future__ import annotations

import os
from pathlib import Path

from contracts.files import sync


def append_line(path: Path, line: str) -> None:
    """Append one line; a line torn by an earlier crash is closed first, so that it spoils no other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                line = f"\n{line}"
        file.write(f"{line}\n".encode())
        file.flush()
        os.fsync(file.fileno())


def sync_tree(folder: Path) -> None:
    """fsync a folder and everything in it."""
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)
