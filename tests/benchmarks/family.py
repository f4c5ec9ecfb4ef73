"""What a process and its children cost."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import Self

import psutil


class Family:
    """CPU seconds and highest memory of a process with all of its children, looked at ten times a second."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self._cpu_s: dict[int, float] = {}
        self.peak_mib = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while True:
            with suppress(psutil.Error):  # it may have ended
                family = [self._root, *self._root.children(recursive=True)]
                for each in family:
                    spent = each.cpu_times()
                    self._cpu_s[each.pid] = spent.user + spent.system
                self.peak_mib = max(self.peak_mib, sum(each.memory_info().rss for each in family) / 2**20)
            if self._ended.wait(0.1):
                break

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def cpu_s(self) -> float:
        return sum(self._cpu_s.values())
