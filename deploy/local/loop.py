"""The main job: land history, let the DAGs turn it into a model that serves, replay live traffic, watch it, sum up.

The DAGs wake one another through assets. This module triggers only `ingest_events`, waits until the tables say that
each stage is done, and wakes a DAG itself when the asset event that should have done so was lost (after a kill, say).
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console

from contracts import dataset as datasets
from contracts import names
from contracts.errors import InputError
from contracts.files import read_json
from contracts.settings import REPOSITORY, settings
from deploy.local import airflow_api, progress, shoppers, summary
from deploy.local.resources import Sampler
from deploy.local.secrets import read_or_create
from monitoring import journal
from serving.client import ServingError

PATIENCE_S = 45.0
"""How long after the stage before a DAG may take to be woken by its asset event before we wake it."""
TRIES = 3
"""How often we wake a DAG that ends without having done what we wait for."""
SHARE_PATIENCE_S = 90.0
DEADLINE_S = 6 * 3600.0


def said_why(logs: Path) -> str:
    """The line in which a command said what was wrong, from the newest log of its task (one JSON object a line)."""
    for path in sorted(logs.glob("attempt=*.log"), reverse=True):
        for line in reversed(path.read_text(encoding="utf-8", errors="replace").splitlines()):
            try:
                event = str(json.loads(line).get("event", ""))
            except ValueError:
                continue
            if match := re.search(r"cartwheel: error: .*|\bFAILED .*|\bFAIL  .*", event):
                return match[0].removeprefix("cartwheel: error: ")
    return "its log says why"


class StageFailed(Exception):
    """A DAG run failed: which task, and where to look."""


class Loop:
    """One pass of the main job."""

    def __init__(
        self, airflow: httpx.Client, sampler: Sampler, console: Console, timings: list[dict[str, Any]]
    ) -> None:
        self._airflow, self._sampler, self._console, self._timings = airflow, sampler, console, timings
        self._status = console.status("")

    def measured(self, name: str, work: Callable[[], Any]) -> Any:
        """Do some work as a stage of the summary."""
        if not self._console.is_terminal:
            self._console.print(f"  … {name}")
        with self._console.status(f"{name} …") as self._status, self._sampler.stage(name) as stage:
            result = work()
        self._timings.append(
            {"stage": name, "seconds": round(stage.seconds, 1), "peak_memory_mib": round(stage.peak_memory_mib)}
        )
        self._console.print(f"  [green]✓[/] {name} [dim]{stage.seconds:.0f} s[/]")
        return result

    def stage(self, name: str, dag_id: str, is_done: Callable[[], bool], conf: dict[str, Any] | None = None) -> None:
        """Wait until `done`, which the DAG brings about.

        Args:
            conf: trigger the DAG at once with these parameters; without, its asset wakes it.
        """
        self.measured(name, lambda: self._bring_about(dag_id, is_done, conf))

    def _bring_about(self, dag_id: str, is_done: Callable[[], bool], conf: dict[str, Any] | None) -> None:
        started, quiet_since = datetime.now(UTC), time.monotonic()
        wake_at_once, in_vain = conf is not None, 0
        end = time.monotonic() + DEADLINE_S
        while not is_done():
            runs = airflow_api.list_runs(self._airflow, dag_id)
            active = [run for run in runs if run.state not in airflow_api.ENDED]
            failed = [run for run in runs if run.state == "failed" and run.ended and run.ended > started]
            if failed and not active:
                raise StageFailed(self._failure(failed[-1]))
            if active:
                quiet_since = time.monotonic()
                self._show(active[-1])
            elif in_vain == TRIES:
                raise StageFailed(
                    f"{dag_id} has run {TRIES} times and found nothing to do, yet what it should bring about is not "
                    f"there. The log of its first task says what it saw: {settings().airflow_url}/dags/{dag_id}"
                )
            elif wake_at_once or time.monotonic() - quiet_since > PATIENCE_S:
                in_vain += not wake_at_once
                run_id = f"loop__{datetime.now(UTC).isoformat(timespec='seconds')}"
                airflow_api.trigger(self._airflow, dag_id, run_id, conf)
                wake_at_once, quiet_since = False, time.monotonic()
            if time.monotonic() > end:
                raise StageFailed(f"{dag_id} did not finish within {DEADLINE_S / 3600:.0f} hours")
            time.sleep(1.5)

    def _show(self, run: airflow_api.Run) -> None:
        """Name the task that runs now beside the spinner."""
        if self._console.is_terminal:
            tasks = airflow_api.list_tasks(self._airflow, run.dag_id, run.run_id)
            running = [task.task_id for task in tasks if task.state in ("running", "up_for_retry")]
            self._status.update(f"{run.dag_id}: {', '.join(running) or run.state} …")

    def _failure(self, run: airflow_api.Run) -> str:
        tasks = airflow_api.list_tasks(self._airflow, run.dag_id, run.run_id)
        failed = next((task.task_id for task in tasks if task.state == "failed"), "?")
        logs = (
            settings().home_dir
            / "airflow"
            / "logs"
            / f"dag_id={run.dag_id}"
            / f"run_id={run.run_id}"
            / f"task_id={failed}"
        )
        page = f"{settings().airflow_url}/dags/{run.dag_id}/runs/{run.run_id}/tasks/{failed}"
        return f"task {failed} of {run.dag_id} failed: {said_why(logs)}\n  Its log: {page}\n  or {logs}"

    def advance(self, through: int, dataset: datasets.Dataset) -> dict[str, Any]:
        """Land everything up to an interval and let the DAGs do the rest; returns what monitoring decided."""
        label, coming = dataset.interval.label(through), through + 1
        self.stage(
            f"ingest through interval {label}",
            names.INGEST_EVENTS,
            lambda: progress.landed(through),
            {"through": str(through)},
        )
        self.stage(f"features as of interval {coming}", names.BUILD_FEATURES, lambda: progress.features_ready(coming))
        self.stage(
            f"monitoring before interval {coming}", names.MONITOR_RECOMMENDER, lambda: bool(progress.decision(coming))
        )
        decision = progress.decision(coming)
        self._console.print(f"    {'; '.join(decision['decision']['reasons'])}", style="dim", highlight=False)
        if decision.get("request"):
            self.train_and_deploy(decision["request"])
        elif decision.get("refresh"):
            self.refresh_and_deploy(decision["refresh"])
        return decision

    def open_shop(self, interval: int, users: list[str], dataset: datasets.Dataset) -> None:
        """Let every user who is active in the interval ask for recommendations, before what they take arrives."""
        name = f"live traffic of interval {dataset.interval.label(interval)}"
        opening = dataset.moment(dataset.interval.start(interval))

        def visit() -> None:
            # A version that is on its way gets its next share while shoppers come, as it would in a longer week.
            num_parts = 1 + (progress.waiting_step() is not None) * (1 + len(settings().rollout_shares))
            for part in range(1, num_parts + 1):
                shoppers.visit(users[: len(users) * part // num_parts], self._console, opening, name)
                if part < num_parts:
                    self._await_next_share()

        self.measured(name, visit)

    def _await_next_share(self) -> None:
        """Wait until Airflow has looked at the version that is on its way; it may find that it takes more shoppers."""
        before, end_s = progress.waiting_step(), time.monotonic() + SHARE_PATIENCE_S
        while before is not None and progress.waiting_step() == before and time.monotonic() < end_s:
            time.sleep(1.0)

    def train_and_deploy(self, request: dict[str, Any]) -> None:
        """Wait for a requested training and, when its gate lets it pass, for its deployment."""

        def result() -> Mapping[str, Any]:
            return journal.training_result(request["as_of"], request["training_lists_version"])

        self.stage(f"training {request['key']}", names.TRAIN_RECOMMENDER, lambda: bool(result()))
        trained = result()
        if trained["status"] == "registered":
            self.deploy(int(trained["version"]))

    def refresh_and_deploy(self, key: str) -> None:
        """Wait for a refresh and, when its gate lets it pass, for the new version to come to where shoppers decide."""

        def result() -> Mapping[str, Any]:
            return read_json(settings().training_dir / key / "result.json")

        self.stage(f"refresh {key}", names.REFRESH_RECOMMENDER, lambda: bool(result()))
        refreshed = result()
        # One version at a time: it waits for one that shoppers are to decide on.
        if refreshed["status"] == "registered" and progress.waiting_step() is None:
            self.deploy(int(refreshed["version"]))

    def train_challenger(self) -> None:
        """Train once more, though nothing asks for it, and bring the new version to where shoppers decide."""
        before = progress.newest_version()
        self.stage(
            "training of a challenger",
            names.TRAIN_RECOMMENDER,
            lambda: progress.newest_version() != before,
            {"force": True},
        )
        self.deploy(progress.newest_version())

    def deploy(self, version: int) -> None:
        """Wait for a version to come as far as it can without shoppers: the first one becomes champion at once."""
        self.stage(f"deployment of version {version}", names.DEPLOY_RECOMMENDER, lambda: progress.is_settled(version))


def _look_at_data(num_intervals: int) -> dict[str, Any]:
    """Run the `check` verb: what is wrong with the data is said before anything runs on it."""
    path = settings().reports_dir / "check.json"
    log = settings().home_dir / "logs" / "check.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "spark_jobs.check", "--json", str(path), "--users-of-last", str(num_intervals + 1)]
    with log.open("w") as output:
        status = subprocess.run(
            command, cwd=REPOSITORY, stdout=output, stderr=subprocess.STDOUT, check=False
        ).returncode
    if status != 0:
        lines = log.read_text().splitlines()
        message = next(
            (line.split("error: ", 1)[1] for line in reversed(lines) if "error: " in line), "the data check failed"
        )
        raise InputError(
            message.rstrip("."), where=str(settings().dataset_path), cure=f"see {log} and docs/bring-your-own-data.md"
        )
    return read_json(path)


def run_loop(*, intervals: int | None, with_challenger: bool = False) -> int:
    """Run the main job to its end and print the summary; what was done before is not done again.

    Args:
        intervals: how many intervals to hold back and replay; None: as the settings say.
        with_challenger: train a second model before the replay, so that there is one to roll out.

    Returns:
        Exit status: 0 when the loop is closed, 1 when a stage failed.
    """
    console = Console(soft_wrap=True)
    dataset = datasets.load(settings().dataset_path)
    replayed = settings().replay_intervals if intervals is None else intervals
    timings: list[dict[str, Any]] = []
    secrets = read_or_create(settings().secrets_path)
    console.print(f"\n[bold]{dataset.title or dataset.name}[/]")
    with (
        Sampler(settings().home_dir) as sampler,
        airflow_api.connect(settings().airflow_url, "admin", secrets.airflow_admin_password) as airflow,
    ):
        loop = Loop(airflow, sampler, console, timings)
        facts = loop.measured("check of the data", lambda: _look_at_data(replayed))
        last = int(facts["last_complete_interval"])
        replayed = max(0, min(replayed, last - int(facts["first_interval"]) - 2))
        live = range(last - replayed + 1, last + 1)
        try:
            loop.measured(
                "Airflow reads the DAGs", lambda: [airflow_api.wait_for_dag(airflow, dag) for dag in names.DAGS]
            )
            loop.advance(last - replayed, dataset)
            if progress.deployed_version() is None:
                raise StageFailed(f"no model passed the gate: see {settings().training_dir}/*/verdict.json")
            if with_challenger and progress.newest_version() == progress.deployed_version():
                loop.train_challenger()
            for interval in live:
                if not progress.landed(interval):
                    loop.open_shop(interval, facts["active_users"][str(interval)], dataset)
                loop.advance(interval, dataset)
        except StageFailed as failure:
            console.print(f"\n[red]✗[/] {failure}", highlight=False)
            return 1
        except (httpx.HTTPError, ServingError, shoppers.NoModelError) as error:
            logs = settings().home_dir / "logs"
            console.print(f"\n[red]✗[/] Airflow or the endpoint does not answer ({error}): see {logs}", highlight=False)
            return 1
        tasks = summary.task_seconds(airflow)
    summary.show(dataset, list(live), timings, tasks, console)
    return 0
