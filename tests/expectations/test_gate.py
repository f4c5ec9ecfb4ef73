"""The gates, on a small shop: in order it passes, and each way to break it is named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import great_expectations.expectations as gxe
import pandas as pd
import pytest
from deltalake import write_deltalake

from contracts import tables
from contracts.errors import InputError
from contracts.settings import REPOSITORY
from expectations import gate, suites

Frames = dict[str, pd.DataFrame]
Save = Callable[[Frames], None]


def _set(table: str, column: str, value: object, row: int = 0) -> Callable[[Frames], None]:
    def change(frames: Frames) -> None:
        frames[table] = frames[table].astype({column: object}) if value is None else frames[table]
        frames[table].at[row, column] = value

    return change


def _replace(table: str, change: Callable[[pd.DataFrame], pd.DataFrame]) -> Callable[[Frames], None]:
    def replaced(frames: Frames) -> None:
        frames[table] = change(frames[table])

    return replaced


def _again(frame: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([frame, frame.head(1)], ignore_index=True)


BROKEN: dict[str, tuple[str, Callable[[Frames], None], str]] = {
    "null": (
        "raw",
        _set("bronze_events", "source", None),
        "bronze_events.source: 1 of 30 rows break the rule (must not be null)",
    ),
    "problems": (
        "raw",
        _replace("bronze_events", lambda f: f.assign(problems=[["bad"]] * 7 + [[]] * 23)),
        "bronze_events.problem_share: 0.2333 of the new rows have problems",
    ),
    "volume": (
        "raw",
        _replace("bronze_events", lambda f: f[(f["interval"] < 5) | (f["event_id"] == "5a1")]),
        "bronze_events.volume_ratio: 0.1667 times the usual rows",
    ),
    "no_rows": (
        "raw",
        _replace("bronze_events", lambda f: f.head(0)),
        "bronze_events.rows: 0 rows in the table (allowed: 1 to any)",
    ),
    "no_column": (
        "raw",
        _replace("bronze_events", lambda f: f.drop(columns="price")),
        "bronze_events: price is missing",
    ),
    "time": ("raw", _set("bronze_events", "at", 1.5), "bronze_events.outside_interval: 1 rows have a time outside"),
    "bound": (
        "clean",
        _set("silver_events", "quantity", -1.0),
        "silver_events.quantity: 1 of 30 rows break the rule; e.g. -1.0 (allowed: 0 to 1e+06)",
    ),
    "repeated_key": (
        "clean",
        _replace("silver_events", _again),
        "silver_events.event_id: 2 of 31 rows break the rule; e.g. 1a1, 1a1 (must be unique)",
    ),
    "unknown_item": (
        "clean",
        _set("silver_events", "item_id", "9"),
        "silver_events.unknown_items: 1 item ids are not in items",
    ),
    "items_twice": ("clean", _replace("items", _again), "items.item_id: 2 of 5 rows break the rule"),
    "no_items": ("clean", _replace("items", lambda f: f.head(0)), "items.rows: 0 rows in the table"),
    "compound_key": (
        "features",
        _replace("item_intervals", _again),
        "item_intervals.interval+item_id: 2 of 16 rows break the rule",
    ),
    "intervals_beyond": (
        "features",
        _set("item_intervals", "interval", 6, row=14),
        "item_intervals.beyond_silver: 1 rows lie beyond",
    ),
    "features_beyond": (
        "features",
        _set("item_features", "as_of", 7, row=5),
        "item_features.beyond_coming: 1 rows are as of an interval after",
    ),
    "leak": (
        "features",
        _set("item_features", "events_all", 12.0, row=4),
        "item_features.leaking_items: 1 items as of 6",
    ),
    "share": (
        "features",
        _set("item_features", "repeat_share", 1.5),
        "item_features.repeat_share: 1 of 6 rows break the rule; e.g. 1.5 (allowed: 0 to 1)",
    ),
    "lists_beyond": (
        "features",
        _set("training_lists", "as_of", 6, row=14),
        "training_lists.beyond_silver: 1 lists are of an interval beyond",
    ),
    "foreign_label": (
        "features",
        _set("training_lists", "target_items", ["1", "4"], row=12),
        "training_lists.foreign_labels: 1 labels of interval 5",
    ),
    "empty_list": (
        "features",
        _set("training_lists", "target_items", []),
        "training_lists.num_target_items: 1 of 15 rows break the rule; e.g. 0",
    ),
    "descending": (
        "features",
        _replace("user_histories", lambda f: f.assign(at=[at[::-1] if i == 1 else at for i, at in enumerate(f["at"])])),
        "user_histories.descending: 1 histories are not in ascending order",
    ),
    "lengths": (
        "features",
        _replace(
            "user_histories", lambda f: f.assign(weights=[w[:-1] if i == 1 else w for i, w in enumerate(f["weights"])])
        ),
        "user_histories.unequal_lengths: 1 histories",
    ),
    "future": (
        "features",
        _replace("user_histories", lambda f: f.assign(at=[[*at[:-1], 5.5] for at in f["at"]])),
        "user_histories.beyond_silver: 3 entries lie beyond",
    ),
    "unknown_history": (
        "features",
        _replace("user_histories", lambda f: f.assign(item_ids=[["9", *ids[1:]] for ids in f["item_ids"]])),
        "user_histories.unknown_items: 1 item ids",
    ),
}


@pytest.mark.parametrize("name", gate.GATES)
def test_a_shop_in_order_passes(name: str, frames: Frames, saved: Save, home: Path) -> None:
    """A gate passes clean tables, and its verdict names their Delta versions, its rules and its Data Docs."""
    saved(frames)
    verdict = gate.check(name)
    assert verdict.failures == ()
    on_file = json.loads((home / "reports" / "gates" / f"{name}.json").read_text())
    assert on_file["passed"] is True
    assert on_file["table_versions"] == {table.name: 0 for table in gate.GATES[name].covers}
    assert on_file["num_rules"] > 10
    assert Path(on_file["data_docs"]) == home / "reports" / "data_docs" / "index.html"
    assert "silver_events_facts" in Path(on_file["data_docs"]).read_text() or name != "clean"


@pytest.mark.parametrize("case", BROKEN)
def test_each_broken_rule_is_named(case: str, frames: Frames, saved: Save) -> None:
    """Each family of rules can fail, and its line says which table, column and value."""
    name, change, line = BROKEN[case]
    change(frames)
    saved(frames)
    verdict = gate.check(name)
    assert not verdict.passed
    assert any(failure.line.startswith(line) for failure in verdict.failures), [f.line for f in verdict.failures]


def test_every_bound_of_the_contract_is_a_rule() -> None:
    """The suites hold one rule for each column that must not be null and for each bound, and one for the key."""
    for table in tables.TABLES:
        rules = suites.row_expectations(table)
        columns = [column for column in table.columns if not column.type.startswith("map<")]
        bounded = [c for c in columns if c.minimum is not None or c.maximum is not None]
        not_null = [c for c in columns if not c.nullable]
        extra = len(suites.NOT_EMPTY.get(table.name, ())) + bool(table.key)
        assert len(rules) == len(bounded) + len(not_null) + extra, table.name


def test_few_intervals_say_nothing_about_volume(frames: Frames, saved: Save) -> None:
    """With three intervals the newest one may be of any size."""
    bronze = frames["bronze_events"]
    frames["bronze_events"] = bronze[(bronze["interval"] < 3) | (bronze["event_id"] == "3a1")]
    saved(frames)
    assert gate.check("raw").passed


def test_a_rule_that_cannot_be_answered_fails_the_gate(
    frames: Frames, saved: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An expectation that raises instead of answering closes the gate."""
    saved(frames)
    real = suites.row_expectations
    monkeypatch.setattr(
        suites,
        "row_expectations",
        lambda table: [*real(table), gxe.ExpectColumnValuesToNotBeNull(column="no_such_column")],
    )
    verdict = gate.check("raw")
    assert not verdict.passed
    assert "bronze_events.no_such_column: could not be answered" in verdict.failures[0].line


