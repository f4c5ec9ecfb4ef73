"""A refreshed model has the weights of the one before, and knows what has happened since."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from mlflow import MlflowClient

from contracts import names, verdicts
from contracts.dataset import load
from contracts.errors import InputError
from contracts.files import write_json
from contracts.settings import settings
from contracts.trainings import REQUEST, TABLES
from contracts.verdicts import FILE, GOLDEN, MANIFEST
from tests.training.tables import write_shop, write_tables
from tests.verbs import MODEL
from training import __main__ as verbs
from training import registry
from training.config import RankerConfig
from training.data import Histories, Shop, load_shop
from training.export import export
from training.features import feature_names
from training.ranker import Ranker
from training.refresh import are_same, config_of, ranker_of, read_weights, refresh

CONFIG = RankerConfig(num_popular=3, top_k=3)


@pytest.fixture(scope="module")
def before(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the shop as of interval 4, of random weights. To be read only."""
    generator, size = np.random.default_rng(3), len(feature_names(CONFIG))
    ranker = Ranker(CONFIG, np.zeros(size, np.float32), np.ones(size, np.float32), 5)
    for variable in ranker.trainable_variables:
        variable.assign(generator.normal(0, 0.2, variable.shape))
    ranker.item_bias.assign([0.1, 0.2, 0.3, 0.4, 0.5])
    folder = tmp_path_factory.mktemp("before") / "saved_model"
    export(ranker, shop, CONFIG, folder)
    return folder


KEY = "5e" * 32


def a_week_later(shop: Shop) -> Shop:
    """As of interval 5 there is `aubergine`, first of all by name, and dan, who took bread three times."""
    statistics = np.vstack([shop.statistics[4][2:3], shop.statistics[4]])
    histories = shop.histories
    return dataclasses.replace(
        shop,
        item_ids=np.array(["aubergine", *shop.item_ids], dtype=object),
        item_types=np.append(1, shop.item_types),
        item_categories=np.append(1, shop.item_categories),
        recommendable=np.append(True, shop.recommendable),
        user_ids=np.array([*shop.user_ids, "dan"], dtype=object),
        histories=Histories(
            np.append(histories.offsets, 9),
            np.append(histories.items + 1, [2, 2, 2]).astype(np.int32),
            np.append(histories.at, [3.1, 3.2, 3.3]),
            np.ones(9, np.float32),
        ),
        lists={},
        statistics={5: statistics},
    )


def items_of(saved_model: Path, user: str) -> list[str]:
    answer = tf.saved_model.load(str(saved_model)).signatures["serving_default"](user_id=tf.constant([user]))
    return [item.decode() for item in answer["items"].numpy()[0]]


@pytest.mark.slow
def test_same_weights_and_newer_data(shop: Shop, before: Path, tmp_path: Path) -> None:
    """Each weight stays with its item although their rows have moved; who is new has a list of their own."""
    later, folder = a_week_later(shop), tmp_path / "after"
    exported, compared = refresh(before, later, CONFIG, folder)
    bias = read_weights(folder).item_bias
    assert bias == pytest.approx({"aubergine": 0, "apple": 0.1, "bread": 0.2, "cheese": 0.3, "dates": 0.4, "fuel": 0.5})
    assert compared["same_weights"] is True
    assert (compared["num_users"], compared["unfit_lists"]) == (4, 0)
    assert "bread" in items_of(folder, "dan")
    assert exported["model_mib"] > 0
    assert (folder / GOLDEN).exists()


@pytest.mark.slow
def test_nothing_new_changes_nothing(shop: Shop, before: Path, tmp_path: Path) -> None:
    """Of the same data it gives the same lists."""
    _, compared = refresh(before, shop, CONFIG, tmp_path / "after")
    assert (compared["kept_share"], compared["coverage_ratio"]) == (1.0, 1.0)
    assert items_of(tmp_path / "after", "ann") == items_of(before, "ann")


