"""MLflow: one run for each training, one version for each model that passed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from contracts import names
from contracts.files import locked, write_json
from contracts.settings import settings
from tests.verbs import MODEL
from training import __main__ as verbs
from training import registry

EVALUATION: dict[str, Any] = {
    "dataset": "tiny",
    "as_of": 5,
    "requested_by": "monitoring",
    "commit": "abc",
    "parameters": {"epochs": 4, "seed": 1},
    "table_versions": {"training_lists": 3, "items": 2},
    "means": {"model": {"ndcg_at_10": 0.3}, "popularity": {"ndcg_at_10": 0.1}},
    "num_lists": 3,
    "folds": [{"as_of": 4, "num_lists": 2, "means": {"model": {"ndcg_at_10": 0.25}}}],
    "segments": {"new_users": {"num_lists": 1, "means": {"model": {"ndcg_at_10": 0.2}}}},
    "losses": {"5": {"1": 0.5, "2": 0.4}},
    "export": {"model_mib": 2.5},
}
PASSED: dict[str, Any] = {"passed": True, "rules": [{"name": "model_mib", "passed": True}]}


@pytest.fixture
def client(tmp_path: Path, mlflow_store: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MlflowClient]:
    """A registry of our own in SQLite, artifacts beside it."""
    shutil.copy(mlflow_store, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("CARTWHEEL_MLFLOW_TRACKING_URI", uri)
    monkeypatch.chdir(tmp_path)
    settings.cache_clear()
    (tmp_path / "saved_model").mkdir()
    (tmp_path / "saved_model" / "saved_model.pb").write_text("model")
    (tmp_path / "evaluation.json").write_text("{}")
    yield MlflowClient(tracking_uri=uri, registry_uri=uri)
    settings.cache_clear()


def test_a_training_is_one_run_and_one_version(client: MlflowClient, tmp_path: Path) -> None:
    """Logged and registered twice, there is one run with what was trained with, and one version, the challenger."""
    run_ids = {registry.log_run("as_of_5_v3", EVALUATION, tmp_path) for _ in range(2)}
    [run_id] = run_ids
    run = client.get_run(run_id)
    assert run.data.params == {"epochs": "4", "seed": "1"}
    assert run.data.metrics["model.ndcg_at_10"] == 0.3
    assert run.data.metrics["by_interval.model.ndcg_at_10"] == 0.25
    assert run.data.metrics["new_users.model.ndcg_at_10"] == 0.2
    curve = client.get_metric_history(run_id, "loss.as_of_5")
    assert sorted((point.step, point.value) for point in curve) == [(1, 0.5), (2, 0.4)]
    assert "ndcg_at_10.png" in {file.path for file in client.list_artifacts(run_id)}
    assert (run.data.tags["data.training_lists"], run.data.tags["mlflow.source.git.commit"]) == ("3", "abc")
    assert {registry.register(run_id, EVALUATION, PASSED) for _ in range(2)} == {1}
    assert int(client.get_model_version_by_alias(MODEL, names.CHALLENGER).version) == 1
    other = registry.log_run("as_of_6_v4", EVALUATION, tmp_path)
    assert registry.register(other, EVALUATION, PASSED) == 2
    assert int(client.get_model_version_by_alias(MODEL, names.CHALLENGER).version) == 2


def test_a_registration_that_was_killed_is_completed(
    client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between making the version and naming it challenger, the next try names it, and makes no other."""

    def killed(*args: Any) -> None:
        raise KeyboardInterrupt

    run_id = registry.log_run("as_of_5_v3", EVALUATION, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "set_registered_model_alias", killed)
        with pytest.raises(KeyboardInterrupt):
            registry.register(run_id, EVALUATION, PASSED)
    assert registry.register(run_id, EVALUATION, PASSED) == 1
    aliases = client.get_registered_model(MODEL).aliases
    assert {alias: int(version) for alias, version in aliases.items()} == {names.CHALLENGER: 1}


def test_another_training_of_the_same_key_is_another_run(client: MlflowClient, tmp_path: Path) -> None:
    """Whoever deletes a training's folder and trains again does not get the old model under its key."""
    first = registry.log_run("as_of_5_v3", EVALUATION, tmp_path)
    assert registry.log_run("as_of_5_v3", EVALUATION | {"seconds": 9.0}, tmp_path) != first


def test_a_training_that_runs_already_is_waited_for(
    client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its Airflow worker was killed, the training itself was not: who tries again trains nothing, and logs its result."""
    monkeypatch.setenv("CARTWHEEL_HOME", str(tmp_path))
    settings.cache_clear()
    folder = settings().training_dir / "as_of_5_v3"
    shutil.copytree(tmp_path / "saved_model", folder / "saved_model")
    with ThreadPoolExecutor(1) as pool:
        with locked(folder / ".lock"):
            again = pool.submit(verbs.train, key="as_of_5_v3", requested_by="monitoring")
            with pytest.raises(TimeoutError):
                again.result(timeout=1)
            write_json(folder / "evaluation.json", EVALUATION)
        again.result(timeout=60)
    assert f"runs already (process {os.getpid()}): waiting" in capsys.readouterr().out
    run_id = json.loads((folder / "run.json").read_text())["run_id"]
    assert client.get_run(run_id).data.tags[registry.KEY_TAG] == "as_of_5_v3"


def test_a_run_that_was_killed_while_it_was_logged_does_not_count(client: MlflowClient, tmp_path: Path) -> None:
    """A run without its end is left as it is, and the training is logged anew."""
    experiment = client.create_experiment(names.EXPERIMENT)
    torn = client.create_run(experiment, tags={registry.KEY_TAG: "as_of_5_v3"})
    assert registry.log_run("as_of_5_v3", EVALUATION, tmp_path) != torn.info.run_id