def test_a_missing_answer_fails_the_gate() -> None:
    """Fewer results than rules is a failure although every result that is there is a success."""
    assert gate.failures_of("items", 0, []) == []
    (failure,) = gate.failures_of("items", 2, [])
    assert failure.line == "items: 2 of 2 rules were not answered (every rule must be answered)"


def test_only_new_partitions_are_checked_again(frames: Frames, saved: Save) -> None:
    """After a pass only rewritten partitions are read; a second look at the same versions reads nothing."""
    saved(frames)
    first = gate.check("clean")
    assert first.checked_rows == {"silver_events": 30, "items": 4}
    assert gate.check("clean") == first
    late = frames["silver_events"].tail(6).assign(event_id=[f"6{i}" for i in range(6)], interval=6, at=5.5)
    write_deltalake(tables.SILVER_EVENTS.path, late.astype({"interval": "int32"}), mode="append")
    second = gate.check("clean")
    assert second.passed
    assert second.checked_rows == {"silver_events": 6, "items": 0}
    assert second.table_versions == {"silver_events": 1, "items": 0}
    assert gate.check("clean", full=True).checked_rows == {"silver_events": 36, "items": 4}


def test_tables_without_news_still_answer(frames: Frames, saved: Save) -> None:
    """When one table of a gate has a new version, the others pass with no rows to look at."""
    saved(frames)
    gate.check("features")
    lists = frames["training_lists"].tail(3).astype({"as_of": "int32"})
    write_deltalake(tables.TRAINING_LISTS.path, lists, mode="overwrite", predicate="as_of = 5")
    verdict = gate.check("features")
    assert verdict.failures == ()
    assert verdict.checked_rows == {"item_intervals": 0, "item_features": 0, "user_histories": 0, "training_lists": 3}


