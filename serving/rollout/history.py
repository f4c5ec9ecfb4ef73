"""What was changed, when, by whom and why: `history.jsonl`, to which lines are only added."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from contracts.settings import settings
from serving.durable import append_line
from serving.rollout.document import Change, Rollout


def history_path() -> Path:
    return settings().serving_dir / "history.jsonl"


def changes() -> list[Change]:
    """All changes, oldest first. A line torn by a crash counts as not written."""
    entries = []
    for line in history_path().read_text(encoding="utf-8").splitlines() if history_path().exists() else []:
        try:
            entries.append(Change(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    return entries


def catch_up(rollout: Rollout) -> None:
    """Add what made the document what it is, unless it is there. Done before the next change, no kill loses a line."""
    written = changes()
    if rollout.change and (not written or written[-1].number < rollout.change.number):
        append_line(history_path(), json.dumps(asdict(rollout.change)))
