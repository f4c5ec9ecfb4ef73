"""How the last run of each DAG ended, kept where what watches the loop can read it without Airflow's database."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow.listeners import hookimpl

from contracts import names
from contracts.files import write_json
from contracts.settings import settings

if TYPE_CHECKING:
    from airflow.models.dagrun import DagRun


@hookimpl
def on_dag_run_success(dag_run: DagRun) -> None:
    """Airflow's scheduler says that a run succeeded."""
    _write(dag_run)


@hookimpl
def on_dag_run_failed(dag_run: DagRun) -> None:
    """Airflow's scheduler says that a run failed."""
    _write(dag_run)


def _write(dag_run: DagRun) -> None:
    if dag_run.dag_id in (*names.DAGS, *names.ON_DEMAND) and dag_run.end_date is not None:
        run = {
            "state": str(dag_run.state),
            "run_id": dag_run.run_id,
            "ended": dag_run.end_date.isoformat(),
        }
        write_json(settings().reports_dir / "runs" / f"{dag_run.dag_id}.json", run)
