"""The executor goes on when its workers are killed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from airflow.executors.base_executor import BaseExecutor


@dataclass(frozen=True)
class Errand:
    """What the executor hands to a worker: here, to leave a file behind."""

    path: Path
    key: str = "errand"
    display_name: str = "errand"
    running_state: None = None
    success_state: str = "success"
    failure_state: str = "failed"


def until(happened: Callable[[], bool], seconds: float, between: Callable[[], None] = lambda: None) -> bool:
    end = time.monotonic() + seconds
    while not happened() and time.monotonic() < end:
        between()
        time.sleep(0.05)
    return happened()


@pytest.fixture
def executor(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Two real workers at a real queue."""
    from cartwheel_airflow import executor as ours

    monkeypatch.setattr(ours, "PATIENCE_S", 0.5)
    monkeypatch.setattr(BaseExecutor, "run_workload", lambda workload, **_: workload.path.touch())
    started = ours.LocalExecutor(parallelism=2)
    started.start()
    assert len(started.workers) == 2
    yield started
    for worker in started.workers.values():
        worker.kill()
        worker.join()


def hand_out(executor: Any, errand: Errand) -> None:
    executor.queued_tasks[errand.key] = errand
    executor._process_workloads([errand])


def test_killed_while_they_wait(executor: Any, tmp_path: Path) -> None:
    """One of the idle workers holds the queue's lock. All are killed, and what is handed out then is done."""
    hand_out(executor, Errand(tmp_path / "before"))
    assert until((tmp_path / "before").exists, 10)
    time.sleep(0.5)  # both wait again
    for pid in executor.workers:
        os.kill(pid, signal.SIGKILL)
    assert until(lambda: not any(worker.is_alive() for worker in executor.workers.values()), 10)
    hand_out(executor, Errand(tmp_path / "after"))
    assert len(executor.workers) == 2
    assert not until((tmp_path / "after").exists, 2), "nothing was locked: this test shows nothing"
    assert until((tmp_path / "after").exists, 10, executor._check_workers)
    hand_out(executor, Errand(tmp_path / "again"))
    assert until((tmp_path / "again").exists, 10)


def test_what_nobody_reads_is_no_reason_while_all_live(executor: Any, tmp_path: Path) -> None:
    """Without a lost worker the lock is left alone, however long a task waits."""
    for pid in executor.workers:
        os.kill(pid, signal.SIGSTOP)
    hand_out(executor, Errand(tmp_path / "later"))
    assert not until((tmp_path / "later").exists, 2, executor._check_workers)
    assert not executor.activity_queue._rlock.acquire(block=False)
    for pid in executor.workers:
        os.kill(pid, signal.SIGCONT)
    assert until((tmp_path / "later").exists, 10)
