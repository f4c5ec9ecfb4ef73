"""The processes of one installation, told apart by a variable in their environment.

The marker is not CARTWHEEL_HOME itself: a person may export that in a shell, and `down` must not kill the shell.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import psutil

MARKER = "CARTWHEEL_STACK"
"""Set to the home folder of the installation for every process of its stack, and nowhere else."""


def marked(home: Path) -> list[psutil.Process]:
    """Live processes of the installation at `home` with all descendants, but not this process nor its ancestors."""
    mine: list[psutil.Process] = []
    children: dict[int, list[psutil.Process]] = {}
    for process in psutil.process_iter(["ppid", "status"]):
        if process.info["status"] == psutil.STATUS_ZOMBIE:
            continue
        children.setdefault(process.info["ppid"], []).append(process)
        try:
            if process.environ().get(MARKER) == str(home):
                mine.append(process)
        except (psutil.Error, OSError):
            continue
    spared = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    process_by_pid: dict[int, psutil.Process] = {}
    while mine:
        process = mine.pop()
        if process.pid not in process_by_pid and process.pid not in spared:
            process_by_pid[process.pid] = process
            mine += children.get(process.pid, [])
    return list(process_by_pid.values())


def sweep(home: Path, *, grace_s: float = 8.0) -> int:
    """Stop every process of the installation at `home`, first by request, then by force.

    Returns:
        How many there were.
    """
    family: set[psutil.Process] = set()
    for force in (False, True, True):  # twice by force: a process may have been started meanwhile
        # A child without the marker is found through its parent, and must not be forgotten when that has ended.
        family |= set(marked(home))
        alive = [process for process in family if _alive(process)]
        for process in alive:
            with suppress(psutil.Error):
                # PostgreSQL waits for its clients on SIGTERM, and not on SIGINT.
                request = signal.SIGINT if process.name() == "postgres" else signal.SIGTERM
                process.send_signal(signal.SIGKILL if force else request)
        end = time.monotonic() + grace_s
        while alive and time.monotonic() < end:
            alive = [process for process in psutil.wait_procs(alive, timeout=0.2)[1] if _alive(process)]
        if not alive and not marked(home):
            break
    return len(family)


def _alive(process: psutil.Process) -> bool:
    """Whether it runs. One that has ended and that nobody has asked about (a zombie) does not."""
    try:
        return process.is_running() and bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def memory_mib(processes: list[psutil.Process]) -> float:
    """Memory of `processes` together in MiB: PSS, which counts shared pages once, or RSS where there is no PSS."""
    total_bytes = 0
    for process in processes:
        try:
            try:
                full = process.memory_full_info()
                total_bytes += getattr(full, "pss", full.rss)
            except psutil.AccessDenied:
                total_bytes += process.memory_info().rss
        except (psutil.Error, OSError):
            continue
    return total_bytes / 2**20
