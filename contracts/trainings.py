"""What a training is made of: the versions of the tables it reads, its configuration and its code. Its key names all."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass

from contracts.errors import InputError
from contracts.files import lock_holder
from contracts.gates import data_verdict, data_verdicts
from contracts.lake import open_table
from contracts.settings import REPOSITORY, settings
from contracts.tables import ITEM_FEATURES, ITEMS, SILVER_EVENTS, TRAINING_LISTS, USER_HISTORIES, Table

TABLES = (ITEM_FEATURES, ITEMS, USER_HISTORIES, TRAINING_LISTS)
SETTINGS = ("seed", "training_intervals", "fold_offsets", "training_epochs", "top_k", "ranker")
REQUEST = "request.json"
"""Beside a training's results: the `TrainingData` that its key was made for, which it reads whatever lands meanwhile."""
LOCK = ".lock"
"""Held by the process that trains."""
BLOCKED = "blocked"
"""How a training ends that its gate does not let pass."""
WORK = "work"
"""Beside a training's results until it has ended: its examples and checkpoints."""


@dataclass(frozen=True)
class TrainingData:
    """The data a training reads."""

    as_of: int
    """The coming interval, which a model trained on it serves first."""
    versions: Mapping[str, int]
    """Delta version of each of `TABLES` that there is."""
    checked_versions: Mapping[str, int]
    """Those that a data gate had passed."""


def coming_interval(last: int, through: int) -> int:
    """The interval to recommend in: the one after those that are complete, quiet ones at the end included.

    Args:
        last: the last interval with events.
        through: the last complete one. Longer after `last` than a model learns from, the data is an old export, in
            whose time we stay.
    """
    return (through if last < through <= last + settings().training_intervals else last) + 1


def checked_versions() -> dict[str, int]:
    """Delta version of each table as the latest data gates passed it; what a gate refused no other vouches for."""
    versions: dict[str, int] = {}
    refused: set[str] = set()
    for verdict in data_verdicts().values():
        if verdict.get("passed") is True:
            versions |= verdict.get("table_versions", {})
        else:
            refused |= verdict.get("table_versions", {}).keys()
    return {name: version for name, version in versions.items() if name not in refused}


def training_data() -> TrainingData | None:
    """What a training would read now: each table as its gate passed it, else as it is; None without lists."""
    checked = checked_versions()
    opened_tables = {table: open_table(table, checked.get(table.name)) for table in TABLES}
    tables = {table: opened for table, opened in opened_tables.items() if opened is not None}

    def as_ofs(table: Table) -> list[int]:
        return [int(partition["as_of"]) for partition in tables[table].partitions()] if table in tables else []

    lists = as_ofs(TRAINING_LISTS)
    if not lists:
        return None
    # Features may be ahead: an interval in which nobody took anything has no lists.
    coming = max([max(lists) + 1, *as_ofs(ITEM_FEATURES)])
    return TrainingData(coming, {table.name: opened.version() for table, opened in tables.items()}, checked)


def judged_training_data() -> TrainingData | None:
    """`training_data`, once gates have looked at all that was computed together; None while they have not.

    A build that is on its way has written features that no gate has looked at, or one of two. What a gate refused is
    judged, too: no training follows, but somebody is to be told.
    """
    verdicts = [data_verdict(gate) for gate in ("features", "lists")]
    made_of = [verdict.get("references", {}).get(SILVER_EVENTS.name) for verdict in verdicts]
    is_refused = any(verdict.get("passed") is False for verdict in verdicts)
    is_whole = None not in made_of and len({*made_of}) == 1
    return training_data() if is_whole or is_refused else None


def needed_training_data() -> TrainingData:
    """`training_data`.

    Raises:
        InputError: there is none yet.
    """
    data = training_data()
    if data is None:
        raise InputError(
            "there is no training data yet",
            where=TRAINING_LISTS.uri,
            cure=f"run the job that writes {TRAINING_LISTS.name}",
        )
    return data


def training_key(as_of: int, versions: Mapping[str, int]) -> str:
    """`as_of_53_v7_1f2e3d4c`: interval, version of the lists, and a digest of all else that a training depends on.

    The digest is of the versions of all tables, the settings in `SETTINGS`, the dataset file and the code of training.
    """
    digest = hashlib.sha256()
    chosen = {name: getattr(settings(), name) for name in SETTINGS}
    digest.update(json.dumps([chosen, dict(versions)], sort_keys=True).encode())
    for path in (settings().dataset_path, *sorted((REPOSITORY / "training").glob("*.py"))):
        digest.update(path.read_bytes() if path.is_file() else b"")
    return f"as_of_{as_of}_v{versions[TRAINING_LISTS.name]}_{digest.hexdigest()[:8]}"


def refresh_key(version: int, data: TrainingData) -> str:
    """`refresh_of_1_as_of_54_v8_1f2e3d4c`: the version whose weights stay, interval, version of the lists, digest of all."""
    digest = hashlib.sha256(json.dumps(dict(data.versions), sort_keys=True).encode()).hexdigest()
    return f"refresh_of_{version}_as_of_{data.as_of}_v{data.versions[TRAINING_LISTS.name]}_{digest[:8]}"


def clear_abandoned(*, but: str = "") -> None:
    """Delete what trainings were at that were killed, but for the one with the key `but`: newer data is another training."""
    for work in settings().training_dir.glob(f"*/{WORK}"):
        if work.parent.name != but and lock_holder(work.parent / LOCK) is None:
            shutil.rmtree(work)
