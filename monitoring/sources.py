"""Where the facts come from: Delta tables, the model registry, the verdicts of the gates, the results of trainings."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from contracts.errors import InputError
from contracts.files import read_json
from contracts.gates import data_verdicts
from contracts.lake import open_table
from contracts.names import CHALLENGER, CHAMPION, ITEMS_VERSION
from contracts.settings import settings
from contracts.tables import ATTRIBUTIONS, CATEGORY_SHARES, ITEMS
from monitoring import status
from monitoring.policy import Champion

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion


def attributions(interval: int) -> pd.DataFrame:
    """Rows of one interval; without a table, no rows."""
    opened = open_table(ATTRIBUTIONS)
    if opened is None:
        return pd.DataFrame(columns=ATTRIBUTIONS.column_names)
    rows: pd.DataFrame = opened.to_pandas(filters=[("interval", "=", interval)])
    return rows


def category_shares() -> pd.DataFrame:
    """All rows; without a table, none."""
    opened = open_table(CATEGORY_SHARES)
    if opened is None:
        return pd.DataFrame(columns=CATEGORY_SHARES.column_names)
    rows: pd.DataFrame = opened.to_pandas()
    return rows


def withdrawn_items(champion: Champion | None) -> list[str]:
    """Items that the champion may recommend by the version of `items` it was made with, and that none may now."""
    from deltalake.exceptions import DeltaError

    if champion is None or champion.items_version is None:
        return []
    try:
        then, now = _recommendable(champion.items_version), _recommendable(None)
    except (DeltaError, OSError):  # a vacuum has removed that version
        return []
    return sorted(then - now)


def _recommendable(version: int | None) -> set[str]:
    opened = open_table(ITEMS, version)
    if opened is None:
        return set()
    rows = opened.to_pyarrow_table(columns=["item_id"], filters=[("recommendable", "=", True)])
    return {*rows["item_id"].to_pylist()}


@dataclass(frozen=True)
class Registered:
    """What the aliases of the registered model say."""

    champion: Champion | None
    """None when there is none, or somebody has deleted it."""
    challenger: int | None
    """A version that is neither champion nor rejected yet."""


def registered() -> Registered:
    """What is registered in MLflow.

    Raises:
        InputError: MLflow does not answer, or the model version lacks what training writes on it.
    """
    from mlflow import MlflowClient
    from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES
    from mlflow.exceptions import MlflowException

    if not MLFLOW_HTTP_REQUEST_MAX_RETRIES.is_set():
        MLFLOW_HTTP_REQUEST_MAX_RETRIES.set(2)  # MLflow's own 7 take minutes to say that nobody answers
    uri = settings().mlflow_uri
    try:
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        # A missing alias is an error to MLflow, told apart from others by no stable code: look it up instead.
        aliases = {
            alias: int(version)
            for model in client.search_registered_models(f"name = '{settings().model}'")
            for alias, version in model.aliases.items()
        }
        champion, challenger = (_version(client, aliases.get(alias)) for alias in (CHAMPION, CHALLENGER))
    except MlflowException as error:
        what = f"the model registry does not answer: {str(error).splitlines()[0][:200]}"
        raise InputError(what, where="CARTWHEEL_MLFLOW_TRACKING_URI", cure="start MLflow, or name another") from None
    return Registered(_described(champion) if champion else None, int(challenger.version) if challenger else None)


def _version(client: MlflowClient, version: int | None) -> ModelVersion | None:
    """None, too, when somebody has deleted it: its alias may stay behind."""
    from mlflow.exceptions import MlflowException

    if version is None:
        return None
    try:
        return client.get_model_version(settings().model, str(version))
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def _described(champion: ModelVersion) -> Champion:
    try:
        evaluation = json.loads(champion.tags.get("evaluation", "{}"))
        items_version = champion.tags.get(ITEMS_VERSION)
        return Champion(
            version=int(champion.version),
            as_of=int(champion.tags["as_of"]),
            evaluation=evaluation,
            items_version=None if items_version is None else int(items_version),
        )
    except (KeyError, ValueError) as error:
        raise InputError(
            f"model version {champion.version} has no usable tags as_of and evaluation ({error})",
            where=f"registered model {settings().model}",
            cure="give the alias champion to a version that training registered",
        ) from None


def failed_gates() -> dict[str, str]:
    """Gates whose newest verdict failed, each with its first failure in words."""
    failed: dict[str, str] = {}
    for gate, verdict in data_verdicts().items():
        if verdict.get("passed") is not True:
            failures = verdict.get("failures") or [{}]
            first = failures[0]
            place = status.place(first)
            failed[gate] = f"{place}: {first.get('observed', 'no reason given')}" if place else "no reason given"
    return failed


def training_results() -> Iterator[Mapping[str, Any]]:
    """What each finished training wrote down; a refresh is none."""
    for path in sorted(settings().training_dir.glob("*/result.json")):
        result = read_json(path)
        if "refresh" not in result:
            yield result
