"""A real Kafka that is killed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from contracts.settings import settings
from deploy.local import kafka
from deploy.local.java import find_java


class Broker:
    """Kafka, which may be killed and comes back with what it had acknowledged."""

    def __init__(self, folder: Path) -> None:
        self._java = find_java(settings(), os.environ)
        self._jars, self._folder = kafka.jars(settings(), self._java), folder
        self._running = kafka.start(self._java, self._jars, folder)
        self.address = self._running.address

    def kill(self) -> None:
        self._running.process.kill()
        self._running.process.wait()
        port = int(self.address.rsplit(":", 1)[1])
        self._running = kafka.start(self._java, self._jars, self._folder, port, deadline_s=120)

    def stop(self) -> None:
        kafka.stop(self._running)


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    started = Broker(tmp_path_factory.mktemp("broker") / "kafka")
    yield started
    started.stop()
