"""Live traffic, replayed: every user who was active in an interval asks for recommendations before taking anything."""

from __future__ import annotations

import json
import os
import statistics
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from contracts.settings import settings
from serving.backend import Backend

SHOPPERS_AT_ONCE = 4


def _already_served(path: Path) -> set[str]:
    """Users whose answer is on file. A line torn by a kill is cut off, so that the file ends with a whole one."""
    if not path.exists():
        return set()
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    return {json.loads(line)["user_id"] for line in whole.splitlines()}


def visit(interval: int, users: Sequence[str], console: Console, served_at: datetime) -> dict[str, Any]:
    """Ask the endpoint for each user once and log what was shown as exposures; repeated calls ask only for the rest.

    Args:
        served_at: the shop's time at which they ask, UTC. It is replayed, and so is not that of the machine.

    Returns:
        `requests` made now, and their `latency_p50_ms` and `latency_p99_ms` (None when all were on file).
    """
    path = settings().exposures_dir / f"interval_{interval}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    served = _already_served(path)
    waiting = [user for user in users if user not in served]
    latencies_ms = []
    with (
        Backend(settings().serving_urls[0]) as client,
        ThreadPoolExecutor(SHOPPERS_AT_ONCE) as pool,
        path.open("a", encoding="utf-8") as log,
        Progress(console=console, transient=True) as progress,
    ):
        version = client.labelled("stable") if waiting else 0
        task = progress.add_task(f"interval {interval}: shoppers ask", total=len(waiting))
        answers = pool.map(lambda user: (user, client.recommend([user], version=version)[0]), waiting)
        for user, answer in answers:
            exposure = {
                "request_id": str(uuid.uuid4()),
                "served_at": served_at.isoformat(),
                "interval": interval,
                "user_id": user,
                "model_version": answer.model_version,
                "items": answer.items,
                "scores": answer.scores,
                "latency_ms": answer.latency_ms,
            }
            log.write(json.dumps(exposure) + "\n")
            latencies_ms.append(answer.latency_ms)
            progress.advance(task)
        log.flush()
        os.fsync(log.fileno())
    percentiles = statistics.quantiles(latencies_ms, n=100) if len(latencies_ms) > 1 else [None] * 99
    return {"requests": len(latencies_ms), "latency_p50_ms": percentiles[49], "latency_p99_ms": percentiles[98]}
