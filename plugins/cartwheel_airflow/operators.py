"""How a DAG file starts work and when it wakes up: the same for all DAGs."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any

from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator
from airflow.providers.standard.operators.bash import BashOperator
from airflow.providers.standard.operators.hitl import HITLBranchOperator
from airflow.providers.standard.sensors.bash import BashSensor
from airflow.sdk import Asset, AssetOrTimeSchedule, CronTriggerTimetable
from airflow.sdk.definitions.mappedoperator import MappedOperator

from contracts.names import NOTHING_TO_DO
from contracts.settings import REPOSITORY, settings

DAG_DEFAULTS: dict[str, Any] = {
    "catchup": False,
    # One run at a time: every stage replaces whole partitions, and a run that waits finds what the one before it left.
    "max_active_runs": 1,
    "tags": ["cartwheel"],
    "default_args": {"retries": 2, "retry_delay": timedelta(seconds=10), "execution_timeout": timedelta(hours=6)},
}

POKE_S = 30
MAX_WAIT = timedelta(days=30)
"""For what only shoppers or a person can bring about; settings say what becomes of it before."""

HEAVY_POOL_SLOTS = 2
"""Slots of Airflow's pool that a training or a Spark driver takes: of our three, so that no two run at once."""


_GIVE_WAY = "{ echo 10 > /proc/self/autogroup; } 2> /dev/null; exec nice "
"""What keeps all cores busy for minutes gives way to what serves and lands beside it. Where Linux shares its cores among
sessions, as each task has one, niceness counts within a session only, and the session has one of its own.
Source: https://man7.org/linux/man-pages/man7/sched.7.html
"""


def woken_by(asset: Asset, *, minute: int) -> AssetOrTimeSchedule:
    """Wake on the asset's event, and once an hour in case that event was lost; the reconcile task skips what is done."""
    return AssetOrTimeSchedule(timetable=CronTriggerTimetable(f"{minute} * * * *", timezone="UTC"), assets=[asset])


def _command(command: Sequence[str], pool_slots: int = 1) -> str:
    return (_GIVE_WAY if pool_slots >= HEAVY_POOL_SLOTS else "") + shlex.join([sys.executable, "-m", *command])


def step(task_id: str, *command: str, pool_slots: int = 1, **options: Any) -> BashOperator:
    """A task that runs `python -m COMMAND`; exit status 99 shows as skipped. The last line printed is its result.

    Args:
        command: module and arguments. Jinja is rendered inside single quotes: templates use double quotes only, and
            values must not hold single ones (parameters are checked).
    """
    return BashOperator(
        task_id=task_id,
        bash_command=_command(command, pool_slots),
        cwd=str(REPOSITORY),
        skip_on_exit_code=NOTHING_TO_DO,
        pool_slots=pool_slots,
        **options,
    )


def steps(task_id: str, commands: Iterable[Sequence[str]], *, pool_slots: int = 1, **options: Any) -> MappedOperator:
    """A step for each command, side by side in Airflow's grid as one mapped task."""
    return BashOperator.partial(
        task_id=task_id, cwd=str(REPOSITORY), skip_on_exit_code=NOTHING_TO_DO, pool_slots=pool_slots, **options
    ).expand(bash_command=[_command(command, pool_slots) for command in commands])


def gate(task_id: str, *command: str, **options: Any) -> BashOperator:
    """A step that may forbid what follows. A verdict does not change by asking again, so there are no retries."""
    return step(task_id, *command, retries=0, **options)


def wait(task_id: str, *command: str, **options: Any) -> BashSensor:
    """A gate that asks again, as long as the command ends with status 99; in between it takes no slot."""
    return BashSensor(
        task_id=task_id,
        bash_command=f"cd {shlex.quote(str(REPOSITORY))} && {_command(command)}",
        retry_exit_code=NOTHING_TO_DO,
        mode="reschedule",
        poke_interval=POKE_S,
        timeout=MAX_WAIT.total_seconds(),
        retries=0,
        **options,
    )


def approval(version: str, promote: BashOperator) -> BashOperator | HITLBranchOperator:
    """`promote`; or, where the setting wants it, a question to a person before it, in Airflow's list of required actions.

    No means that the version is rejected: it would be asked for again each hour.
    """
    if not settings().rollout_approval:
        return promote
    why = "declined by a person in Airflow"
    reject = step("reject", "serving", "reject", "--version", version, "--why", why)
    question = HITLBranchOperator(
        task_id="approve",
        subject=f"Is version {version} to be the champion?",
        options=[promote.task_id, reject.task_id],
        response_timeout=MAX_WAIT,
        retries=0,
    )
    question >> [promote, reject]
    return question


def spark_job(task_id: str, job: str, *arguments: str, **options: Any) -> SparkSubmitOperator:
    """A task that submits `spark_jobs/JOB.py` to the Spark master of the connection `spark_default`."""
    chosen = settings()
    return SparkSubmitOperator(
        task_id=task_id,
        application=str(REPOSITORY / "spark_jobs" / f"{job}.py"),
        name=f"cartwheel-{job}",
        application_args=list(arguments),
        driver_memory=chosen.spark_driver_memory,
        pool_slots=HEAVY_POOL_SLOTS,
        conf={"spark.ui.enabled": "false", **chosen.spark_driver_conf},
        **options,
    )


def result_of(task_id: str) -> str:
    """Jinja for the last line that a step printed."""
    return f'{{{{ ti.xcom_pull("{task_id}") }}}}'
