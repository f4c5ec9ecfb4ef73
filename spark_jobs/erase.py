"""Erase one user: from every table, from exposures and reports, and thereby from the next model.

    python -m spark_jobs.erase USER_ID | --pseudonym P

Without either, the id is read from standard input, where no list of processes shows it. That the user is erased is
written down first (as a hash, in the table `erased`), so that no source brings the user back; then everything is
removed, the former versions of the tables included. Run again after a kill, it ends what it began. Needs no Spark.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import deltalake
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs

from contracts import lake, names
from contracts.champion import base_path
from contracts.dataset import Dataset, load
from contracts.errors import InputError, reported
from contracts.exposures import admin_socket, finish_log, finished_logs
from contracts.files import read_json, sync, write_bytes, write_json
from contracts.gates import verdict_paths
from contracts.pseudonyms import pseudonym
from contracts.settings import settings
from contracts.tables import (
    ATTRIBUTIONS,
    BRONZE_EVENTS,
    ERASED,
    EXPOSURES,
    QUARANTINE,
    RECOMMENDATIONS,
    SILVER_EVENTS,
    TRAINING_LISTS,
    USER_HISTORIES,
    USERS,
    Table,
)
from contracts.trainings import clear_abandoned
from spark_jobs import storage
from spark_jobs.scratch import clear_staging
from spark_jobs.sinks import sinks

BY_USER = (
    BRONZE_EVENTS,
    SILVER_EVENTS,
    USERS,
    USER_HISTORIES,
    TRAINING_LISTS,
    EXPOSURES,
    ATTRIBUTIONS,
    RECOMMENDATIONS,
)
"""Tables with a column `user_id`, from the first of the path of the data to the last."""

Removed = dict[str, int]
"""What was removed: the name of a place and the number of rows, lines or files there."""


def arg_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="erase", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("user_id", nargs="?", metavar="USER_ID", help="the id as the shop knows it")
    parser.add_argument("--pseudonym", metavar="P", help="of a shop with personal user ids: what the tables hold")
    return parser


@dataclass(frozen=True)
class Person:
    """Who is erased.

    Attributes:
        stored: the id in the tables: a pseudonym where ids are personal.
        ids: all texts that are known to name the person, `stored` and perhaps the shop's own id.
        key: of the pseudonyms; None where ids are not personal.
    """

    stored: str
    ids: frozenset[str]
    key: str | None

    def is_named_by(self, value: Any) -> bool:
        """Whether a value, as a source or a caller wrote it, is this person's id."""
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        text = str(value).strip(" ")
        if text in self.ids or self.key is None:
            return text in self.ids
        try:
            return pseudonym(text, self.key) == self.stored
        except InputError:  # no valid text, so nobody's id
            return False

    def is_in(self, text: str) -> bool:
        """Whether an id of the person stands in a text, not as a part of a longer word or number."""
        spellings = {spelling for each in self.ids for spelling in (each, *_in_json(each))}
        return any(re.search(rf"(?<![\w@.+-]){re.escape(each)}(?![\w@+-])", text) for each in spellings)


def _in_json(text: str) -> tuple[str, str]:
    return json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]


def person_of(dataset: Dataset, user_id: str | None, told_pseudonym: str | None) -> Person:
    """The person that the command line names.

    Raises:
        InputError: no id or both are given, or a pseudonym of a shop that does not use them.
    """
    if bool(user_id and user_id.strip(" ")) == bool(told_pseudonym):
        raise InputError("no user is named", where="the command line", cure="give either USER_ID or --pseudonym P")
    if not dataset.personal_user_id:
        if told_pseudonym:
            raise InputError(
                "the user ids of this shop are stored as they are",
                where="--pseudonym",
                cure="give the USER_ID itself",
            )
        own = str(user_id).strip(" ")
        return Person(own, frozenset({own}), None)
    key = settings().secret("pseudonym_key")
    if told_pseudonym:
        return Person(told_pseudonym, frozenset({told_pseudonym}), key)
    own = str(user_id).strip(" ")
    stored = pseudonym(own, key)
    return Person(stored, frozenset({own, stored}), key)


