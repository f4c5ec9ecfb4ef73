"""The verbs as Airflow calls them, over small tables and a model registry of their own."""

from __future__ import annotations

import json
import re
import shutil
import socket
from pathlib import Path

import mlflow
import pyarrow as pa
import pytest
from deltalake import write_deltalake

from contracts.metrics import NDCG
from tests.verbs import MODEL, run_verb


class Home:
    """Tables and a registry, and the verbs run on them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.registry = f"sqlite:///{folder / 'mlflow.db'}"

    def run(self, *words: str, expect: int = 0) -> list[str]:
        environment = {"CARTWHEEL_HOME": str(self.folder), "CARTWHEEL_MLFLOW_TRACKING_URI": self.registry}
        result = run_verb("monitoring", *words, environment=environment)
        assert result.returncode == expect, result.stdout + result.stderr
        lines = (result.stdout if expect != 2 else result.stderr).splitlines()
        return [re.sub(r"(as_of_\d+_v\d+)_[0-9a-f]{8}", r"\1", line) for line in lines]

    def record(self, interval: int) -> dict[str, object]:
        content: dict[str, object] = json.loads(
            (self.folder / "reports" / "monitoring" / f"{interval}.json").read_text()
        )
        return content

    def write(self, table: str, rows: list[dict[str, object]], partition: str) -> None:
        data = pa.Table.from_pylist(rows)
        place = data.schema.get_field_index(partition)
        data = data.set_column(place, partition, data[partition].cast(pa.int32()))
        write_deltalake(self.folder / "tables" / table, data, partition_by=[partition], mode="append")

    def lists(self, as_of: int) -> None:
        self.write("training_lists", [{"as_of": as_of, "user_id": "a", "target_items": ["x"]}], "as_of")
        self.gate("lists", silver=0)
        self.gate("features", silver=0)

    def gate(self, name: str, *, silver: int, passed: bool = True) -> None:
        """What a gate says of what was made of a version of silver."""
        path = self.folder / "reports" / "gates" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"passed": passed, "failures": [], "references": {"silver_events": silver}}))

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

    def items(self, **recommendable: bool) -> None:
        rows = [{"item_id": item, "recommendable": value} for item, value in recommendable.items()]
        write_deltalake(self.folder / "tables" / "items", pa.Table.from_pylist(rows), mode="overwrite")

    def champion(self, as_of: int) -> None:
        client = mlflow.MlflowClient(tracking_uri=self.registry, registry_uri=self.registry)
        client.create_registered_model(MODEL)
        tags = {"as_of": str(as_of), "evaluation": json.dumps({"model": {NDCG: 0.9}}), "items_version": "0"}
        version = client.create_model_version(MODEL, source=str(self.folder / "model"), tags=tags)
        client.set_registered_model_alias(MODEL, "champion", version.version)

    def finish(self, as_of: int, version: int, status: str) -> None:
        """End the training that was asked for last."""
        [folder] = (path.parent for path in self.folder.glob(f"training/as_of_{as_of}_v{version}_*/request.json"))
        result = {
            "as_of": as_of,
            "requested_by": "test",
            "status": status,
            "table_versions": {"training_lists": version},
        }
        (folder / "result.json").write_text(json.dumps(result))

    def verdict(self, passed: bool) -> None:
        (self.folder / "reports" / "gates").mkdir(parents=True, exist_ok=True)
        failures = [] if passed else [{"table": "items", "column": "name", "rule": "r", "observed": "1 of 2 rows"}]
        (self.folder / "reports" / "gates" / "clean.json").write_text(
            json.dumps({"passed": passed, "failures": failures})
        )


@pytest.fixture
def home(tmp_path: Path, mlflow_store: Path) -> Home:
    """An installation without any data."""
    shutil.copy(mlflow_store, tmp_path / "mlflow.db")
    return Home(tmp_path)


def test_without_data_there_is_nothing_to_do(home: Home) -> None:
    """No training lists: nothing is pending, nothing is due, and asking for it anyway is bad input."""
    assert home.run("pending", expect=99) == ["nothing to decide"]
    assert home.run("should-train", expect=99) == ["no training is due"]
    (line,) = home.run("should-train", "--force", expect=2)
    assert line.startswith("cartwheel: error: there is no training data yet")
    assert len(home.run("decide", expect=2)) == 1


def test_the_first_model(home: Home) -> None:
    """With no model a training is asked for once, stays due until it finishes, and is not asked for again after."""
    home.lists(51)
    home.lists(52)
    assert home.run("pending") == ["nothing is decided yet for interval 53"]
    assert home.run("should-train", expect=99) == ["no training is due"]
    assert home.run("decide") == ["interval 53: retrain: no model is deployed, or it was deleted in MLflow", "retrain"]
    before = (home.folder / "reports" / "monitoring" / "53.json").read_text()
    assert home.run("decide")[-1] == "retrain"
    assert (home.folder / "reports" / "monitoring" / "53.json").read_text() == before
    assert home.run("pending", expect=99) == ["nothing to decide"]
    assert home.run("should-train") == ["no model is deployed, or it was deleted in MLflow", "as_of_53_v1"]

    home.traffic(52, "x")  # something else is new: decided again, but not asked for again
    assert home.run("pending") == ["since the decision for interval 53 these have changed: table_versions"]
    lines = home.run("decide")
    assert "training as_of_53_v1 is already asked for and has not finished" in lines[0]
    assert lines[-1] == "keep"
    assert home.run("should-train")[-1] == "as_of_53_v1"

    home.finish(53, 1, "blocked")
    assert home.run("should-train", expect=99) == ["no training is due"]
    lines = home.run("decide")
    assert "a training on this data has finished (blocked)" in lines[0]
    assert lines[-1] == "keep"
    assert home.run("should-train", expect=99) == ["no training is due"]
    assert home.run("should-train", "--force")[-1] == "as_of_53_v1_2"  # by hand, it is trained again
    read = json.loads(next(home.folder.glob("training/*_2/request.json")).read_text())
    assert read == {"as_of": 53, "versions": {"training_lists": 1}, "checked_versions": {}}


def test_a_registry_that_does_not_answer_is_said_in_one_line(home: Home) -> None:
    """Without MLflow nobody knows which model is deployed: no decision, one line, exit 2, and no file."""
    with socket.socket() as listener:  # bound but not listening: every connection is refused
        listener.bind(("127.0.0.1", 0))
        home.registry = f"http://127.0.0.1:{listener.getsockname()[1]}"
        home.lists(52)
        lines = home.run("decide", expect=2)
    assert lines[-1].startswith("cartwheel: error: the model registry does not answer")
    assert not (home.folder / "reports" / "monitoring" / "53.json").exists()


def test_a_model_that_fares_well_is_kept(home: Home) -> None:
    """Fresh model, good traffic, the same categories: keep, with what was observed on file."""
    home.lists(52)
    home.champion(as_of=52)
    home.traffic(52, "x")
    home.shares(i48="dairy", i49="dairy", i50="wine", i51="dairy", i52="dairy")
    lines = home.run("decide")
    assert lines[0].startswith("interval 53: refresh: nothing asks for retraining: model 1 is 1 of 4 intervals old")
    assert lines[-1] == "refresh"
    observation = home.record(53)["observation"]
    assert isinstance(observation, dict)
    assert observation["champion"]["as_of"] == 52
    assert observation["live"]["means"]["model"][NDCG] == 1.0
    assert observation["live_by_version"]["1"]["latency_p50_ms"] == 2.0
    assert observation["drift"] == 0.0
    live = json.loads("\n".join(home.run("observe", "--interval", "52")))
    assert live["1"]["num_users"] == 20


def test_a_request_stays_open_until_a_training_has_finished(home: Home) -> None:
    """A training that was asked for and has not run is still due when the next interval is as usual, on its data."""
    home.lists(51)
    home.lists(52)
    home.champion(as_of=51)
    home.shares(i48="dairy", i49="dairy", i50="dairy", i51="wine", i52="wine")
    assert home.run("decide")[-1] == "retrain"
    assert home.run("should-train")[-1] == "as_of_53_v1"
    home.lists(53)
    home.shares(i53="dairy")
    assert home.run("decide")[-1] == "refresh"
    assert home.run("should-train")[-1] == "as_of_54_v2"
    home.finish(54, 2, "registered")
    assert home.run("should-train", expect=99) == ["no training is due"]


def test_newer_data_is_asked_for_once(home: Home) -> None:
    """Due until it has finished, on the data of then, which is put on file; with newer data it is due again."""
    (line,) = home.run("should-refresh", "--force", expect=2)
    assert line.startswith("cartwheel: error: there is nothing to refresh")
    home.lists(51)
    home.champion(as_of=51)
    assert home.run("should-refresh", expect=99) == ["no refresh is due"]
    assert home.run("decide")[-1] == "refresh"
    reason, key = home.run("should-refresh")
    assert reason.endswith("version 1 lacks what was taken since interval 50: the same weights with newer data")
    assert key.startswith("refresh_of_1_as_of_52_v0")
    [folder] = (path.parent for path in home.folder.glob("training/refresh_of_1_as_of_52_v0_*/request.json"))
    assert json.loads((folder / "request.json").read_text()) == {
        "version": 1,
        "as_of": 52,
        "versions": {"training_lists": 0},
        "checked_versions": {},
    }
    (folder / "result.json").write_text(json.dumps({"status": "blocked", "as_of": 52, "refresh": {"version": 1}}))
    assert home.run("should-refresh", expect=99) == ["no refresh is due"]
    assert home.run("pending") == ["since the decision for interval 52 these have changed: refreshed"]
    assert home.run("decide")[-1] == "keep"
    assert home.run("should-refresh", "--force")[-1].endswith("_2")  # by hand, it is done again
    home.lists(52)
    assert home.run("should-refresh", expect=99) == ["no refresh is due"]  # nothing is decided yet
    client = mlflow.MlflowClient(tracking_uri=home.registry, registry_uri=home.registry)
    challenger = client.create_model_version(MODEL, source=str(home.folder / "model")).version
    client.set_registered_model_alias(MODEL, "challenger", challenger)
    assert home.run("decide")[0].endswith("version 2 is on its way: no refresh meanwhile")
    client.delete_registered_model_alias(MODEL, "challenger")  # rejected
    assert home.run("pending") == ["since the decision for interval 53 these have changed: challenger_version"]
    assert home.run("decide")[-1] == "refresh"
    assert home.run("should-refresh")[-1].startswith("refresh_of_1_as_of_53_v1")


def test_a_champion_that_was_deleted_in_mlflow(home: Home) -> None:
    """Nobody can judge it any more: another is asked for."""
    home.lists(52)
    home.champion(as_of=52)
    # As text the version leaves its alias behind (mlflow/mlflow#24825).
    mlflow.MlflowClient(tracking_uri=home.registry, registry_uri=home.registry).delete_model_version(MODEL, "1")
    assert home.run("decide")[-1] == "retrain"


def test_a_withdrawn_item_is_recommended_no_longer(home: Home) -> None:
    """The champion is refreshed when one of its items may not be recommended any more, or is gone; a new one is no reason."""
    home.lists(52)
    home.items(apple=True, bread=True, postage=False)
    home.champion(as_of=53)
    assert home.run("decide")[-1] == "keep"
    home.items(apple=True, bread=True, postage=False, milk=True)
    assert home.run("pending", expect=99) == ["nothing to decide"]
    home.items(apple=True, bread=False, postage=False, milk=True)
    assert home.run("pending") == ["since the decision for interval 53 these have changed: withdrawn_items"]
    assert home.run("should-refresh", expect=99) == ["no refresh is due"]
    line, verb = home.run("decide")
    assert "version 1 may recommend what is withdrawn (1: bread)" in line
    assert verb == "refresh"
    assert home.run("should-refresh")[-1] == "refresh_of_1_as_of_53_v0"


def test_what_no_gate_has_looked_at_is_not_there_yet(home: Home) -> None:
    """While features are computed and checked nothing is decided, nor trained, not even by the clock."""
    home.lists(52)
    for gate in ("lists", "features"):
        (home.folder / "reports" / "gates" / f"{gate}.json").unlink()
    assert home.run("pending", expect=99) == ["nothing to decide"]
    home.gate("lists", silver=1)
    assert home.run("pending", expect=99) == ["nothing to decide"]
    home.gate("features", silver=0)  # of the interval before
    assert home.run("pending", expect=99) == ["nothing to decide"]
    home.gate("features", silver=1)
    assert home.run("pending") == ["nothing is decided yet for interval 53"]
    assert home.run("decide")[-1] == "retrain"
    home.gate("lists", silver=2)
    assert home.run("should-train", expect=99) == ["no training is due"]
    home.gate("features", silver=2)
    assert home.run("should-train")[-1] == "as_of_53_v0"
    home.gate("lists", silver=3, passed=False)  # which somebody is to be told
    assert home.run("pending") == ["since the decision for interval 53 these have changed: failed_gates"]


def test_every_rule_at_once_and_bad_data(home: Home) -> None:
    """An old, poor model in a changed world: four reasons; a failed gate forbids training until it passes again."""
    home.lists(52)
    home.champion(as_of=49)
    home.traffic(52, "y")
    home.shares(i46="dairy", i47="dairy", i48="dairy", i51="wine", i52="wine")
    home.verdict(passed=False)
    lines = home.run("decide")
    assert lines[0].startswith(
        "interval 53: keep: no training on data that failed a check: gate clean: items.name: 1 of 2"
    )
    assert lines[-1] == "keep"
    assert home.run("should-train", expect=99) == ["no training is due"]
    home.verdict(passed=True)
    assert home.run("pending") == ["since the decision for interval 53 these have changed: failed_gates"]
    lines = home.run("decide")
    for words in (
        "4 intervals old",
        "100% below",
        "worse live than the popularity",
        "personal_frequency",
        "distance 1.000",
    ):
        assert words in lines[0]
    assert lines[-1] == "retrain"
    assert home.run("should-train")[-1] == "as_of_53_v0"
