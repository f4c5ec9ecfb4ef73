"""Settings of a throw-away installation on free ports."""

from __future__ import annotations

import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from contracts.settings import Settings
from deploy.local.processes import sweep


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@pytest.fixture
def make_settings() -> Iterator[Callable[..., Settings]]:
    """Settings by name; not under pytest's own folder, which is closed to the user PostgreSQL runs as where we are root."""
    parent = Path(tempfile.mkdtemp(prefix="cartwheel-"))
    names = ("airflow_port", "mlflow_port", "postgres_port", "rest_port", "grpc_port")
    home = parent / "home"

    def make(**values: object) -> Settings:
        ports = dict(zip(names, free_ports(len(names)), strict=True))
        return Settings(**{"_env_file": None, "home": home, "cache": parent / "cache", **ports, **values})

    yield make
    sweep(home, grace_s=3.0)
    shutil.rmtree(parent)
