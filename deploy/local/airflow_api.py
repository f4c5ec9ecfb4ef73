"""A client of Airflow's REST API, version 2: `with connect(...) as airflow: trigger(airflow, ...)`."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import httpx
import stamina

from contracts.errors import InputError

PAGE = 100
ENDED = frozenset({"success", "failed"})


@dataclass(frozen=True)
class Run:
    """One run of a DAG. `state` is queued, running, success or failed; `seconds` counts from its start."""

    dag_id: str
    run_id: str
    state: str
    conf: dict[str, Any]
    started: datetime | None
    ended: datetime | None

    @property
    def seconds(self) -> float:
        return (self.ended - self.started).total_seconds() if self.started and self.ended else 0.0


@dataclass(frozen=True)
class Task:
    """The latest try of one task in a run. `map_index` is -1 unless the task is mapped."""

    task_id: str
    map_index: int
    state: str | None
    try_number: int
    started: datetime | None
    seconds: float


class _Login(httpx.Auth):
    """A token by `POST /auth/token`, fetched on first use and again when it has expired."""

    requires_response_body = True

    def __init__(self, url: str, user: str, password: str) -> None:
        self._login = httpx.Request("POST", f"{url}/auth/token", json={"username": user, "password": password})
        self._token = ""

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        if self._token:
            request.headers["Authorization"] = f"Bearer {self._token}"
            if (yield request).status_code != httpx.codes.UNAUTHORIZED:
                return
        answer = yield self._login
        if answer.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            raise InputError(
                "Airflow refuses the login", where=str(self._login.url), cure="`make down`, then run it again"
            )
        self._token = answer.raise_for_status().json()["access_token"]
        request.headers["Authorization"] = f"Bearer {self._token}"
        yield request


def connect(url: str, user: str, password: str, *, timeout_s: float = 30.0) -> httpx.Client:
    """A client for the Airflow at `url` (http://host:port); close it, or use it by `with`."""
    return httpx.Client(base_url=f"{url}/api/v2", auth=_Login(url, user, password), timeout=timeout_s, trust_env=False)


def trigger(airflow: httpx.Client, dag_id: str, run_id: str, conf: dict[str, Any] | None = None) -> Run:
    """Trigger a run without a logical date. Triggering the same `run_id` again gives the run that exists."""
    body = {"dag_run_id": run_id, "logical_date": None, "conf": conf or {}}
    answer = _request(airflow, "POST", f"/dags/{dag_id}/dagRuns", json=body, accept=(httpx.codes.CONFLICT,))
    return get_run(airflow, dag_id, run_id) if answer.status_code == httpx.codes.CONFLICT else _run(answer.json())


def get_run(airflow: httpx.Client, dag_id: str, run_id: str) -> Run:
    """The run as it is now."""
    return _run(_request(airflow, "GET", f"/dags/{dag_id}/dagRuns/{run_id}").json())


def list_runs(airflow: httpx.Client, dag_id: str) -> list[Run]:
    """All runs of a DAG, the earliest first."""
    return [_run(each) for each in _pages(airflow, f"/dags/{dag_id}/dagRuns", "dag_runs", order_by="run_after")]


def list_tasks(airflow: httpx.Client, dag_id: str, run_id: str) -> list[Task]:
    """The task instances of a run, in order of their start; those not started come last."""
    instances = _pages(airflow, f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances", "task_instances")
    tasks = [
        Task(
            task_id=each["task_id"], map_index=each["map_index"], state=each["state"], try_number=each["try_number"],
            started=_time(each["start_date"]), seconds=float(each["duration"] or 0.0),
        )
        for each in instances
    ]  # fmt: skip
    return sorted(tasks, key=lambda task: (task.started is None, (task.started and task.started.timestamp()) or 0.0))


def wait_for_dag(airflow: httpx.Client, dag_id: str, *, deadline_s: float = 120.0) -> None:
    """Wait until Airflow has parsed the DAG, and unpause it.

    Raises:
        InputError: its file cannot be imported, or it is not there by the deadline.
    """
    end = time.monotonic() + deadline_s
    while True:
        answer = _request(airflow, "GET", f"/dags/{dag_id}", accept=(httpx.codes.NOT_FOUND,))
        if answer.status_code == httpx.codes.OK:
            break
        errors = _request(airflow, "GET", "/importErrors").json()["import_errors"]
        if time.monotonic() > end:
            reason = errors[0]["stack_trace"].strip().splitlines()[-1] if errors else "Airflow has not read its file"
            raise InputError(
                f"DAG {dag_id} does not appear: {reason}",
                where=errors[0]["filename"] if errors else "dags/",
                cure="correct that file, or see `python -m deploy.local logs airflow-dag-processor`",
            )
        time.sleep(1.0)
    if answer.json()["is_paused"]:
        unpause(airflow, dag_id)


def unpause(airflow: httpx.Client, dag_id: str) -> None:
    """Let the scheduler run the DAG."""
    _request(airflow, "PATCH", f"/dags/{dag_id}", json={"is_paused": False})


def _again(error: Exception) -> bool:
    """Whether a request is worth repeating: every one of ours may be repeated without harm."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.is_server_error or error.response.status_code == httpx.codes.TOO_MANY_REQUESTS
    return isinstance(error, httpx.TransportError)


def _request(
    airflow: httpx.Client, method: str, path: str, *, accept: tuple[int, ...] = (), **arguments: Any
) -> httpx.Response:
    for attempt in stamina.retry_context(on=_again, attempts=6, timeout=60.0, wait_max=5.0):
        with attempt:
            answer = airflow.request(method, path, **arguments)
            if answer.status_code not in accept:
                answer.raise_for_status()
    return answer


def _pages(airflow: httpx.Client, path: str, key: str, **parameters: Any) -> Iterator[dict[str, Any]]:
    offset = 0
    while True:
        page = _request(airflow, "GET", path, params={"limit": PAGE, "offset": offset, **parameters}).json()
        yield from page[key]
        offset += len(page[key])
        if not page[key] or offset >= page["total_entries"]:
            return


def _run(dag_run: dict[str, Any]) -> Run:
    return Run(
        dag_id=dag_run["dag_id"], run_id=dag_run["dag_run_id"], state=dag_run["state"], conf=dag_run["conf"] or {},
        started=_time(dag_run["start_date"]), ended=_time(dag_run["end_date"]),
    )  # fmt: skip


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
