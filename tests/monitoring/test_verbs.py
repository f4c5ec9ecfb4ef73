"""The verbs as Airflow calls them, over small tables and a model registry of their own."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import mlflow
import pyarrow as pa
import pytest
from deltalake import write_deltalake

from contracts.metrics import NDCG
from contracts.names import MODEL
from contracts.settings import REPOSITORY


class Installation:
    """A home with tables and a registry, and the verbs run in it as processes of their own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.registry = f"sqlite:///{home / 'mlflow.db'}"

    def run(self, *words: str, expect: int = 0) -> list[str]:
        env = os.environ | {"CARTWHEEL_HOME": str(self.home), "CARTWHEEL_MLFLOW_TRACKING_URI": self.registry}
        done = subprocess.run(
            [sys.executable, "-m", "monitoring", *words], cwd=REPOSITORY, env=env, capture_output=True, text=True
        )
        assert done.returncode == expect, done.stdout + done.stderr
        return (done.stdout if expect != 2 else done.stderr).splitlines()

    def record(self, interval: int) -> dict[str, object]:
        found: dict[str, object] = json.loads((self.home / "reports" / "monitoring" / f"{interval}.json").read_text())
        return found

    def write(self, table: str, rows: list[dict[str, object]], partition: str) -> None:
        data = pa.Table.from_pylist(rows)
        place = data.schema.get_field_index(partition)
        data = data.set_column(place, partition, data[partition].cast(pa.int32()))
        write_deltalake(self.home / "tables" / table, data, partition_by=[partition], mode="append")

    def lists(self, as_of: int) -> None:
        self.write("training_lists", [{"as_of": as_of, "user_id": "a", "target_items": ["x"]}], "as_of")

    def traffic(self, interval: int, model: str) -> None:
        """Twenty users to whom the model showed one item; all took x, which both baselines showed."""
        rows: list[dict[str, object]] = [
            {"interval": interval, "request_id": f"{interval}-{user}", "user_id": str(user), "model_version": 1}
            | {
                "latency_ms": 2.0,
                "items": [model],
                "popular_items": ["x"],
                "frequent_items": ["x"],
                "taken_items": ["x"],
            }
            for user in range(20)
        ]
        self.write("attributions", rows, "interval")

    def shares(self, **by_interval: str) -> None:
        rows: list[dict[str, object]] = [
            {"interval": int(name[1:]), "category": category, "share": 1.0} for name, category in by_interval.items()
        ]
        self.write("category_shares", rows, "interval")

    def champion(self, as_of: int) -> None:
        client = mlflow.MlflowClient(tracking_uri=self.registry, registry_uri=self.registry)
        client.create_registered_model(MODEL)
        tags = {"as_of": str(as_of), "evaluation": json.dumps({"model": {NDCG: 0.9}}), "gate": "passed"}
        version = client.create_model_version(MODEL, source=str(self.home / "model"), tags=tags)
        client.set_registered_model_alias(MODEL, "champion", version.version)

    def finish(self, key: str, as_of: int, version: int, status: str) -> None:
        folder = self.home / "training" / key
        folder.mkdir(parents=True)
        result = {
            "as_of": as_of,
            "requested_by": "test",
            "status": status,
            "table_versions": {"training_lists": version},
        }
        (folder / "result.json").write_text(json.dumps(result))

    def verdict(self, passed: bool) -> None:
        (self.home / "reports" / "gates").mkdir(parents=True, exist_ok=True)
        failures = [] if passed else [{"table": "items", "column": "name", "rule": "r", "observed": "1 of 2 rows"}]
        (self.home / "reports" / "gates" / "clean.json").write_text(
            json.dumps({"passed": passed, "failures": failures})
        )


