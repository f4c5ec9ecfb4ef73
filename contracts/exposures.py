"""The log of what the gateway has shown to whom: JSON lines, by the gateway; read by ingestion, which deletes them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx

from contracts.settings import settings

QUIET_S = 0.2
"""After this the gateway writes no more to a log that it was told to leave: many times the pause between its writes."""


def current_log() -> Path:
    """The file that the gateway writes."""
    return settings().exposures_dir / "gateway.jsonl"


def finished_logs() -> list[Path]:
    """Files that the gateway has left, oldest first."""
    return sorted(path for path in settings().exposures_dir.glob("*.jsonl") if path != current_log())


def lines(containing: str = "") -> Iterator[dict[str, Any]]:
    """What the logs hold that has not landed, or has only just; lines that were torn by a kill are left out.

    Args:
        containing: of lines with this text only.
    """
    for path in (*finished_logs(), current_log()):
        with suppress(FileNotFoundError), path.open(encoding="utf-8", errors="replace") as log:  # it may land meanwhile
            for line in log:
                with suppress(ValueError):
                    if containing in line:
                        yield json.loads(line)


def finish_log() -> bool:
    """Have the gateway begin a new file.

    Returns:
        Whether it writes to none of the finished ones any more; else ask again later.
    """
    current = current_log()
    if current.exists() and current.stat().st_size:
        current.rename(current.with_name(f"gateway-{time.time_ns()}.jsonl"))
    elif not finished_logs():
        return True
    # Also when nothing was renamed: who did so before may have been killed before the gateway was told.
    try:
        with admin() as gateway:
            gateway.post("/reopen_logs").raise_for_status()
    except httpx.ConnectError:
        return True  # it does not run
    except httpx.HTTPError:
        return False
    time.sleep(QUIET_S)
    return True


def admin_socket() -> Path:
    """Where the gateway takes orders of the account that it runs as. A path of a socket holds at most 107 bytes."""
    return settings().gateway_dir / "admin.sock"


def admin(*, timeout_s: float = 5.0) -> httpx.Client:
    """A client of the gateway's admin interface; `httpx.ConnectError` when it does not run."""
    transport = httpx.HTTPTransport(uds=str(admin_socket()))
    return httpx.Client(transport=transport, base_url="http://gateway", timeout=timeout_s)
