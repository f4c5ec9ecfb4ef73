"""Whom the gateway's log says to have been served, after a kill."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from contracts import exposures
from contracts.settings import settings
from deploy.local.shoppers import _already_served


def test_only_who_is_in_a_whole_line_of_that_time_is_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the log, and in one that the gateway has left; a torn line, one of another time, or a fallback serves nobody."""
    monkeypatch.setenv("CARTWHEEL_HOME", str(tmp_path))
    settings.cache_clear()
    assert _already_served("now") == set()
    shown = (("now", "ann", None), ("then", "eve", None), ("now", "eve", "popular"))
    lines = [{"replayed_at": moment, "user_ids": [user], "fallback": by} for moment, user, by in shown]
    log = exposures.current_log()
    log.parent.mkdir()
    log.write_text("\n".join(map(json.dumps, lines)) + '\n{"replayed_at": "now", "user_ids": ["bo')
    log.with_name("gateway-1.jsonl").write_text(json.dumps(lines[0] | {"user_ids": ["cid"]}) + "\n")
    assert _already_served("now") == {"ann", "cid"}
    settings.cache_clear()
