"""The gate between training and deployment: explicit rules, each with its numbers, closed unless all pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from contracts.metrics import BASELINES, NDCG, RECALL


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
        evaluation: what `training.evaluation.report` wrote, with `export`, `table_versions` (those trained on) and
            `checked_versions` (those that data gates had passed when training began).
    """
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
