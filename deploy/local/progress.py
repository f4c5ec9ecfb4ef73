"""How far the loop has come, read from the tables, verdicts and the rollout themselves: they decide, not any event."""

from __future__ import annotations

import json
from typing import Any

from contracts.files import read_json
from contracts.gates import has_passed
from contracts.lake import open_table, version_of
from contracts.settings import settings
from contracts.tables import BRONZE_EVENTS, ITEM_FEATURES, Table
from serving.rollout import document


def _partitions(table: Table) -> set[int]:
    opened = open_table(table)
    return set() if opened is None else {int(each[table.partition_by[0]]) for each in opened.partitions()}


def landed(interval: int) -> bool:
    """Whether all events up to the interval are in bronze."""
    opened = open_table(BRONZE_EVENTS)
    commits = [] if opened is None else opened.history()
    throughs = (json.loads(commit.get("userMetadata") or "{}").get("through") for commit in commits)
    return next((int(through) for through in throughs if through is not None), interval - 1) >= interval


def features_ready(coming: int) -> bool:
    """Whether features as of the coming interval are there and passed their gate in this very version."""
    return coming in _partitions(ITEM_FEATURES) and has_passed(
        "features", ITEM_FEATURES.name, version_of(ITEM_FEATURES)
    )


def decision(coming: int) -> dict[str, Any]:
    """What monitoring decided before the coming interval; empty when it has not yet."""
    return read_json(settings().reports_dir / "monitoring" / f"{coming}.json")


def deployed_version() -> int | None:
    """The version of the champion."""
    return document.read().champion


def is_settled(version: int) -> bool:
    """Whether deployment has done with a version what it can by itself: made it champion, rejected it, or brought it to
    where shoppers decide."""
    rollout = document.read()
    waits = rollout.challenger == version and rollout.is_at_least(document.SHADOW)
    return waits or version in rollout.rejected or (rollout.champion or 0) >= version


def waiting_step() -> int | None:
    """Number of the step at which a version waits for shoppers as shadow or canary; None when none does."""
    rollout = document.read()
    return rollout.step if rollout.is_at_least(document.SHADOW) else None


def newest_version() -> int:
    """The last version that a training has registered; 0 before the first."""
    results = (read_json(path) for path in settings().training_dir.glob("*/result.json"))
    return max((int(result.get("version") or 0) for result in results), default=0)


def evaluation_of(version: int) -> dict[str, Any]:
    """The evaluation of the training that became a version."""
    for path in sorted(settings().training_dir.glob("*/result.json")):
        if read_json(path).get("version") == version:
            return read_json(path.with_name("evaluation.json"))
    return {}
