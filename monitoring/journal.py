"""The decisions on file: `reports_dir/monitoring/INTERVAL.json`, one for each coming interval.

A file holds the inputs, what was observed, the decision, and the open request for a training if there is one. The
same inputs give the same file again; a request stays open until a training on that or newer data has finished. It
names the refresh of the champion that is wanted, too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from contracts.errors import InputError
from contracts.files import read_json, write_json
from contracts.lake import version_of
from contracts.settings import settings
from contracts.tables import ATTRIBUTIONS, CATEGORY_SHARES, TRAINING_LISTS
from contracts.trainings import (
    REQUEST,
    TrainingData,
    judged_training_data,
    needed_training_data,
    refresh_key,
    training_data,
    training_key,
)
from monitoring import drift, quality, sources, status
from monitoring.policy import Champion, Observation, State, Thresholds, decide
from monitoring.sources import Registered

Record = dict[str, Any]


def training_result(coming: int, lists_version: int, *, exactly: bool = False) -> Mapping[str, Any]:
    """How a training on this data or, unless `exactly`, on newer data ended; empty while none has finished."""
    for result in sources.training_results():
        data = (int(result.get("as_of", 0)), int(result.get("table_versions", {}).get(TRAINING_LISTS.name, -1)))
        if data == (coming, lists_version) or (not exactly and data[0] >= coming and data[1] >= lists_version):
            return result
    return {}


def open_request(record: Record) -> Mapping[str, Any] | None:
    """The training that a record asks for, unless it has finished."""
    request = record.get("request")
    if not request or training_result(request["as_of"], request["training_lists_version"]):
        return None
    return dict(request)


def current_inputs(data: TrainingData, registered: Registered) -> Record:
    """Everything a decision depends on, as JSON: when it is the same, so is the decision."""
    champion = registered.champion
    return {
        "interval": data.as_of,
        "champion_version": champion.version if champion else None,
        "challenger_version": registered.challenger,
        "table_versions": {
            TRAINING_LISTS.name: data.versions[TRAINING_LISTS.name],
            ATTRIBUTIONS.name: version_of(ATTRIBUTIONS),
            CATEGORY_SHARES.name: version_of(CATEGORY_SHARES),
        },
        "failed_gates": sources.failed_gates(),
        "withdrawn_items": sources.withdrawn_items(champion),
        "finished": _finished(data),
        "refreshed": _refreshed(data, champion),
        "thresholds": asdict(Thresholds.of(settings())),
    }


def observe(
    coming: int, registered: Registered, withdrawn_items: Sequence[str]
) -> tuple[Observation, dict[int, quality.Live]]:
    """What is known before an interval comes, and the live metrics of every model version in the one before."""
    latest, champion = coming - 1, registered.champion
    by_version = quality.by_version(sources.attributions(latest), settings().gate_confidence)
    # Trained on: the lists before the champion's own interval; without a champion, those before the latest.
    end = min(champion.as_of, latest) if champion else latest
    moved = drift.lasting_drift(sources.category_shares(), latest, range(end - settings().training_intervals, end))
    live = by_version.get(champion.version) if champion else None
    observation = Observation(
        coming, champion, live, moved, sources.failed_gates(), registered.challenger, tuple(withdrawn_items)
    )
    return observation, by_version


def is_pending() -> str | None:
    """Why a decision is due, in words; None when the one on file still stands, or a build is on its way."""
    data = judged_training_data()
    if data is None:
        return None
    on_file = read_json(status.decisions_folder() / f"{data.as_of}.json") or None
    if on_file is None:
        return f"nothing is decided yet for interval {data.as_of}"
    inputs = current_inputs(data, sources.registered())
    changed = [name for name in inputs if inputs[name] != on_file.get("inputs", {}).get(name)]
    return f"since the decision for interval {data.as_of} these have changed: {', '.join(changed)}" if changed else None


def decide_now() -> Record:
    """Decide for the coming interval and put it on file; with the inputs of the file there is, that file again.

    Raises:
        InputError: there is no training data yet, or the model registry does not answer.
    """
    data = needed_training_data()
    coming = data.as_of
    path = status.decisions_folder() / f"{coming}.json"
    on_file: Record | None = read_json(path) or None
    registered = sources.registered()
    inputs = current_inputs(data, registered)
    if on_file is not None and on_file.get("inputs") == inputs:
        return on_file
    observation, by_version = observe(coming, registered, inputs["withdrawn_items"])
    request = open_request(status.report())  # also one of an earlier interval
    state = State(str(request["key"]) if request else None, inputs["finished"], inputs["refreshed"])
    decision = decide(observation, state, Thresholds.of(settings()))
    if decision.retrain:
        request = {
            "key": training_key(coming, data.versions),
            "as_of": coming,
            "training_lists_version": data.versions[TRAINING_LISTS.name],
            "reasons": list(decision.reasons),
        }
    elif observation.failed_gates:
        request = None  # once the data is mended, the inputs change and it is decided anew
    record: Record = _plain(
        {
            "interval": coming,
            "inputs": inputs,
            "observation": {
                **asdict(observation),
                "live_by_version": {str(v): asdict(live) for v, live in by_version.items()},
            },
            "decision": asdict(decision),
            "request": request,
            "refresh": refresh_key(observation.champion.version, data)
            if observation.champion and decision.refresh
            else None,
        }
    )
    write_json(path, record)
    return record


def training_due(*, force: bool = False) -> tuple[str, str] | None:
    """Key of the training that is due and why, in words; None when none is. What it shall read is put on file.

    Args:
        force: a person wants it, also when a training of the same data, configuration and code has finished.

    Raises:
        InputError: `force`, and there is no training data yet.
    """
    data = needed_training_data() if force else judged_training_data()
    request = open_request(status.report())
    if data is None or (not force and (request is None or _finished(data) is not None)):
        return None
    key = first = training_key(data.as_of, data.versions)
    again = 1
    while force and (settings().training_dir / key / "result.json").exists():
        again += 1
        key = f"{first}_{again}"
    write_json(settings().training_dir / key / REQUEST, asdict(data))
    return key, "asked for by hand" if force or request is None else "; ".join(request["reasons"])


def refresh_due(*, force: bool = False) -> tuple[str, str] | None:
    """Key of the refresh that is due and why, in words; None when none is. What it shall read is put on file.

    Args:
        force: a person wants it, also when a refresh with the same data has finished.

    Raises:
        InputError: `force`, and there is no data or no model yet.
    """
    data = training_data() if force else judged_training_data()
    champion, record = sources.registered().champion, status.report()
    if data is None or champion is None:
        if force:
            raise InputError(
                "there is nothing to refresh", where=f"registered model {settings().model}", cure="train a model first"
            )
        return None
    key = first = refresh_key(champion.version, data)
    if not force and (record.get("refresh") != key or _refreshed(data, champion) is not None):
        return None
    again = 1
    while force and (settings().training_dir / key / "result.json").exists():
        again += 1
        key = f"{first}_{again}"
    write_json(settings().training_dir / key / REQUEST, {"version": champion.version, **asdict(data)})
    return key, "asked for by hand" if force else "; ".join(record["decision"]["reasons"])


def _refreshed(data: TrainingData, champion: Champion | None) -> str | None:
    """Status of a finished refresh of the champion with this very data."""
    if champion is None:
        return None
    result = read_json(settings().training_dir / refresh_key(champion.version, data) / "result.json")
    return str(result["status"]) if result else None


def _finished(data: TrainingData) -> str | None:
    """Status of a finished training on this very data."""
    status = training_result(data.as_of, data.versions[TRAINING_LISTS.name], exactly=True).get("status")
    return None if status is None else str(status)


def _plain(value: Any) -> Any:
    """As JSON holds it: keys as text, no tuples, null for a number without bound."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