def remember(person: Person) -> None:
    """Write down that the person is erased; once."""
    hashed = pseudonym(person.stored, settings().secret("pseudonym_key"))
    erased_users = storage.open_table(ERASED)
    if (
        erased_users is not None
        and hashed in erased_users.to_pyarrow_table(columns=["user_id_hash"])["user_id_hash"].to_pylist()
    ):
        return
    kinds = {"string": pa.string(), "timestamp": pa.timestamp("us", "UTC")}
    schema = pa.schema([pa.field(column.name, kinds[column.type], column.nullable) for column in ERASED.columns])
    row = pa.Table.from_pylist([{"user_id_hash": hashed, "erased_at": datetime.now(UTC)}], schema)
    deltalake.write_deltalake(ERASED.uri, row, mode="append")


def _quoted(values: Iterable[str]) -> str:
    return ", ".join("'" + value.replace("'", "''") + "'" for value in sorted(values))


def delete_events(table: Table, person: Person) -> int:
    """Delete the rows whose `user_id` is the person's; their number."""
    opened = storage.open_table(table)
    if opened is None:
        return 0
    before = storage.total_rows(table)
    opened.delete(f"user_id IN ({_quoted(person.ids)})")
    return before - storage.total_rows(table)


def delete_records(table: Table, name: str, person: Person, columns: Collection[str]) -> int:
    """Delete rows whose column `name`, a record as it came, is the person's, or could not be taken apart and names the person.

    Args:
        columns: the user columns of the sources.
    """
    opened = storage.open_table(table)
    if opened is None:
        return 0

    def is_theirs(text: str | None) -> bool:
        record = json.loads(text) if text is not None else {}
        users = [record.get(column) for column in {"user_id", *columns}]
        named = any(user is not None and person.is_named_by(user) for user in users)
        return named or person.is_in(str(record.get("_corrupt_record") or ""))

    touched = set()
    for batch in opened.to_pyarrow_dataset().to_batches(columns=["interval", name]):
        touched |= {each["interval"] for each in batch.to_pylist() if is_theirs(each[name])}
    before = storage.total_rows(table)
    for interval in sorted(touched):
        part = opened.to_pyarrow_table(filters=[("interval", "=", interval)])
        rest = part.filter(pa.array([not is_theirs(text) for text in part[name].to_pylist()]))
        where = f'"interval" = {interval}'  # quoted: a keyword of SQL
        deltalake.write_deltalake(opened, rest, mode="overwrite", predicate=where)
    return before - storage.total_rows(table)


def drop_former_versions(table: Table) -> None:
    """Remove the files of former versions, and the texts of rows that Delta's log holds.

    The log tells the least and the greatest value of each column of each file, and what was deleted by a command.
    """
    opened = storage.open_table(table)
    if opened is None:
        return
    now: dict[str, Any] = {"retention_hours": 0, "enforce_retention_duration": False, "full": True}
    # A dry run lists files that are gone already too; without any that is there, no new version is made.
    system, root = lake.filesystem()
    old = [f"{root}/{table.name}/{path}" for path in opened.vacuum(**now, dry_run=True)]
    if any(info.is_file for info in system.get_file_info(old)):
        opened.vacuum(**now, dry_run=False)
    log = sorted(
        info.path for info in system.get_file_info(fs.FileSelector(f"{root}/{table.name}/_delta_log")) if info.is_file
    )
    # Checksums go first: a reader that finds one beside a file that was written anew would take it for damaged.
    for path in log:
        if path.endswith(".crc"):
            system.delete_file(path)
    for path in log:
        if path.endswith(".json"):
            _redact_commit(system, path)
        elif path.endswith(".parquet"):
            _redact_checkpoint(system, path)


def _without_texts(stats: str | None) -> str | None:
    """Statistics of a file without bounds that are no numbers."""
    if stats is None:
        return None
    statistics = json.loads(stats)
    for bound in ("minValues", "maxValues"):
        if bound in statistics:
            statistics[bound] = {
                name: value for name, value in statistics[bound].items() if isinstance(value, int | float)
            }
    return json.dumps(statistics, separators=(",", ":"))


