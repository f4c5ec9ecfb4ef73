"""A search of two epochs and twelve items: each trial once, whatever is killed; the best beside what there is."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from mlflow import MlflowClient
from optuna.trial import TrialState, create_trial

from contracts import names
from contracts.errors import InputError
from contracts.metrics import NDCG
from contracts.names import NOTHING_TO_DO
from contracts.settings import settings
from tests.training.tables import write_shop, write_tables
from tests.verbs import run_killed_verb, run_verb
from training import search
from training.config import RankerConfig, from_settings

CONFIG = RankerConfig()


def test_the_configuration_there_is_lies_in_the_space() -> None:
    """Also one whose parts nobody would try; a point and its configuration are one."""
    odd = replace(CONFIG, hidden_units=(7,), learning_rate=0.5, lists_a_batch=3, epochs=40)
    for config in (CONFIG, odd):
        point, space = search.point(config), search.space(config)
        assert point.keys() == space.keys()
        assert all(space[name]._contains(space[name].to_internal_repr(value)) for name, value in point.items())
        assert search.at(point, CONFIG) == replace(config, seed=CONFIG.seed)


def ended(study: optuna.Study, task: int, state: TrialState) -> None:
    """A trial of a task."""
    trial = study.ask(search.space(CONFIG))
    trial.set_user_attr(search.TASK, task)
    study.tell(trial, values=0.5 if state == TrialState.COMPLETE else None, state=state)


def test_who_has_a_trial_to_make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not whose trial has ended, and nobody when the minutes are used up; one that failed is made again."""
    study = search.open_study(tmp_path, 1)
    ended(study, 0, TrialState.COMPLETE)
    ended(study, 1, TrialState.FAIL)
    monkeypatch.setattr(search, "spent_minutes", lambda study: 3.0)
    assert [search.needs_trial(study, task, 3.1) for task in range(3)] == [False, True, True]
    assert [search.needs_trial(study, task, 3.0) for task in range(3)] == [False] * 3


def test_minutes_are_those_of_all_trials(tmp_path: Path) -> None:
    from datetime import datetime, timedelta

    study, start = search.open_study(tmp_path, 1), datetime(2026, 1, 1)
    for minutes in (2, 5):
        trial = create_trial(value=0.5)
        trial.datetime_start, trial.datetime_complete = start, start + timedelta(minutes=minutes)
        study.add_trial(trial)
    assert search.spent_minutes(study) == pytest.approx(7)


def with_trials(folder: Path, ndcg: dict[int, list[float]]) -> optuna.Study:
    """A study whose trials scored so for users 0, 1, ...; the first is the configuration there is."""
    study = search.open_study(folder, 1)
    search.begin(folder, CONFIG)
    (folder / "trials").mkdir()
    for number, scores in ndcg.items():
        trial = study.ask(search.space(CONFIG))
        assert trial.number == number
        np.savez(folder / "trials" / f"{number}.npz", users=np.arange(len(scores)), ndcg=np.array(scores))
        study.tell(trial, float(np.mean(scores)))
    return study


def test_the_best_is_held_against_what_there_is(tmp_path: Path) -> None:
    """Over the same lists: a gain of 0.1 for each of four users is sure; the proposal names what differs, and no more."""
    study = with_trials(tmp_path, {0: [0.1, 0.2, 0.3, 0.4], 1: [0.2, 0.3, 0.4, 0.5], 2: [0.0, 0.0, 0.0, 0.0]})
    proposal = search.propose(study, tmp_path, CONFIG, 0.95)
    assert (proposal.best, proposal.first, proposal.is_better) == (1, 0, True)
    assert proposal.gain["mean"] == pytest.approx(0.1)
    assert [row["trial"] for row in proposal.trials] == [1, 0, 2]
    assert proposal.changes
    assert search.at(study.trials[1].params, CONFIG) == replace(CONFIG, **proposal.changes)
    assert json.loads((tmp_path / "proposal.json").read_text())["best"] == 1
    assert len(search.plot(proposal).axes) == 6


def test_a_gain_that_may_be_chance_is_no_better(tmp_path: Path) -> None:
    study = with_trials(tmp_path, {0: [0.1, 0.2, 0.3, 0.4], 1: [0.9, 0.0, 0.3, 0.0]})
    proposal = search.propose(study, tmp_path, CONFIG, 0.95)
    assert (proposal.best, proposal.is_better) == (1, False)


