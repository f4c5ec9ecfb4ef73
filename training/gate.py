"""The gate between training and deployment: explicit rules, each with its numbers, closed unless all pass."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from contracts.metrics import NDCG, OFFLINE_BASELINES, PERSONAL_FREQUENCY, RECALL
from contracts.names import CHAMPION

MIN_USERS = 30
"""In a fold or a segment, to tell whether the model has lost there."""
MIN_KEPT_SHARE = 0.2
"""Of a user's list that a refreshed model must share with the one before: an interval changes some of it, not all."""
MIN_COVERAGE_RATIO = 0.5
"""Of the number of distinct items: histories that were lost give everybody the same best sellers."""


@dataclass(frozen=True)
class Rule:
    name: str
    passed: bool
    detail: str
    is_sure: bool = True
    """False: too few lists to tell, and `passed` is what the settings want then."""


@dataclass(frozen=True)
class Limits:
    confidence: float
    tolerance: float
    """Share of the champion's metric, or of a baseline's in a fold or a segment, that the model may lose."""
    passes_unsure: bool
    """Whether a rule passes that too few lists decide."""
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
    kept_share, coverage, unfit = (refreshed.get(name) for name in ("kept_share", "coverage_ratio", "unfit_lists"))
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
            kept_share is not None and kept_share >= MIN_KEPT_SHARE,
            "not measured"
            if kept_share is None
            else f"{kept_share:.0%} of a list was in the one before, {of_users}; {MIN_KEPT_SHARE:.0%} must",
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
    """Better than every baseline, not much worse than the champion, and nowhere much worse than what there is already."""
    folds, paired = evaluation.get("folds", []), evaluation.get("paired", {})
    return [
        Rule("evaluated", bool(folds), f"{len(folds)} rolling intervals"),
        *(
            _beats(f"beats_{baseline}_{metric}", paired.get(baseline, {}).get(metric), limits)
            for baseline in OFFLINE_BASELINES
            for metric in (NDCG, RECALL)
        ),
        *_holds_beside_champion(evaluation, limits),
        *(_holds_in(f"interval_{fold['as_of']}", fold, limits) for fold in folds),
        *(_holds_in(name, segment, limits) for name, segment in evaluation.get("segments", {}).items()),
    ]


def _beats(name: str, pair: Mapping[str, Any] | None, limits: Limits) -> Rule:
    if pair is None:
        return Rule(name, False, "not measured")
    if _lower(pair) > 0 or _upper(pair) <= 0:
        return Rule(name, _lower(pair) > 0, _in_numbers(pair))
    return _unsure(name, _in_numbers(pair), limits)


def _holds_beside_champion(evaluation: Mapping[str, Any], limits: Limits) -> list[Rule]:
    """No rule while there is no champion."""
    champion, name = evaluation.get("champion"), f"not_worse_than_champion_{NDCG}"
    if champion is None:
        return []
    pair = evaluation.get("paired", {}).get(CHAMPION, {}).get(NDCG)
    if pair is None:
        why = champion.get("why_not") or f"there is no fold that version {champion['version']} has not learned from"
        return [_unsure(name, why, limits)]
    allowed = limits.tolerance * pair["theirs"]
    detail = f"{_in_numbers(pair)}; version {champion['version']} has {pair['theirs']:.4f}, {allowed:.4f} may be lost"
    if _lower(pair) >= -allowed or _upper(pair) < -allowed:
        return [Rule(name, _lower(pair) >= -allowed, detail)]
    return [_unsure(name, detail, limits)]


def _holds_in(what: str, part: Mapping[str, Any], limits: Limits) -> Rule:
    """In a fold or a segment: not surely worse, by more than the tolerance, than the champion, else than personal frequency."""
    name, paired = f"holds_in_{what}", part["paired"]
    other = CHAMPION if CHAMPION in paired else PERSONAL_FREQUENCY
    pair = paired[other][NDCG]
    if pair["num_users"] < MIN_USERS:
        return Rule(name, True, f"too few to tell: {pair['num_users']} users", is_sure=False)
    allowed = limits.tolerance * pair["theirs"]
    detail = f"{_in_numbers(pair)}; {other} has {pair['theirs']:.4f}, {allowed:.4f} may be lost"
    return Rule(name, _upper(pair) >= -allowed, detail)


def _unsure(name: str, why: str, limits: Limits) -> Rule:
    return Rule(name, limits.passes_unsure, f"too few lists to tell: {why}", is_sure=False)


def _lower(pair: Mapping[str, Any]) -> float:
    """The bound, of a single user none."""
    return -math.inf if pair["lower"] is None else float(pair["lower"])


def _upper(pair: Mapping[str, Any]) -> float:
    return math.inf if pair["upper"] is None else float(pair["upper"])


def _in_numbers(pair: Mapping[str, Any]) -> str:
    return (
        f"difference {pair['mean']:+.4f}, from {_lower(pair):+.4f} to {_upper(pair):+.4f}, "
        f"{pair['num_lists']} lists of {pair['num_users']} users"
    )


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


def described(rules: list[Rule]) -> str:
    """The verdict as lines a person reads."""
    return "\n".join(f"{_word(rule)}  {rule.name:<44} {rule.detail}" for rule in rules)


def _word(rule: Rule) -> str:
    return ("pass " if rule.passed else "FAIL ") if rule.is_sure else ("pass?" if rule.passed else "FAIL?")
