"""The registered model in MLflow: its aliases, its gate, its artifact."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from contracts import verdicts
from contracts.errors import InputError
from contracts.files import read_json
from contracts.settings import settings


def _client() -> Any:
    import mlflow

    return mlflow.MlflowClient(tracking_uri=settings().mlflow_uri)


@contextmanager
def _answering() -> Iterator[None]:
    """Say in one line that MLflow does not do what it was asked to."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        message = str(error).splitlines()[0][:200]
        raise InputError(
            f"MLflow failed: {message}", where=settings().mlflow_uri, cure="see that MLflow runs there"
        ) from None


def aliases() -> dict[str, int]:
    """Version by alias, also of versions that somebody has deleted; empty when no version was ever registered.

    Raises:
        InputError: MLflow does not answer.
    """
    with _answering():
        models = _client().search_registered_models(f"name = '{settings().model}'")
    return {alias: int(version) for model in models for alias, version in model.aliases.items()}


def versions() -> dict[int, Any]:
    """Every registered version as MLflow describes it, by its number.

    Raises:
        InputError: MLflow does not answer.
    """
    with _answering():
        return {int(each.version): each for each in _client().search_model_versions(f"name = '{settings().model}'")}


def deployable(version: int) -> tuple[str, str]:
    """The artifact URI of a version that passed the gate, and the SHA-256 of the manifest of the model that did.

    Raises:
        InputError: there is no such version, it has no verdict, or `verdicts.check` refuses that.
    """
    model_version = versions().get(version)
    if model_version is None:
        raise InputError(
            f"{settings().model} has no version {version}: it was never registered, or somebody has deleted it",
            where=settings().mlflow_uri,
            cure="name a registered version, or train another",
        )
    where = f"version {version} of {settings().model}"
    return str(model_version.source), verdicts.check(
        _verdict(model_version.run_id, where), settings().secret(verdicts.KEY), where=where
    )


def _verdict(run_id: str, where: str) -> dict[str, Any]:
    from mlflow.exceptions import MlflowException

    with tempfile.TemporaryDirectory(prefix="cartwheel-") as folder:
        try:
            path = Path(_client().download_artifacts(run_id, verdicts.FILE, folder))
        except (OSError, MlflowException):
            raise InputError(
                "the gate has left no verdict on it",
                where=where,
                cure="register it by the DAG train_recommender, which judges it first",
            ) from None
        verdict: dict[str, Any] = read_json(path)
    return verdict


def origin(version: int) -> dict[str, str]:
    """What a version was made of, for the history: its run, data, code. A version that is deleted has no origin.

    Raises:
        InputError: MLflow does not answer.
    """
    from mlflow.exceptions import MlflowException

    model_version = versions().get(version)
    if model_version is None:
        return {}
    made_of = {"run_id": str(model_version.run_id)} | {
        name: model_version.tags[name] for name in ("as_of", "dataset") if name in model_version.tags
    }
    try:
        tags = _client().get_run(model_version.run_id).data.tags
    except MlflowException:  # the run is deleted, or has never been one
        return made_of
    data_tags = {name: value for name, value in tags.items() if name.startswith("data.") or name == "requested_by"}
    return made_of | data_tags | {"commit": tags.get("mlflow.source.git.commit", "")}


def move_alias(alias: str, version: int) -> None:
    """Point an alias at a version, unless it does already; at nothing, if somebody has deleted that version.

    Raises:
        InputError: MLflow does not answer.
    """
    before = aliases().get(alias)
    with _answering():
        if version not in versions():
            if before is not None:
                _client().delete_registered_model_alias(settings().model, alias)
        elif before != version:
            _client().set_registered_model_alias(settings().model, alias, str(version))


def drop_alias(alias: str, versions: Collection[int]) -> None:
    """Delete an alias if it points at one of these versions; a newer one keeps it.

    Raises:
        InputError: MLflow does not answer.
    """
    if aliases().get(alias) in versions:
        with _answering():
            _client().delete_registered_model_alias(settings().model, alias)
