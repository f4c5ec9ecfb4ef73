"""Which version answered a request: looked up in the gateway's log, and in the table where it has landed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from contracts.exposures import lines
from contracts.lake import open_table
from contracts.tables import EXPOSURES

COLUMNS = ["request_id", "served_at", "user_id", "arm", "model_version", "step", "items"]


def of_request(request_id: str) -> list[dict[str, Any]]:
    """What was shown, one entry for each list of the answer; `request_id` ends with its place where there are several."""
    return list(_landed(request_id)) or list(_logged(request_id))


def _landed(request_id: str) -> Iterator[dict[str, Any]]:
    import pyarrow.compute as pc

    opened = open_table(EXPOSURES)
    if opened is None:
        return
    dataset = opened.to_pyarrow_dataset()
    condition = (pc.field("request_id") == request_id) | pc.starts_with(pc.field("request_id"), f"{request_id}/")
    columns = [name for name in COLUMNS if name in dataset.schema.names]
    for row in dataset.to_table(columns=columns, filter=condition).sort_by("request_id").to_pylist():
        yield row | {"served_at": row["served_at"].isoformat()}


def _logged(request_id: str) -> Iterator[dict[str, Any]]:
    for line in lines(containing=request_id):
        if line["request_id"] != request_id:
            continue
        shared = {name: line[name] for name in ("request_id", "arm", "step")} | {
            "model_version": None if line["fallback"] else line["model_version"],
            "served_at": line["replayed_at"] or line["served_at"],
        }
        answer = json.loads(line["response"])
        items = [each["items"] for each in answer.get("predictions", ())] or answer["outputs"]["items"]
        users = line["user_ids"] or [None] * len(items)
        for user, shown in zip(users, items, strict=True):
            yield shared | {"user_id": user, "items": shown}
