"""Which version answers whom: the state of the gateway, kept in the one file that Envoy reads its routes from."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from contracts.errors import InputError
from contracts.files import write_json
from contracts.settings import settings
from serving.gateway import routes


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """One version for most users, another for some, a third that answers nobody.

    Attributes:
        stable: the version that answers; None before the first deployment.
        canary: answers `canary_share` of the users, always the same ones; another canary gets others.
        shadow: gets a copy of `shadow_share` of the predictions; its answers are thrown away.
        step: of the rollout; answers are logged and counted with it.
        popular: what the gateway answers when no model does, as JSON of one prediction; empty: an error.
    """

    stable: int | None = None
    canary: int | None = None
    canary_share: float = 0.0
    shadow: int | None = None
    shadow_share: float = 0.0
    step: int = 0
    popular: str = ""

    def __post_init__(self) -> None:
        for name in ("canary_share", "shadow_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is {getattr(self, name)}", where="the gateway", cure="give one from 0 to 1")

    @property
    def versions(self) -> set[int]:
        """All that may be asked."""
        return {version for version in (self.stable, self.canary, self.shadow) if version is not None}


def traffic_path() -> Path:
    return settings().gateway_dir / "routes.json"


def read() -> Traffic:
    """The state in force; the empty one before the first deployment.

    Raises:
        InputError: the file is not ours.
    """
    path = traffic_path()
    if not path.exists():
        return Traffic()
    try:
        content: dict[str, Any] = routes.state(json.loads(path.read_text(encoding="utf-8")))
        return Traffic(**content)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise InputError(
            f"not the routes of our gateway: {type(error).__name__}: {error}",
            where=str(path),
            cure="move it away and run `python -m serving initialise`",
        ) from None


def rendered(traffic: Traffic) -> dict[str, Any]:
    """The file's content: a discovery response of Envoy's, with the state as metadata of its routes."""
    return routes.discovery(asdict(traffic), settings())


def write(traffic: Traffic) -> None:
    """Put a state into force, in one rename. Envoy follows within milliseconds, and requests under way end as they are."""
    write_json(traffic_path(), rendered(traffic))
