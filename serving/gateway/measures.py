"""What the gateway has counted since it started, by the step of the rollout and the arm that answered."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import httpx

from contracts.exposures import admin
from serving.gateway.routes import OURS, SHADOW_CLUSTER

_SERIES = re.compile(
    rf"{OURS}\.(?P<kind>requests|latency_ms)\.arm\.(?P<arm>\w+)\.model_version\.\d+"
    r"\.step\.(?P<step>\d+)\.status\.(?P<status>\d+)\.fallback\.(?P<fallback>\w*)"
)
ENOUGH_REQUESTS = 100
"""Of fewer, times are chance."""
_SHADOW = f"cluster.{SHADOW_CLUSTER}"


@dataclass(frozen=True)
class Arm:
    """What became of an arm's predictions.

    Attributes:
        num_requests: all of them.
        num_failed: of these, not answered by the model: an error, or what is popular instead.
        latency_ms: of those that were answered, in milliseconds by percentile.
    """

    num_requests: int = 0
    num_failed: int = 0
    latency_ms: Mapping[float, float] = field(default_factory=dict)


def arms(step: int) -> dict[str, Arm]:
    """`stable`, `canary` and `shadow`, of one step; but the shadow since the gateway started, whichever version it was.

    All are empty when no gateway answers.
    """
    values, percentiles = _read()
    counts: dict[str, list[int]] = {}
    latencies_ms: dict[str, Mapping[float, float]] = {}
    for name, value in values.items():
        if (series := _SERIES.fullmatch(name)) and series["kind"] == "requests" and int(series["step"]) == step:
            count = counts.setdefault(series["arm"], [0, 0])
            count[0] += value
            count[1] += value * (series["status"] != "200" or bool(series["fallback"]))
    for name, quantiles_ms in percentiles.items():
        series = _SERIES.fullmatch(name)
        if series and int(series["step"]) == step and series["status"] == "200" and not series["fallback"]:
            latencies_ms[series["arm"]] = quantiles_ms
    answered = {}
    for arm in ("stable", "canary"):
        num_requests, num_failed = counts.get(arm, (0, 0))
        answered[arm] = Arm(num_requests, num_failed, latencies_ms.get(arm, {}))
    mirrored = values.get(f"{_SHADOW}.upstream_rq_completed", 0)
    failed = mirrored - values.get(f"{_SHADOW}.upstream_rq_2xx", 0)
    return answered | {"shadow": Arm(mirrored, failed, percentiles.get(f"{_SHADOW}.upstream_rq_time", {}))}


def since(now: Arm, before: Mapping[str, Any]) -> Arm:
    """What was counted after `before`, an arm as JSON; all of it, if the gateway has started anew meanwhile."""
    requests, failed = int(before.get("num_requests", 0)), int(before.get("num_failed", 0))
    if requests > now.num_requests or failed > now.num_failed:
        return now
    return replace(now, num_requests=now.num_requests - requests, num_failed=now.num_failed - failed)


def at_best(now: Arm, before: Mapping[str, Any]) -> Arm:
    """With the smaller ones of its times now and `before`: what slows down the model servers slows down all arms."""
    if int(before.get("num_requests", 0)) < ENOUGH_REQUESTS:
        return now
    earlier = {float(percent): each_ms for percent, each_ms in before["latency_ms"].items()}
    latency_ms = {percent: min(each_ms, earlier.get(percent, each_ms)) for percent, each_ms in now.latency_ms.items()}
    return replace(now, latency_ms=latency_ms)


def _read() -> tuple[dict[str, int], dict[str, dict[float, float]]]:
    """Counters by name, and percentiles of histograms by name."""
    query = {"format": "json", "usedonly": "", "filter": rf"^{OURS}\.|^cluster\.{SHADOW_CLUSTER}\.upstream_rq"}
    try:
        with admin() as gateway:
            answer = gateway.get("/stats", params=query).raise_for_status().json()
    except httpx.HTTPError:
        return {}, {}
    values: dict[str, int] = {}
    percentiles: dict[str, dict[float, float]] = {}
    for entry in answer["stats"]:
        if "name" in entry:
            values[entry["name"]] = int(entry["value"])
            continue
        histograms: dict[str, Any] = entry["histograms"]
        for each in histograms["computed_quantiles"]:
            pairs = zip(histograms["supported_quantiles"], each["values"], strict=True)
            percentiles[each["name"]] = {
                percent: value["cumulative"] for percent, value in pairs if value["cumulative"] is not None
            }
    return values, percentiles
