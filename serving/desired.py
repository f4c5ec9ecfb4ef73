"""What TF Serving should serve: the whole state, as one value, in the one file it polls."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from contracts.champion import base_path
from contracts.errors import InputError
from contracts.files import write_text
from contracts.names import MODEL
from contracts.settings import settings

STABLE, CANARY = "stable", "canary"
_HEADER = "# Written by `python -m serving`; TF Serving polls it. Do not edit: the next deployment replaces it.\n"


@dataclass(frozen=True)
class Desired:
    """Versions to load, in ascending order, and the labels that point at them."""

    versions: tuple[int, ...] = ()
    labels: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "versions", tuple(sorted(set(self.versions))))
        if not set(self.labels.values()) <= set(self.versions):
            raise ValueError(f"labels {self.labels} point outside versions {self.versions}")

    @property
    def stable(self) -> int | None:
        return self.labels.get(STABLE)


def config_path() -> Path:
    return settings().serving_dir / "models.config"


def render(desired: Desired, base: Path) -> str:
    """The `ModelServerConfig` in text format; without versions it names no model."""
    from google.protobuf import text_format
    from tensorflow_serving.config import model_server_config_pb2

    config = model_server_config_pb2.ModelServerConfig()
    config.model_config_list.SetInParent()
    if desired.versions:
        model = config.model_config_list.config.add(name=MODEL, base_path=str(base), model_platform="tensorflow")
        model.model_version_policy.specific.versions.extend(desired.versions)
        for label, version in sorted(desired.labels.items()):
            model.version_labels[label] = version
    return _HEADER + str(text_format.MessageToString(config))


def parse(text: str, where: str) -> Desired:
    """The state that a config names.

    Raises:
        InputError: it is not a config of ours.
    """
    from google.protobuf import text_format
    from tensorflow_serving.config import model_server_config_pb2

    try:
        config = text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
        models = list(config.model_config_list.config)
        if not models:
            return Desired()
        (model,) = models
        return Desired(tuple(model.model_version_policy.specific.versions), dict(model.version_labels))
    except (text_format.ParseError, ValueError) as error:
        raise InputError(
            f"not a config of ours: {error}", where=where, cure="move it away and run `python -m serving initialise`"
        ) from None


def read() -> Desired:
    """The desired state in force; the empty one before the first deployment."""
    path = config_path()
    return parse(path.read_text(), str(path)) if path.exists() else Desired()


def write(desired: Desired) -> None:
    """Put a desired state into force, unless it is already."""
    if not config_path().exists() or read() != desired:
        write_text(config_path(), render(desired, base_path().resolve()))
