"""Every DAG loads, reads as its own description says, and runs commands that exist."""

from __future__ import annotations

import importlib
import re
import shlex

import jinja2
import pytest
import typer
from airflow.dag_processing.dagbag import DagBag
from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator
from airflow.providers.standard.operators.bash import BashOperator
from airflow.providers.standard.operators.hitl import HITLBranchOperator
from airflow.providers.standard.sensors.bash import BashSensor
from airflow.sdk.definitions.mappedoperator import MappedOperator
from cartwheel_airflow import assets

from contracts import names
from contracts.settings import REPOSITORY, Settings, settings

WOKEN = (*names.DAGS, names.BATCH_RECOMMEND)
"""DAGs that run by themselves."""


class Results:
    """Results of other tasks, as a template sees them."""

    def xcom_pull(self, task_id: str) -> str:
        return "7"


def rendered(text: str, dag) -> str:
    """A command as a run with default parameters executes it."""
    return jinja2.Template(text, undefined=jinja2.StrictUndefined).render(ti=Results(), params=dag.params.dump())


def parse(module: str, arguments: list[str]) -> None:
    """Parse a command line with the module's own parser, without running it."""
    target = module if module.startswith("spark_jobs.") else f"{module}.__main__"
    loaded = importlib.import_module(target)
    if not hasattr(loaded, "app"):
        loaded.arg_parser().parse_args(arguments)
        return
    command = typer.main.get_command(loaded.app)
    name, verb, rest = command.resolve_command(command.make_context(module, list(arguments)), list(arguments))
    verb.make_context(name, rest)


def test_all_dags_are_there(dags) -> None:
    """The six DAGs of the loop, those that a person wants, and nothing else."""
    assert sorted(dags) == sorted((*names.DAGS, *names.ON_DEMAND))


@pytest.mark.parametrize("dag_id", [*WOKEN, names.SEARCH_CONFIGURATION])
def test_the_description_names_every_task_in_order(dags, dag_id) -> None:
    """The numbered steps of the page in the UI are the task ids, in the order in which they run."""
    dag = dags[dag_id]
    steps = re.findall(r"^\d+\. `(\w+)`", dag.doc_md, flags=re.MULTILINE)
    assert steps == [task.task_id for task in dag.topological_sort()]


@pytest.mark.parametrize("dag_id", [*names.DAGS, *names.ON_DEMAND])
def test_every_command_is_one_its_program_accepts(dags, dag_id) -> None:
    """Each rendered command line is parsed by the parser of the very module it starts; a training gives way to others."""
    for task in dags[dag_id].tasks:
        if isinstance(task, BashOperator | BashSensor | MappedOperator):
            mapped = isinstance(task, MappedOperator)
            for text in task.expand_input.value["bash_command"] if mapped else [task.bash_command]:
                _, nice, command = rendered(text, dags[dag_id]).rpartition("exec nice ")
                assert (nice != "") == (task.task_id in ("train", "trial"))
                _, flag, module, *arguments = shlex.split(command.rpartition(" && ")[2])
                assert flag == "-m"
                parse(module, arguments)
        else:
            assert isinstance(task, SparkSubmitOperator)
            job = task.application.rsplit("/", 1)[1].removesuffix(".py")
            parse(f"spark_jobs.{job}", [rendered(argument, dags[dag_id]) for argument in task.application_args])


def test_a_command_nobody_understands_is_noticed() -> None:
    """The check above can fail: a verb and an option that do not exist are refused."""
    with pytest.raises(Exception, match="No such command"):
        parse("training", ["trian"])
    with pytest.raises(Exception, match="No such option"):
        parse("training", ["gate", "--kee", "7"])


def waits_for(dag):
    """The condition on assets that wakes a DAG, or None."""
    return getattr(dag.timetable, "asset_condition", None)


def test_every_asset_has_an_emitter_and_a_consumer(dags) -> None:
    """The DAGs are joined: what one emits another consumes."""
    names_of_assets = {asset.name for asset in vars(assets).values() if isinstance(asset, assets.Asset)}
    emitted = [outlet.name for dag in dags.values() for task in dag.tasks for outlet in task.outlets]
    consumed = {name for dag in dags.values() for name in names_of_assets if f"name='{name}'" in repr(waits_for(dag))}
    assert set(emitted) == consumed == names_of_assets


@pytest.mark.parametrize("dag_id", [name for name in WOKEN if name != names.INGEST_EVENTS])
def test_a_lost_asset_event_is_healed_by_the_clock(dags, dag_id) -> None:
    """Every DAG that an asset wakes also looks once an hour by itself."""
    assert dags[dag_id].timetable.timetable.expression.endswith("* * * *")


@pytest.mark.parametrize("dag_id", WOKEN)
def test_the_first_task_reconciles(dags, dag_id) -> None:
    """Each DAG first asks the tables whether there is anything to do, and runs one at a time."""
    dag = dags[dag_id]
    assert [task.task_id for task in dag.roots] == ["reconcile"]
    assert dag.max_active_runs == 1


def test_what_costs_and_not_everybody_wants_is_off_at_first(dags) -> None:
    """Scoring all users is for those who turn it on; the loop runs as soon as it is there."""
    assert [dag_id for dag_id, dag in dags.items() if dag.is_paused_upon_creation] == [names.BATCH_RECOMMEND]


def test_no_two_heavy_tasks_run_at_once(dags) -> None:
    """Spark's drivers and the training each take more than half of the slots that the pool has."""
    slots = Settings(_env_file=None).airflow_parallelism
    heavy = [task for dag in dags.values() for task in dag.tasks if 2 * task.pool_slots > slots]
    names_of_heavy = {task.task_id for task in heavy}
    assert names_of_heavy == {"land", "clean", "compute_features", "attribute", "train", "recommend", "trial"}
    assert all(task.pool_slots <= slots for task in heavy)


def test_gates_are_not_retried(dags) -> None:
    """A verdict stays a verdict: every gate has no retries, every other task has."""
    for dag in dags.values():
        for task in dag.tasks:
            is_gate = task.task_id.startswith("gate") or task.task_id in ("validate", "shadow", "canary", "bake")
            assert (task.retries == 0) == is_gate, task.task_id


def test_a_person_may_have_to_approve(monkeypatch: pytest.MonkeyPatch) -> None:
    """By setting, Airflow asks after the canary; no means that the version is rejected, and so does not ask again."""
    monkeypatch.setenv("CARTWHEEL_ROLLOUT_APPROVAL", "true")
    settings.cache_clear()
    try:
        bag = DagBag(str(REPOSITORY / "dags" / f"{names.DEPLOY_RECOMMENDER}.py"))
    finally:
        monkeypatch.undo()
        settings.cache_clear()
    assert bag.import_errors == {}
    [dag] = bag.dags.values()
    approve = dag.get_task("approve")
    assert isinstance(approve, HITLBranchOperator)
    assert approve.upstream_task_ids == {"canary"}
    assert set(approve.options) == approve.downstream_task_ids == {"promote", "reject"}
    assert dag.get_task("promote").upstream_task_ids == dag.get_task("reject").upstream_task_ids == {"approve"}
    _, _, module, *arguments = shlex.split(rendered(dag.get_task("reject").bash_command, dag))
    parse(module, arguments)
