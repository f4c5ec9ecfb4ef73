"""Settings of a throw-away installation on free ports."""

from __future__ import annotations

import socket
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
def make_settings(tmp_path: Path) -> Iterator[Callable[..., Settings]]:
    names = ("airflow_port", "mlflow_port", "postgres_port", "rest_port", "grpc_port")
    home = tmp_path / "home"

    def make(**values: object) -> Settings:
        ports = dict(zip(names, free_ports(len(names)), strict=True))
        return Settings(**{"_env_file": None, "home": home, "cache": tmp_path / "cache", **ports, **values})

    yield make
    sweep(home, grace_s=3.0)
