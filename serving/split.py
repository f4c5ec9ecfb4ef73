"""Give a version a share of the traffic beside the champion: to answer some users, or to be watched only."""

from __future__ import annotations

from dataclasses import replace

from contracts.errors import InputError
from contracts.settings import settings
from serving import publish
from serving.backend import Backend
from serving.gateway import process as gateway
from serving.gateway import traffic


def canary(version: int, share: float) -> None:
    """Let a version answer this share of the users; 0 ends it.

    Raises:
        InputError: it is not verified, not loaded everywhere, or the champion itself.
    """
    _require_ready(version, share)
    current = traffic.read()
    if share == 0 and current.canary not in (version, None):
        raise InputError(f"the canary is version {current.canary}", where="the gateway", cure="name that one")
    gateway.put(replace(current, canary=version if share else None, canary_share=share))


def shadow(version: int, share: float) -> None:
    """Send a version a copy of this share of the predictions; 0 ends it.

    Raises:
        InputError: it is not verified, not loaded everywhere, or the champion itself.
    """
    _require_ready(version, share)
    gateway.put(replace(traffic.read(), shadow=version if share else None, shadow_share=share))


def _require_ready(version: int, share: float) -> None:
    if share == 0:
        return
    publish.require_verified(version)
    if traffic.read().stable in (version, None):
        raise InputError(
            f"version {version} is the champion, or there is none to compare it with",
            where="the gateway",
            cure="name a version beside the champion",
        )
    for url in settings().serving_urls:
        with Backend(url) as backend, publish.endpoint_errors():
            state = backend.states().get(version)
        if state is None or state.state != "AVAILABLE":
            raise InputError(f"version {version} is not loaded", where=url, cure="publish it first")
