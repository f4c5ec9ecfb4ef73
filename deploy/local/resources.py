"""How long a stage took and how much memory the whole installation needed meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from deploy.local.processes import marked, memory_mib


@dataclass
class Stage:
    """What was measured between entering and leaving `Sampler.stage`."""

    name: str
    seconds: float = 0.0
    peak_memory_mib: float = 0.0


class Sampler:
    """Samples the memory of all processes of the installation at `home` in a thread, until it is closed.

    >>> with Sampler(home) as sampler, sampler.stage("train") as stage: ...
    """

    def __init__(self, home: Path, *, interval_s: float = 2.0) -> None:
        self._home, self._interval_s = home, interval_s
        self._stages: list[Stage] = []
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="resources", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        self._thread.join()

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """Measure what happens inside; stages may overlap. `seconds` and `peak_memory_mib` are final on leaving."""
        stage = Stage(name)
        start = time.monotonic()
        self._sample([stage])
        self._stages.append(stage)
        try:
            yield stage
        finally:
            self._stages.remove(stage)
            self._sample([stage])
            stage.seconds = time.monotonic() - start

    def _sample(self, stages: list[Stage]) -> None:
        used_mib = memory_mib([*marked(self._home), psutil.Process()])
        for stage in stages:
            stage.peak_memory_mib = max(stage.peak_memory_mib, used_mib)

    def _run(self) -> None:
        while not self._closed.wait(self._interval_s):
            if self._stages:
                self._sample(list(self._stages))
