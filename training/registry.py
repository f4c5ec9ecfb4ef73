"""MLflow: one run for each training, one registered version for each model that passed the gate."""

from __future__ import annotations

import hashlib
import json
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contracts import names
from contracts.errors import InputError
from contracts.files import sha256
from contracts.metrics import NDCG
from contracts.settings import REPOSITORY, settings
from contracts.tables import ITEMS
from contracts.verdicts import FILE, failures
from training.plots import by_segment

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KEY_TAG = "cartwheel.key"
EVALUATION_TAG = "cartwheel.evaluation_sha256"
ARTIFACT_FOLDER = "model"
EDGE_FOLDER = "edge"
NOTE_TAG = "mlflow.note.content"
METRICS_AT_ONCE = 1000
"""As many as MLflow takes in one request."""
OF_MODELS = {"mlflow.experimentKind": "custom_model_development"}
"""Of an experiment: MLflow shows the pages for trained models, not those for agents."""


def _client() -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=settings().mlflow_uri, registry_uri=settings().mlflow_uri)


def _experiment_id() -> str:
    """Of our experiment, which is made where it is missing."""
    experiment = _client().get_experiment_by_name(names.EXPERIMENT)
    return str(
        experiment.experiment_id if experiment else _client().create_experiment(names.EXPERIMENT, tags=OF_MODELS)
    )


def code_version() -> str:
    """The git commit of the code, with `-dirty` when files differ from it; `unknown` outside a checkout."""
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=20,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def made_of() -> dict[str, str]:
    """Of what a model is made beside data and parameters: code, packages, and the shop's dataset file."""
    return {
        "commit": code_version(),
        "lock_sha256": sha256(REPOSITORY / "requirements.lock"),
        "dataset_sha256": sha256(settings().dataset_path),
    }


def _identity(key: str, content: Mapping[str, Any]) -> dict[str, str]:
    """Tags of a run by which it is found again: the same content is logged once."""
    return {KEY_TAG: key, EVALUATION_TAG: hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()}


def _finished_run(experiment_id: str, identity: Mapping[str, str]) -> str | None:
    same = " and ".join(f"tags.`{name}` = '{value}'" for name, value in identity.items())
    runs = _client().search_runs([experiment_id], f"{same} and attributes.status = 'FINISHED'", max_results=1)
    return str(runs[0].info.run_id) if runs else None


def log_run(key: str, evaluation: Mapping[str, Any], folder: Path) -> str:
    """Log a training with its parameters, metrics, data versions, commit and SavedModel; once for each evaluation.

    Returns:
        The id of the run.
    """
    from mlflow.entities import Metric, Param

    client, experiment_id = _client(), _experiment_id()
    identity = _identity(key, evaluation)
    if finished := _finished_run(experiment_id, identity):
        return finished
    tags = {
        **identity,
        "dataset": evaluation["dataset"],
        "as_of": str(evaluation["as_of"]),
        "requested_by": evaluation["requested_by"],
        "mlflow.source.git.commit": evaluation["commit"],
        **{name: evaluation[name] for name in ("lock_sha256", "dataset_sha256") if name in evaluation},
        **{f"data.{table}": str(version) for table, version in evaluation["table_versions"].items()},
        **_lineage(evaluation),
    }
    run = client.create_run(experiment_id, tags=tags, run_name=key)
    run_id = str(run.info.run_id)
    now_ms = int(time.time() * 1000)
    client.log_batch(run_id, params=[Param(name, str(value)) for name, value in evaluation["parameters"].items()])
    metrics = [Metric(name, value, now_ms, step) for name, value, step in _metrics(evaluation)]
    for start in range(0, len(metrics), METRICS_AT_ONCE):
        client.log_batch(run_id, metrics=metrics[start : start + METRICS_AT_ONCE])
    if evaluation.get("segments"):
        client.log_figure(run_id, by_segment(evaluation), f"{NDCG}.png")
    client.log_artifacts(run_id, str(folder / "saved_model"), ARTIFACT_FOLDER)
    client.log_artifact(run_id, str(folder / "evaluation.json"))
    client.set_terminated(run_id)
    return run_id


def champion() -> int | None:
    """The version that serves; None while there is none.

    Raises:
        InputError: MLflow does not answer.
    """
    from mlflow.exceptions import MlflowException

    try:
        models = _client().search_registered_models(f"name = '{settings().model}'")
    except MlflowException as error:
        raise _unfetchable(f"the alias {names.CHAMPION}", error) from None
    versions = [model.aliases[names.CHAMPION] for model in models if names.CHAMPION in model.aliases]
    return int(versions[0]) if versions else None


def _metrics(evaluation: Mapping[str, Any]) -> Iterator[tuple[str, float, int]]:
    """Name, value and step."""
    for who, metrics in evaluation["means"].items():
        for name, value in metrics.items():
            yield f"{who}.{name}", value, 0
    for fold in evaluation["folds"]:
        for who, metrics in fold["means"].items():
            for name, value in metrics.items():
                yield f"by_interval.{who}.{name}", value, fold["as_of"]
    for segment, part in evaluation.get("segments", {}).items():
        for who, metrics in part["means"].items():
            yield f"{segment}.{who}.{NDCG}", metrics[NDCG], 0
    for as_of, by_epoch in evaluation.get("losses", {}).items():
        for epoch, loss in by_epoch.items():
            yield f"loss.as_of_{as_of}", loss, int(epoch)
    for name, value in evaluation["export"].items():
        yield name, value, 0


def fetch(version: int, folder: Path) -> tuple[dict[str, Any], Path]:
    """`fetch_run` of the run of a version.

    Raises:
        InputError: there is no such version, or its run has no evaluation.
    """
    from mlflow.exceptions import MlflowException

    try:
        run_id = _client().get_model_version(settings().model, str(version)).run_id
    except MlflowException as error:
        raise _unfetchable(f"version {version}", error) from None
    return fetch_run(run_id, folder)


