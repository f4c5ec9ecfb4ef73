"""The programs of the stack, and supervisord's configuration that keeps them running."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import httpx

from contracts.errors import InputError
from contracts.settings import REPOSITORY, Settings
from deploy.local import postgres

SERVICES = "services"
POSTGRES, MIGRATE, MLFLOW = "postgres", "airflow-migrate", "mlflow"
MODEL_SERVER, GATEWAY = "model-server", "gateway"
API_SERVER, SCHEDULER = "airflow-api-server", "airflow-scheduler"
DAG_PROCESSOR, TRIGGERER = "airflow-dag-processor", "airflow-triggerer"
EXPORTER = "loop-metrics"
_HEARTBEATS = {SCHEDULER: "scheduler", DAG_PROCESSOR: "dag_processor", TRIGGERER: "triggerer"}


@dataclass(frozen=True)
class Program:
    """One supervised process.

    Attributes:
        group: programs of a group are stopped together; groups one after the other, the latest started first.
        url: where a person finds it, if anywhere.
        one_shot: it does its work and ends.
        needs_schema: it starts only when Airflow's database schema is there.
    """

    name: str
    argv: list[str]
    group: str = SERVICES
    url: str = ""
    user: str | None = None
    stop_signal: str = "TERM"
    stop_wait_s: int = 15
    one_shot: bool = False
    needs_schema: bool = False

    @property
    def address(self) -> str:
        """Its name for supervisord."""
        return f"{self.group}:{self.name}"


def programs(settings: Settings) -> list[Program]:
    """The programs that these settings ask for, in the order they start.

    Raises:
        InputError: the serving package does not say how to start the model server.
    """
    airflow = [sys.executable, "-m", "airflow"]
    before_airflow: list[Program] = []
    if not settings.database_url:
        before_airflow.append(
            Program(
                POSTGRES,
                postgres.command(settings),
                group="database",
                user=postgres.owner().name,
                stop_signal="INT",
                stop_wait_s=30,
                url=f"postgresql://127.0.0.1:{settings.postgres_port}",
            )
        )
    before_airflow.append(Program(MIGRATE, [*airflow, "db", "migrate"], group="migration", one_shot=True))
    if not settings.mlflow_tracking_uri:
        server = ["server", "--host", settings.host, "--port", str(settings.mlflow_port), "--workers", "1"]
        before_airflow.append(Program(MLFLOW, [sys.executable, "-m", "mlflow", *server], url=settings.mlflow_uri))
    if not settings.serving_url:
        url = f"{settings.serving_urls[0]}/v1/models/{settings.model}"
        before_airflow.append(Program(MODEL_SERVER, shlex.split(serving_verb("command")), url=url, stop_wait_s=20))
    gateway = shlex.split(serving_verb("command", "--gateway"))
    before_airflow.append(Program(GATEWAY, gateway, url=f"{settings.gateway_url}/v1/models/{settings.model}"))
    # Without --skip-serve-logs a log server would listen on every interface; the api-server reads the files itself.
    return [
        *before_airflow,
        Program(API_SERVER, [*airflow, "api-server"], url=settings.airflow_url, needs_schema=True),
        Program(SCHEDULER, [*airflow, "scheduler", "--skip-serve-logs"], needs_schema=True),
        Program(DAG_PROCESSOR, [*airflow, "dag-processor"], needs_schema=True),
        # It takes its time to stop, and loses nothing when it is cut short: triggers live in the database.
        Program(TRIGGERER, [*airflow, "triggerer", "--skip-serve-logs"], stop_wait_s=4, needs_schema=True),
        Program(EXPORTER, [sys.executable, "-m", "monitoring", "export"], url=settings.loop_metrics_url),
    ]


def serving_verb(*words: str) -> str:
    """What `python -m serving WORDS` prints.

    Raises:
        InputError: it failed.
    """
    argv = [sys.executable, "-m", "serving", *words]
    result = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    if result.returncode != 0:
        raise InputError(
            f"`python -m serving {' '.join(words)}` failed: {''.join(result.stderr.strip().splitlines()[-1:])}", where="serving",
            cure="run that command to see why",
        )  # fmt: skip
    return result.stdout


def healthy(client: httpx.Client, program: Program, airflow_url: str, started: float) -> bool:
    """Whether a program that started at `started` (seconds since 1970) does its work by now."""
    try:
        if program.name in _HEARTBEATS:
            name = _HEARTBEATS[program.name]
            part = client.get(f"{airflow_url}/api/v2/monitor/health").raise_for_status().json()[name]
            # The heartbeat of the process before this one does not count.
            beat = datetime.fromisoformat(part[f"latest_{name}_heartbeat"]).timestamp()
            return bool(part["status"] == "healthy" and beat >= started)
        if program.name == API_SERVER:
            answer = client.get(f"{airflow_url}/api/v2/monitor/health").raise_for_status().json()
            return bool(answer["metadatabase"]["status"] == "healthy")
        if program.name == MLFLOW:
            return client.get(f"{program.url}/health").status_code == httpx.codes.OK
        if program.name == GATEWAY:
            return client.get(f"{program.url.partition('/v1')[0]}/livez").status_code == httpx.codes.OK
        # A model server without a model yet says 404, and is up; the page for Prometheus is there or not.
        return client.get(program.url).status_code in (httpx.codes.OK, httpx.codes.NOT_FOUND)
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return False


def log_path(home: Path, name: str) -> Path:
    return home / "logs" / f"{name}.log"


def render(programs: list[Program], home: Path, socket: Path) -> str:
    """supervisord's configuration. Nothing starts by itself: `stack.up` starts each program when its turn has come."""
    lines = [
        "; Written by deploy/local/programs.py on each start.",
        "[supervisord]",
        "nodaemon = true",
        "silent = true",
        f"directory = {_value(REPOSITORY)}",
        f"pidfile = {_value(home / 'run' / 'supervisord.pid')}",
        f"logfile = {_value(log_path(home, 'supervisord'))}",
        "logfile_maxbytes = 5MB",
        "logfile_backups = 1",
        *(["user = root"] if os.geteuid() == 0 else []),
        "",
        "[unix_http_server]",
        f"file = {_value(socket)}",
        "chmod = 0700",
        "",
        "[rpcinterface:supervisor]",
        "supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface",
    ]
    for program in programs:
        lines += [
            "",
            f"[program:{program.name}]",
            f"command = {_value(shlex.join(program.argv))}",
            "autostart = false",
            f"autorestart = {'false' if program.one_shot else 'true'}",
            f"startsecs = {0 if program.one_shot else 10}",
            "startretries = 3",
            f"stopsignal = {program.stop_signal}",
            f"stopwaitsecs = {program.stop_wait_s}",
            # PostgreSQL ends its own children in order.
            f"stopasgroup = {'false' if program.name == POSTGRES else 'true'}",
            "killasgroup = true",
            *([f"user = {program.user}"] if program.user else []),
            "redirect_stderr = true",
            f"stdout_logfile = {_value(log_path(home, program.name))}",
            "stdout_logfile_maxbytes = 10MB",
            "stdout_logfile_backups = 2",
        ]
    groups = list(dict.fromkeys(program.group for program in programs))
    for priority, group in enumerate(groups, start=1):
        members = ",".join(program.name for program in programs if program.group == group)
        lines += ["", f"[group:{group}]", f"programs = {members}", f"priority = {priority}"]
    return "\n".join(lines) + "\n"


def _value(text: object) -> str:
    """A value for supervisord's configuration, where % starts an expansion."""
    return str(text).replace("%", "%%")
