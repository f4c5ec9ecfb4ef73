"""The model that answers most users, where whoever scores without asking the endpoint finds it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from contracts.files import read_json
from contracts.settings import settings


class Champion(NamedTuple):
    """A version of the served model, and the folder of its SavedModel."""

    version: int
    folder: Path


def document_path() -> Path:
    """What serves whom, as `serving.rollout` writes it: JSON, replaced at once."""
    return settings().serving_dir / "rollout.json"


def base_path() -> Path:
    """The folder whose numeric subfolders are the versions."""
    chosen = settings()
    return chosen.serving_dir / "models" / chosen.model


def champion() -> Champion | None:
    """None before the first deployment."""
    version = read_json(document_path()).get("champion")
    return None if version is None else Champion(int(version), base_path() / str(version))
