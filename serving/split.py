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
        InputError: it is not verified, not loaded everywhere, the champion itself, or to be ended and another's.
    """
    current = _checked("canary", version, share)
    gateway.put(replace(current, canary=version if share else None, canary_share=share))


def shadow(version: int, share: float) -> None:
    """Send a version a copy of this share of the predictions; 0 ends it.

    Raises:
        InputError: as of `canary`.
    """
    current = _checked("shadow", version, share)
    gateway.put(replace(current, shadow=version if share else None, shadow_share=share))


def _checked(role: str, version: int, share: float) -> traffic.Traffic:
    """The traffic in force, if the version may have that share of it."""
    current = traffic.read()
    if share == 0:
        if (other := getattr(current, role)) not in (version, None):
            raise InputError(f"the {role} is version {other}", where="the gateway", cure="name that one")
        return current
    publish.require_verified(version)
    if current.stable in (version, None):
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
    return current
