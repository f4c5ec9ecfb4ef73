"""A training that MLflow knows is trained again: the same model, or another one, and why."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from deltalake import DeltaTable

from contracts.errors import InputError
from contracts.settings import settings
from contracts.tables import TRAINING_LISTS
from tests.training.tables import write_shop, write_tables
from training import __main__ as verbs
from training import registry

pytestmark = pytest.mark.slow


def work_in(home: Path, patch: pytest.MonkeyPatch, seed: int) -> None:
    """Point the settings there."""
    for name, value in {
        "HOME": str(home), "MLFLOW_TRACKING_URI": f"sqlite:///{home / 'mlflow.db'}", "DATASET": str(home / "shop.toml"),
        "SEED": str(seed), "FOLD_OFFSETS": "1", "TRAINING_INTERVALS": "2", "TRAINING_EPOCHS": "1",
    }.items():  # fmt: skip
        patch.setenv(f"CARTWHEEL_{name}", value)
    patch.chdir(home)
    settings.cache_clear()


@pytest.fixture(scope="module")
def trained(mlflow_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of a training of a tiny shop; since then the lists have changed. A copy of it lies beside it."""
    home = tmp_path_factory.mktemp("trained") / "home"
    home.mkdir()
    shutil.copy(mlflow_store, home / "mlflow.db")
    write_shop(home)
    with pytest.MonkeyPatch.context() as patch:
        work_in(home, patch, seed=5)
        write_tables(5)
        verbs.train("by_hand", "me")
        DeltaTable(TRAINING_LISTS.uri).delete("as_of = 4")
    settings.cache_clear()
    shutil.copytree(home, home.with_name("copy"))
    return home


@pytest.fixture
def home(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """That home as it was, in the same place, as MLflow knows its paths; since then a setting has changed."""
    shutil.rmtree(trained)
    shutil.copytree(trained.with_name("copy"), trained)
    work_in(trained, monkeypatch, seed=6)
    yield trained
    settings.cache_clear()


@pytest.fixture
def run_id(home: Path) -> str:
    """The run of that training."""
    value: str = json.loads((settings().training_dir / "by_hand" / "run.json").read_text())["run_id"]
    return value


def test_the_same_data_and_seed_make_the_same_model(run_id: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Bit by bit, from what the run says, whatever has become of data and settings; also a second time."""
    for _ in range(2):
        verbs.reproduce(run_id)
        assert capsys.readouterr().out.endswith(
            "made of      the same\nweights      the same, bit by bit\nmetrics      differ by up to 0\nreproduced   yes\n"
        )


def test_other_code_is_no_reproduction(
    run_id: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Though the model is the same one, nobody could tell from what."""
    monkeypatch.setattr(registry, "code_version", lambda: "another")
    with pytest.raises(SystemExit):
        verbs.reproduce(run_id)
    printed = capsys.readouterr().out
    assert "another commit" in printed
    assert "reproduced   NO" in printed


def test_another_model_is_noticed(run_id: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A logged evaluation that says another seed than it was trained with."""
    evaluation = json.loads((settings().training_dir / "by_hand" / "evaluation.json").read_text())
    evaluation["parameters"]["seed"] = 7
    evaluation["means"]["model"]["ndcg_at_10"] += 0.5
    (home / "evaluation.json").write_text(json.dumps(evaluation))
    registry._client().log_artifact(run_id, str(home / "evaluation.json"))
    with pytest.raises(SystemExit):
        verbs.reproduce(run_id)
    printed = capsys.readouterr().out
    assert "weights      differ by up to" in printed
    assert "metrics      differ by up to 0." in printed


def test_data_that_is_gone_is_said_in_words(run_id: str) -> None:
    """An erasure removes the files of old versions. Also that there is no such run."""
    lists = DeltaTable(TRAINING_LISTS.uri)
    assert lists.vacuum(0, dry_run=False, enforce_retention_duration=False)
    with pytest.raises(InputError, match="what it was trained on is not there any more"):
        verbs.reproduce(run_id)
    with pytest.raises(InputError, match="run no_such_run cannot be fetched"):
        verbs.reproduce("no_such_run")