def test_without_what_there_is_nothing_is_proposed(tmp_path: Path) -> None:
    search.begin(tmp_path, CONFIG)
    with pytest.raises(InputError, match="nothing can be held against it"):
        search.propose(search.open_study(tmp_path, 1), tmp_path, CONFIG, 0.95)


@pytest.mark.parametrize(
    ("value", "why"),
    [('{"learning_rat": 1}', "learning_rat"), ('{"epochs": "many"}', "epochs"), ("[1]", "CARTWHEEL_RANKER")],
)
def test_a_configuration_that_is_none_is_refused(value: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CARTWHEEL_RANKER", value)
    settings.cache_clear()
    with pytest.raises(InputError, match=why):
        from_settings()
    settings.cache_clear()


def test_a_proposal_is_taken_up_as_it_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tuples are lists in JSON; the rest stays as the other settings say."""
    monkeypatch.setenv("CARTWHEEL_RANKER", '{"hidden_units": [64, 32], "learning_rate": 0.001}')
    monkeypatch.setenv("CARTWHEEL_TRAINING_INTERVALS", "3")
    settings.cache_clear()
    config = from_settings()
    settings.cache_clear()
    assert (config.hidden_units, config.learning_rate, config.training_intervals) == ((64, 32), 0.001, 3)


@pytest.fixture
def environment(tmp_path: Path, mlflow_store: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Of a tiny shop, with an MLflow of its own."""
    import shutil

    shutil.copy(mlflow_store, tmp_path / "mlflow.db")
    chosen = {
        "CARTWHEEL_HOME": str(tmp_path),
        "CARTWHEEL_DATASET": str(write_shop(tmp_path)),
        "CARTWHEEL_MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}",
        "CARTWHEEL_FOLD_OFFSETS": "1,2",
        "CARTWHEEL_TRAINING_INTERVALS": "2",
        "CARTWHEEL_TRAINING_EPOCHS": "2",
    }
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    settings.cache_clear()
    write_tables(8)
    return chosen


@pytest.mark.slow
def test_a_search_from_its_beginning_to_its_proposal(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial that is killed is made again with the same configuration; done twice, nothing is done the second time.
    What is not worth going on with ends after its first interval.
    """

    def verb(*words: str) -> Any:
        return run_verb("training", *words, environment=environment)

    key = verb("search").stdout.split()[-1]
    assert key.startswith("search_as_of_8_")
    assert verb("search").stdout.split()[-1] == key
    killed = run_killed_verb(
        "training", "trial", "--key", key, "--task", "0", at="search._scores", environment=environment
    )
    assert killed == -signal.SIGKILL
    for task in ("0", "1", "2"):
        ended = verb("trial", "--key", key, "--task", task)
        assert ended.returncode == 0, ended.stderr
    assert verb("trial", "--key", key, "--task", "1").returncode == NOTHING_TO_DO
    assert verb("trial", "--key", key, "--task", "3", "--minutes", "0").returncode == NOTHING_TO_DO
    monkeypatch.setattr(optuna.trial.Trial, "should_prune", lambda trial: True)
    assert "as of 7" not in verb("trial", "--key", key, "--task", "4").stdout
    study = search.open_study(tmp_path / "training" / key, 0)
    states = [trial.state for trial in study.trials]
    assert states == [TrialState.FAIL, *[TrialState.COMPLETE] * 3, TrialState.PRUNED]
    assert study.trials[0].params == study.trials[1].params == search.point(from_settings())
    for _ in range(2):
        ended = verb("propose", "--key", key)
        assert ended.returncode == 0, ended.stderr
    assert "configurations tried" in ended.stdout
    client = MlflowClient(tracking_uri=environment["CARTWHEEL_MLFLOW_TRACKING_URI"])
    experiment = client.get_experiment_by_name(names.EXPERIMENT)
    [run] = client.search_runs([experiment.experiment_id])
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == {
        "proposal.json",
        "trials.json",
        "trials.png",
    }
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, f"trial.{NDCG}")] == [1, 2, 3, 4]
    assert not (tmp_path / "training" / key / "work").exists()
