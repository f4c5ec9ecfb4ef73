"""The README's numbers are those of a run that was kept."""

from __future__ import annotations

import json
from pathlib import Path

from contracts.metrics import METRICS, NDCG
from deploy.local.summary import numbers

REPOSITORY = Path(__file__).resolve().parents[2]


def test_the_readme_shows_the_kept_run() -> None:
    """The block in the README is what `docs/summary.json` gives; nobody typed a figure."""
    summary = json.loads((REPOSITORY / "docs" / "summary.json").read_text())
    block = (REPOSITORY / "README.md").read_text().split("<!-- numbers -->\n")[1].split("\n<!-- /numbers -->")[0]
    assert block == numbers(summary)


def test_the_kept_run_beats_both_baselines_in_every_fold() -> None:
    """What the README claims of the model holds in each evaluated week and in the live week."""
    summary = json.loads((REPOSITORY / "docs" / "summary.json").read_text())
    means = [fold["means"] for fold in summary["evaluation"]["folds"]]
    means += [live["means"] for watch in summary["live"].values() for live in watch["metrics"].values()]
    assert len(means) >= 4
    for each in means:
        for metric in METRICS:
            assert each["model"][metric] > max(each["popularity"][metric], each["personal_frequency"][metric])


def test_the_scales_of_training_are_those_that_were_measured() -> None:
    """The table in docs/scaling.md is what `make bench-training` wrote; memory grows by less than 1.3 from 1x to 30x."""
    records = json.loads((REPOSITORY / "docs" / "benchmarks" / "training.json").read_text())
    text = (REPOSITORY / "docs" / "scaling.md").read_text()
    columns = ("users", "lists", "peak_mib", "examples_seconds", "fit_seconds", "seconds_per_million_lists")
    for record in records:
        assert f"| {record['scale']}x | " + " | ".join(f"{record[column]:,}" for column in columns) + " |" in text
    assert [record["scale"] for record in records] == [1, 10, 30]
    assert records[-1]["peak_mib"] < 1.3 * records[0]["peak_mib"]


def test_the_devices_are_those_that_were_measured() -> None:
    """The table in docs/scaling.md is what `make bench-devices` wrote; quality is the same on each, at a size of batch."""
    records = json.loads((REPOSITORY / "docs" / "benchmarks" / "devices.json").read_text())
    text = (REPOSITORY / "docs" / "scaling.md").read_text()
    by_batch: dict[int, list[float]] = {}
    for record in records:
        busy = "" if record["utilisation"] is None else f"{record['utilisation']:.0%}"
        assert (
            f"| {record['device']} | {record['replicas']} | {record['lists_a_batch']:,} | {record['input_ms']} | "
            f"{record['step_ms']} | {record['lists_per_second']:,} | {busy} | {record[NDCG]} |"
        ) in text
        by_batch.setdefault(record["lists_a_batch"], []).append(record[NDCG])
    assert all(max(scores) - min(scores) < 0.003 for scores in by_batch.values())


def test_recommending_to_everybody_costs_what_was_measured() -> None:
    """The table in docs/batch.md is what `make bench-batch` wrote; Spark is not slower than the function alone."""
    records = json.loads((REPOSITORY / "docs" / "benchmarks" / "batch.json").read_text())
    text = (REPOSITORY / "docs" / "batch.md").read_text()
    for each in records:
        row = [each["case"], *(f"{each[name]:,}" for name in ("users", "seconds", "users_per_second", "peak_mib"))]
        assert f"| {' | '.join(row)} |" in text
    assert records[-1]["users_per_second"] > 0.9 * records[0]["users_per_second"]


def test_a_cold_start_takes_what_was_measured() -> None:
    """The seconds in docs/gateway.md are those that `make bench-serving` wrote."""
    records = json.loads((REPOSITORY / "docs" / "benchmarks" / "serving.json").read_text())
    [start] = [record for record in records if record["case"] == "start"]
    text = (REPOSITORY / "docs" / "gateway.md").read_text()
    assert f"is ready {start['gateway_s']} s after" in text
    assert f"after {start['model_server_s']} s." in text


def test_a_week_costs_what_was_measured() -> None:
    """The table in docs/scaling.md is what `make bench-week` wrote, at every scale."""
    records = json.loads((REPOSITORY / "docs" / "benchmarks" / "week.json").read_text())
    text = (REPOSITORY / "docs" / "scaling.md").read_text()
    scales = sorted({record["scale"] for record in records})
    assert scales == [1, 3, 10]
    for stage in dict.fromkeys(record["stage"] for record in records):
        of_stage = {record["scale"]: record for record in records if record["stage"] == stage}
        seconds, peaks = ([of_stage[scale][key] for scale in scales] for key in ("seconds", "peak_mib"))
        assert f"| {stage} | " + " | ".join(f"{each:,}" for each in [*seconds, *peaks]) + " |" in text


def test_events_are_in_silver_as_soon_as_was_measured() -> None:
    """The table in docs/sources.md is what `make bench-arrival` wrote: within two minutes, none lost, none twice."""
    *records, total = json.loads((REPOSITORY / "docs" / "benchmarks" / "arrival.json").read_text())
    text = (REPOSITORY / "docs" / "sources.md").read_text()
    for each in records:
        row = [
            each["source"],
            each["part"],
            f"{each['events']:,}",
            *(str(each[name]) for name in ("p50_s", "p95_s", "max_s")),
        ]
        assert f"| {' | '.join(row)} |" in text
    assert max(each["p95_s"] for each in records) <= 120
    assert (total["lost"], total["doubled"]) == (0, 0)
    assert f"Lost: {total['lost']}; there twice: {total['doubled']}." in text
