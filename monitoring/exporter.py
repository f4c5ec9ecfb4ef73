"""The state of the loop as a page for Prometheus, read anew each time somebody asks.

Sources: https://prometheus.io/docs/instrumenting/writing_exporters/ and https://prometheus.io/docs/practices/naming/
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from datetime import datetime

import httpx
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from contracts.dataset import load
from contracts.errors import InputError
from contracts.metrics import NDCG
from contracts.settings import settings
from monitoring import journal, status
from monitoring.quality import MODEL

AIRFLOW_TIMEOUT_S = 2.0
ENDS = ("promoted", "rejected", "rolled back")
"""Counted from 0, so that the first one is seen as an increase."""


def serve() -> None:
    """Answer until the process ends.

    Raises:
        InputError: the port is taken.
    """
    host, port = settings().host, settings().loop_metrics_port
    try:
        _, thread = start_http_server(port, addr=host, registry=registry())
    except OSError as error:
        raise InputError(
            f"port {port} of {host}: {error.strerror}", where="CARTWHEEL_LOOP_METRICS_PORT", cure="take another port"
        ) from None
    thread.join()


def registry() -> CollectorRegistry:
    """The metrics of the loop, and none of this process."""
    own = CollectorRegistry()
    own.register(LoopCollector())
    return own


class LoopCollector(Collector):
    """Every metric of the loop. What cannot be read is missing, and `cartwheel_unreadable` names it."""

    def collect(self) -> Iterator[Metric]:
        unreadable = GaugeMetricFamily(
            "cartwheel_unreadable", "1 for a piece of the state that could not be read.", labels=["piece"]
        )
        for piece, read in PIECES.items():
            try:
                metrics = read()
            except Exception as error:  # a broken table must not hide that Airflow is down, nor the other way round
                print(f"{piece} cannot be read: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                metrics = ()
            yield from metrics
            unreadable.add_metric([piece], not metrics)
        yield unreadable


def _sources() -> tuple[Metric, ...]:
    records = CounterMetricFamily(
        "cartwheel_records", "Records read from a source, by what became of them.", labels=["source", "outcome"]
    )
    balanced = GaugeMetricFamily(
        "cartwheel_ledger_balanced", "1: each record read was landed, quarantined or a duplicate.", labels=["source"]
    )
    landed_at = GaugeMetricFamily(
        "cartwheel_last_landing_timestamp_seconds", "When records of a source came in last.", labels=["source"]
    )
    interval = GaugeMetricFamily("cartwheel_interval_seconds", "Length of an interval.")
    interval.add_metric([], load(settings().dataset_path).interval.length.total_seconds())
    for source in status.sources():
        for outcome in ("landed", "quarantined", "duplicates"):
            records.add_metric([source.name, outcome], getattr(source.counts, outcome))
        balanced.add_metric([source.name], source.balanced)
        landed_at.add_metric([source.name], source.last_landing.timestamp())
    return records, balanced, landed_at, interval


def _gates() -> tuple[Metric, ...]:
    passed = GaugeMetricFamily(
        "cartwheel_gate_passed", "1: the newest verdict of a gate let data through.", labels=["gate"]
    )
    for gate in status.gates():
        if gate.passed is not None:
            passed.add_metric([gate.name], gate.passed)
    return (passed,)


def _monitoring() -> tuple[Metric, ...]:
    live = GaugeMetricFamily(
        "cartwheel_live_ndcg_at_10",
        "What shoppers took of a version's lists in the latest interval.",
        labels=["version"],
    )
    promised = GaugeMetricFamily(
        "cartwheel_promised_ndcg_at_10", "What the evaluation of the champion promised.", labels=["version"]
    )
    drift = GaugeMetricFamily(
        "cartwheel_drift", "Distance of the latest two intervals to those trained on, beyond what is usual."
    )
    age = GaugeMetricFamily("cartwheel_champion_age_intervals", "Intervals since the champion's own.")
    requested = GaugeMetricFamily("cartwheel_training_requested", "1: a training is asked for and has not finished.")
    report = status.report()
    if report:
        observation = report["observation"]
        for version, measured in observation["live_by_version"].items():
            if MODEL in measured["means"]:
                live.add_metric([version], measured["means"][MODEL][NDCG])
        if champion := observation["champion"]:
            age.add_metric([], report["interval"] - champion["as_of"])
            if MODEL in champion["evaluation"]:
                promised.add_metric([str(champion["version"])], champion["evaluation"][MODEL][NDCG])
        if observation["drift"] is not None:
            drift.add_metric([], observation["drift"])
        requested.add_metric([], journal.open_request(report) is not None)
    return live, promised, drift, age, requested


def _rollout() -> tuple[Metric, ...]:
    versions = GaugeMetricFamily("cartwheel_version", "The model version in a role.", labels=["role"])
    share = GaugeMetricFamily("cartwheel_challenger_share", "Share of the traffic that the challenger has.")
    changes = CounterMetricFamily("cartwheel_rollout_changes", "Changes of what serves whom.", labels=["what"])
    rollout = status.rollout()
    for role in ("champion", "previous", "challenger"):
        if rollout.get(role) is not None:
            versions.add_metric([role], rollout[role])
    share.add_metric([], rollout.get("share", 0.0))
    for what, number in (dict.fromkeys(ENDS, 0) | status.num_changes()).items():
        changes.add_metric([what], number)
    return versions, share, changes


def _runs() -> tuple[Metric, ...]:
    failed = GaugeMetricFamily("cartwheel_dag_failed", "1: the last run of a DAG failed.", labels=["dag_id"])
    ended = GaugeMetricFamily(
        "cartwheel_dag_run_end_timestamp_seconds", "When the last run of a DAG ended.", labels=["dag_id"]
    )
    for dag_id, run in status.runs().items():
        failed.add_metric([dag_id], run["state"] == "failed")
        ended.add_metric([dag_id], datetime.fromisoformat(run["ended"]).timestamp())
    return failed, ended


def _exposures() -> tuple[Metric, ...]:
    size = GaugeMetricFamily(
        "cartwheel_exposures_log_bytes", "The gateway's logs on disk; each is deleted after it has landed."
    )
    folder = settings().exposures_dir
    size.add_metric([], sum(path.stat().st_size for path in folder.glob("*.jsonl")))
    return (size,)


def _airflow() -> tuple[Metric, ...]:
    healthy = GaugeMetricFamily(
        "cartwheel_airflow_healthy", "1: a component of Airflow has a fresh heartbeat.", labels=["component"]
    )
    try:
        answer = httpx.get(f"{settings().airflow_url}/api/v2/monitor/health", timeout=AIRFLOW_TIMEOUT_S)
        states = {name: part["status"] for name, part in answer.raise_for_status().json().items() if part["status"]}
    except httpx.HTTPError:
        states = {"api_server": "down"}
    for component, state in states.items():
        healthy.add_metric([component], state == "healthy")
    return (healthy,)


PIECES: dict[str, Callable[[], tuple[Metric, ...]]] = {
    "sources": _sources,
    "gates": _gates,
    "monitoring": _monitoring,
    "rollout": _rollout,
    "runs": _runs,
    "exposures": _exposures,
    "airflow": _airflow,
}
