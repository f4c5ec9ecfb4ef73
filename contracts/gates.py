"""What the gates of data said last: a file for each, which `expectations` writes and all who build on the data read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from contracts.files import read_json
from contracts.settings import settings


def verdict_path(gate: str) -> Path:
    return settings().reports_dir / "gates" / f"{gate}.json"


def verdict_paths() -> list[Path]:
    """Of each gate that has one, in the order of their names."""
    return sorted((settings().reports_dir / "gates").glob("*.json"))


def data_verdict(gate: str) -> dict[str, Any]:
    """The last verdict of a gate; empty when there is none.

    Raises:
        InputError: see `read_json`.
    """
    verdict: dict[str, Any] = read_json(verdict_path(gate))
    return verdict


def data_verdicts() -> dict[str, dict[str, Any]]:
    """The last verdict of each gate that has one, by the gate's name.

    Raises:
        InputError: see `read_json`.
    """
    return {path.stem: read_json(path) for path in verdict_paths()}


def has_passed(gate: str, table: str, version: int | None) -> bool:
    """Whether a gate let a table pass in this very version."""
    verdict = data_verdict(gate)
    return verdict.get("passed") is True and verdict["table_versions"].get(table) == version
