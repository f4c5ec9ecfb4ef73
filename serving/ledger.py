"""The append-only record of what was deployed when: `deployments.jsonl`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from contracts.settings import settings
from serving.durable import append_line

PROMOTED, ROLLED_BACK = "promoted", "rolled back"


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """One change of the champion. `time` is ISO 8601 in UTC; `previous` is None for the first."""

    time: str
    version: int
    previous: int | None
    verdict: str


def ledger_path() -> Path:
    return settings().serving_dir / "deployments.jsonl"


def deployments() -> list[Deployment]:
    """All deployments, oldest first. A line torn by a crash counts as not written."""
    if not ledger_path().exists():
        return []
    found = []
    for line in ledger_path().read_text().splitlines():
        try:
            found.append(Deployment(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    return found


def deployed() -> Deployment | None:
    """The deployment in force."""
    return next(reversed(deployments()), None)


def record(version: int, previous: int | None, verdict: str) -> None:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    entry = Deployment(time=now, version=version, previous=previous, verdict=verdict)
    append_line(ledger_path(), json.dumps(asdict(entry)))
