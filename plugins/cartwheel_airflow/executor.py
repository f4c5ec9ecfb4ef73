"""Airflow's LocalExecutor, in which the death of one worker does not stop all others."""

from __future__ import annotations

import time
from contextlib import suppress

from airflow.executors import local_executor

PATIENCE_S = 20.0
"""Seconds a task may lie in the queue, after a worker was lost, before the lock is taken for lost with it."""


class LocalExecutor(local_executor.LocalExecutor):
    """Gives back the lock of a queue whose holder was killed.

    Idle workers take turns at one queue: the one that waits holds its lock. Killed with -9, by the kernel when memory
    is short, it never gives the lock back; the others wait for ever, and no task starts until somebody restarts the
    scheduler. A lock of `multiprocessing` may be released by any process, so this one does, once tasks lie unread.
    The rest Airflow does itself: new workers for those that are gone, another try of the task that was lost.
    """

    def start(self) -> None:
        super().start()
        self._worker_lost = False
        self._unread_since_s: float | None = None

    def _check_workers(self) -> None:
        self._worker_lost |= any(not worker.is_alive() and worker.exitcode for worker in self.workers.values())
        super()._check_workers()  # type: ignore[no-untyped-call]
        if not self._worker_lost or self.activity_queue.empty():
            self._unread_since_s = None
            return
        now_s = time.monotonic()
        if self._unread_since_s is None:
            self._unread_since_s = now_s
        elif now_s - self._unread_since_s > PATIENCE_S:
            self.log.warning("A worker was killed and left the queue of tasks locked: unlocking it")
            with suppress(ValueError):  # it is not locked: whoever should read is slow
                self.activity_queue._rlock.release()
            self._worker_lost, self._unread_since_s = False, None