def _redact_commit(system: fs.FileSystem, path: str) -> None:
    with system.open_input_stream(path) as file:
        before = file.read().decode()
    lines = []
    for line in before.splitlines():
        action = json.loads(line)
        for kind in ("add", "remove"):
            if action.get(kind, {}).get("stats"):
                action[kind]["stats"] = _without_texts(action[kind]["stats"])
        if action.get("commitInfo", {}).get("operation") == "DELETE":
            action["commitInfo"].get("operationParameters", {}).pop("predicate", None)
        lines.append(line if action == json.loads(line) else json.dumps(action, separators=(",", ":")))
    after = "\n".join(lines) + "\n"
    if after.rstrip("\n") != before.rstrip("\n"):
        _replace(system, path, after.encode())


def _replace(system: fs.FileSystem, path: str, content: bytes) -> None:
    """Put a file in the place of another, whole or not at all."""
    if not isinstance(system, fs.LocalFileSystem):  # a store shows an object when it is whole
        with system.open_output_stream(path) as file:
            file.write(content)
        return
    # Readers tell the time of a version by that of its file.
    write_bytes(Path(path), content, modified_ns=Path(path).stat().st_mtime_ns)


def _redact_checkpoint(system: fs.FileSystem, path: str) -> None:
    table = pq.read_table(path, filesystem=system, partitioning=None)
    changed = False
    for kind in {"add", "remove"} & set(table.column_names):
        actions = table[kind].combine_chunks()
        parts = {part.name: pc.struct_field(actions, part.name) for part in actions.type}
        before = parts["stats"].to_pylist() if "stats" in parts else []
        after = [_without_texts(stats) for stats in before]
        if after == before and "stats_parsed" not in parts:
            continue
        changed = True
        parts.pop("stats_parsed", None)
        if before:
            parts["stats"] = pa.array(after, parts["stats"].type)
        plain = pa.StructArray.from_arrays(list(parts.values()), list(parts), mask=actions.is_null())
        table = table.set_column(table.column_names.index(kind), kind, plain)
    if changed:
        content = pa.BufferOutputStream()
        pq.write_table(table, content)
        _replace(system, path, content.getvalue().to_pybytes())


def erase_exposures(path: Path, person: Person) -> int:
    """Take the person out of a log of the gateway, and leave the others whom the same request was for; the number of lines.

    Lines torn by a kill go if they name the person.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    num_changed = 0
    with path.open("rb") as lines, beside.open("wb") as copy:
        os.fchmod(copy.fileno(), path.stat().st_mode & 0o777)
        for line in lines:
            rest = _without(line, person)
            num_changed += rest != line
            copy.write(rest)
        copy.flush()
        os.fsync(copy.fileno())
    if num_changed:
        beside.replace(path)
        sync(path.parent)
    else:
        beside.unlink()
    return num_changed


def _without(line: bytes, person: Person) -> bytes:
    text = line.decode("utf-8", errors="replace")
    try:
        exposure = json.loads(text)
        users = exposure["user_ids"] or []
        named = [place for place, user in enumerate(users) if user is not None and person.is_named_by(user)]
        if not named:
            return line
        if len(named) == len(users):
            return b""
        answer = json.loads(exposure["response"])
        for place in named:
            # Others keep their places, which name their rows.
            users[place] = None
            for lists in (answer.get("predictions"), *answer.get("outputs", {}).values()):
                if lists:
                    lists[place] = None
        return json.dumps(exposure | {"response": json.dumps(answer)}).encode() + b"\n"
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        return b"" if person.is_in(text) else line


def _texts(value: Any) -> Iterator[str]:
    """All texts in a JSON value but for names of fields."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _texts(each)


def erase_reports(person: Person) -> int:
    """Take the person out of what was written for people to read; the number of files."""
    home, reports = settings().home_dir, settings().reports_dir
    num_changed = 0
    check = read_json(reports / "check.json")
    active, problems = check.get("active_users", {}), check.get("problems", [])
    others = {interval: [user for user in users if not person.is_named_by(user)] for interval, users in active.items()}
    shown = any(person.is_in(problem["example"]) for problem in problems)
    if shown or others != active:
        problems = [problem | {"example": ""} for problem in problems] if shown else problems
        write_json(reports / "check.json", check | {"active_users": others, "problems": problems})
        num_changed += 1
    summary = read_json(home / "summary.json")
    if person.is_named_by((summary.get("example") or {}).get("user_id", "")):
        write_json(home / "summary.json", summary | {"example": None, "curl": None})
        num_changed += 1
    # Verdicts and validations quote a few values of a rule that failed. A gate without its verdict is simply asked again.
    results = home / "great_expectations" / "uncommitted" / "validations"
    for path in [*verdict_paths(), *results.rglob("*.json")]:
        if any(person.is_in(text) for text in _texts(read_json(path))):
            if path.is_relative_to(results):
                page = reports / "data_docs" / "validations" / path.relative_to(results)
                page.with_suffix(".html").unlink(missing_ok=True)
            path.unlink()
            num_changed += 1
    log = home / "logs" / "check.log"  # shows an example of each problem
    if log.exists() and any(each in log.read_text(encoding="utf-8", errors="replace") for each in person.ids):
        log.unlink()
        num_changed += 1
    return num_changed