def test_another_weight_is_noticed(shop: Shop, before: Path) -> None:
    """One weight, or the bias of one item, makes another model."""
    weights = read_weights(before)
    assert are_same(weights, weights)
    other = {**weights.arrays, "linear": weights.arrays["linear"] + 1}
    assert not are_same(weights, dataclasses.replace(weights, arrays=other))
    assert not are_same(weights, dataclasses.replace(weights, item_bias={**weights.item_bias, "fuel": 0.0}))


def test_a_model_of_other_code_is_refused(before: Path) -> None:
    """Weights that do not fit the features of today's code, or parameters it does not have, ask for a training."""
    weights = read_weights(before)
    short = {**weights.arrays, "mean": weights.arrays["mean"][1:], "deviation": weights.arrays["deviation"][1:]}
    with pytest.raises(InputError, match="of another shape"):
        ranker_of(dataclasses.replace(weights, arrays=short), CONFIG, np.array(["apple"], dtype=object))
    parameters = dataclasses.asdict(CONFIG)
    assert config_of({**parameters, "decay_days": list(CONFIG.decay_days)}) == CONFIG
    with pytest.raises(InputError, match="parameters are others"):
        config_of({**parameters, "dropout": 0.1})


@pytest.fixture
def champion(home: Path, mlflow_store: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    """A registry whose champion, version 1, is of the shop as of interval 4; since then interval 4 has landed."""
    shutil.copy(mlflow_store, home / "mlflow.db")
    monkeypatch.setenv("CARTWHEEL_MLFLOW_TRACKING_URI", f"sqlite:///{home / 'mlflow.db'}")
    monkeypatch.setenv("CARTWHEEL_DATASET", str(write_shop(home)))
    monkeypatch.setenv("CARTWHEEL_GATE_MAX_LATENCY_MS", "1000")
    monkeypatch.setenv("CARTWHEEL_SECRET_VERDICT_KEY", KEY)
    monkeypatch.chdir(home)
    settings.cache_clear()
    write_tables(4)
    shop, config = load_shop(load(settings().dataset_path), {}), RankerConfig(num_popular=11)
    size = len(feature_names(config))
    ranker = Ranker(config, np.zeros(size, np.float32), np.ones(size, np.float32), 12)
    evaluation: dict[str, Any] = {
        "dataset": "tiny",
        "as_of": 4,
        "requested_by": "monitoring",
        "commit": "abc",
        "parameters": dataclasses.asdict(config),
        "table_versions": dict(shop.versions),
        "means": {"model": {"ndcg_at_10": 0.3}},
        "folds": [{"as_of": 3, "means": {"model": {"ndcg_at_10": 0.3}}}],
        "export": export(ranker, shop, config, home / "trained" / "saved_model"),
    }
    write_json(home / "trained" / "evaluation.json", evaluation)
    run_id = registry.log_run("as_of_4_v0", evaluation, home / "trained")
    version = registry.register(run_id, evaluation, {"passed": True, "rules": []})
    shutil.rmtree(home / "tables")
    write_tables(5)
    client = MlflowClient(tracking_uri=settings().mlflow_uri, registry_uri=settings().mlflow_uri)
    client.set_registered_model_alias(MODEL, names.CHAMPION, str(version))
    return client


@pytest.mark.slow
def test_from_champion_to_challenger(champion: MlflowClient, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Asked for on the newest data, it is one run and one version however often each verb is run, and says whose weights
    it has; the gate lets it pass on data that was checked, and not on data that was not.
    """
    versions = {table.name: 0 for table in TABLES}
    data = {"as_of": 5, "versions": versions, "checked_versions": versions}
    for key, checked in (("refresh_a", {}), ("refresh_b", versions)):
        write_json(settings().training_dir / key / REQUEST, {"version": 1, **data, "checked_versions": checked})
        for _ in range(2):
            verbs.refresh(key, "monitoring")
    with pytest.raises(SystemExit):
        verbs.gate("refresh_a")
    assert "FAIL   data_was_checked" in capsys.readouterr().out
    verbs.gate("refresh_b")
    for _ in range(2):
        verbs.register("refresh_b")
    versions_there = champion.search_model_versions(f"name = '{MODEL}'")
    assert sorted(int(version.version) for version in versions_there) == [1, 2]
    refreshed = champion.get_model_version_by_alias(MODEL, names.CHALLENGER)
    assert (int(refreshed.version), refreshed.tags["as_of"], refreshed.tags["refresh_of_version"]) == (2, "5", "1")
    assert json.loads(refreshed.tags["evaluation"]) == {"model": {"ndcg_at_10": 0.3}}
    result = json.loads((settings().training_dir / "refresh_b" / "result.json").read_text())
    assert (result["status"], result["version"], result["refresh"]["version"]) == ("registered", 2, 1)
    # What was taken in interval 4 is known now.
    assert items_of(settings().training_dir / "refresh_b" / "saved_model", "u0")[0] == "i04"
    assert not (settings().training_dir / "refresh_b" / "work").exists()


@pytest.mark.slow
def test_a_challenger_is_scored_beside_the_champion_and_may_be_forced(
    champion: MlflowClient, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the lists of interval 4, which neither has learned from. What the gate blocks a person may let pass, by name and
    with a reason, for all to see; the verdict names the very files, and stays with the version.
    """
    for name, value in {"FOLD_OFFSETS": "1", "TRAINING_INTERVALS": "2", "TRAINING_EPOCHS": "1"}.items():
        monkeypatch.setenv(f"CARTWHEEL_{name}", value)
    settings.cache_clear()
    verbs.train("by_hand", "me")
    evaluation = json.loads((settings().training_dir / "by_hand" / "evaluation.json").read_text())
    assert (evaluation["champion"], evaluation["trained_as_of"]) == ({"version": 1, "trained_as_of": 4}, 5)
    assert evaluation["paired"]["champion"]["ndcg_at_10"]["num_users"] == 4
    assert "champion" in evaluation["folds"][0]["means"]
    with pytest.raises(SystemExit):
        verbs.gate("by_hand")
    printed = capsys.readouterr().out
    assert "version 1 has" in printed
    assert "FAIL   data_was_checked" in printed
    with pytest.raises(InputError, match="the gate has not passed by_hand"):
        verbs.register("by_hand")
    with pytest.raises(InputError, match="takes both --force and --reason"):
        verbs.gate("by_hand", force=True)

    def killed(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(registry, "log_verdict", killed)  # before the verdict is on the run: registering puts it there
        with pytest.raises(KeyboardInterrupt):
            verbs.gate("by_hand", force=True, reason="a new code, looked at")
    verbs.register("by_hand")
    version = champion.get_model_version_by_alias(MODEL, names.CHALLENGER)
    assert version.tags["gate"] == "forced"
    note = champion.get_run(version.run_id).data.tags["mlflow.note.content"]
    assert "### The gate: forced" in note
    assert "a new code, looked at" in note
    assert "| ✗ | data_was_checked | no data gate has passed" in note
    assert version.tags["gate.forced"].endswith(": a new code, looked at")
    assert "data_was_checked" in version.tags["gate.failed"]
    verdict = json.loads(Path(champion.download_artifacts(version.run_id, FILE, str(home))).read_text())
    model = Path(champion.download_artifacts(version.run_id, "model", str(home)))
    assert verdicts.check(verdict, KEY, where="it") == hashlib.sha256((model / MANIFEST).read_bytes()).hexdigest()


def test_nothing_is_refreshed_that_was_not_asked_for(champion: MlflowClient) -> None:
    """Without a request, and of a version that is not there, it is one line."""
    with pytest.raises(InputError, match="no refresh refresh_c is asked for"):
        verbs.refresh("refresh_c", "me")
    write_json(
        settings().training_dir / "refresh_c" / REQUEST,
        {"version": 7, "as_of": 5, "versions": {}, "checked_versions": {}},
    )
    with pytest.raises(InputError, match="version 7 cannot be fetched"):
        verbs.refresh("refresh_c", "me")
