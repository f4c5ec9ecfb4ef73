"""The gate between training and deployment: explicit rules, each with its numbers, closed unless all pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from contracts.metrics import BASELINES, NDCG, RECALL

MIN_KEPT_SHARE = 0.2
"""Of a user's list that a refreshed model must share with the one before: an interval changes some of it, not all."""
MIN_COVERAGE_RATIO = 0.5
"""Of the number of distinct items: histories that were lost give everybody the same best sellers."""


@dataclass(frozen=True)
class Rule:
    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class Limits:
    confidence: float
    max_model_mib: float
    max_latency_ms: float


def judge(evaluation: Mapping[str, Any], limits: Limits) -> list[Rule]:
    """Every rule's verdict. A number that is missing fails its rule.

    Args:
        evaluation: what `training.evaluation.report` wrote, or of a refreshed model `refresh`; with `export`,
            `table_versions` (those trained on) and `checked_versions` (those that data gates had passed when training
            began).
    """
    return [
        *(_is_sane(evaluation) if "refresh" in evaluation else _is_better(evaluation, limits)),
        *_fits(evaluation, limits),
    ]


def _is_sane(evaluation: Mapping[str, Any]) -> list[Rule]:
    """Same weights, newer data, answers that a shopper would not wonder at: it was evaluated when it was trained."""
    refreshed = evaluation["refresh"]
    as_of, before = evaluation.get("as_of"), refreshed.get("as_of")
    # Of the same interval, too: something came late, or a user was erased.
    is_newer = None not in (as_of, before) and (
        as_of > before or (as_of == before and evaluation.get("table_versions") != refreshed.get("table_versions"))
    )
    kept, coverage, unfit = (refreshed.get(name) for name in ("kept_share", "coverage_ratio", "unfit_lists"))
    of_users = f"of {refreshed.get('num_users')} users"
    return [
        Rule("same_weights", refreshed.get("same_weights") is True, f"those of version {refreshed.get('version')}"),
        Rule(
            "newer_data",
            is_newer,
            f"for interval {as_of}, before {before}"
            + (", of the same tables" if as_of == before and not is_newer else ""),
        ),
        Rule("answers_fit", unfit == 0, f"{unfit} lists {of_users} are not of distinct items that may be recommended"),
        Rule(
            "answers_kept",
            kept is not None and kept >= MIN_KEPT_SHARE,
            "not measured"
            if kept is None
            else f"{kept:.0%} of a list was in the one before, {of_users}; {MIN_KEPT_SHARE:.0%} must",
        ),
        Rule(
            "coverage",
            coverage is not None and coverage >= MIN_COVERAGE_RATIO,
            "not measured"
            if coverage is None
            else f"{coverage:.2f} of the distinct items before, at least {MIN_COVERAGE_RATIO:g}",
        ),
    ]


def _is_better(evaluation: Mapping[str, Any], limits: Limits) -> list[Rule]:
    rules = [Rule("evaluated", bool(evaluation.get("folds")), f"{len(evaluation.get('folds', []))} rolling intervals")]
    for baseline in BASELINES:
        for metric in (NDCG, RECALL):
            pair = evaluation.get("paired", {}).get(baseline, {}).get(metric)
            rules.append(
                Rule(
                    f"beats_{baseline}_{metric}",
                    pair is not None and pair["lower"] > 0,
                    "not measured"
                    if pair is None
                    else f"difference {pair['mean']:+.4f}, at least {pair['lower']:+.4f} with {limits.confidence:.0%} confidence, "
                    f"{pair['num_users']} lists",
                )
            )
    return rules


def _fits(evaluation: Mapping[str, Any], limits: Limits) -> list[Rule]:
    """Made of data that was checked, and small and fast enough to serve."""
    rules = []
    trained_on, checked = evaluation.get("table_versions", {}), evaluation.get("checked_versions", {})
    unchecked = sorted(name for name, version in trained_on.items() if checked.get(name) != version)
    rules.append(
        Rule(
            "data_was_checked",
            bool(trained_on) and not unchecked,
            f"no data gate has passed the version trained on of: {', '.join(unchecked)}"
            if unchecked
            else f"{len(trained_on)} tables",
        )
    )
    export = evaluation.get("export", {})
    for name, limit, unit in (
        ("model_mib", limits.max_model_mib, "MiB"),
        ("predict_p50_ms", limits.max_latency_ms, "ms"),
    ):
        value = export.get(name)
        detail = "not measured" if value is None else f"{value:.1f} {unit} of {limit:g}"
        rules.append(Rule(name, value is not None and value <= limit, detail))
    return rules


def verdict(rules: list[Rule]) -> dict[str, Any]:
    """The verdict as JSON."""
    return {"passed": bool(rules) and all(rule.passed for rule in rules), "rules": [asdict(rule) for rule in rules]}


def described(rules: list[Rule]) -> str:
    """The verdict as lines a person reads."""
    return "\n".join(f"{'pass' if rule.passed else 'FAIL'}  {rule.name:<44} {rule.detail}" for rule in rules)
