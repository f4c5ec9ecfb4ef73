"""Each way of failing the gate, one at a time."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from contracts.metrics import BASELINES, METRICS
from training.gate import Limits, judge, verdict

LIMITS = Limits(confidence=0.95, max_model_mib=100, max_latency_ms=10)
GOOD: dict[str, Any] = {
    "folds": [{"as_of": 5}],
    "paired": {
        name: {metric: {"mean": 0.02, "lower": 0.01, "num_users": 100} for metric in METRICS} for name in BASELINES
    },
    "table_versions": {"training_lists": 3, "items": 1},
    "checked_versions": {"training_lists": 3, "items": 1, "silver_events": 8},
    "export": {"model_mib": 20.0, "predict_p50_ms": 1.0},
}


def changed(path: list[str], value: Any) -> dict[str, Any]:
    evaluation = copy.deepcopy(GOOD)
    place = evaluation
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return evaluation


def failed(evaluation: dict[str, Any]) -> list[str]:
    rules = judge(evaluation, LIMITS)
    assert verdict(rules)["passed"] == all(rule.passed for rule in rules)
    return [rule.name for rule in rules if not rule.passed]


def test_a_good_model_passes() -> None:
    """Nothing fails when every rule holds."""
    assert failed(GOOD) == []


@pytest.mark.parametrize(
    ("path", "value", "rule"),
    [
        (["folds"], [], "evaluated"),
        (["paired", "popularity", "ndcg_at_10", "lower"], -0.001, "beats_popularity_ndcg_at_10"),
        (["paired", "personal_frequency", "ndcg_at_10", "lower"], 0.0, "beats_personal_frequency_ndcg_at_10"),
        (["paired", "personal_frequency", "recall_at_10", "lower"], -0.1, "beats_personal_frequency_recall_at_10"),
        (["paired", "popularity"], {}, "beats_popularity_ndcg_at_10"),
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


def test_no_rules_is_no_pass() -> None:
    """An empty verdict is closed."""
    assert verdict([])["passed"] is False


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
