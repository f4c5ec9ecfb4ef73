"""Prometheus metrics under TF Serving's names; like there, nothing tells versions or labels apart."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import defaultdict

REQUEST_COUNT = ":tensorflow:serving:request_count"
REQUEST_LATENCY = ":tensorflow:serving:request_latency"
BOUNDS_MICROS = [10 * 1.8**power for power in range(33)]

_lock = threading.Lock()
_counts: defaultdict[tuple[str, str], int] = defaultdict(int)
_latencies: defaultdict[tuple[str, str, str], list[int]] = defaultdict(lambda: [0] * (len(BOUNDS_MICROS) + 1))
_sums_micros: defaultdict[tuple[str, str, str], float] = defaultdict(float)


def count_request(model: str, status: str) -> None:
    """Count one Predict request by the name of its status (`OK`, `NOT_FOUND`, ...)."""
    with _lock:
        _counts[model, status] += 1


def observe_latency(model: str, api: str, entrypoint: str, seconds: float) -> None:
    """Record the latency of one request that ended OK; `api` is empty for metadata and status over REST."""
    with _lock:
        key, micros = (model, api, entrypoint), seconds * 1e6
        _latencies[key][bisect_left(BOUNDS_MICROS, micros)] += 1
        _sums_micros[key] += micros


def render() -> str:
    """All metrics in Prometheus text format."""
    with _lock:
        lines = [f"# TYPE {REQUEST_COUNT} counter"]
        lines += [
            f'{REQUEST_COUNT}{{model_name="{_escape(model)}",status="{status}"}} {count}'
            for (model, status), count in _counts.items()
        ]
        lines.append(f"# TYPE {REQUEST_LATENCY} histogram")
        for key, buckets in _latencies.items():
            labels = f'model_name="{_escape(key[0])}",API="{key[1]}",entrypoint="{key[2]}"'
            total = 0
            for bound, count in zip([*map(repr, BOUNDS_MICROS), "+Inf"], buckets, strict=True):
                total += count
                lines.append(f'{REQUEST_LATENCY}_bucket{{{labels},le="{bound}"}} {total}')
            lines.append(f"{REQUEST_LATENCY}_sum{{{labels}}} {_sums_micros[key]}")
            lines.append(f"{REQUEST_LATENCY}_count{{{labels}}} {total}")
    return "\n".join(lines) + "\n"


def _escape(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