@pytest.fixture(scope="session")
def empty_registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The database of a registry without models; making its tables takes seconds, copying it nothing."""
    path = tmp_path_factory.mktemp("registry") / "mlflow.db"
    uri = f"sqlite:///{path}"
    assert not mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri).search_registered_models()
    return path


@pytest.fixture
def installation(tmp_path: Path, empty_registry: Path) -> Installation:
    """An installation without any data."""
    shutil.copy(empty_registry, tmp_path / "mlflow.db")
    return Installation(tmp_path)


def test_without_data_there_is_nothing_to_do(installation: Installation) -> None:
    """No training lists: nothing is pending, nothing is due, and asking for it anyway is bad input."""
    assert installation.run("pending", expect=99) == ["nothing to decide"]
    assert installation.run("should-train", expect=99) == ["no training is due"]
    (line,) = installation.run("should-train", "--force", expect=2)
    assert line.startswith("cartwheel: error: there is no training data yet")
    assert len(installation.run("decide", expect=2)) == 1


def test_the_first_model(installation: Installation) -> None:
    """With no model a training is asked for once, stays due until it finishes, and is not asked for again after."""
    installation.lists(51)
    installation.lists(52)
    assert installation.run("pending") == ["nothing is decided yet for interval 53"]
    assert installation.run("should-train", expect=99) == ["no training is due"]
    assert installation.run("decide") == ["interval 53: retrain: no model is deployed", "retrain"]
    before = (installation.home / "reports" / "monitoring" / "53.json").read_text()
    assert installation.run("decide")[-1] == "retrain"
    assert (installation.home / "reports" / "monitoring" / "53.json").read_text() == before
    assert installation.run("pending", expect=99) == ["nothing to decide"]
    assert installation.run("should-train") == ["no model is deployed", "as_of_53_v1"]

    installation.traffic(52, "x")  # something else is new: decided again, but not asked for again
    assert installation.run("pending") == ["since the decision for interval 53 these have changed: table_versions"]
    lines = installation.run("decide")
    assert "training as_of_53_v1 is already asked for and has not finished" in lines[0]
    assert lines[-1] == "keep"
    assert installation.run("should-train")[-1] == "as_of_53_v1"

    installation.finish("as_of_53_v1", 53, 1, "blocked")
    assert installation.run("should-train", expect=99) == ["no training is due"]
    lines = installation.run("decide")
    assert "a training on this data has finished (blocked)" in lines[0]
    assert lines[-1] == "keep"
    assert installation.run("should-train", expect=99) == ["no training is due"]
    assert installation.run("should-train", "--force")[-1] == "as_of_53_v1"


def test_a_registry_that_does_not_answer_is_said_in_one_line(installation: Installation) -> None:
    """Without MLflow nobody knows which model is deployed: no decision, one line, exit 2, and no file."""
    with socket.socket() as taken:  # bound but not listening: every connection is refused
        taken.bind(("127.0.0.1", 0))
        installation.registry = f"http://127.0.0.1:{taken.getsockname()[1]}"
        installation.lists(52)
        lines = installation.run("decide", expect=2)
    assert lines[-1].startswith("cartwheel: error: the model registry does not answer")
    assert not (installation.home / "reports" / "monitoring" / "53.json").exists()


def test_a_model_that_fares_well_is_kept(installation: Installation) -> None:
    """Fresh model, good traffic, the same categories: keep, with what was observed on file."""
    installation.lists(52)
    installation.champion(as_of=52)
    installation.traffic(52, "x")
    installation.shares(i50="dairy", i51="dairy", i52="dairy")
    lines = installation.run("decide")
    assert lines[0].startswith("interval 53: keep: nothing asks for retraining: model 1 is 1 of 4 intervals old")
    assert lines[-1] == "keep"
    observation = installation.record(53)["observation"]
    assert isinstance(observation, dict)
    assert observation["champion"]["as_of"] == 52
    assert observation["live"]["means"]["model"][NDCG] == 1.0
    assert observation["live_by_version"]["1"]["latency_p50_ms"] == 2.0
    assert observation["drift"] == 0.0
    found = json.loads("\n".join(installation.run("observe", "--interval", "52")))
    assert found["1"]["num_users"] == 20


def test_every_rule_at_once_and_bad_data(installation: Installation) -> None:
    """An old, poor model in a changed world: four reasons; a failed gate forbids training until it passes again."""
    installation.lists(52)
    installation.champion(as_of=49)
    installation.traffic(52, "y")
    installation.shares(i47="dairy", i48="dairy", i52="wine")
    installation.verdict(passed=False)
    lines = installation.run("decide")
    assert lines[0].startswith(
        "interval 53: keep: no training on data that failed a check: gate clean: items.name: 1 of 2"
    )
    assert lines[-1] == "keep"
    assert installation.run("should-train", expect=99) == ["no training is due"]
    installation.verdict(passed=True)
    assert installation.run("pending") == ["since the decision for interval 53 these have changed: failed_gates"]
    lines = installation.run("decide")
    for words in (
        "4 intervals old",
        "100% below",
        "worse live than the popularity",
        "personal_frequency",
        "distance 1.000",
    ):
        assert words in lines[0]
    assert lines[-1] == "retrain"
    assert installation.run("should-train")[-1] == "as_of_53_v0"