def drop_trained_models() -> int:
    """Remove our own copies of the models of finished trainings, which hold all histories; MLflow has them too."""
    num_removed = 0
    for result in sorted(settings().training_dir.glob("*/result.json")):
        if (result.parent / "run.json").exists() and (model := result.parent / "saved_model").exists():
            shutil.rmtree(model)
            num_removed += 1
    return num_removed


def models_left() -> list[str]:
    """Models made before now that are still there: they know the person until they are replaced."""
    served = base_path().glob("[0-9]*")
    trained = settings().training_dir.glob("*/saved_model")
    return [f"served version {path.name}" for path in sorted(served)] + [
        f"training {path.parent.name}" for path in sorted(trained)
    ]


def erase(person: Person, dataset: Dataset) -> Removed:
    """Remove the person from the lake and everything under `settings().home_dir`, but models that still serve.

    The caller holds the lock of the tables. Killed or refused, it is run again.

    Raises:
        InputError: the gateway hangs.
    """
    columns = {source.columns.user_id for source in dataset.events}
    remember(person)
    removed: Removed = {}
    for table in BY_USER:
        removed[f"table {table.name}"] = delete_events(table, person)
    removed[f"table {BRONZE_EVENTS.name}"] += delete_records(BRONZE_EVENTS, "record", person, columns)
    removed[f"table {QUARANTINE.name}"] = delete_records(QUARANTINE, "row", person, columns)
    for table in (*BY_USER, QUARANTINE):
        drop_former_versions(table)
    if not finish_log():
        raise InputError(
            "the gateway does not say that it has left its log, which may hold the user",
            where=str(admin_socket()),
            cure="restart it (or stop it), and erase once more: what was removed stays so",
        )
    removed["exposures"] = sum(erase_exposures(path, person) for path in finished_logs())
    for sink in sinks():
        removed[sink.name] = sink.withdraw(person.stored)  # the shop's own id was never there
    # What was fetched and has not landed is fetched again.
    shutil.rmtree(settings().home_dir / "spool", ignore_errors=True)
    clear_staging()
    # So are the examples of a training that was killed.
    clear_abandoned()
    removed["reports"] = erase_reports(person)
    removed["trained models"] = drop_trained_models()
    return removed


def report(removed: Removed, models: Collection[str]) -> Iterator[str]:
    """What a person reads."""
    yield "removed:"
    for place, count in removed.items():
        yield f"  {place:<24} {count:>8,}"
    if not any(count for place, count in removed.items() if place != "trained models"):
        yield "Nothing of this user is there. Unless this is a second run: is the id right? It is written down all the same."
    if models:
        yield f"Models made before this erasure STILL KNOW the user. There are: {', '.join(models)}; and copies in MLflow."
        yield (
            f"Trigger {names.BUILD_FEATURES} in Airflow, then {names.REFRESH_RECOMMENDER} with `force`: the next model does "
            "not know the user. See docs/privacy.md for the ones before it."
        )


def main(user_id: str | None, pseudonym: str | None) -> int:
    """Erase one user and say what was removed; the exit status.

    Raises:
        InputError: no user is named, or there is no key of pseudonyms.
    """
    dataset = load(settings().dataset_path)
    if user_id is None and pseudonym is None:
        user_id = sys.stdin.readline().rstrip("\r\n")
    person = person_of(dataset, user_id, pseudonym)
    with storage.writing(alone=True):
        print("\n".join(report(erase(person, dataset), models_left())), flush=True)
    return 0


if __name__ == "__main__":
    with reported():
        sys.exit(main(**vars(arg_parser().parse_args())))