def fetch_run(run_id: str, folder: Path) -> tuple[dict[str, Any], Path]:
    """What was logged of a training: its evaluation, and the SavedModel, copied to below `folder`.

    Raises:
        InputError: there is no such run, or it has no evaluation.
    """
    from mlflow.exceptions import MlflowException

    try:
        folder.mkdir(parents=True, exist_ok=True)
        evaluation, model = (
            Path(_client().download_artifacts(run_id, path, str(folder)))
            for path in ("evaluation.json", ARTIFACT_FOLDER)
        )
    except (MlflowException, OSError) as error:
        raise _unfetchable(f"run {run_id}", error) from None
    return json.loads(evaluation.read_text()), model


def _unfetchable(what: str, error: Exception) -> InputError:
    return InputError(
        f"{what} cannot be fetched: {str(error).splitlines()[0][:200]}",
        where=f"MLflow, {settings().mlflow_uri}",
        cure="name one that training logged, and see that MLflow runs",
    )


def log_edge(version: int, folder: Path, report: Mapping[str, float]) -> str:
    """Keep the files for LiteRT, and what was measured of them, with the run of a version; its id."""
    client = _client()
    run_id = str(client.get_model_version(settings().model, str(version)).run_id)
    client.log_artifacts(run_id, str(folder), EDGE_FOLDER)
    for name, value in report.items():
        client.log_metric(run_id, f"edge.{name}", value)
    return run_id


def log_search(key: str, proposal: Mapping[str, Any], figure: Figure) -> str:
    """Keep what a search has found as a run of its own, once for each state of it; the id of the run."""
    from mlflow.entities import Metric, Param

    client, experiment_id = _client(), _experiment_id()
    identity = _identity(key, proposal)
    if finished := _finished_run(experiment_id, identity):
        return finished
    run_id = str(client.create_run(experiment_id, tags=identity, run_name=key).info.run_id)
    best, now_ms = proposal["trials"][0], int(time.time() * 1000)
    metrics = [Metric(f"gain.{name}", float(value), now_ms, 0) for name, value in proposal["gain"].items()]
    metrics += [
        Metric(f"trial.{NDCG}", row[NDCG], now_ms, row["trial"]) for row in proposal["trials"] if row[NDCG] is not None
    ]
    params = [Param(name, json.dumps(value)) for name, value in proposal["changes"].items()]
    client.log_batch(run_id, metrics=metrics, params=params)
    columns = {name: [row.get(name) for row in proposal["trials"]] for name in best}
    client.log_table(run_id, columns, "trials.json")
    client.log_figure(run_id, figure, "trials.png")
    client.log_dict(run_id, dict(proposal), "proposal.json")
    client.set_terminated(run_id)
    return run_id


def log_verdict(run_id: str, verdict: Mapping[str, Any]) -> None:
    """Leave the verdict on the run, where the deployer reads it, and say it in tags, where people do."""
    client = _client()
    client.log_dict(run_id, dict(verdict), FILE)
    for name, value in {**_tags(verdict), NOTE_TAG: _note(verdict)}.items():
        client.set_tag(run_id, name, value)


def _note(verdict: Mapping[str, Any]) -> str:
    """The verdict in Markdown, which MLflow shows as the description of the run."""
    outcome, forced = _tags(verdict)["gate"], verdict.get("forced")
    rows = [
        f"| {'✓' if rule['passed'] else '✗'}{'' if rule['is_sure'] else ' ?'} | {rule['name']} | {rule['detail']} |"
        for rule in sorted(verdict["rules"], key=lambda rule: rule["passed"])
    ]
    why = [f"Forced by {forced['by']}: {forced['reason']}", ""] if forced else []
    return "\n".join([f"### The gate: {outcome}", "", *why, "| | rule | |", "|---|---|---|", *rows])


def _tags(verdict: Mapping[str, Any]) -> dict[str, str]:
    forced = verdict.get("forced")
    outcome = "passed" if verdict["passed"] else "forced" if forced else "blocked"
    tags = {"gate": outcome, "gate.failed": ", ".join(failures(verdict))}
    return tags | ({"gate.forced": f"{forced['by']}, {forced['at']}: {forced['reason']}"} if forced else {})


def _lineage(evaluation: Mapping[str, Any]) -> dict[str, str]:
    """Of what a refreshed model has its weights."""
    refreshed = evaluation.get("refresh")
    return {"refresh_of_version": str(refreshed["version"])} if refreshed else {}


def register(run_id: str, evaluation: Mapping[str, Any], verdict: Mapping[str, Any]) -> int:
    """Register the run's model as a version, once for each run, and give it the alias `challenger`.

    Returns:
        The number of the version.
    """
    from mlflow.exceptions import MlflowException

    client = _client()
    try:
        client.get_registered_model(settings().model)
    except MlflowException:
        client.create_registered_model(settings().model)
    registered = client.search_model_versions(f"name = '{settings().model}' and run_id = '{run_id}'")
    if registered:
        version = registered[0].version
    else:
        source = f"{client.get_run(run_id).info.artifact_uri}/{ARTIFACT_FOLDER}"
        tags = {
            **_tags(verdict),
            "as_of": str(evaluation["as_of"]),
            "evaluation": json.dumps(evaluation["means"]),
            "dataset": evaluation["dataset"],
            names.ITEMS_VERSION: str(evaluation["table_versions"][ITEMS.name]),
            **_lineage(evaluation),
        }
        version = client.create_model_version(settings().model, source=source, run_id=run_id, tags=tags).version
    client.set_registered_model_alias(settings().model, names.CHALLENGER, version)
    return int(version)
