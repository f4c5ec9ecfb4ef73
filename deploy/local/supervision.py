"""supervisord: starting it, talking to it, stopping it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import subprocess
import sys
import time
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any
from xmlrpc.client import Fault, ServerProxy

import psutil

from contracts.errors import InputError
from contracts.settings import REPOSITORY

LONGEST_SOCKET = 90  # bytes; the system allows 107, and supervisord binds to a longer name first


def socket_path(home: Path) -> Path:
    """supervisord's socket: in `home`, or in a private folder under /tmp when that path is too long for a socket.

    Raises:
        InputError: that private folder belongs to somebody else.
    """
    path = home / "run" / "supervisord.sock"
    if len(os.fsencode(path)) <= LONGEST_SOCKET:
        return path
    name = f"cartwheel-{os.geteuid()}-{hashlib.sha256(os.fsencode(home)).hexdigest()[:12]}"
    folder = Path("/tmp", name)  # noqa: S108 - checked below to be ours and private
    folder.mkdir(mode=0o700, exist_ok=True)
    stats = folder.lstat()
    if not stat.S_ISDIR(stats.st_mode) or stats.st_uid != os.geteuid() or stats.st_mode & 0o077:
        raise InputError(
            "this is not a private folder of ours", where=str(folder),
            cure="remove it, or set CARTWHEEL_HOME to a shorter path",
        )  # fmt: skip
    return folder / "supervisord.sock"


class Supervisor:
    """The running supervisord of the installation at `home`."""

    def __init__(self, home: Path) -> None:
        from supervisor.xmlrpc import SupervisorTransport  # type: ignore[import-untyped]

        self._home = home
        transport = SupervisorTransport(None, None, f"unix://{socket_path(home)}")
        self._rpc: Any = ServerProxy("http://127.0.0.1", transport=transport).supervisor
        pid: Any = self._rpc.getPID()
        self.pid = int(pid)

    def start(self, address: str) -> None:
        """Start the program at `address` (group:name) unless it is running; does not wait for it."""
        try:
            self._rpc.startProcess(address, False)
        except Fault as fault:
            if "ALREADY_STARTED" not in fault.faultString:
                raise InputError(
                    f"{address} cannot be started: {fault.faultString}",
                    where=str(self._home / "logs" / "supervisord.log"),
                    cure="read that log",
                ) from None

    def states(self) -> dict[str, dict[str, Any]]:
        """What supervisord says of each program, by its name: `statename`, `pid`, `exitstatus` and more."""
        return {info["name"]: info for info in self._rpc.getAllProcessInfo()}

    def shutdown(self, deadline_s: float = 60.0) -> None:
        """Stop every program in order, then supervisord; returns when it has ended or the deadline has passed."""
        with contextlib.suppress(Fault, OSError, HTTPException):  # it may be stopping already
            self._rpc.shutdown()
        with contextlib.suppress(psutil.Error):
            psutil.Process(self.pid).wait(deadline_s)


def connect(home: Path) -> Supervisor | None:
    """The running supervisord of the installation at `home`, if there is one."""
    try:
        return Supervisor(home)
    except (OSError, HTTPException, Fault):
        return None


def launch(home: Path, configuration: Path, environment: Mapping[str, str], deadline_s: float = 30.0) -> Supervisor:
    """Start supervisord in a session of its own, so that a terminal's Ctrl-C does not reach it.

    Raises:
        InputError: it did not come up.
    """
    errors = home / "logs" / "supervisord.err"
    with errors.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "supervisor.supervisord", "-c", str(configuration)],
            cwd=REPOSITORY, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
    end = time.monotonic() + deadline_s
    while process.poll() is None and time.monotonic() < end:
        if (supervisor := connect(home)) is not None:
            return supervisor
        time.sleep(0.1)
    process.kill()
    process.wait()
    last_line = errors.read_text(errors="replace").strip().splitlines()[-1:]
    raise InputError(f"supervisord did not start: {''.join(last_line)}", where=str(errors), cure="read that file")
