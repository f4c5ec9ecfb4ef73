"""The stack for real. It runs without DAGs and without a model server, which have tests of their own."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest
from rich.console import Console

from contracts.errors import InputError
from contracts.settings import Settings
from contracts.settings import settings as installed
from deploy.local import airflow_api, environment, stack
from deploy.local.processes import marked
from deploy.local.secrets import read_or_create
from deploy.local.supervision import connect

DAG = """
from datetime import timedelta
from airflow.sdk import DAG
from airflow.providers.standard.operators.bash import BashOperator

with DAG("probe", schedule=None, default_args={"retries": 0}):
    BashOperator(task_id="say", bash_command="python -c 'import deploy' && echo $CARTWHEEL_HOME > $CARTWHEEL_HOME/said")
"""


@pytest.mark.slow
def test_a_stack_starts_works_survives_a_kill_and_stops(
    make_settings: Callable[..., Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up, a DAG run, kill -9 of the supervisor, up again with that run still known, down, nothing left."""
    (tmp_path / "dags").mkdir()
    (tmp_path / "dags" / "probe.py").write_text(DAG)
    original = environment.airflow_environment
    folders = {
        "AIRFLOW__CORE__DAGS_FOLDER": str(tmp_path / "dags"),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(tmp_path / "none"),
    }
    monkeypatch.setattr(environment, "airflow_environment", lambda *given: original(*given) | folders)
    settings, console = make_settings(serving_url="http://127.0.0.1:9", cache=installed().cache_dir), Console()
    password = read_or_create(settings.secrets_path).airflow_admin_password
    home = settings.home_dir
    try:
        stack.up(settings, console)
        with airflow_api.connect(settings.airflow_url, "admin", password) as airflow:
            airflow_api.wait_for_dag(airflow, "probe")
            run = airflow_api.trigger(airflow, "probe", "first", {"a": 1})
            assert airflow_api.trigger(airflow, "probe", "first").run_id == run.run_id  # the same run, not another
            assert airflow_api.wait(airflow, run, deadline_s=300).state == "success"
            assert [(task.task_id, task.state) for task in airflow_api.list_tasks(airflow, "probe", "first")] == [
                ("say", "success")
            ]
        assert (home / "said").read_text().strip() == str(home)

        with airflow_api.connect(settings.airflow_url, "admin", "wrong") as airflow, pytest.raises(InputError):
            airflow_api.list_runs(airflow, "probe")

        supervisor = connect(home)
        assert supervisor is not None
        os.kill(supervisor.pid, signal.SIGKILL)
        psutil.Process(supervisor.pid).wait(10)
        assert len(marked(home)) > 5
        stack.up(settings, console)
        with airflow_api.connect(settings.airflow_url, "admin", password) as airflow:
            assert [(run.run_id, run.conf) for run in airflow_api.list_runs(airflow, "probe")] == [("first", {"a": 1})]
        pids = {name: info["pid"] for name, info in connect(home).states().items()}  # type: ignore[union-attr]
        stack.up(settings, console)  # nothing to do
        assert {name: info["pid"] for name, info in connect(home).states().items()} == pids  # type: ignore[union-attr]
    finally:
        stack.down(settings, console)
    assert marked(home) == []
    assert connect(home) is None
    with pytest.raises(httpx.ConnectError):
        httpx.get(settings.airflow_url, trust_env=False)


@pytest.mark.slow
def test_a_program_that_dies_at_start_is_named_with_its_log(
    make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """When a server dies while starting, its log's end is shown, the error names the log, and nothing stays."""
    monkeypatch.setitem(stack.postgres.SERVER_OPTIONS, "shared_buffers", "nonsense")
    settings = make_settings(serving_url="http://127.0.0.1:9", cache=installed().cache_dir)
    with pytest.raises(InputError, match=r"postgres stopped while starting.*postgres\.log"):
        stack.up(settings, Console())
    assert 'invalid value for parameter "shared_buffers"' in capfd.readouterr().err
    assert marked(settings.home_dir) == []
