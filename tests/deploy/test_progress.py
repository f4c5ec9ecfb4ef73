"""How far the loop has come, from tables and verdicts alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from deltalake import CommitProperties, write_deltalake

SCRIPT = "import json; from deploy.local import progress; print(json.dumps(progress.{call}))"


@pytest.fixture
def ask(tmp_path: Path):
    """Call a function of `deploy.local.progress` in an installation of its own."""

    def call(expression: str):
        environment = os.environ | {"CARTWHEEL_HOME": str(tmp_path)}
        command = [sys.executable, "-c", SCRIPT.format(call=expression)]
        return json.loads(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)

    return call


def document(home: Path, **fields: Any) -> None:
    """The document of a rollout, as it is on disk."""
    whole = {"rejected": {}, "change": None, "state": "", "challenger": None} | fields
    (home / "serving" / "rollout.json").write_text(json.dumps(whole))


def test_an_empty_home_has_come_nowhere(ask) -> None:
    """Nothing is landed, built, decided or deployed."""
    assert ask("landed(3)") is False
    assert ask("features_ready(4)") is False
    assert ask("decision(4)") == {}
    assert ask("deployed_version()") is None


def test_landed_as_far_as_the_newest_commit_says(ask, tmp_path: Path) -> None:
    """Intervals 1 and 2 are there as a whole; events of 3 have come, and nothing says that these are all."""
    frame = pd.DataFrame({"interval": [1, 2, 3], "event_id": ["a", "b", "c"]})
    properties = CommitProperties(custom_metadata={"userMetadata": json.dumps({"through": 2})})
    table = tmp_path / "tables" / "bronze_events"
    write_deltalake(table, frame, partition_by=["interval"], commit_properties=properties)
    write_deltalake(table, frame, partition_by=["interval"], mode="append")
    assert [ask(f"landed({interval})") for interval in (1, 2, 3)] == [True, True, False]


def test_features_count_only_in_the_version_that_passed_the_gate(ask, tmp_path: Path) -> None:
    """A verdict on an older version, or a failed one, is none."""
    frame = pd.DataFrame({"as_of": [4], "item_id": ["a"]})
    write_deltalake(tmp_path / "tables" / "item_features", frame, partition_by=["as_of"])
    gate = tmp_path / "reports" / "gates" / "features.json"
    gate.parent.mkdir(parents=True)
    answers = []
    for passed, version in ((True, 0), (False, 0), (True, 7)):
        gate.write_text(json.dumps({"passed": passed, "table_versions": {"item_features": version}}))
        answers.append(ask("features_ready(4)"))
    assert answers == [True, False, False]


def test_the_champion_is_what_is_deployed(ask, tmp_path: Path) -> None:
    """Not what is on its way."""
    assert ask("deployed_version()") is None
    (tmp_path / "serving").mkdir()
    document(tmp_path, champion=2, challenger=3, state="staged")
    assert ask("deployed_version()") == 2


def test_a_version_that_waits_for_shoppers(ask, tmp_path: Path) -> None:
    """Has a number by which one sees whether it goes on."""
    (tmp_path / "serving").mkdir()
    for state, number in (("canary", 7), ("loaded", None), ("", None)):
        document(tmp_path, challenger=3 if state else None, state=state, step=7)
        assert ask("waiting_step()") == number


def test_when_a_deployment_is_settled(ask, tmp_path: Path) -> None:
    """When the version is champion, rejected, or waits for shoppers."""
    (tmp_path / "serving").mkdir()
    for rollout, settled in (
        ({"challenger": 3, "state": "loaded", "champion": 2}, False),
        ({"challenger": 4, "state": "shadow", "champion": 2}, False),
        ({"challenger": 3, "state": "shadow", "champion": 2}, True),
        ({"challenger": None, "champion": 3}, True),
        ({"challenger": None, "champion": 2, "rejected": {"3": "slow"}}, True),
    ):
        document(tmp_path, **rollout)
        assert ask("is_settled(3)") is settled, rollout
