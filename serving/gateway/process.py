"""Envoy as a process: how it starts, whether it takes a configuration, and whether it has taken a change."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

from contracts.errors import InputError
from contracts.exposures import admin
from contracts.files import write_json, write_text
from contracts.settings import settings
from serving.gateway import bootstrap, tokens, traffic
from serving.gateway.traffic import Traffic

FLUSH_MS = 5
"""An exposure is in the kernel's hands, and so safe from a kill of the gateway, this long after its answer."""
SWAP_DEADLINE_S = 5.0


def executable() -> str:
    """The path of Envoy.

    Raises:
        InputError: there is none.
    """
    beside = Path(sys.executable).parent / "envoy"
    path = str(beside) if beside.exists() else shutil.which("envoy")
    if not path:
        raise InputError("there is no envoy", where="the PATH", cure="run `make setup`")
    return path


def command() -> list[str]:
    """argv of the gateway."""
    return [
        executable(),
        *("--config-path", str(bootstrap_path())),
        "--disable-hot-restart",
        *("--log-level", "warning"),
        *("--file-flush-interval-msec", str(FLUSH_MS)),
    ]


def bootstrap_path() -> Path:
    return settings().gateway_dir / "bootstrap.json"


def initialise(state: Traffic) -> None:
    """Write what Envoy reads: from the settings, from what is kept of tokens, and which version answers whom.

    Raises:
        InputError: there are no certificates where the settings say, or Envoy refuses the whole.
    """
    chosen = settings()
    chosen.gateway_dir.mkdir(parents=True, exist_ok=True)
    chosen.exposures_dir.mkdir(parents=True, exist_ok=True)
    if chosen.gateway_tls_dir:
        for name in ("tls.crt", "tls.key"):
            if not (chosen.gateway_tls_path / name).is_file():
                raise InputError(
                    f"there is no {name}", where=f"CARTWHEEL_GATEWAY_TLS_DIR={chosen.gateway_tls_dir}",
                    cure="put the certificate and its key there, or leave the setting empty for plain HTTP",
                )  # fmt: skip
        write_json(bootstrap.certificate_path(chosen), bootstrap.certificate_discovery(chosen.gateway_tls_path))
    tokens.publish()
    validate(state)
    write_json(bootstrap_path(), bootstrap.bootstrap(chosen))
    traffic.write(state)


def rendered(state: Traffic) -> dict[str, Any]:
    """The whole configuration in one piece, with the routes in it, as nothing but a check or a person needs it."""
    whole = bootstrap.bootstrap(settings())
    (resource,) = traffic.rendered(state)["resources"]
    manager = whole["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    del manager["rds"]
    manager["route_config"] = {name: value for name, value in resource.items() if name != "@type"}
    return whole


def validate(state: Traffic) -> None:
    """Ask Envoy whether it would take this.

    Raises:
        InputError: it would not.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bootstrap.json"
        write_json(path, rendered(state))
        argv = [executable(), "--mode", "validate", "--config-path", str(path), "--log-level", "error"]
        result = subprocess.run(argv, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        lines = (result.stdout + result.stderr).strip().splitlines() or ["it says nothing"]
        raise InputError(
            f"Envoy refuses the gateway's configuration: {lines[-1][:400]}",
            where=str(settings().gateway_dir),
            cure="what serves is unchanged; correct the setting that it names",
        )


def put(state: Traffic) -> None:
    """Bring a state of traffic into force and wait until the gateway has taken it; one that is down follows when it starts.

    Raises:
        InputError: Envoy refuses it, or a running gateway does not take it; what was there before is left or put back.
    """
    path = traffic.traffic_path()
    before = path.read_text(encoding="utf-8") if path.exists() else json.dumps(traffic.rendered(Traffic()))
    validate(state)
    traffic.write(state)
    if not _follows(state):
        write_text(path, before)
        raise InputError(
            f"the gateway did not take its new routes in {SWAP_DEADLINE_S:.0f} s",
            where=str(path),
            cure="the routes before are back; read the gateway's log, restart it, and try again",
        )


def _follows(state: Traffic) -> bool:
    """Whether the gateway has these routes in time. Nobody there counts as yes."""
    version = traffic.rendered(state)["version_info"]
    end_s = time.monotonic() + SWAP_DEADLINE_S
    try:
        with admin(timeout_s=SWAP_DEADLINE_S) as gateway:
            while time.monotonic() < end_s:
                answer = gateway.get("/config_dump", params={"resource": "dynamic_route_configs"}).raise_for_status()
                if any(each["version_info"] == version for each in answer.json().get("configs", ())):
                    return True
                time.sleep(0.01)
    except httpx.ConnectError:
        print("the gateway is not running: it will follow when it starts", file=sys.stderr)
        return True
    return False
