"""The key of a training names all that it depends on, and the data is what passed its gates."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import write_deltalake

from contracts import trainings
from contracts.files import write_json
from contracts.gates import verdict_path
from contracts.settings import settings
from contracts.trainings import TrainingData, checked_versions, training_data, training_key


def append(home: Path, table: str, as_of: int) -> None:
    rows = pa.table({"as_of": pa.array([as_of], pa.int32()), "what": ["x"]})
    write_deltalake(home / "tables" / table, rows, partition_by=["as_of"], mode="append")


def verdict(home: Path, passed: bool, **table_versions: int) -> None:
    write_json(verdict_path("features"), {"passed": passed, "table_versions": dict(table_versions)})


def test_a_failed_gate_vouches_for_nothing(home: Path) -> None:
    """What a gate refused is not checked; what another passed is."""
    write_json(verdict_path("clean"), {"passed": True, "table_versions": {"items": 1}})
    write_json(verdict_path("features"), {"passed": False, "table_versions": {"training_lists": 3}})
    assert checked_versions() == {"items": 1}


def test_each_gate_vouches_for_its_own_tables(home: Path) -> None:
    """Features and lists pass by gates of their own; an older verdict does not vouch for lists that were refused."""
    features = {"passed": True, "table_versions": {"item_features": 5, "training_lists": 3}}
    write_json(verdict_path("features"), features)
    write_json(verdict_path("lists"), {"passed": True, "table_versions": {"training_lists": 4}})
    assert checked_versions() == {"item_features": 5, "training_lists": 4}
    write_json(verdict_path("lists"), {"passed": False, "table_versions": {"training_lists": 4}})
    assert checked_versions() == {"item_features": 5}


def test_the_data_of_a_training_is_what_passed_its_gates(home: Path) -> None:
    """While the newest lists have not passed, those that have are read, and the interval is theirs."""
    assert training_data() is None
    append(home, "training_lists", 52)
    append(home, "item_features", 53)
    checked = {"item_features": 0, "training_lists": 0}
    verdict(home, True, **checked)
    append(home, "training_lists", 53)
    append(home, "item_features", 54)
    assert training_data() == TrainingData(53, checked, checked)
    verdict(home, True, training_lists=1, item_features=1)
    data = training_data()
    assert data is not None
    assert (data.as_of, data.versions) == (54, {"item_features": 1, "training_lists": 1})


def test_an_interval_without_lists_is_no_reason_to_stand_still(home: Path) -> None:
    """In interval 53 nobody took anything: the coming interval is 54 all the same."""
    append(home, "training_lists", 52)
    append(home, "item_features", 53)
    append(home, "item_features", 54)
    data = training_data()
    assert data is not None
    assert data.as_of == 54


def test_the_key_names_everything(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another setting, another table, another dataset file or other code is another training; the same is the same."""
    versions = {"training_lists": 7, "items": 2}
    (tmp_path / "shop.toml").write_text("name = 'a'")
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "ranker.py").write_text("1")
    monkeypatch.setenv("CARTWHEEL_DATASET", str(tmp_path / "shop.toml"))
    monkeypatch.setattr(trainings, "REPOSITORY", tmp_path)
    settings.cache_clear()

    def key() -> str:
        return training_key(53, versions)

    keys = [key()]
    assert keys[0].startswith("as_of_53_v7_")
    assert key() == keys[0]
    versions["items"] = 3
    keys.append(key())
    for name, value in (("SEED", "5"), ("TRAINING_EPOCHS", "9"), ("FOLD_OFFSETS", "1,2"), ("TOP_K", "20")):
        monkeypatch.setenv(f"CARTWHEEL_{name}", value)
        settings.cache_clear()
        keys.append(key())
    (tmp_path / "shop.toml").write_text("name = 'b'")
    keys.append(key())
    (tmp_path / "training" / "ranker.py").write_text("2")
    keys.append(key())
    assert len(set(keys)) == len(keys)
