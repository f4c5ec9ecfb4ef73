"""`make bench-serving`: what the gateway costs, beside the model server alone, an Envoy that does nothing but pass on, and
the bare TensorFlow function.

Serves the champion of the installation at CARTWHEEL_HOME, which `make run` has deployed, by processes of its own. The
load comes from wrk, another process; its cost is not counted. Writes `docs/benchmarks/serving.json`: records of case,
clients, rps, p50_ms, p99_ms, cpu_ms_per_request (of all that serve) and proxy_cpu_ms_per_request, each the median of
rounds in which the cases take turns; and one of the gateway's memory while many requests go through it to a backend that
costs nothing; and one of how long the model server and the gateway take from their start to an answer.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
from deltalake import DeltaTable

from contracts.champion import base_path
from contracts.errors import InputError, reported
from contracts.files import write_json
from contracts.ports import free_ports
from contracts.settings import REPOSITORY, settings
from contracts.tables import USER_HISTORIES
from serving import desired
from serving.gateway import process
from tests.verbs import MODEL

RESULT = REPOSITORY / "docs" / "benchmarks" / "serving.json"
CLIENTS = (1, 8, 32)
SCRIPT = """
local users = {%s}
math.randomseed(7)
wrk.method = "POST"
wrk.headers["authorization"] = "Bearer %s"
request = function()
  local user = users[math.random(#users)]
  return wrk.format(nil, nil, nil, '{"instances": [{"user_id": "' .. user .. '"}]}')
end
done = function(summary, latency, requests)
  local failed = summary.errors.status + summary.errors.connect + summary.errors.read + summary.errors.timeout
  print(string.format("RESULT %%d %%d %%d %%d %%d", summary.requests, summary.duration, latency:percentile(50), latency:percentile(99), failed))
end
"""


class Serving:
    """A model server and a gateway of one folder, both under load from outside."""

    def __init__(self, folder: Path, backend_url: str, version: int, users: list[str]) -> None:
        self.version = version
        port, metrics_port = free_ports(2)
        self.environment = os.environ | {
            "CARTWHEEL_HOME": str(folder),
            "CARTWHEEL_SERVING_URL": backend_url,
            "CARTWHEEL_GATEWAY_PORT": str(port),
            "CARTWHEEL_GATEWAY_METRICS_PORT": str(metrics_port),
            "CARTWHEEL_GATEWAY_REQUESTS_PER_S": "1000000",
        }
        self.backend_url, self.url = backend_url, f"http://127.0.0.1:{port}"
        self._python(f"from serving.rollout import document; document.write(document.Rollout(champion={version}))")
        self._python("from serving.rollout import control; control.initialise()")
        argv = shlex.split(self._verb("command", "--gateway"))
        self.gateway = psutil.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.script = folder / "load.lua"
        token = self._verb("token", "issue", "bench").strip()
        self.script.write_text(SCRIPT % (", ".join(json.dumps(user) for user in users), token))
        _wait(f"{self.url}/readyz")

    def _verb(self, *words: str) -> str:
        return self._run("-m", "serving", *words)

    def _python(self, program: str) -> str:
        return self._run("-c", program)

    def _run(self, *words: str) -> str:
        argv = [sys.executable, *words]
        return subprocess.run(
            argv, cwd=REPOSITORY, env=self.environment, stdout=subprocess.PIPE, text=True, check=True
        ).stdout

    def load(
        self, case: str, url: str, clients: int, seconds: float, proxy: Any = None, backend: Any = None
    ) -> dict[str, Any]:
        """Ask a URL for a while; the record.

        Args:
            proxy, backend: processes whose time counts, if they are there.
        """
        url += f"/v1/models/{MODEL}" + ("" if case == "gateway" else f"/versions/{self.version}") + ":predict"
        servers = [each for each in (proxy, backend) if each]
        before = {each.pid: _cpu_s(each) for each in servers}
        threads = str(min(2, clients))
        argv = ["wrk", "-t", threads, "-c", str(clients), "-d", f"{seconds:g}s", "-s", str(self.script), url]
        result = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True)
        match = re.search(r"^RESULT (\d+) (\d+) (\d+) (\d+) (\d+)$", result.stdout, re.MULTILINE)
        assert match, result.stdout
        requests, duration_us, p50_us, p99_us, failed = map(int, match.groups())
        assert failed == 0, f"{failed} of {requests} requests failed"
        spent_ms = {each.pid: 1e3 * (_cpu_s(each) - before[each.pid]) / requests for each in servers}
        return {
            "case": case,
            "clients": clients,
            "rps": requests / (duration_us / 1e6),
            "p50_ms": p50_us / 1e3,
            "p99_ms": p99_us / 1e3,
            "cpu_ms_per_request": sum(spent_ms.values()),
            "proxy_cpu_ms_per_request": spent_ms[proxy.pid] if proxy else 0.0,
        }

    def stop(self) -> None:
        self.gateway.kill()
        self.gateway.wait()


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _wait(url: str) -> None:
    end_s = time.monotonic() + 120
    while time.monotonic() < end_s:
        try:
            if httpx.get(url, trust_env=False).status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"{url} is not there after two minutes")


@contextmanager
def model_server(folder: Path, config: str) -> Iterator[tuple[str, psutil.Process]]:
    """The model server that this machine has, with a config, alone."""
    [port] = free_ports(1)
    environment = os.environ | {"CARTWHEEL_HOME": str(folder), "CARTWHEEL_REST_PORT": str(port)}
    (folder / "serving").mkdir(parents=True)
    (folder / "serving" / "models.config").write_text(config)
    for words in (["initialise"], ["command"]):
        argv = [sys.executable, "-m", "serving", *words]
        result = subprocess.run(argv, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    server = psutil.Popen(
        shlex.split(result.stdout), cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait(f"{url}/v1/models/{MODEL}/labels/stable/metadata")
        yield url, server
    finally:
        server.kill()
        server.wait()


def function(folder: Path, users: list[str], seconds: float) -> dict[str, Any]:
    """The floor: the SavedModel called by a program, one user after the other, with nothing between."""
    import tensorflow as tf

    predict = tf.saved_model.load(str(folder)).signatures["serving_default"]
    rows = [tf.constant([user]) for user in users]
    for row in rows[:50]:
        predict(user_id=row)
    times_s: list[float] = []
    cpu_s, start_s = time.process_time(), time.perf_counter()
    while time.perf_counter() - start_s < seconds:
        before_s = time.perf_counter()
        {name: value.numpy() for name, value in predict(user_id=rows[len(times_s) % len(rows)]).items()}
        times_s.append(time.perf_counter() - before_s)
    percentiles = statistics.quantiles(times_s, n=100)
    return {
        "case": "function",
        "clients": 1,
        "rps": len(times_s) / (time.perf_counter() - start_s),
        "p50_ms": 1e3 * percentiles[49],
        "p99_ms": 1e3 * percentiles[98],
        "cpu_ms_per_request": 1e3 * (time.process_time() - cpu_s) / len(times_s),
        "proxy_cpu_ms_per_request": 0.0,
    }


def start(folder: Path, config: str, version: int, rounds: int) -> dict[str, Any]:
    """How long after its process began each answers for the champion: the model server, warm-up included; the gateway."""
    server_s, gateway_s = [], []
    for number in range(rounds):
        with model_server(folder / f"server-{number}", config) as (url, server):
            server_s.append(time.time() - server.create_time())
            serving = Serving(folder / f"gateway-{number}", url, version, [])
            gateway_s.append(time.time() - serving.gateway.create_time())
            serving.stop()
    seconds = {"model_server_s": statistics.median(server_s), "gateway_s": statistics.median(gateway_s)}
    return {"case": "start", "clients": 0} | {name: round(value, 2) for name, value in seconds.items()}


def soak(folder: Path, users: list[str], requests: int) -> dict[str, Any]:
    """The gateway's memory after a tenth of many requests, and after all, to a backend that answers from a constant."""
    answer = json.dumps(
        {"predictions": [{"items": [str(1_000_000 + place) for place in range(10)], "scores": [0.5] * 10}]}
    )
    constant = {"match": {"prefix": "/"}, "direct_response": {"status": 200, "body": {"inline_string": answer}}}
    with plain_envoy(folder, constant) as (url, _):
        serving = Serving(folder, url, 1, users)
        try:
            num_requests, start_s, memory_mib = 0, time.monotonic(), {}
            while num_requests < requests:
                record = serving.load("gateway", serving.url, 32, 5, serving.gateway)
                num_requests += round(5 * record["rps"])
                memory_mib[num_requests] = serving.gateway.memory_info().rss / 2**20
                print(f"{num_requests:,} requests: {memory_mib[num_requests]:.1f} MiB", flush=True)
            log = folder / "exposures" / "gateway.jsonl"
            lines = sum(1 for _ in log.open("rb")) if log.exists() else 0
            first = next(count for count in memory_mib if count >= requests / 10)
            return {
                "case": "soak",
                "clients": 32,
                "requests": num_requests,
                "exposures": lines,
                "rps": round(num_requests / (time.monotonic() - start_s)),
                "mib_after_a_tenth": round(memory_mib[first], 1),
                "mib_at_the_end": round(memory_mib[num_requests], 1),
                "proxy_cpu_ms_per_request": round(record["proxy_cpu_ms_per_request"], 4),
            }
        finally:
            serving.stop()


@contextmanager
def plain_envoy(folder: Path, route: dict[str, Any], backend_port: int = 0) -> Iterator[tuple[str, psutil.Process]]:
    """An Envoy with one route and nothing else; `backend_port`: of the cluster `backend`."""
    [port] = free_ports(1)

    def address(number: int) -> dict[str, Any]:
        return {"socket_address": {"address": "127.0.0.1", "port_value": number}}

    typed = "type.googleapis.com/envoy.extensions.filters"
    manager = {
        "@type": f"{typed}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "plain",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [{"name": "router", "typed_config": {"@type": f"{typed}.http.router.v3.Router"}}],
    }
    chain = {"filters": [{"name": "http", "typed_config": manager}]}
    ends = [{"lb_endpoints": [{"endpoint": {"address": address(backend_port or port)}}]}]
    cluster = {"name": "backend", "type": "STATIC", "load_assignment": {"cluster_name": "backend", "endpoints": ends}}
    listener = {"name": "plain", "address": address(port), "filter_chains": [chain]}
    config = folder / "plain.json"
    write_json(config, {"static_resources": {"listeners": [listener], "clusters": [cluster]}})
    argv = [process.executable(), "-c", str(config), "--disable-hot-restart"]
    envoy = psutil.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        time.sleep(1)
        yield f"http://127.0.0.1:{port}", envoy
    finally:
        envoy.kill()
        envoy.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=8, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=1_000_000, help="of the measurement of memory")
    parser.add_argument("--write", type=Path, default=RESULT, help="where the records go")
    chosen = parser.parse_args()
    if not shutil.which("wrk"):
        raise InputError("there is no wrk", where="the PATH", cure="install it, for example by `apt install wrk`")
    state = desired.read()
    if state.stable is None:
        raise InputError("no version is deployed", where=str(settings().serving_dir), cure="`make run` first")
    ids = DeltaTable(USER_HISTORIES.uri).to_pyarrow_table(columns=["user_id"])["user_id"]
    users = sorted(set(ids.to_pylist()))[:500]
    config = desired.config_path().read_text()
    rounds: dict[tuple[str, int], list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory(prefix="cartwheel-bench-") as parent:
        folder = Path(parent)
        records = [soak(folder / "soak", users, chosen.requests)] if chosen.requests else []
        records.append(start(folder / "start", config, state.stable, chosen.rounds))
        print(json.dumps(records[-1]), flush=True)
        floors = [function(base_path() / str(state.stable), users, chosen.seconds) for _ in range(chosen.rounds)]
        with model_server(folder / "server", config) as (url, server):
            passed_on = {"match": {"prefix": "/"}, "route": {"cluster": "backend"}}
            serving = Serving(folder / "gateway", url, state.stable, users)
            with plain_envoy(folder, passed_on, int(url.rpartition(":")[2])) as (plain_url, plain):
                cases = {
                    "direct": (url, None),
                    "plain proxy": (plain_url, plain),
                    "gateway": (serving.url, serving.gateway),
                }
                try:
                    serving.load("gateway", serving.url, 8, 3)  # to warm up
                    for _ in range(chosen.rounds):
                        for clients in CLIENTS:
                            for case, (where, proxy) in cases.items():
                                record = serving.load(case, where, clients, chosen.seconds, proxy, server)
                                rounds.setdefault((case, clients), []).append(record)
                finally:
                    serving.stop()
    for measured in [floors, *rounds.values()]:
        middle = {
            name: round(statistics.median(each[name] for each in measured), 4)
            for name in measured[0]
            if name not in ("case", "clients")
        }
        records.append({"case": measured[0]["case"], "clients": measured[0]["clients"]} | middle)
        print(json.dumps(records[-1]), flush=True)
    write_json(chosen.write, records)


if __name__ == "__main__":
    with reported():
        main()
