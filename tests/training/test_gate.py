"""Each way of failing the gate, one at a time."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest

from contracts.metrics import METRICS, OFFLINE_BASELINES
from training.gate import Limits, judge

LIMITS = Limits(confidence=0.95, tolerance=0.05, passes_unsure=False, max_model_mib=100, max_latency_ms=10)


def pair(lower: float | None, upper: float | None, *, num_users: int = 100) -> dict[str, Any]:
    """A difference to something that has 0.2: a twentieth of that, 0.01, may be lost."""
    bounds = {"mean": 0.0, "lower": lower, "upper": upper}
    return dict.fromkeys(METRICS, bounds | {"num_lists": 200, "num_users": num_users, "theirs": 0.2})


GOOD: dict[str, Any] = {
    "folds": [{"as_of": 5, "paired": {"personal_frequency": pair(0.01, 0.03), "champion": pair(-0.02, 0.01)}}],
    "segments": {"new_users": {"paired": {"personal_frequency": pair(0.0, 0.1)}}},
    "paired": {name: pair(0.01, 0.03) for name in OFFLINE_BASELINES} | {"champion": pair(-0.009, 0.001)},
    "champion": {"version": 3, "trained_as_of": 4},
    "table_versions": {"training_lists": 3, "items": 1},
    "checked_versions": {"training_lists": 3, "items": 1, "silver_events": 8},
    "export": {"model_mib": 20.0, "predict_p50_ms": 1.0},
}


def changed(path: list[Any], value: Any) -> dict[str, Any]:
    evaluation = copy.deepcopy(GOOD)
    place = evaluation
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return evaluation


def failed(evaluation: dict[str, Any]) -> list[str]:
    return [rule.name for rule in judge(evaluation, LIMITS) if not rule.passed]


def test_a_good_model_passes() -> None:
    """Nothing fails when every rule holds."""
    assert failed(GOOD) == []


@pytest.mark.parametrize(
    ("path", "value", "rule"),
    [
        (["folds"], [], "evaluated"),
        (["paired", "popularity"], pair(-0.03, -0.001), "beats_popularity_ndcg_at_10"),
        (["paired", "personal_frequency"], pair(-0.03, 0.0), "beats_personal_frequency_recall_at_10"),
        (["paired", "decayed_frequency"], pair(-0.03, -0.01), "beats_decayed_frequency_ndcg_at_10"),
        (["paired", "popularity"], {}, "beats_popularity_ndcg_at_10"),
        (["paired", "champion"], pair(-0.03, -0.011), "not_worse_than_champion_ndcg_at_10"),
        (["folds", 0, "paired", "champion"], pair(-0.03, -0.011), "holds_in_interval_5"),
        (["segments", "new_users", "paired", "personal_frequency"], pair(-0.03, -0.011), "holds_in_new_users"),
        (["table_versions", "items"], 2, "data_was_checked"),
        (["table_versions"], {}, "data_was_checked"),
        (["checked_versions"], {}, "data_was_checked"),
        (["export", "model_mib"], 101.0, "model_mib"),
        (["export", "predict_p50_ms"], 11.0, "predict_p50_ms"),
        (["export"], {}, "model_mib"),
    ],
)
def test_each_rule_blocks(path: list[str], value: Any, rule: str) -> None:
    """One thing wrong, or missing, fails the rule that is about it."""
    assert rule in failed(changed(path, value))


@pytest.mark.parametrize("passes_unsure", [False, True])
@pytest.mark.parametrize(
    ("path", "value", "rule"),
    [
        (["paired", "popularity"], pair(-0.001, 0.03), "beats_popularity_ndcg_at_10"),
        (["paired", "popularity"], pair(None, None, num_users=1), "beats_popularity_recall_at_10"),
        (["paired", "champion"], pair(-0.03, 0.03), "not_worse_than_champion_ndcg_at_10"),
        (["paired"], {name: pair(0.01, 0.03) for name in OFFLINE_BASELINES}, "not_worse_than_champion_ndcg_at_10"),
    ],
)
def test_too_few_lists_are_a_setting(path: list[Any], value: Any, rule: str, passes_unsure: bool) -> None:
    """Where the bounds allow either, or the champion cannot be scored, the rule says so, and does what is set."""
    rules = {
        each.name: each
        for each in judge(changed(path, value), dataclasses.replace(LIMITS, passes_unsure=passes_unsure))
    }
    assert (rules[rule].passed, rules[rule].is_sure) == (passes_unsure, False)
    assert "too few lists to tell" in rules[rule].detail
    assert all(each.passed and each.is_sure for name, each in rules.items() if not name.startswith(rule[:16]))


def test_a_champion_that_cannot_be_scored_says_why() -> None:
    """Its code may be older than ours."""
    evaluation = changed(
        ["champion"], {"version": 3, "why_not": "version 3 cannot be scored: its parameters are others"}
    )
    del evaluation["paired"]["champion"]
    [rule] = [each for each in judge(evaluation, LIMITS) if not each.passed]
    assert "its parameters are others" in rule.detail


def test_without_a_champion_there_is_nothing_to_be_held_against() -> None:
    """The first model must beat the baselines."""
    evaluation = changed(["champion"], None)
    assert [rule.name for rule in judge(evaluation, LIMITS) if "champion" in rule.name] == []
    assert failed(evaluation) == []


def test_a_handful_of_users_shows_no_loss() -> None:
    """A segment of 29 users is passed over, and says so."""
    few = changed(["segments", "new_users", "paired", "personal_frequency"], pair(-0.3, -0.2, num_users=29))
    assert failed(few) == []
    assert [rule.detail for rule in judge(few, LIMITS) if not rule.is_sure] == ["too few to tell: 29 users"]


def test_tables_that_no_data_gate_passed_block() -> None:
    """Lists of a data gate that failed are unchecked, so a model trained on them is blocked."""
    assert failed(changed(["checked_versions"], {"items": 1})) == ["data_was_checked"]


REFRESHED: dict[str, Any] = {
    "as_of": 54,
    "folds": [],
    "refresh": {
        "version": 1,
        "as_of": 53,
        "table_versions": GOOD["table_versions"],
        "same_weights": True,
        "num_users": 200,
        "unfit_lists": 0,
        "kept_share": 0.7,
        "coverage_ratio": 1.02,
    },
    **{name: GOOD[name] for name in ("table_versions", "checked_versions", "export")},
}


@pytest.mark.parametrize(
    ("wrong", "rules"),
    [
        ({}, []),
        ({"same_weights": False}, ["same_weights"]),
        ({"as_of": 54}, ["newer_data"]),
        ({"as_of": 54, "table_versions": {"training_lists": 2, "items": 1}}, []),
        ({"as_of": 55, "table_versions": {"training_lists": 2, "items": 1}}, ["newer_data"]),
        ({"unfit_lists": 1}, ["answers_fit"]),
        ({"kept_share": 0.19}, ["answers_kept"]),
        ({"coverage_ratio": 0.49}, ["coverage"]),
        (
            dict.fromkeys(REFRESHED["refresh"]),
            ["same_weights", "newer_data", "answers_fit", "answers_kept", "coverage"],
        ),
    ],
)
def test_a_refreshed_model_must_be_the_same_on_newer_data(wrong: dict[str, Any], rules: list[str]) -> None:
    """It is not evaluated again; each rule fails on its own, and what was not measured fails."""
    assert failed({**REFRESHED, "refresh": {**REFRESHED["refresh"], **wrong}}) == rules
    assert failed({**REFRESHED, "refresh": {**REFRESHED["refresh"], **wrong}, "checked_versions": {}}) == [
        *rules,
        "data_was_checked",
    ]
