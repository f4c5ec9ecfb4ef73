"""The decisions on file: `reports_dir/monitoring/INTERVAL.json`, one for each coming interval.

A file holds the inputs, what was observed, the decision, and the open request for a training if there is one. The
same inputs give the same file again; a request stays open until a training on that or newer data has finished.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from contracts.errors import InputError
from contracts.files import read_json, write_json
from contracts.settings import settings
from contracts.tables import ATTRIBUTIONS, CATEGORY_SHARES, TRAINING_LISTS
from monitoring import drift, quality, sources
from monitoring.policy import Champion, Observation, State, Thresholds, decide

Record = dict[str, Any]


def folder() -> Path:
    return settings().reports_dir / "monitoring"


def newest() -> Record | None:
    """The decision of the newest interval; None when nothing was decided yet."""
    files = {int(path.stem): path for path in folder().glob("*.json") if path.stem.lstrip("-").isdigit()}
    return read_json(files[max(files)]) if files else None


def finished(coming: int, lists_version: int, exactly: bool = False) -> str | None:
    """Status of a finished training on this data or, unless `exactly`, on newer data; None when there is none."""
    for result in sources.training_results():
        data = (int(result.get("as_of", 0)), int(result.get("table_versions", {}).get(TRAINING_LISTS.name, -1)))
        if data == (coming, lists_version) or (not exactly and data[0] >= coming and data[1] >= lists_version):
            return str(result.get("status", "finished"))
    return None


def open_request(record: Record | None) -> Mapping[str, Any] | None:
    """The training that a record asks for, unless it has finished."""
    request = (record or {}).get("request")
    if not request or finished(request["as_of"], request["training_lists_version"]) is not None:
        return None
    return dict(request)


def current_inputs(coming: int, lists_version: int, champion: Champion | None) -> Record:
    """Everything a decision depends on, as JSON: when it is the same, so is the decision."""
    return {
        "interval": coming,
        "champion_version": champion.version if champion else None,
        "table_versions": {
            TRAINING_LISTS.name: lists_version,
            ATTRIBUTIONS.name: sources.version(ATTRIBUTIONS),
            CATEGORY_SHARES.name: sources.version(CATEGORY_SHARES),
        },
        "failed_gates": sources.failed_gates(),
        "finished": finished(coming, lists_version, exactly=True),
        "thresholds": asdict(Thresholds.of(settings())),
    }


def observe(coming: int, champion: Champion | None) -> tuple[Observation, dict[int, quality.Live]]:
    """What is known before an interval comes, and the live metrics of every model version in the one before."""
    latest = coming - 1
    by_version = quality.by_version(sources.attributions(latest), settings().gate_confidence)
    # Trained on: the lists before the champion's own interval; without a champion, those before the latest.
    end = min(champion.as_of, latest) if champion else latest
    moved = drift.category_drift(sources.category_shares(), latest, range(end - settings().training_intervals, end))
    live = by_version.get(champion.version) if champion else None
    return Observation(coming, champion, live, moved, sources.failed_gates()), by_version


def is_pending() -> str | None:
    """Why a decision is due, in words; None when the one on file still stands."""
    data = sources.training_data()
    if data is None:
        return None
    on_file = read_json(folder() / f"{data[0]}.json") or None
    if on_file is None:
        return f"nothing is decided yet for interval {data[0]}"
    inputs = current_inputs(*data, sources.champion())
    changed = [name for name in inputs if inputs[name] != on_file.get("inputs", {}).get(name)]
    return f"since the decision for interval {data[0]} these have changed: {', '.join(changed)}" if changed else None


def decide_now() -> Record:
    """Decide for the coming interval and put it on file; with the inputs of the file there is, that file again.

    Raises:
        InputError: there is no training data yet, or the model registry does not answer.
    """
    coming, lists_version = needed_training_data()
    path = folder() / f"{coming}.json"
    on_file: Record | None = read_json(path) or None
    champion = sources.champion()
    inputs = current_inputs(coming, lists_version, champion)
    if on_file is not None and on_file.get("inputs") == inputs:
        return on_file
    observation, by_version = observe(coming, champion)
    request = open_request(on_file)
    state = State(requested=str(request["key"]) if request else None, finished=inputs["finished"])
    decision = decide(observation, state, Thresholds.of(settings()))
    if decision.retrain:
        request = {
            "key": sources.training_key(coming, lists_version),
            "as_of": coming,
            "training_lists_version": lists_version,
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
        }
    )
    write_json(path, record)
    return record


def training_due(*, force: bool = False) -> tuple[str, str] | None:
    """Key of the training that is due and why, in words; None when none is.

    Raises:
        InputError: `force`, and there is no training data yet.
    """
    if force:
        return sources.training_key(*needed_training_data()), "asked for by hand"
    data = sources.training_data()
    request = open_request(newest())
    if data is None or request is None or finished(*data, exactly=True) is not None:
        return None
    return sources.training_key(*data), "; ".join(request["reasons"])


def needed_training_data() -> tuple[int, int]:
    data = sources.training_data()
    if data is None:
        raise InputError(
            "there is no training data yet",
            where=str(TRAINING_LISTS.path),
            cure=f"run the job that writes {TRAINING_LISTS.name}",
        )
    return data


def _plain(value: Any) -> Any:
    """As JSON holds it: keys as text, no tuples, null for a number without bound."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
