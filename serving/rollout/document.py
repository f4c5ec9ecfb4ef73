"""What shall serve whom: one small file, replaced at once. All else is derived from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from contracts.champion import document_path
from contracts.errors import InputError
from contracts.files import read_json, write_json
from serving import desired
from serving.desired import Desired
from serving.gateway.traffic import Traffic

STAGED, VALIDATED, LOADED, SHADOW, CANARY = "staged", "validated", "loaded", "shadow", "canary"
STATES = (STAGED, VALIDATED, LOADED, SHADOW, CANARY)
"""What a challenger passes on its way, in this order. A canary does so once for each share."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """One change of the document, as the history keeps it.

    Attributes:
        number: counted from 1.
        time: ISO 8601, UTC.
        who: the account, or the run of Airflow, that asked for it.
        what: the challenger's new state, or how its way ended: promoted, rejected, rolled back.
        version: of which version.
        champion: which version answers most users after it.
        before: which one did before it.
        state: of the version after it; empty where it is on its way no more.
        share: of the traffic that the version has after it.
        why: in words, where somebody or something decided.
        evidence: numbers on which it was decided; of a promotion, also what the model was made of.
    """

    number: int
    time: str
    who: str
    what: str
    version: int
    champion: int | None
    before: int | None
    state: str = ""
    share: float = 0.0
    why: str = ""
    evidence: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """Which versions there are to serve, and in which role.

    Attributes:
        champion: answers all users but the canary's; None before the first deployment.
        popular: what the champion tells somebody it does not know, as JSON of one prediction: the gateway's fallback.
        previous: the champion before, loaded still, so that a rollback takes effect at once; None after a rollback.
        previous_popular: as `popular`.
        challenger: the version on its way; None when there is none.
        state: how far it is, one of `STATES`; empty without a challenger.
        share: of the traffic that it has as shadow or canary.
        rejected: why, of each version that failed on its way or was rolled back; it does not come again by itself.
        step: number of the change that gave traffic its present shares; exposures and measures name it.
        change: what made the document what it is.
    """

    champion: int | None = None
    popular: str = ""
    previous: int | None = None
    previous_popular: str = ""
    challenger: int | None = None
    state: str = ""
    share: float = 0.0
    rejected: Mapping[int, str] = field(default_factory=dict)
    step: int = 0
    change: Change | None = None

    def is_at_least(self, state: str) -> bool:
        """Whether the challenger has come as far as that."""
        return self.challenger is not None and STATES.index(self.state) >= STATES.index(state)

    @property
    def desired(self) -> Desired:
        """What the model servers load, and its labels."""
        loaded = self.challenger if self.is_at_least(LOADED) else None
        labels = {desired.STABLE: self.champion, desired.CANARY: loaded}
        versions = (self.champion, self.previous, loaded)
        return Desired(
            tuple(version for version in versions if version is not None),
            {label: version for label, version in labels.items() if version is not None},
        )

    @property
    def traffic(self) -> Traffic:
        """Whom the gateway asks. The first model has no traffic before it is champion."""
        shared: dict[str, Any] = {}
        if self.champion is not None and self.share and self.state in (SHADOW, CANARY):
            shared = {self.state: self.challenger, f"{self.state}_share": self.share}
        return Traffic(stable=self.champion, popular=self.popular, step=self.step, **shared)


def read() -> Rollout:
    """The document in force. An installation without one keeps what it serves.

    Raises:
        InputError: the file is not ours.
    """
    content = read_json(document_path())
    if not content:
        served = desired.read()
        others = [version for version in served.versions if version not in served.labels.values()]
        return Rollout(champion=served.stable, previous=others[-1] if others else None)
    try:
        rejected = {int(version): why for version, why in content["rejected"].items()}
        return Rollout(
            **content | {"rejected": rejected, "change": Change(**content["change"]) if content["change"] else None}
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"not a rollout of ours: {type(error).__name__}: {error}",
            where=str(document_path()),
            cure="move it away: what serves goes on, as the model server's config names it",
        ) from None


def as_json(rollout: Rollout) -> dict[str, Any]:
    """The document as the file holds it."""
    return asdict(rollout)


def write(rollout: Rollout) -> None:
    """Put a document into force, in one rename."""
    write_json(document_path(), as_json(rollout))
