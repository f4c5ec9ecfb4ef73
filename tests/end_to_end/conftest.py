"""Whole installations in temporary folders: their own ports, state and processes."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PORTS = (
    "airflow_port",
    "mlflow_port",
    "postgres_port",
    "rest_port",
    "grpc_port",
)


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on, all different."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


@dataclass(frozen=True)
class Installation:
    """One installation, driven as a person does: by command line."""

    home: Path
    environment: dict[str, str]

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start `python -m deploy.local ARGUMENTS`, with its output in `output.log`."""
        return self._start([sys.executable, "-m", "deploy.local", *arguments])

    def make(self, *arguments: str) -> int:
        """Run the README's command `make ARGUMENTS` to its end; the exit status."""
        return self._start(["make", *arguments]).wait(timeout=1800)

    def _start(self, command: list[str]) -> subprocess.Popen[str]:
        log = (self.home.parent / "output.log").open("a")
        return subprocess.Popen(
            command, cwd=REPOSITORY, env=self.environment, stdout=log, stderr=subprocess.STDOUT, text=True
        )

    def run(self, *arguments: str) -> int:
        """Run it to its end; the exit status."""
        return self.start(*arguments).wait(timeout=1800)

    @property
    def output(self) -> str:
        return (self.home.parent / "output.log").read_text()

    @property
    def summary(self) -> dict:
        return json.loads((self.home / "summary.json").read_text())

    def processes(self) -> list[psutil.Process]:
        """Everything that runs for this installation."""
        found = []
        for process in psutil.process_iter():
            try:
                if (
                    process.environ().get("CARTWHEEL_HOME") == str(self.home)
                    and process.status() != psutil.STATUS_ZOMBIE
                ):
                    found.append(process)
            except psutil.Error:
                continue
        return found


@pytest.fixture
def install() -> Iterator[Callable[..., Installation]]:
    """Make an installation with the settings given; everything is stopped and deleted at the end.

    Not under pytest's own folder: a second pytest closes that to other users, and PostgreSQL runs as one where we are root.
    """
    made: list[Installation] = []
    parent = Path(tempfile.mkdtemp(prefix="cartwheel-"))

    def make(**settings: object) -> Installation:
        home = parent / f"home_{len(made)}" / "var"
        home.mkdir(parents=True)
        ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
        chosen = {"home": home, "cache": REPOSITORY / "var" / "cache", **ports, **settings}
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(("CARTWHEEL_", "AIRFLOW"))
        }
        installation = Installation(
            home, inherited | {f"CARTWHEEL_{name.upper()}": str(value) for name, value in chosen.items()}
        )
        made.append(installation)
        return installation

    yield make
    for installation in made:
        installation.run("down")
    shutil.rmtree(parent)
