"""Minutes of shoppers at four fifths of what the servers can do, while everything about them changes or dies."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serving.test_canary import OpenShop
from tests.verbs import MODEL

DURATION_S = float(os.environ.get("CARTWHEEL_TEST_LOAD_S", "600"))
NUM_USERS = 500
AT_ONCE = 64
DISK_MIB = 256

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]


@dataclass(frozen=True)
class Answer:
    """What a shopper got, and when it was asked for and came, in seconds since 1970."""

    asked_s: float
    came_s: float
    status: int
    request_id: str = ""
    version: int = 0
    is_fallback: bool = False
    is_right: bool = True


class Shoppers:
    """Ask the gateway from a thread of their own, at a rate or as fast as `at_once` of them can."""

    def __init__(self, http: httpx.Client, exports: dict[int, int], rate: float | None, at_once: int = AT_ONCE) -> None:
        self.answers: list[Answer] = []
        self._url, self._headers = str(http.base_url), dict(http.headers)
        self._exports, self._rate, self._at_once = exports, rate, at_once
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._ask_until_stopped()))

    def __enter__(self) -> Shoppers:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    async def _ask_until_stopped(self) -> None:
        limit = asyncio.Semaphore(self._at_once)
        start_s, number, tasks = time.monotonic(), 0, set()
        limits = httpx.Limits(max_connections=self._at_once, max_keepalive_connections=self._at_once)
        async with httpx.AsyncClient(
            base_url=self._url, headers=self._headers, trust_env=False, timeout=30, limits=limits
        ) as http:
            while not self._stop.is_set():
                await limit.acquire()
                if self._rate is not None:
                    await asyncio.sleep(max(0.0, start_s + number / self._rate - time.monotonic()))
                task = asyncio.create_task(self._ask(http, f"user-{number % NUM_USERS}", limit))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                number += 1
            await asyncio.gather(*tasks)

    async def _ask(self, http: httpx.AsyncClient, user: str, limit: asyncio.Semaphore) -> None:
        asked_s = time.time()
        try:
            answer = await http.post(f"/v1/models/{MODEL}:predict", json={"instances": [{"user_id": user}]})
        except httpx.TransportError:
            self.answers.append(Answer(asked_s, time.time(), 0))
            return
        finally:
            limit.release()
        self.answers.append(self._judged(asked_s, user, answer))

    def _judged(self, asked_s: float, user: str, answer: httpx.Response) -> Answer:
        if answer.status_code != httpx.codes.OK:
            return Answer(asked_s, time.time(), answer.status_code)
        [prediction], headers = answer.json()["predictions"], answer.headers
        version = int(headers["x-cartwheel-model-version"] or 0)
        is_fallback = "x-cartwheel-fallback" in headers
        is_right = is_fallback or (
            prediction["items"] == [f"{user}{letter}" for letter in "abc"]
            and abs(prediction["scores"][0] - (3 + self._exports[version] / 10)) < 1e-4
        )
        return Answer(asked_s, time.time(), answer.status_code, headers["x-request-id"], version, is_fallback, is_right)


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A file system of its own that can be filled; needs the right to mount one."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs the right to mount a file system")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def two_servers(
    tmp_path: Path, mlflow_store: Path, exported: Callable[..., Path], tools: Any
) -> Iterator[tuple[OpenShop, Any]]:
    """Two model servers with the same configuration behind a gateway."""
    shutil.copy(mlflow_store, tmp_path / "mlflow.db")
    shop = OpenShop(tmp_path, exported, tools)
    (tmp_path / "other").mkdir()
    other = tools.Server("local", tmp_path / "other", start=False)
    with small_disk(tmp_path / "exposures"):
        urls = ",".join(f"http://127.0.0.1:{server.rest_port}" for server in (shop.server, other))
        shop.verb("initialise")
        argv = shop.server_command()
        own = f"--rest_api_port={shop.server.rest_port}"
        assert own in argv
        without = [flag for flag in argv if not flag.startswith(("--rest_api_port", "--grpc_socket_path", "--port"))]
        other.argv = [*without, f"--rest_api_port={other.rest_port}", f"--port={other.grpc_port}"]
        other.start()
        shop.settings |= {"CARTWHEEL_SERVING_URL": urls}
        shop.server_command = lambda: argv  # type: ignore[method-assign]
        try:
            shop.open()
            yield shop, other
        finally:
            other.stop()
            shop.close()


def exposures(folder: Path) -> Counter[str]:
    """How often each request was logged. A line that a full disk has torn ends where the next one was written."""
    logged: Counter[str] = Counter()
    for line in (folder / "exposures" / "gateway.jsonl").read_bytes().splitlines():
        with suppress(ValueError):
            logged[json.loads(line)["request_id"]] += 1
    return logged


def test_load_while_all_about_it_changes(two_servers: tuple[OpenShop, Any]) -> None:
    """Versions are rolled, each model server dies by -9, the disk of the exposures fills. No answer is wrong, none is an
    error, and each answer is logged once, but while the disk is full.
    """
    shop, other = two_servers
    exports = {int(shop.rollout()["champion"]): 1}
    with Shoppers(shop.http, exports, rate=None, at_once=8) as fastest:
        time.sleep(10)
    capacity = len(fastest.answers) / 10
    events: list[tuple[float, str]] = []

    def at(share: float, what: str) -> None:
        time.sleep(max(0.0, start_s + share * DURATION_S - time.time()))
        events.append((time.time(), what))

    def deploy(number: int) -> None:
        version = shop.register(number)
        exports[version] = number
        shop.deploy(version)

    start_s = time.time()
    filler = shop.folder / "exposures" / "filler"
    with Shoppers(shop.http, exports, rate=0.8 * capacity) as shoppers:
        for round_ in range(2):
            for place, server in enumerate((shop.server, other)):
                first = round_ / 2 + place / 4
                at(first + 0.02, "a version is rolled")
                deploy(2 + 2 * round_ + place)
                at(first + 0.08, "a model server dies")
                server.process.kill()
                server.process.wait()
                at(first + 0.13, "it comes back")
                server.start()
        at(0.90, "the disk is full")
        with filler.open("wb") as file:
            try:
                while file.write(b"x" * 2**16):
                    file.flush()
            except OSError:
                pass
        at(0.94, "it is not any more")
        filler.unlink()
        at(0.96, "a version is rolled back")
        shop.verb("rollback")
        at(1.0, "the end")
    time.sleep(1)

    answers, when = shoppers.answers, {what: moment for moment, what in events}
    statuses = Counter(answer.status for answer in answers)
    logged = exposures(shop.folder)
    is_full = (when["the disk is full"] - 1, when["it is not any more"] + 1)
    missing = [answer for answer in answers if answer.status == 200 and logged[answer.request_id] == 0]
    outside = [answer for answer in missing if not is_full[0] <= answer.came_s <= is_full[1]]
    times_ms = sorted(1000 * (answer.came_s - answer.asked_s) for answer in answers)
    report = {
        "capacity_rps": round(capacity), "requests": len(answers), "seconds": round(time.time() - start_s),
        "statuses": dict(statuses), "wrong": sum(not answer.is_right for answer in answers),
        "fallbacks": sum(answer.is_fallback for answer in answers), "not_logged_disk_full": len(missing) - len(outside),
        "not_logged": len(outside), "logged_twice": sum(count > 1 for count in logged.values()),
        "versions": dict(Counter(answer.version for answer in answers)),
        "p50_ms": times_ms[len(times_ms) // 2], "p99_ms": times_ms[int(0.99 * len(times_ms))], "max_ms": times_ms[-1],
    }  # fmt: skip
    print(json.dumps(report))
    assert report["wrong"] == 0
    assert statuses.keys() == {200}
    assert report["not_logged"] == 0
    assert report["logged_twice"] == 0
    assert len(report["versions"]) >= 5
    assert report["fallbacks"] <= 0.001 * len(answers)
