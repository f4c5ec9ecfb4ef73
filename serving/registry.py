"""The registered model in MLflow: its aliases, its gate, its artifact."""

from __future__ import annotations

from typing import Any

from contracts.errors import InputError
from contracts.names import MODEL
from contracts.settings import settings

GATE_TAG, GATE_PASSED = "gate", "passed"


def _client() -> Any:
    import mlflow

    return mlflow.MlflowClient(tracking_uri=settings().mlflow_uri)


def _unreachable(error: Exception) -> InputError:
    return InputError(f"MLflow failed: {error}", where=settings().mlflow_uri, cure="see that MLflow runs there")


def aliases() -> dict[str, int]:
    """Version by alias; empty when no version was ever registered.

    Raises:
        InputError: MLflow does not answer.
    """
    from mlflow.exceptions import MlflowException

    try:
        found = _client().get_registered_model(MODEL).aliases
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return {}
        raise _unreachable(error) from None
    return {alias: int(version) for alias, version in found.items()}


def deployable(version: int) -> str:
    """The artifact URI of a version that passed the gate.

    Raises:
        InputError: there is no such version, or it did not pass.
    """
    from mlflow.exceptions import MlflowException

    try:
        found = _client().get_model_version(MODEL, str(version))
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            raise InputError(
                f"{MODEL} has no version {version}", where=settings().mlflow_uri, cure="name a registered version"
            ) from None
        raise _unreachable(error) from None
    if (verdict := found.tags.get(GATE_TAG)) != GATE_PASSED:
        raise InputError(
            f"version {version} of {MODEL} did not pass the gate ({GATE_TAG}={verdict!r})",
            where=settings().mlflow_uri,
            cure="deploy a version that passed: train and evaluate again",
        )
    return str(found.source)


def move_alias(alias: str, version: int) -> None:
    """Point an alias at a version, unless it does already."""
    if aliases().get(alias) != version:
        _client().set_registered_model_alias(MODEL, alias, str(version))


def drop_alias(alias: str, version: int) -> None:
    """Delete an alias if it points at that version; a newer one keeps it."""
    if aliases().get(alias) == version:
        _client().delete_registered_model_alias(MODEL, alias)
