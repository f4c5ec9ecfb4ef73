"""A real Envoy in front of two model servers in processes of their own."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from contracts.ports import free_ports
from contracts.settings import settings
from serving.gateway import process
from serving.gateway.traffic import Traffic
from tests.verbs import MODEL, Ended, run_verb

PREDICT = f"/v1/models/{MODEL}:predict"
POPULAR = {"items": ["p", "q"], "scores": [2.0, 1.0]}


class Gateway:
    """An installation with a gateway of its own, and a client that holds a token."""

    def __init__(
        self, folder: Path, urls: list[str], ca_file: str = "", grpc_urls: Sequence[str] = (), **added: str
    ) -> None:
        self.home = folder
        port, metrics_port = free_ports(2)
        self.environment = {
            "CARTWHEEL_HOME": str(folder),
            "CARTWHEEL_SERVING_URL": ",".join(urls),
            "CARTWHEEL_SERVING_GRPC_URL": ",".join(grpc_urls),
            "CARTWHEEL_SERVING_CA_FILE": ca_file,
            "CARTWHEEL_GATEWAY_PORT": str(port),
            "CARTWHEEL_GATEWAY_METRICS_PORT": str(metrics_port),
        } | {f"CARTWHEEL_GATEWAY_{name.upper()}": value for name, value in added.items()}
        self.port, self.url = port, f"http{'s' * ('tls_dir' in added)}://127.0.0.1:{port}"
        self.metrics_url = f"http://127.0.0.1:{metrics_port}/metrics"
        self.exposures = folder / "exposures" / "gateway.jsonl"
        self.verb("initialise")
        self.token = self.issue("shop")
        self.log = folder / "gateway.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        argv = shlex.split(self.verb("command", "--gateway").stdout)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(argv, stdout=log, stderr=log)
        end_s = time.monotonic() + 30
        while True:
            try:
                httpx.get(f"{self.url}/livez", trust_env=False, verify=False)
                return
            except httpx.TransportError:
                assert time.monotonic() < end_s, self.log.read_text()
                assert self.process.poll() is None, self.log.read_text()
                time.sleep(0.02)

    def stop(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()

    def verb(self, *words: str, code: int = 0) -> Ended:
        result = run_verb("serving", *words, environment=self.environment)
        assert result.returncode == code, f"{words} ended with {result.returncode}:\n{result.stdout}\n{result.stderr}"
        return result

    def issue(self, client: str, *words: str) -> str:
        return self.verb("token", "issue", client, *words).stdout.strip()

    def put(self, state: Traffic) -> None:
        """Bring a state of traffic into force, as the verbs do."""
        with pytest.MonkeyPatch.context() as patch:
            for name in [name for name in os.environ if name.startswith("CARTWHEEL_")]:
                patch.delenv(name)
            for name, value in self.environment.items():
                patch.setenv(name, value)
            settings.cache_clear()
            process.put(state)
        settings.cache_clear()

    def http(self, token: str | None = None, **options: Any) -> httpx.Client:
        headers = {"authorization": f"Bearer {token or self.token}"}
        return httpx.Client(base_url=self.url, headers=headers, trust_env=False, timeout=30, **options)

    def predict(self, *users: str, headers: Mapping[str, str] = {}, path: str = PREDICT) -> httpx.Response:
        with self.http() as http:
            return http.post(path, json={"instances": [{"user_id": user} for user in users]}, headers=dict(headers))

    def lines(self, count: int | None = None) -> list[dict[str, Any]]:
        """The exposures, once there are `count` of them."""
        end_s = time.monotonic() + 10
        while True:
            entries = [json.loads(line) for line in self.exposures.read_text().splitlines()]
            if count is None or len(entries) >= count or time.monotonic() > end_s:
                return entries
            time.sleep(0.02)

    def metric(self, name: str, **labels: str) -> float:
        """Sum of a metric over the series that have these labels."""
        total = 0.0
        for line in httpx.get(self.metrics_url, trust_env=False).text.splitlines():
            series, _, value = line.rpartition(" ")
            if series.partition("{")[0] == name and all(f'{key}="{text}"' in series for key, text in labels.items()):
                total += float(value)
        return total


class Load:
    """Shoppers who ask without a pause until they are stopped.

    `answers` holds status, version and fallback of each, `right` whether it was what that version answers that user, and
    `request_ids` the ids of those that were answered by 200.
    """

    def __init__(self, gateway: Gateway, threads: int = 4) -> None:
        self.answers: list[tuple[int, str, bool]] = []
        self.right: list[bool] = []
        self.request_ids: list[str] = []
        self._gateway, self._stop = gateway, threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(threads)]

    def _ask(self, number: int) -> None:
        with self._gateway.http() as http:
            num_requests = 0
            while not self._stop.is_set():
                num_requests += 1
                user = f"user-{number}-{num_requests}"
                answer = http.post(PREDICT, json={"instances": [{"user_id": user}]})
                version = answer.headers.get("x-cartwheel-model-version", "")
                if answer.status_code == 200:
                    self.request_ids.append(answer.headers["x-request-id"])
                    shown = {
                        "items": [user + letter for letter in "abc"],
                        "scores": [n + int(version or 0) / 10 for n in (3, 2, 1)],
                    }
                    self.right.append(answer.json() == {"predictions": [shown if version else POPULAR]})
                self.answers.append((answer.status_code, version, "x-cartwheel-fallback" in answer.headers))

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        time.sleep(0.1)  # until the last of it is logged


@pytest.fixture(scope="session")
def replicas(base_of: Callable[..., Path], tools: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Any]]:
    """Two model servers, with the versions 1 and 2 of the model; 1 is stable."""
    base = base_of(1, 2)
    config = f"model_config_list {{ {tools.model_text(MODEL, base, [1, 2], stable=1)} }}"
    servers = [tools.Server("local", tmp_path_factory.mktemp("replica"), config, start=False) for _ in range(2)]
    starting = [threading.Thread(target=server.start) for server in servers]
    try:
        for thread in starting:
            thread.start()
        for thread in starting:
            thread.join()
        yield servers
    finally:
        for server in servers:
            server.stop()


@pytest.fixture(scope="session")
def urls(replicas: list[Any]) -> list[str]:
    return [f"http://127.0.0.1:{server.rest_port}" for server in replicas]


@pytest.fixture(scope="session")
def gateway(
    replicas: list[Any], urls: list[str], tools: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    """A gateway that lets a client ask without limit, and waits for models as long as tests beside this one may need."""
    grpc_urls = [f"http://127.0.0.1:{server.grpc_port}" for server in replicas]
    options = {"requests_per_s": "100000", "timeout_ms": "10000"}
    running = Gateway(tmp_path_factory.mktemp("gateway"), urls, grpc_urls=grpc_urls, **options)
    try:
        tools.wait_until(
            lambda: httpx.get(f"{running.url}/readyz", trust_env=False).status_code == 200, "a healthy model"
        )
        yield running
    finally:
        running.stop()


@pytest.fixture
def stable(gateway: Gateway) -> Gateway:
    """The gateway with all traffic at version 1."""
    gateway.put(Traffic(stable=1, popular=json.dumps(POPULAR)))
    return gateway


@pytest.fixture(scope="session")
def kit() -> SimpleNamespace:
    """The names of this file: under importlib mode tests cannot import it."""
    return SimpleNamespace(Gateway=Gateway, Load=Load, run_verb=run_verb, PREDICT=PREDICT, POPULAR=POPULAR)
