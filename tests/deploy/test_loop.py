"""What the loop says when a task failed."""

from __future__ import annotations

import json
from pathlib import Path

from deploy.local.loop import said_why


def write(path: Path, *events: str) -> None:
    path.write_text("".join(json.dumps({"event": event, "level": "info"}) + "\n" for event in events))


def test_the_newest_attempt_says_why(tmp_path: Path) -> None:
    """Of two attempts the last one's error line is shown, without its prefix."""
    write(tmp_path / "attempt=1.log", "cartwheel: error: an old one")
    write(
        tmp_path / "attempt=2.log", "starting", "cartwheel: error: no column 'x' (in a.csv). Cure: correct it", "exit 2"
    )
    assert said_why(tmp_path) == "no column 'x' (in a.csv). Cure: correct it"


def test_a_gate_says_which_rule(tmp_path: Path) -> None:
    """The broken rule of a gate is the reason."""
    write(tmp_path / "attempt=1.log", "INFO - FAILED bronze_events.volume_ratio: 9.0 times the usual", "exit 1")
    assert said_why(tmp_path) == "FAILED bronze_events.volume_ratio: 9.0 times the usual"


def test_a_log_without_a_reason(tmp_path: Path) -> None:
    """A line that is no JSON, or no log at all, is not an error of its own."""
    (tmp_path / "attempt=1.log").write_text("not json\n")
    assert said_why(tmp_path) == "its log says why"
