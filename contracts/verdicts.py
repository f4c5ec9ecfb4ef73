"""What the gate said of a model: a sealed file that goes with it, and names the very files that were judged.

The tags in MLflow are for people: whoever may write to MLflow may write those. A verdict without the seal of this
installation lets nothing be deployed.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Mapping
from typing import Any

from contracts.errors import InputError

FILE = "verdict.json"
KEY = "verdict_key"
"""Name of the secret that seals are made with."""
MANIFEST = "MANIFEST.sha256"
"""In a model's folder: lines `sha256  relative/path`, one for every other file. Its own SHA-256 names the content."""
GOLDEN = "golden_requests.json"
"""In a model's folder: requests, with the answers it gave when it was made."""


def sealed(verdict: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The verdict with its `seal`, an HMAC-SHA-256 (RFC 2104) of all else in it."""
    return {**verdict, "seal": _seal(verdict, key)}


def check(verdict: Mapping[str, Any], key: str, *, where: str) -> str:
    """The SHA-256 of the manifest of the model that this verdict lets be deployed.

    Args:
        where: what the model is called, for the error.

    Raises:
        InputError: the gate blocked it and nobody forced it, or the verdict is not of this installation.
    """
    rest = {name: value for name, value in verdict.items() if name != "seal"}
    if not hmac.compare_digest(str(verdict.get("seal", "")), _seal(rest, key)):
        raise InputError(
            "its verdict does not bear the seal of this installation: somebody has changed it, or the secret",
            where=where,
            cure="run the DAG train_recommender again, which judges and registers it anew",
        )
    if not may_be_deployed(verdict):
        raise InputError(
            f"it did not pass the gate: {', '.join(failures(verdict))}",
            where=where,
            cure="deploy a version that passed, or force the gate with a reason",
        )
    return str(verdict["manifest_sha256"])


def may_be_deployed(verdict: Mapping[str, Any]) -> bool:
    """Whether the gate passed it, or a person forced it."""
    return verdict.get("passed") is True or bool(verdict.get("forced"))


def failures(verdict: Mapping[str, Any]) -> list[str]:
    """Names of the rules that failed."""
    return [rule["name"] for rule in verdict.get("rules", []) if not rule["passed"]]


def _seal(verdict: Mapping[str, Any], key: str) -> str:
    if not key:
        raise InputError("the key of the verdicts is empty", where=KEY, cure="use the secret of that name, as it is")
    return hmac.digest(key.encode(), json.dumps(verdict, sort_keys=True).encode(), "sha256").hex()
