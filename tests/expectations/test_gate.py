"""The gates, on a small shop: in order it passes, and each way to break it is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import great_expectations.expectations as gxe
import pandas as pd
import pyarrow as pa
import pytest
from deltalake import write_deltalake

from contracts import tables
from contracts.errors import InputError
from contracts.settings import settings
from expectations import data_docs, facts, gate, suites
from tests.verbs import Ended, run_verb

Frames = dict[str, pd.DataFrame]
Save = Callable[..., None]


def ledger() -> pd.DataFrame:
    """Of 10 records of each interval 6 landed, 3 were quarantined and 1 was known already."""
    return pd.DataFrame(
        {"source": "shop", "batch": interval, "interval": interval, "read": 10, "landed": 6, "quarantined": 3}
        | {"duplicates": 1, "bronze_version": interval, "committed_at": pd.Timestamp("2024-01-01", tz="UTC")}
        for interval in range(1, 6)
    )


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
        "item_features.leaking_items: 1 rows have an events_all that is not the sum",
    ),
    "share": (
        "features",
        _set("item_features", "repeat_share", 1.5),
        "item_features.repeat_share: 1 of 6 rows break the rule; e.g. 1.5 (allowed: 0 to 1)",
    ),
    "lists_beyond": (
        "lists",
        _set("training_lists", "as_of", 6, row=14),
        "training_lists.beyond_silver: 1 lists are of an interval beyond",
    ),
    "foreign_label": (
        "lists",
        _set("training_lists", "target_items", ["1", "4"], row=12),
        "training_lists.foreign_labels: 1 labels were not taken in their list's own interval",
    ),
    "empty_list": (
        "lists",
        _set("training_lists", "target_items", []),
        "training_lists.num_target_items: 1 of 15 rows break the rule; e.g. 0",
    ),
    "descending": (
        "features",
        _replace(
            "user_histories",
            lambda f: f.assign(
                at=[
                    [each + 0.01 * n for n, each in enumerate(at[::-1])][::-1] if i == 1 else at
                    for i, at in enumerate(f["at"])
                ]
            ),
        ),
        "user_histories.descending: 1 histories are not in ascending order",
    ),
    "lengths": (
        "features",
        _replace(
            "user_histories", lambda f: f.assign(weights=[w[:-1] if i == 1 else w for i, w in enumerate(f["weights"])])
        ),
        "user_histories.unequal_lengths: 1 histories",
    ),
    "old_leak": (
        "features",
        _set("item_features", "events_all", 10.0, row=1),
        "item_features.leaking_items: 1 rows have an events_all that is not the sum",
    ),
    "unknown_feature_item": (
        "features",
        _set("item_features", "item_id", "9", row=5),
        "item_features.unknown_items: 1 item ids are not in items",
    ),
    "missing_label": (
        "lists",
        _set("training_lists", "target_items", ["1"], row=0),
        "training_lists.missing_labels: 1 target events of the lists' intervals are in no list",
    ),
    "repeated_label": (
        "lists",
        _set("training_lists", "target_items", ["1", "2", "2"], row=0),
        "training_lists.repeated_labels: 1 labels occur more than once",
    ),
    "unknown_user": (
        "lists",
        _replace("user_histories", lambda f: f[f["user_id"] != "b"]),
        "training_lists.unknown_users: 5 users have no history of the interval",
    ),
    "unknown_label": (
        "lists",
        _replace("items", lambda f: f[f["item_id"] != "3"]),
        "training_lists.unknown_items: 1 item ids are not in items",
    ),
    "lists_behind": (
        "lists",
        _replace("training_lists", lambda f: f[f["as_of"] < 5]),
        "training_lists.behind_targets: 1 intervals behind the last interval of silver_events that holds a target",
    ),
    "silver_behind": (
        "clean",
        _replace("silver_events", lambda f: f[f["interval"] < 5]),
        "silver_events.behind_bronze: 1 intervals behind the last complete interval of bronze_events",
    ),
    "sums_behind": (
        "features",
        _replace("item_intervals", lambda f: f[f["interval"] < 5]),
        "item_intervals.behind_silver: 1 intervals behind",
    ),
    "features_behind": (
        "features",
        _replace("item_features", lambda f: f[f["as_of"] < 6]),
        "item_features.behind_coming: 1 intervals behind the coming interval",
    ),
    "histories_behind": (
        "features",
        _replace("user_histories", lambda f: f[f["interval"] < 5]),
        "user_histories.behind_silver: 1 intervals behind",
    ),
    "shares": (
        "features",
        _set("category_shares", "share", 0.4),
        "category_shares.uneven_shares: 1 intervals have shares that do not add up to 1",
    ),
    "bronze_key": (
        "raw",
        _replace("bronze_events", _again),
        "bronze_events.interval+event_id: 2 of 31 rows break the rule",
    ),
    "unbalanced": (
        "raw",
        lambda frames: frames.update(ledger=ledger().assign(landed=[6, 6, 5, 6, 6])),
        "ledger.unbalanced: 1 batches do not balance",
    ),
    "future": (
        "features",
        _replace("user_histories", lambda f: f.assign(at=[[*at[:-1], 5.5] for at in f["at"]])),
        "user_histories.outside_interval: 15 entries lie outside",
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
    assert on_file["table_versions"] == {table.name: 0 for table in gate.GATES[name].covers if table.name in frames}
    assert on_file["num_rules"] > 10
    assert Path(on_file["data_docs"]) == home / "reports" / "data_docs" / "index.html"
    assert "https://" not in Path(on_file["data_docs"]).read_text().replace("https://greatexpectations.io", "")
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


@pytest.mark.parametrize("what", ["validations", "expectations"])
def test_a_result_that_a_kill_left_torn_stops_no_gate(frames: Frames, saved: Save, home: Path, what: str) -> None:
    """Great Expectations writes its files in place, and reads all of them for its pages."""
    saved(frames)
    gate.check("lists")
    files = [path for path in (home / "great_expectations").rglob("*.json") if what in path.parts]
    assert files
    for path in files:
        path.write_text(path.read_text()[:40])
    assert gate.check("lists", full=True).passed


def test_only_new_partitions_are_checked_again(frames: Frames, saved: Save) -> None:
    """After a pass only rewritten partitions are read; a second look at the same versions reads nothing."""
    saved(frames)
    first = gate.check("clean")
    assert first.checked_rows == {"silver_events": 30, "items": 4}
    assert gate.check("clean") == first
    late = frames["silver_events"].tail(6).assign(event_id=[f"6{i}" for i in range(6)], interval=6, at=5.5)
    write_deltalake(tables.SILVER_EVENTS.uri, late.astype({"interval": "int32"}), mode="append")
    second = gate.check("clean")
    assert second.passed
    assert second.checked_rows == {"silver_events": 6, "items": 0}
    assert second.table_versions == {"silver_events": 1, "items": 0}
    assert second.references == first.references
    assert second.references.keys() == {"bronze_events"}
    assert gate.check("clean", full=True).checked_rows == {"silver_events": 36, "items": 4}


def test_tables_without_news_still_answer(frames: Frames, saved: Save) -> None:
    """When one table of a gate has a new version, the others pass with no rows to look at."""
    saved(frames)
    gate.check("features")
    shares = frames["category_shares"].tail(2).astype({"interval": "int32"})
    write_deltalake(tables.CATEGORY_SHARES.uri, shares, mode="overwrite", predicate='"interval" = 5')
    verdict = gate.check("features")
    assert verdict.failures == ()
    assert verdict.checked_rows == {"item_intervals": 0, "item_features": 0, "user_histories": 0, "category_shares": 2}


def test_the_ledger_is_checked_once_there_is_one(frames: Frames, saved: Save) -> None:
    """Without a ledger gate raw looks at bronze alone; with one, also at every batch of it."""
    saved(frames)
    assert gate.check("raw").checked_rows == {"bronze_events": 30}
    frames["ledger"] = ledger()
    saved(frames)
    verdict = gate.check("raw")
    assert verdict.failures == ()
    assert verdict.checked_rows["ledger"] == 5


def test_an_incomplete_interval_is_left_alone(frames: Frames, saved: Save) -> None:
    """Rows after `through` are judged by no rule, and are checked once landing calls their interval complete."""
    bronze = frames["bronze_events"]
    running = (bronze["interval"] == 5) & (bronze["event_id"] != "5a1")
    frames["bronze_events"] = bronze[~running].assign(at=lambda f: f["at"].where(f["event_id"] != "5a1", 99.0))
    saved(frames, through=4)
    verdict = gate.check("raw")
    assert verdict.failures == ()
    assert verdict.checked_rows == {"bronze_events": 24}
    assert "5" not in verdict.passed_partitions["bronze_events"]
    saved(frames, through=5)
    lines = [failure.line for failure in gate.check("raw").failures]
    assert [line.split(":")[0] for line in lines] == ["bronze_events.volume_ratio", "bronze_events.outside_interval"]


def test_a_source_that_stopped_is_noticed(frames: Frames, saved: Save) -> None:
    """One complete interval without events may happen, a second one in a row closes gate raw."""
    saved(frames, through=6)
    assert gate.check("raw").passed
    saved(frames, through=7)
    (failure,) = gate.check("raw").failures
    assert failure.line == (
        "bronze_events.behind_landing: 2 intervals behind the last interval that landing calls complete "
        "(allowed: any to 1)"
    )


def test_silver_is_held_against_what_it_was_made_of(frames: Frames, saved: Save) -> None:
    """Intervals that are incomplete in bronze are not missing from silver."""
    frames["silver_events"] = frames["silver_events"].query("interval < 5")
    saved(frames, through=4)
    assert gate.check("clean").passed


def test_the_clock_counts_with_a_schedule_only(frames: Frames, saved: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events of weeks long gone are in order in a replay, and stale where landing runs on a schedule."""
    saved(frames)
    assert gate.check("raw").passed
    monkeypatch.setenv("CARTWHEEL_INGEST_SCHEDULE", "0 4 * * *")
    settings.cache_clear()
    verdict = gate.check("raw")
    assert [failure.column for failure in verdict.failures] == ["behind_clock"]
    assert verdict.references == {"clock": str(facts.last_interval_of_the_clock())}


