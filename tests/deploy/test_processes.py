from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from deploy.local.processes import MARKER, marked, sweep
from deploy.local.resources import Sampler
from tests.waiting import wait_until

# A parent that leaves a child without the marker, that ignores SIGTERM, and says the child's id.
FAMILY = """
import os, signal, subprocess, sys, time
code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(40)"
child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env={})
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(40)
"""


@pytest.fixture
def family(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], psutil.Process]]:
    environment = {**os.environ, MARKER: str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", FAMILY], stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        yield parent, child
        for process in (parent, child):
            with suppress(psutil.Error):
                process.kill()


def test_processes_are_found_by_marker_and_descent(
    family: tuple[subprocess.Popen[str], psutil.Process], tmp_path: Path
) -> None:
    """A marked process and its unmarked child are found; those of another installation are not."""
    parent, child = family
    assert {process.pid for process in marked(tmp_path)} == {parent.pid, child.pid}
    assert marked(tmp_path / "other") == []


def test_a_sweep_ends_what_ignores_a_request(
    family: tuple[subprocess.Popen[str], psutil.Process], tmp_path: Path
) -> None:
    """After a sweep neither the marked process nor its child that ignores SIGTERM is left."""
    parent, child = family
    assert sweep(tmp_path, grace_s=1.0) == 2
    assert not psutil.pid_exists(parent.pid)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    assert sweep(tmp_path) == 0


def test_a_sweep_ends_an_orphan(tmp_path: Path) -> None:
    """A marked process whose parent is gone, in a session of its own, is ended too."""
    code = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)'],\n"
        "                         start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)\n"
        "print(child.pid)"
    )
    environment = {**os.environ, MARKER: str(tmp_path)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    orphan = psutil.Process(int(result.stdout))
    wait_until(lambda: MARKER in orphan.environ(), "the orphan to have begun")  # its environment is empty meanwhile
    assert sweep(tmp_path, grace_s=2.0) == 1
    assert not orphan.is_running() or orphan.status() == psutil.STATUS_ZOMBIE


def test_a_sweep_spares_who_calls_it(tmp_path: Path) -> None:
    """A process that carries the marker itself may sweep and lives on."""
    code = f"from pathlib import Path; from deploy.local.processes import sweep; print(sweep(Path({str(tmp_path)!r})))"
    environment = {**os.environ, MARKER: str(tmp_path)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert result.stdout == "0\n"


def test_a_stage_sees_the_memory_of_marked_processes(tmp_path: Path) -> None:
    """A stage's peak contains the 256 MiB that a marked process touched, and stages measure on their own."""
    code = "touched = bytearray(b'x') * (256 * 2**20); print('up', flush=True); input()"
    environment = {**os.environ, MARKER: str(tmp_path)}
    with Sampler(tmp_path, interval_s=0.05) as sampler:
        with sampler.stage("without") as without:
            pass
        with subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            with sampler.stage("with") as stage:
                pass
            process.kill()
    # Our own memory counts, too, and moves by itself.
    assert 200 < stage.peak_memory_mib - without.peak_memory_mib < 350
    assert stage.seconds > 0
