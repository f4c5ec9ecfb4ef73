"""Live traffic, replayed: every user who was active in an interval asks for recommendations before taking anything."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import stamina
from rich.console import Console
from rich.progress import Progress

from contracts import exposures
from contracts.settings import settings
from serving.client import Client
from serving.gateway import tokens

SHOPPERS_AT_ONCE = 4
CLIENT = "replay"


def _already_served(served_at: str) -> set[str]:
    """Users whose answer of that time is in the gateway's log."""
    served: set[str] = set()
    for exposure in exposures.lines():
        if exposure["replayed_at"] == served_at and not exposure["fallback"]:
            served |= set(exposure["user_ids"])
    return served


class NoModelError(Exception):
    """The gateway answered with what is popular."""


def _ask(client: Client, user: str, served_at: str) -> None:
    """Ask once more and again while no model answers, as after a restart; a replay is there to see the model."""
    for attempt in stamina.retry_context(on=NoModelError, attempts=None, timeout=60.0, wait_max=2.0):
        with attempt:
            if client.recommend([user], served_at=served_at)[0].fallback:
                raise NoModelError(f"the model servers do not answer behind {settings().gateway_url}")


def visit(users: Sequence[str], console: Console, served_at: datetime, what: str) -> int:
    """Ask the gateway for each user once, which logs what was shown; repeated calls ask only for the rest.

    Args:
        served_at: the shop's time at which they ask, UTC. It is replayed, and so is not that of the machine.
        what: beside the bar of progress.

    Returns:
        How many requests were made now.
    """
    moment = served_at.isoformat()
    served = _already_served(moment)
    waiting = [user for user in users if user not in served]
    if not waiting:
        return 0
    with (
        Client(tokens.issue(CLIENT, tokens.ADMIN, lifetime_s=tokens.DAY_S), deadline_s=30) as client,
        ThreadPoolExecutor(SHOPPERS_AT_ONCE) as pool,
        Progress(console=console, transient=True) as progress,
    ):
        task = progress.add_task(what, total=len(waiting))
        for _ in pool.map(lambda user: _ask(client, user, moment), waiting):
            progress.advance(task)
    tokens.revoke(CLIENT)
    return len(waiting)