def test_features_are_held_against_all_intervals_before() -> None:
    """Sums as of 2 and 4, where an item has 1, 2 and 4 events in intervals 1 to 3: 1 and 7 are right."""
    sums = pa.table({"interval": [3, 1, 2], "item_id": ["a"] * 3, "events": [4.0, 1.0, 2.0]})
    features = pa.table({"as_of": [4, 2, 4], "item_id": ["a", "a", "new"], "events_all": [7.0, 1.0, 1.0]})
    assert facts.features_off(features, sums, 60) == 1
    assert facts.features_off(features.slice(0, 2), sums, 60) == 0
    assert facts.features_off(features.slice(0, 2), sums, 2) == 1, "as of 4 interval 1 counts no more"


def test_labels_of_another_interval_are_a_leak() -> None:
    """The same user and item in the next interval is no excuse: one label is foreign, one event is missing."""
    lists = pa.table({"as_of": [1, 2], "user_id": ["u", "u"], "target_items": [["a"], ["a", "b"]]})
    events = pa.table(
        {
            "interval": [1, 1, 2, 2],
            "user_id": ["u"] * 4,
            "item_id": ["a", "b", "a", "c"],
            "target": [True] * 3 + [False],
        }
    )
    assert facts.labels_off(lists, events) == facts.Labels(foreign=1, missing=1, repeated=0)


