"""Settings of a throw-away installation on free ports."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from contracts.ports import free_ports
from contracts.settings import Settings
from deploy.local.processes import sweep


@pytest.fixture
def make_settings() -> Iterator[Callable[..., Settings]]:
    """Settings by name; not under pytest's own folder, which is closed to the user PostgreSQL runs as where we are root."""
    parent = Path(tempfile.mkdtemp(prefix="cartwheel-"))
    names = [name for name in Settings.model_fields if name.endswith("_port")]
    home = parent / "home"

    def make(**values: object) -> Settings:
        ports = dict(zip(names, free_ports(len(names)), strict=True))
        return Settings(**{"_env_file": None, "home": home, "cache": parent / "cache", **ports, **values})

    yield make
    sweep(home, grace_s=3.0)
    shutil.rmtree(parent)
