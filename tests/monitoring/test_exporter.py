"""The page for Prometheus, by hand; the real Prometheus reads it, and its alerts come to the real Alertmanager."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest
import yaml
from deltalake import write_deltalake
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from contracts import tables
from contracts.ports import free_ports
from contracts.settings import REPOSITORY
from monitoring import exporter
from tests.waiting import wait_until

CONFIGURATION = REPOSITORY / "monitoring" / "prometheus"
DASHBOARD = REPOSITORY / "monitoring" / "grafana" / "cartwheel.json"
LANDED_AT = datetime(2026, 3, 1, 4, 5, tzinfo=UTC)


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


@pytest.fixture
def shop(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One source; a gate that passed and one that failed; a decision; a canary; a DAG that failed; no Airflow."""
    [port] = free_ports(1)
    monkeypatch.setenv("CARTWHEEL_AIRFLOW_PORT", str(port))
    batches = [(1, 7, 10, 6, 3, 1), (2, 8, 20, 20, 0, 0)]
    rows = [
        {
            "source": "web", "batch": batch, "interval": interval, "read": read, "landed": landed,
            "quarantined": quarantined, "duplicates": duplicates, "bronze_version": batch, "committed_at": LANDED_AT,
        }
        for batch, interval, read, landed, quarantined, duplicates in batches
    ]  # fmt: skip
    write_deltalake(tables.LEDGER.uri, pa.Table.from_pylist(rows))
    for gate, passed in (("raw", True), ("clean", False)):
        write(home / "reports" / "gates" / f"{gate}.json", {"passed": passed})
    live = {"means": {"model": {"ndcg_at_10": 0.21}}}
    observation = {
        "live_by_version": {"3": live, "4": {"means": {}}},
        "champion": {"version": 3, "as_of": 50, "evaluation": {"model": {"ndcg_at_10": 0.3}}},
        "drift": 0.05,
    }
    request = {"key": "k", "as_of": 54, "training_lists_version": 7}
    report = {"interval": 54, "observation": observation, "decision": {}, "request": request}
    write(home / "reports" / "monitoring" / "54.json", report)
    rollout = {"champion": 3, "previous": None, "challenger": 4, "state": "canary", "share": 0.1}
    write(home / "serving" / "rollout.json", rollout)
    changes = [{"what": what} for what in ("promoted", "canary", "rejected", "rejected")]
    (home / "serving" / "history.jsonl").write_text(
        "".join(f"{json.dumps(each)}\n" for each in changes) + '{"what": "to'
    )
    ended = {"run_id": "r1", "ended": LANDED_AT.isoformat()}
    write(home / "reports" / "runs" / "ingest_events.json", ended | {"state": "failed"})
    write(home / "reports" / "runs" / "build_features.json", ended | {"state": "success"})
    (home / "exposures").mkdir()
    (home / "exposures" / "gateway.jsonl").write_text("x" * 120)
    return home


def page() -> dict[tuple[str, ...], float]:
    """What the page says: name and values of labels, to the value."""
    families = text_string_to_metric_families(generate_latest(exporter.registry()).decode())
    return {
        (sample.name, *sample.labels.values()): sample.value for family in families for sample in family.samples
    }  # fmt: skip


def test_the_page_by_hand(shop: Path) -> None:
    """Everything that is written is said; what is not there is not."""
    pieces = {("cartwheel_unreadable", piece): 0 for piece in exporter.PIECES}
    assert page() == pieces | {
        ("cartwheel_records_total", "landed", "web"): 26,
        ("cartwheel_records_total", "quarantined", "web"): 3,
        ("cartwheel_records_total", "duplicates", "web"): 1,
        ("cartwheel_ledger_balanced", "web"): 1,
        ("cartwheel_last_landing_timestamp_seconds", "web"): LANDED_AT.timestamp(),
        ("cartwheel_interval_seconds",): 7 * 86_400,
        ("cartwheel_gate_passed", "raw"): 1,
        ("cartwheel_gate_passed", "clean"): 0,
        ("cartwheel_live_ndcg_at_10", "3"): 0.21,
        ("cartwheel_promised_ndcg_at_10", "3"): 0.3,
        ("cartwheel_drift",): 0.05,
        ("cartwheel_champion_age_intervals",): 4,
        ("cartwheel_training_requested",): 1,
        ("cartwheel_version", "champion"): 3,
        ("cartwheel_version", "challenger"): 4,
        ("cartwheel_challenger_share",): 0.1,
        ("cartwheel_rollout_changes_total", "promoted"): 1,
        ("cartwheel_rollout_changes_total", "canary"): 1,
        ("cartwheel_rollout_changes_total", "rejected"): 2,
        ("cartwheel_rollout_changes_total", "rolled back"): 0,
        ("cartwheel_dag_failed", "ingest_events"): 1,
        ("cartwheel_dag_failed", "build_features"): 0,
        ("cartwheel_dag_run_end_timestamp_seconds", "ingest_events"): LANDED_AT.timestamp(),
        ("cartwheel_dag_run_end_timestamp_seconds", "build_features"): LANDED_AT.timestamp(),
        ("cartwheel_exposures_log_bytes",): 120,
        ("cartwheel_airflow_healthy", "api_server"): 0,
    }


