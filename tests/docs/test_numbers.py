"""The README's numbers are those of a run that was kept."""

from __future__ import annotations

import json
from pathlib import Path

from contracts.metrics import METRICS
from deploy.local.summary import numbers

REPOSITORY = Path(__file__).resolve().parents[2]


def test_the_readme_shows_the_kept_run() -> None:
    """The block in the README is what `docs/summary.json` gives; nobody typed a figure."""
    kept = json.loads((REPOSITORY / "docs" / "summary.json").read_text())
    block = (REPOSITORY / "README.md").read_text().split("<!-- numbers -->\n")[1].split("\n<!-- /numbers -->")[0]
    assert block == numbers(kept)


def test_the_kept_run_beats_both_baselines_in_every_fold() -> None:
    """What the README claims of the model holds in each evaluated week and in the live week."""
    kept = json.loads((REPOSITORY / "docs" / "summary.json").read_text())
    means = [fold["means"] for fold in kept["evaluation"]["folds"]]
    means += [live["means"] for seen in kept["live"].values() for live in seen["metrics"].values()]
    assert len(means) >= 4
    for each in means:
        for metric in METRICS:
            assert each["model"][metric] > max(each["popularity"][metric], each["personal_frequency"][metric])