def test_a_failed_partition_is_checked_until_it_passes(frames: Frames, saved: Save) -> None:
    """A failure is found again on the next look, with the partitions that passed before left alone."""
    saved(frames)
    gate.check("clean")
    late = (
        frames["silver_events"]
        .tail(6)
        .astype({"interval": "int32"})
        .assign(interval=6, at=5.5)
        .astype({"interval": "int32"})
    )
    write_deltalake(tables.SILVER_EVENTS.path, late, mode="append")
    for _ in range(2):
        verdict = gate.check("clean")
        assert verdict.checked_rows["silver_events"] == 6
        assert [f.line for f in verdict.failures] == [
            "silver_events.repeated_elsewhere: 6 event ids also occur in another interval (allowed: any to 0)"
        ]


def test_broken_context_and_verdict_are_made_anew(frames: Frames, saved: Save, home: Path) -> None:
    """What a killed run left half-written does not keep a gate from working."""
    saved(frames)
    (home / "great_expectations").mkdir()
    (home / "great_expectations" / "great_expectations.yml").write_text("config_version: [")
    (home / "reports" / "gates").mkdir(parents=True)
    (home / "reports" / "gates" / "raw.json").write_text('{"gate": "ra')
    assert gate.check("raw").passed


def test_data_docs_keep_only_recent_runs(frames: Frames, saved: Save, home: Path) -> None:
    """The site does not grow without end."""
    saved(frames)
    for _ in range(7):
        gate.check("raw", full=True)
    pages = list((home / "reports" / "data_docs" / "validations" / "bronze_events").rglob("*.html"))
    assert len(pages) == 5


def test_a_missing_table_is_bad_input(home: Path) -> None:
    """A table that does not exist yet is said in one line, and so is a gate that does not exist."""
    with pytest.raises(InputError, match="table bronze_events does not exist yet"):
        gate.check("raw")
    with pytest.raises(InputError, match="name one of raw, clean, features"):
        gate.check("rwa")


def test_exit_status_and_lines_of_the_command(frames: Frames, saved: Save, home: Path) -> None:
    """The command exits 0 on a pass, 1 with a line for each failing rule, and 2 on bad input."""

    def run(name: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "expectations", "gate", name]
        return subprocess.run(
            command, cwd=REPOSITORY, env=os.environ | {"CARTWHEEL_HOME": str(home)}, capture_output=True, text=True
        )

    _set("silver_events", "quantity", -1.0)(frames)
    saved(frames)
    passed, failed, wrong = run("raw"), run("clean"), run("rwa")
    assert passed.returncode == 0, passed.stderr
    assert passed.stdout.startswith("gate raw passed")
    assert failed.returncode == 1, failed.stderr
    assert failed.stdout.startswith("FAILED silver_events.quantity: 1 of 30 rows break the rule; e.g. -1.0")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("cartwheel: error: no gate 'rwa'")
