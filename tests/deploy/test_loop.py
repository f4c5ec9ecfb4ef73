"""What the loop says when a task failed."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from deploy.local import airflow_api, loop
from deploy.local.loop import Loop, StageFailed, said_why


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


def test_what_will_never_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A DAG that runs, finds nothing to do, and does not bring about what is waited for ends the loop in words."""
    woken: list[str] = []

    def trigger(airflow: Any, dag_id: str, run_id: str, conf: Any) -> None:
        woken.append(run_id)

    def list_runs(airflow: Any, dag_id: str) -> list[airflow_api.Run]:
        now = datetime.now(UTC)
        return [airflow_api.Run(dag_id, run_id, "success", {}, now, now) for run_id in woken]

    monkeypatch.setattr(loop, "PATIENCE_S", 0.0)
    monkeypatch.setattr(loop.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(airflow_api, "trigger", trigger)
    monkeypatch.setattr(airflow_api, "list_runs", list_runs)
    waiting = Loop(None, None, Console(quiet=True), [])  # type: ignore[arg-type]
    with pytest.raises(StageFailed, match="build_features has run 3 times and found nothing to do"):
        waiting._bring_about("build_features", lambda: False, None)
    assert len(woken) == 3
