"""Waiting for what a server does soon."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import httpx

DEADLINE_S = 90


def wait_until(reached: Callable[[], Any], what: str) -> Any:
    """What `reached` returns once it is true; a server that does not answer yet is none that says no."""
    end_s = time.monotonic() + DEADLINE_S
    while time.monotonic() < end_s:
        with suppress(httpx.TransportError):
            if value := reached():
                return value
        time.sleep(0.1)
    raise AssertionError(f"waited {DEADLINE_S} s for {what}")
