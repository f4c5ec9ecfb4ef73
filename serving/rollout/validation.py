"""Try a version before any traffic: in a model server of its own, of the kind that will serve it."""

from __future__ import annotations

import ctypes
import json
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from contracts.champion import base_path
from contracts.errors import InputError
from contracts.files import write_json, write_text
from contracts.ports import LOOPBACK, free_ports
from contracts.settings import settings
from contracts.verdicts import GOLDEN
from serving import artifact, command, desired
from serving.rollout import endpoint
from serving.rollout.endpoint import DeploymentError, UnfitVersionError

_PR_SET_PDEATHSIG = 1


def report_path(version: int) -> Path:
    return settings().reports_dir / "deploy" / f"{version}.json"


def validate(version: int, *, deadline_s: float = endpoint.DEADLINE_S) -> dict[str, Any]:
    """Load a staged version, replay its warm-up and golden requests, and measure; the report is kept, too.

    Raises:
        InputError: it is not staged, or its files do not match the manifest.
        UnfitVersionError: it cannot be loaded, answers otherwise than training has recorded, or takes too much.
        DeploymentError: the model server does not start.
    """
    folder = base_path() / str(version)
    if not folder.is_dir():
        raise InputError(f"version {version} is not staged", where=str(folder), cure="stage it first")
    manifest = artifact.verify(folder)
    golden = golden_requests(version)
    report: dict[str, Any] = {"version": version, "manifest_sha256": manifest, "requests": len(golden)}
    with scratch_server(deadline_s) as (url, process, configure):
        try:
            configure(desired.Desired((version,)))
            endpoint.wait_available(version, deadline_s, [url], partial(_lives, process))
            faults, latencies_ms = endpoint.replay(golden, url, version)
            report["memory_mib"] = round(process.memory_info().rss / 2**20)
        except UnfitVersionError as error:
            faults, latencies_ms = [str(error)], []
        except DeploymentError:
            if _lives(process):
                raise
            faults, latencies_ms = ["the model server dies of it"], []
    if latencies_ms:
        report["latency_ms"] = statistics.median(latencies_ms)
    for name, limit in (
        ("latency_ms", settings().gate_max_latency_ms),
        ("memory_mib", settings().rollout_max_memory_mib),
    ):
        if report.get(name, 0) > limit:
            faults.append(f"{name} is {report[name]:g} of {limit:g}")
    report |= {"passed": not faults, "faults": faults[:20], "time": datetime.now(UTC).isoformat(timespec="seconds")}
    write_json(report_path(version), report)
    if faults:
        raise UnfitVersionError(f"version {version} is not fit to serve, see {report_path(version)}: {faults[0]}")
    return report


def golden_requests(version: int) -> list[dict[str, Any]]:
    """What training has asked the version, with the answers.

    Raises:
        InputError: nothing.
    """
    path = base_path() / str(version) / GOLDEN
    golden: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    if not golden:
        raise InputError("there is no golden request", where=str(path), cure="export it again")
    return golden


def _lives(process: psutil.Process) -> bool:
    return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)


@contextmanager
def scratch_server(deadline_s: float) -> Iterator[tuple[str, psutil.Process, Callable[[desired.Desired], None]]]:
    """A model server without a version, on loopback: its address, its process, and how to give it one. It dies with us.

    Raises:
        DeploymentError: it does not start.
    """
    with tempfile.TemporaryDirectory(prefix="cartwheel-") as temporary:
        config, log = Path(temporary) / "models.config", Path(temporary) / "server.log"

        def configure(target: desired.Desired) -> None:
            write_text(config, desired.render(target, base_path().resolve()))

        configure(desired.Desired())
        [port] = free_ports(1)
        argv = command.server_command(
            host=LOOPBACK, rest_port=port, config=config, socket=Path(temporary) / "model.sock"
        )
        with log.open("wb") as output:
            started = subprocess.Popen(argv, stdout=output, stderr=output, preexec_fn=_die_with_parent)  # noqa: PLW1509
        try:
            url, process = f"http://{LOOPBACK}:{port}", psutil.Process(started.pid)
            endpoint.wait_started(url, deadline_s, partial(_lives, process))
            yield url, process, configure
        except DeploymentError:
            last = log.read_text(encoding="utf-8", errors="replace").splitlines()[-5:]
            endpoint.say("\n".join(["the last lines of its model server:", *last]))
            raise
        finally:
            started.kill()
            started.wait()


def _die_with_parent() -> None:
    """A kill -9 of ours leaves no model server behind, where the kernel offers that."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
