"""Where the facts come from: Delta tables, the model registry, the verdicts of the gates, the results of trainings."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from contracts.errors import InputError
from contracts.files import read_json
from contracts.names import CHAMPION, MODEL
from contracts.settings import settings
from contracts.tables import ATTRIBUTIONS, CATEGORY_SHARES, Table
from monitoring.policy import Champion


def version(table: Table) -> int | None:
    """Delta version of a table; None when there is no such table."""
    from deltalake import DeltaTable

    return DeltaTable(table.path).version() if DeltaTable.is_deltatable(str(table.path)) else None


def attributions(interval: int) -> pd.DataFrame:
    """Rows of one interval; without a table, no rows."""
    from deltalake import DeltaTable

    if not DeltaTable.is_deltatable(str(ATTRIBUTIONS.path)):
        return pd.DataFrame(columns=ATTRIBUTIONS.column_names)
    rows: pd.DataFrame = DeltaTable(ATTRIBUTIONS.path).to_pandas(filters=[("interval", "=", interval)])
    return rows


def category_shares() -> pd.DataFrame:
    """All rows; without a table, none."""
    from deltalake import DeltaTable

    if not DeltaTable.is_deltatable(str(CATEGORY_SHARES.path)):
        return pd.DataFrame(columns=CATEGORY_SHARES.column_names)
    rows: pd.DataFrame = DeltaTable(CATEGORY_SHARES.path).to_pandas()
    return rows


def champion() -> Champion | None:
    """The model version that carries the alias `champion`; None when there is none, or somebody has deleted it.

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
        named = [model for model in client.search_registered_models(f"name = '{MODEL}'") if CHAMPION in model.aliases]
        if not named:
            return None
        found = client.get_model_version(MODEL, str(named[0].aliases[CHAMPION]))
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        what = f"the model registry does not answer: {str(error).splitlines()[0][:200]}"
        raise InputError(what, where="CARTWHEEL_MLFLOW_TRACKING_URI", cure="start MLflow, or name another") from None
    try:
        evaluation = json.loads(found.tags.get("evaluation", "{}"))
        return Champion(version=int(found.version), as_of=int(found.tags["as_of"]), evaluation=evaluation)
    except (KeyError, ValueError) as error:
        raise InputError(
            f"model version {found.version} has no usable tags as_of and evaluation ({error})",
            where=f"registered model {MODEL}",
            cure="give the alias champion to a version that training registered",
        ) from None


def failed_gates() -> dict[str, str]:
    """Gates whose newest verdict failed, each with its first failure in words."""
    failed: dict[str, str] = {}
    for path in sorted((settings().reports_dir / "gates").glob("*.json")):
        verdict = read_json(path)
        if verdict.get("passed") is not True:
            failures = verdict.get("failures") or [{}]
            first = failures[0]
            place = ".".join(str(first[part]) for part in ("table", "column") if first.get(part))
            failed[path.stem] = f"{place}: {first.get('observed', 'no reason given')}" if place else "no reason given"
    return failed


def training_results() -> Iterator[Mapping[str, Any]]:
    """What each finished training wrote down; a refresh is none."""
    for path in sorted(settings().training_dir.glob("*/result.json")):
        result = read_json(path)
        if "refresh" not in result:
            yield result