def test_before_the_first_run_there_is_a_page(home: Path) -> None:
    """An installation that has done nothing yet has nothing unreadable."""
    assert {value for (name, *_), value in page().items() if name == "cartwheel_unreadable"} == {0}


def test_what_cannot_be_read_hides_nothing_else(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A torn file is named, here and in the log, and the rest is there."""
    (shop / "serving" / "rollout.json").write_text("{")
    samples = page()
    assert samples["cartwheel_unreadable", "rollout"] == 1
    assert "rollout cannot be read: " in capsys.readouterr().err
    assert ("cartwheel_version", "champion") not in samples
    assert samples["cartwheel_gate_passed", "clean"] == 0
    assert samples["cartwheel_airflow_healthy", "api_server"] == 0


@contextmanager
def running(argv: list[Any], environment: dict[str, str], folder: Path) -> Iterator[None]:
    with (folder / f"{Path(argv[0]).name}.log").open("w") as log:
        process = subprocess.Popen(
            list(map(str, argv)), cwd=REPOSITORY, env=os.environ | environment, stdout=log, stderr=log
        )
    try:
        yield
    finally:
        process.terminate()
        process.wait(20)


def expressions() -> set[str]:
    """All that alerts and dashboard ask Prometheus."""
    rules = yaml.safe_load((CONFIGURATION / "alerts.yml").read_text())
    dashboard = json.loads(DASHBOARD.read_text())
    expressions_used = {rule["expr"] for group in rules["groups"] for rule in group["rules"]}
    expressions_used |= {target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())}
    return expressions_used | {annotation["expr"] for annotation in dashboard["annotations"]["list"]}


def test_the_document_says_what_there_is(shop: Path) -> None:
    """Every metric of the page and every alert, and none that is not there."""
    text = (REPOSITORY / "docs" / "watching.md").read_text()
    rules = yaml.safe_load((CONFIGURATION / "alerts.yml").read_text())
    assert set(re.findall(r"`(cartwheel_\w+)`", text)) == {name for name, *_ in page()}
    alerts = {rule["alert"] for group in rules["groups"] for rule in group["rules"]}
    assert set(re.findall(r"^\| `(Cartwheel\w+)`", text, re.MULTILINE)) == alerts


@pytest.mark.slow
def test_alerts_fire_when_they_should(prometheus_bin: Path) -> None:
    """By promtool: a state for each alert in which it fires, and one in which it does not."""
    tested = (CONFIGURATION / "alerts_test.yml").read_text()
    rules = yaml.safe_load((CONFIGURATION / "alerts.yml").read_text())
    for alert in (rule["alert"] for group in rules["groups"] for rule in group["rules"]):
        assert re.search(rf'alertname="{alert}"|alertname: {alert}\b', tested), alert
    result = subprocess.run(
        [prometheus_bin / "promtool", "test", "rules", "alerts_test.yml"],
        cwd=CONFIGURATION, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.slow
def test_an_alert_comes_to_alertmanager(shop: Path, prometheus_bin: Path, alertmanager: str, tmp_path: Path) -> None:
    """With the configuration of this repository, but for ports and pace; whatever else alerts and dashboard ask is understood."""
    page_port, prometheus_port = free_ports(2)
    folder = tmp_path / "prometheus"
    shutil.copytree(CONFIGURATION, folder)
    pace = (folder / "prometheus.yml").read_text().replace(": 15s", ": 1s")
    (folder / "prometheus.yml").write_text(pace)
    targets = (folder / "targets.yml").read_text().replace("8602", str(page_port))
    (folder / "targets.yml").write_text(targets)
    managers = (
        (folder / "alertmanagers.yml").read_text().replace("127.0.0.1:9093", alertmanager.removeprefix("http://"))
    )
    (folder / "alertmanagers.yml").write_text(managers)
    environment = {"CARTWHEEL_LOOP_METRICS_PORT": str(page_port)}
    prometheus = [
        prometheus_bin / "prometheus", f"--config.file={folder / 'prometheus.yml'}",
        f"--web.listen-address=127.0.0.1:{prometheus_port}", f"--storage.tsdb.path={tmp_path / 'tsdb'}",
    ]  # fmt: skip
    with (
        running([sys.executable, "-m", "monitoring", "export"], environment, tmp_path),
        running(prometheus, {}, tmp_path),
    ):
        api = f"http://127.0.0.1:{prometheus_port}/api/v1"
        alerts = wait_until(
            lambda: [
                alert["labels"]
                for alert in httpx.get(f"{alertmanager}/api/v2/alerts").json()
                if alert["labels"]["alertname"] == "CartwheelGateFailed"
            ],
            "the alert to come",
        )
        assert [(labels["gate"], labels["severity"], labels["part"]) for labels in alerts] == [
            ("clean", "critical", "data")
        ]
        answers = {each: httpx.get(f"{api}/query", params={"query": each}).json() for each in expressions()}
        assert {each: answer for each, answer in answers.items() if answer["status"] != "success"} == {}
        stored = set(httpx.get(f"{api}/label/__name__/values").json()["data"])
    named = {name for each in expressions() for name in re.findall(r"\bcartwheel_\w+", each)}
    assert named <= stored
