"""What TF Serving should serve of ours: one value, in the one file that it polls, which may name models of others."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from contracts.champion import base_path
from contracts.errors import InputError
from contracts.files import locked, write_text
from contracts.settings import REPOSITORY, settings

STABLE, CANARY = "stable", "canary"
_HEADER = "# Written by `python -m serving`; TF Serving polls it. Other models may stand here, too: only {} is ours.\n"


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
    """The file that TF Serving polls."""
    chosen = settings()
    return REPOSITORY / chosen.serving_config if chosen.serving_config else chosen.serving_dir / "models.config"


def render(desired: Desired, base: Path, beside: str = "") -> str:
    """The `ModelServerConfig` in text format; without versions it does not name our model.

    Args:
        base: folder of our model's versions.
        beside: the config as it is; the other models in it stay as they are.
    """
    from google.protobuf import text_format
    from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

    config, name = ModelServerConfig(), settings().model
    config.model_config_list.SetInParent()
    models = config.model_config_list.config
    models.extend(model for model in _parsed(beside) if model.name != name)
    if desired.versions:
        model = models.add(name=name, base_path=str(base), model_platform="tensorflow")
        model.model_version_policy.specific.versions.extend(desired.versions)
        for label, version in sorted(desired.labels.items()):
            model.version_labels[label] = version
    return _HEADER.format(name) + str(text_format.MessageToString(config))


def parse(text: str, where: str) -> Desired:
    """The state of our model that a config names.

    Raises:
        InputError: it is no config, or its entry of our model is not one of ours, or it is shared and that of another shop.
    """
    from google.protobuf import text_format

    try:
        models = [model for model in _parsed(text) if model.name == settings().model]
        if not models:
            return Desired()
        (model,) = models
        state = Desired(tuple(model.model_version_policy.specific.versions), dict(model.version_labels))
    except (text_format.ParseError, ValueError) as error:
        raise InputError(
            f"not a config of ours: {error}", where=where, cure="move it away and run `python -m serving initialise`"
        ) from None
    if settings().serving_config and model.base_path != str(base_path().resolve()):
        raise InputError(
            f"the model {model.name} is served from {model.base_path}", where=where,
            cure="give this shop another CARTWHEEL_MODEL; or remove that entry, if it is nobody's",
        )  # fmt: skip
    return state


def _parsed(text: str) -> Iterable[Any]:
    """Every `ModelConfig` of a config."""
    from google.protobuf import text_format
    from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

    return text_format.Parse(text, ModelServerConfig()).model_config_list.config


def read() -> Desired:
    """The desired state in force; the empty one before the first deployment."""
    path = config_path()
    return parse(path.read_text(), str(path)) if path.exists() else Desired()


def write(desired: Desired) -> None:
    """Put a desired state into force, unless it is already. Other shops may write theirs into the file meanwhile."""
    path = config_path()
    with locked(path.with_name(f".{path.name}.lock")):
        beside = path.read_text() if path.exists() else ""
        if not beside or parse(beside, str(path)) != desired:
            write_text(path, render(desired, base_path().resolve(), beside))
