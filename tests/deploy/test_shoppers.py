"""The log of what shoppers saw, after a kill."""

from __future__ import annotations

import json
from pathlib import Path

from deploy.local.shoppers import _already_served


def test_a_torn_line_is_cut_off_and_its_user_asks_again(tmp_path: Path) -> None:
    """Killed while writing bob's line: ann is served, bob is not, and the file ends with a whole line."""
    log = tmp_path / "interval_7.jsonl"
    whole = json.dumps({"user_id": "ann"}) + "\n"
    log.write_text(whole + '{"user_id": "bo')
    assert _already_served(log) == {"ann"}
    assert log.read_text() == whole


def test_nothing_served_yet(tmp_path: Path) -> None:
    """No file means nobody was served."""
    assert _already_served(tmp_path / "none.jsonl") == set()