def test_a_page_loads_nothing_from_elsewhere() -> None:
    """Stylesheets, scripts and pictures of the internet are gone; what the page says stays."""
    page = (
        '<head><link rel="stylesheet" href="https://x.example/a.css"/><script src="https://x.example/a.js"></script>'
        "<style>b { background: url('https://x.example/p.png') }</style></head>"
        '<body><img class="l" src="https://x.example/l.png" alt="x"><a href="https://x.example/">told</a></body>'
    )
    offline_page = data_docs.offline(page)
    assert offline_page.count("https://") == 1
    assert '<a href="https://x.example/">told</a>' in offline_page
    assert ".nav-tabs" in offline_page


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
    write_deltalake(tables.SILVER_EVENTS.uri, late, mode="append")
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
    with pytest.raises(InputError, match="name one of raw, clean, features, lists"):
        gate.check("rwa")


def test_exit_status_and_lines_of_the_command(frames: Frames, saved: Save, home: Path) -> None:
    """The command exits 0 on a pass, 1 with a line for each failing rule, and 2 on bad input; of several gates the first
    that fails is the last.
    """

    def run(*names: str) -> Ended:
        return run_verb("expectations", "gate", *names, environment={"CARTWHEEL_HOME": str(home)})

    _set("silver_events", "quantity", -1.0)(frames)
    saved(frames)
    passed, failed, wrong = run("raw"), run("clean", "raw"), run("raw", "rwa")
    assert passed.returncode == 0, passed.stderr
    assert passed.stdout.startswith("gate raw passed")
    assert failed.returncode == 1, failed.stderr
    assert failed.stdout.startswith("FAILED silver_events.quantity: 1 of 30 rows break the rule; e.g. -1.0")
    assert "gate raw" not in failed.stdout
    assert wrong.returncode == 2
    assert wrong.stdout.startswith("gate raw passed")
    assert wrong.stderr.startswith("cartwheel: error: no gate 'rwa'")
