"""Landing: each event once, from several sources, with an account of every record."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from contracts import dataset as datasets
from contracts.errors import InputError
from contracts.lake import exists
from contracts.tables import BRONZE_EVENTS, ITEMS, LEDGER, POSITIONS, QUARANTINE, SILVER_EVENTS, UNTIMED, USERS
from spark_jobs import land, ledger, pending, quarantine, storage

FOLDER_TOML = """
name = "tiny"
[interval]
length = "1d"
first = 2024-01-01T00:00:00
[events]
path = "in"
format = "csv"
settle_s = 0
[events.columns]
occurred_at = "when"
user_id = "who"
item_id = "what"
"""
HEADER = "when,who,what\n"
MONDAY, TUESDAY, WEDNESDAY = (f"2024-01-0{day}T12:00:00,{{}},apple\n" for day in (1, 2, 3))


@pytest.fixture
def drop(shop: Any) -> Any:
    """A shop that drops files into a folder."""
    shop.write(shop__toml=FOLDER_TOML)
    (shop.folder / "in").mkdir()
    return shop


def put(shop: Any, name: str, *lines: str) -> Path:
    path: Path = shop.folder / "in" / name
    path.write_text(HEADER + "".join(lines))
    return path


def accounts(shop: Any) -> list[tuple[int, int, int, int, int, int]]:
    """Batch, interval, read, landed, quarantined, duplicates."""
    return shop.values(LEDGER, "batch", "interval", "read", "landed", "quarantined", "duplicates")


def users(shop: Any) -> list[tuple[int, str]]:
    """Those of records with a time."""
    return [pair for pair in shop.values(BRONZE_EVENTS, "interval", "user_id") if pair[0] != UNTIMED]


@pytest.mark.slow
def test_new_files_land_and_old_ones_are_not_read_again(drop: Any) -> None:
    """The second run reads the second file alone; the third finds nothing; hidden and unfinished files are left."""
    put(drop, "a.csv", MONDAY.format("ann"), MONDAY.format("ann"), TUESDAY.format("bob"), "never,eve,apple\n")
    assert drop.land(through=2) == 0
    assert accounts(drop) == [(1, UNTIMED, 1, 0, 1, 0), (1, 1, 2, 1, 0, 1), (1, 2, 1, 1, 0, 0)]
    put(drop, "b.csv", WEDNESDAY.format("cem"))
    put(drop, "_c.csv", WEDNESDAY.format("hidden"))
    put(drop, "d.csv.part", WEDNESDAY.format("unfinished"))
    assert drop.land(through=3) == 0
    assert accounts(drop)[3:] == [(2, 3, 1, 1, 0, 0)]
    before = storage.state(BRONZE_EVENTS)
    assert drop.land(through=3) == 0
    assert storage.state(BRONZE_EVENTS) == before
    assert users(drop) == [(1, "ann"), (2, "bob"), (3, "cem")]
    assert drop.clean() == 0
    assert [row["reasons"] for row in drop.rows(QUARANTINE)] == [["occurred_at: not a time: 'never'"]]


@pytest.mark.slow
def test_what_is_not_complete_lands_and_is_not_cleaned(drop: Any) -> None:
    """A file is read once, however far it reaches; silver holds what is complete, and items are those seen in it."""
    put(drop, "a.csv", MONDAY.format("ann"), TUESDAY.format("bob"), WEDNESDAY.format("cem").replace("apple", "wine"))
    assert (drop.land(through=1), drop.clean()) == (0, 0)
    assert users(drop) == [(1, "ann"), (2, "bob"), (3, "cem")]
    assert drop.values(SILVER_EVENTS, "interval", "user_id") == [(1, "ann")]
    assert drop.values(ITEMS, "item_id") == [("apple",)]
    assert pending.land(drop.dataset, drop.folder, None, 1, drop.now) == []
    assert (drop.land(through=3), pending.clean()) == (0, [2, 3])
    assert (len(accounts(drop)), drop.clean()) == (3, 0)
    assert drop.values(ITEMS, "item_id") == [("apple",), ("wine",)]


@pytest.mark.slow
@pytest.mark.parametrize("way", ["{there}/../{name}", "{there}/link/../{name}"])
def test_a_folder_named_by_a_detour_is_read_once(drop: Any, way: str, tmp_path_factory: Any) -> None:
    """`..` in the path, behind a link too, is taken out as the file system does."""
    put(drop, "odd %20#name ü.csv", MONDAY.format("ann"), TUESDAY.format("bob"))
    elsewhere = drop.folder / "deep" / "er"
    elsewhere.mkdir(parents=True)
    folder = tmp_path_factory.mktemp("detour") if "link" in way else elsewhere.parent
    (folder / "link").symlink_to(elsewhere.parent)
    detour = Path(way.format(there=folder, name="."))
    assert detour.resolve() == drop.folder
    for day in (1, 2):
        assert land.main(drop.dataset, detour, None, day, drop.now) == 0
    assert users(drop) == [(1, "ann"), (2, "bob")]
    assert len(accounts(drop)) == 2


@pytest.mark.slow
def test_a_file_that_has_grown_lands_what_is_new(drop: Any) -> None:
    """What was there is counted as duplicates; a late event marks its interval, and no other, for cleaning."""
    put(drop, "a.csv", MONDAY.format("ann"), TUESDAY.format("bob"))
    assert (drop.land(through=2), drop.clean(), pending.clean()) == (0, 0, [])
    put(drop, "a.csv", MONDAY.format("ann"), TUESDAY.format("bob"), MONDAY.format("late"))
    assert pending.land(drop.dataset, drop.folder, None, 2, drop.now) == [2]
    assert drop.land(through=2) == 0
    assert accounts(drop)[2:] == [(2, 1, 2, 1, 0, 1), (2, 2, 1, 0, 0, 1)]
    assert users(drop) == [(1, "ann"), (1, "late"), (2, "bob")]
    assert pending.clean() == [1]
    assert pending.land(drop.dataset, drop.folder, None, 2, drop.now) == []


@pytest.mark.slow
def test_the_same_event_in_two_files_lands_once(drop: Any) -> None:
    """Overlapping exports change nothing but the count of duplicates."""
    put(drop, "a.csv", MONDAY.format("ann"), TUESDAY.format("bob"))
    drop.land(through=3)
    put(drop, "b.csv", TUESDAY.format("bob"), WEDNESDAY.format("cem"))
    drop.land(through=4)
    assert users(drop) == [(1, "ann"), (2, "bob"), (3, "cem")]
    assert accounts(drop)[2:] == [(2, 2, 1, 0, 0, 1), (2, 3, 1, 1, 0, 0)]


@pytest.mark.slow
def test_a_file_replaced_while_it_was_read_is_read_again(drop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The position holds the file as it was listed, so what was written meanwhile is news."""
    path = put(drop, "a.csv", MONDAY.format("ann"))
    real = storage.append

    def meanwhile(*args: Any, **kwargs: Any) -> None:
        real(*args, **kwargs)
        path.write_text(path.read_text() + MONDAY.format("bob"))

    monkeypatch.setattr(storage, "append", meanwhile)
    drop.land(through=1)
    monkeypatch.undo()
    drop.use()
    drop.land(through=1)
    assert users(drop) == [(1, "ann"), (1, "bob")]


@pytest.mark.slow
def test_a_young_file_is_waited_for(drop: Any) -> None:
    """A file may be written for `settle_s` more: it is read when it is that old."""
    text = (drop.folder / "shop.toml").read_text()
    drop.write(shop__toml=text.replace("settle_s = 0", "settle_s = 1.5"))
    path = put(drop, "a.csv", MONDAY.format("ann"))
    started = path.stat().st_mtime
    assert drop.land(through=1) == 0
    landed = os.stat(storage.open_table(BRONZE_EVENTS).file_uris()[0].removeprefix("file://")).st_mtime
    assert landed - started >= 1.5


TWO_SOURCES = """
name = "tiny"
[interval]
length = "1d"
first = 2024-01-01T00:00:00
[[events]]
name = "shop"
path = "shop.csv"
settle_s = 0
types = { purchase = 5.0 }
{ids}
[events.columns]
event_id = "id"
occurred_at = "when"
user_id = "who"
item_id = "what"
[[events]]
name = "site"
path = "site.jsonl"
settle_s = 0
types = { view = 1.0 }
{ids}
[events.columns]
event_id = "no"
occurred_at = "ts"
user_id = "user"
item_id = "article"
"""


@pytest.mark.parametrize(("scope", "landed"), [("of the source", 3), ("of the shop", 2)])
@pytest.mark.slow
def test_two_sources_with_the_same_ids(shop: Any, scope: str, landed: int) -> None:
    """Id 1 of one source is another event than id 1 of the other, unless the ids are of the shop; a repeat never lands."""
    shop.write(
        shop__toml=TWO_SOURCES.replace("{ids}", f'event_ids_are = "{scope}"'),
        shop__csv="id,when,who,what\n1,2024-01-01T10:00:00,ann,apple\n1,2024-01-01T10:00:00,ann,apple\n",
        site__jsonl='{"no": 1, "ts": "2024-01-01T09:00:00", "user": "ann", "article": "apple"}\n'
        '{"no": 2, "ts": "2024-01-01T09:00:00", "user": "ann", "article": "apple"}\n',
    )
    assert (shop.land(through=1), shop.clean()) == (0, 0)
    rows = shop.values(BRONZE_EVENTS, "source", "event_type", "event_id")
    assert len(rows) == landed
    if scope == "of the source":
        assert rows == [("shop", "purchase", "shop:1"), ("site", "view", "site:1"), ("site", "view", "site:2")]
    by_source = {row["source"]: (row["read"], row["landed"], row["duplicates"]) for row in shop.rows(LEDGER)}
    assert by_source["shop"] == (2, 1, 1)
    assert by_source["site"][0] == 2


@pytest.mark.slow
def test_landing_one_source_again_leaves_what_the_others_have_landed(shop: Any) -> None:
    """The shop's file was corrected, and the site's is gone: that is said, and its rows of the same day stay."""
    shop.write(
        shop__toml=TWO_SOURCES.replace("{ids}", 'event_ids_are = "of the source"'),
        shop__csv="id,when,who,what\n1,2024-01-01T10:00:00,ann,apple\n",
        site__jsonl='{"no": 1, "ts": "2024-01-01T09:00:00", "user": "bob", "article": "apple"}\n',
    )
    assert shop.land(through=1) == 0
    shop.write(shop__csv="id,when,who,what\n1,2024-01-01T10:00:00,anne,apple\n")
    (shop.folder / "site.jsonl").unlink()
    with pytest.raises(InputError, match=r"site\.jsonl"):
        shop.land(from_interval=1)
    assert shop.values(BRONZE_EVENTS, "source", "user_id") == [("shop", "anne"), ("site", "bob")]


@pytest.mark.slow
@pytest.mark.parametrize("dies_in", ["append", "catch_up", "_put_positions", "_put_accounts"])
def test_killed_in_the_middle(drop: Any, monkeypatch: pytest.MonkeyPatch, dies_in: str) -> None:
    """Killed before, or right after, each commit: the next run ends with every event once and balanced accounts."""
    put(drop, "a.csv", MONDAY.format("ann"), TUESDAY.format("bob"), "never,eve,apple\n")
    module, calls = (storage if dies_in == "append" else ledger), 0

    def dies(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if dies_in == "catch_up" and calls == 1:
            return real(*args, **kwargs)
        raise KeyboardInterrupt

    real = getattr(module, dies_in)
    monkeypatch.setattr(module, dies_in, dies)
    with pytest.raises(KeyboardInterrupt):
        drop.land(through=2)
    monkeypatch.setattr(module, dies_in, real)
    assert (drop.land(through=2), drop.clean()) == (0, 0)
    assert users(drop) == [(1, "ann"), (2, "bob")]
    assert len(drop.rows(QUARANTINE)) == 1
    assert accounts(drop) == [(1, UNTIMED, 1, 0, 1, 0), (1, 1, 1, 1, 0, 0), (1, 2, 1, 1, 0, 0)]


@pytest.mark.slow
def test_two_runs_at_once_do_not_land_twice(drop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that finds its batch landed by another fails and says so; the events are there once."""
    put(drop, "a.csv", MONDAY.format("ann"))
    real, nested = storage.append, []

    def meanwhile(frame: Any, table: Any, **kwargs: Any) -> None:
        if not nested:
            nested.append(True)
            other = kwargs | {"record": kwargs["record"] | {"token": "of another run"}}
            real(frame, table, **other)
        real(frame, table, **kwargs)

    monkeypatch.setattr(storage, "append", meanwhile)
    with pytest.raises(RuntimeError, match="another run has landed batch 1 of tiny"):
        drop.land(through=1)
    monkeypatch.undo()
    drop.use()
    assert users(drop) == [(1, "ann")]


@pytest.mark.slow
def test_a_batch_that_lands_nothing_new_says_so_and_is_not_read_again(drop: Any) -> None:
    """A copy of a file is all duplicates: the commit moves the position, and the account says what became of the rows."""
    put(drop, "a.csv", MONDAY.format("ann"))
    drop.land(through=1)
    put(drop, "b.csv", MONDAY.format("ann"))
    drop.land(through=1)
    assert accounts(drop) == [(1, 1, 1, 1, 0, 0), (2, 1, 1, 0, 0, 1)]
    assert pending.land(drop.dataset, drop.folder, None, 1, drop.now) == []


def test_a_wrong_time_format_lands_nothing(drop: Any) -> None:
    """Where no time at all can be read, nothing is set aside: the declaration is wrong, and may be corrected."""
    put(drop, "a.csv", "01.02.2024,ann,apple\n")
    with pytest.raises(InputError, match="none of 1 rows can be used: occurred_at: not a time"):
        drop.land(through=1)
    assert not exists(BRONZE_EVENTS)
    assert pending.landed_through() is None


@pytest.mark.slow
def test_a_new_column_and_a_missing_one(drop: Any) -> None:
    """A file with a column more lands with it in `extra`; one that lacks a declared column is refused and named."""
    put(drop, "a.csv", MONDAY.format("ann"))
    drop.land(through=1)
    (drop.folder / "in" / "b.csv").write_text("when,who,what,colour\n2024-01-02T12:00:00,bob,apple,red\n")
    drop.land(through=2)
    extra = {row["user_id"]: dict(row["extra"]).get("colour") for row in drop.rows(BRONZE_EVENTS)}
    assert extra == {"ann": None, "bob": "red"}
    (drop.folder / "in" / "c.csv").write_text("when,who\n2024-01-03T12:00:00,cem\n")
    with pytest.raises(InputError, match=r"no column 'what'; there are: when, who \(in .*c\.csv\)"):
        drop.land(through=3)
    assert pending.landed_through() == 2


def test_personal_ids_never_arrive(drop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With personal ids only pseudonyms are stored, also of rows set aside and of users; exclusions see the real id."""
    from contracts.pseudonyms import pseudonym

    key = "4a" * 32
    monkeypatch.setenv("CARTWHEEL_SECRET_PSEUDONYM_KEY", key)
    toml = FOLDER_TOML.replace("[interval]", "personal_user_id = true\n[interval]", 1)
    toml += '[[events.exclude]]\nreason = "staff"\ncolumn = "who"\nmatches = "@shop[.]test$"\n'
    toml += '[users]\npath = "users.csv"\n[users.columns]\nuser_id = "mail"\ndescription = ["age"]\n'
    drop.write(shop__toml=toml, users__csv="mail,age\nann@x.test,30\n")
    put(
        drop, "a.csv", MONDAY.format("ann@x.test"), MONDAY.format("eve@shop.test"), "never,bob@x.test,apple\n",
        "2024-01-01,torn@x.test\n",
    )  # fmt: skip
    assert (drop.land(through=1), drop.clean()) == (0, 0)
    stored = {row["user_id"]: row["problems"] for row in drop.rows(BRONZE_EVENTS)}
    assert stored[pseudonym("ann@x.test", key)] == []
    assert stored[pseudonym("eve@shop.test", key)] == ["excluded: staff"]
    assert drop.values(USERS, "user_id") == [(pseudonym("ann@x.test", key),)]
    aside = {json.loads(row["row"])["who"] for row in drop.rows(QUARANTINE)}
    assert aside == {pseudonym(f"{user}.test", key) for user in ("eve@shop", "bob@x", "torn@x")}
    for table in (BRONZE_EVENTS, QUARANTINE, USERS, LEDGER, POSITIONS):
        assert ".test" not in str(drop.rows(table)), table.name


@pytest.fixture
def set_aside(drop: Any) -> Any:
    """A shop whose export changed its way to write times, numbers and types."""
    drop.write(
        shop__toml=FOLDER_TOML.replace("[events.columns]", "types = { view = 1.0, purchase = 5.0 }\n[events.columns]")
        + 'quantity = "pieces"\nprice = "cost"\nevent_type = "kind"\n'
    )
    (drop.folder / "in" / "a.csv").write_text(
        "when,who,what,pieces,cost,kind\n"
        "2024-01-01T10:00:00,ann,apple,1,2.00,view\n"
        "01.01.2024 11:00,bob,apple,1,2.00,view\n"
        '2024-01-01T12:00:00,cem,apple,"1,5","3,50",bought\n'
        "2024-01-01T13:00:00,dan,apple,-1,2.00,view\n"
    )
    assert (drop.land(through=1), drop.clean()) == (0, 0)
    return drop


@pytest.mark.slow
def test_redriven_rows_land_once(set_aside: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """After the dataset file is corrected, rows land or are repaired, however often they are re-driven."""
    dataset = set_aside.dataset
    capsys.readouterr()
    assert quarantine.main(dataset, "list", "", "", set_aside.now) == 0
    output = capsys.readouterr().out
    assert "1  tiny             occurred_at: not a time" in output
    assert "1  tiny             returned" in output
    columns = {"time_format": "dd.MM.yyyy HH:mm", "decimal_comma": True}
    mended = dataset.events[0].model_copy(update=columns | {"type_names": {"bought": "purchase"}})
    mended = datasets.Events.model_validate(mended.model_dump())
    corrected = dataset.model_copy(update={"events": (mended,)})
    assert quarantine.redrive(corrected, "", "", set_aside.now) == (3, 2)
    assert quarantine.redrive(corrected, "", "", set_aside.now) == (3, 0)
    assert pending.clean() == [UNTIMED, 1]
    assert set_aside.clean() == 0
    rows = {row["user_id"]: row for row in set_aside.rows(BRONZE_EVENTS)}
    assert sorted(rows) == ["ann", "bob", "cem", "dan"]
    assert (rows["cem"]["quantity"], rows["cem"]["price"], rows["cem"]["event_type"]) == (1.5, 3.5, "purchase")
    assert rows["cem"]["problems"] == []
    assert [row["reasons"] for row in set_aside.rows(QUARANTINE)] == [["returned"]]
    # The file itself is not read again for it, and would not land its rows twice.
    assert set_aside.land(through=1) == 0
    assert len(set_aside.rows(BRONZE_EVENTS)) == 4


@pytest.mark.slow
def test_a_redriven_record_is_known_when_it_is_read_again(set_aside: Any) -> None:
    """The file is landed again by the corrected dataset file: what was re-driven is there once."""
    text = (set_aside.folder / "shop.toml").read_text()
    set_aside.write(shop__toml=text.replace("settle_s = 0", "settle_s = 0\ndecimal_comma = true"))
    assert quarantine.redrive(set_aside.dataset, "price", "", set_aside.now) == (1, 0)
    set_aside.write(
        shop__toml=text.replace(
            "settle_s = 0", 'settle_s = 0\ndecimal_comma = true\ntype_names = { bought = "purchase" }'
        )
    )
    assert quarantine.redrive(set_aside.dataset, "price", "", set_aside.now) == (1, 1)
    (set_aside.folder / "in" / "a.csv").touch()
    assert set_aside.land(through=1) == 0
    assert [row["user_id"] for row in set_aside.rows(BRONZE_EVENTS)].count("cem") == 1


def test_how_far_all_has_landed_is_known_after_many_commits(drop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each batch says it again, so that it need not be looked for through all commits of a stream."""
    put(drop, "a.csv", MONDAY.format("ann"))
    drop.land(through=1)
    monkeypatch.setattr(storage, "_HISTORY", 1)
    put(drop, "b.csv", MONDAY.format("bob"))
    drop.land(through=1)
    assert pending.landed_through() == 1


@pytest.mark.slow
def test_landing_again_replaces_files_of_two_shapes_in_one_commit(drop: Any) -> None:
    """Rows of files with other columns stay; one that was corrected is replaced; a file that is gone needs a word."""
    put(drop, "a.csv", MONDAY.format("ann"), "soon,eve,apple\n")
    (drop.folder / "in" / "b.csv").write_text("when,who,what,colour\n2024-01-01T12:00:00,bob,apple,red\n")
    assert drop.land(through=1) == 0
    before = storage.open_table(BRONZE_EVENTS).version()
    put(drop, "a.csv", MONDAY.format("anne"), MONDAY.format("eve"))
    assert drop.land(from_interval=1) == 0
    assert users(drop) == [(1, "anne"), (1, "bob"), (1, "eve")]
    assert len(drop.rows(BRONZE_EVENTS)) == 3
    commits = storage.open_table(BRONZE_EVENTS).history(storage.open_table(BRONZE_EVENTS).version() - before)
    assert [commit["operation"] for commit in commits if "accounts" in (commit.get("userMetadata") or "")] == ["WRITE"]
    (drop.folder / "in" / "b.csv").unlink()
    with pytest.raises(InputError, match=r"2 rows would replace 3.*--allow-fewer"):
        drop.land(from_interval=1)
    assert len(users(drop)) == 3
    assert land.main(drop.dataset, drop.folder, 1, None, drop.now, allow_fewer=True) == 0
    assert users(drop) == [(1, "anne"), (1, "eve")]


@pytest.mark.slow
def test_a_corrected_record_lands(drop: Any) -> None:
    """Whatever was wrong with it, a time, a number or a missing user: the same id lands when it can be used."""
    drop.write(shop__toml=FOLDER_TOML + 'event_id = "id"\nprice = "cost"\n')
    for name, rows in {
        "a.csv": "7,soon,ann,apple,1\n8,2024-01-01T12:00:00,bob,apple,x\n9,2024-01-01T12:00:00,,apple,1\n",
        "b.csv": "7,2024-01-01T12:00:00,ann,apple,1\n8,2024-01-01T12:00:00,bob,apple,2\n9,2024-01-01T12:00:00,cem,apple,1\n",
    }.items():
        (drop.folder / "in" / name).write_text(f"id,when,who,what,cost\n{rows}")
        assert (drop.land(through=1), drop.clean()) == (0, 0)
    assert drop.values(SILVER_EVENTS, "event_id", "user_id") == [
        ("tiny:7", "ann"),
        ("tiny:8", "bob"),
        ("tiny:9", "cem"),
    ]
    assert sorted(row["reasons"][0] for row in drop.rows(QUARANTINE)) == [
        "occurred_at: not a time: 'soon'", "price: not a number: 'x'", "user_id: missing",
    ]  # fmt: skip


def test_a_file_of_the_running_interval_is_read_once(drop: Any) -> None:
    """Its events land, wait for the interval to be over, and are nothing to do until then."""
    put(drop, "a.csv", MONDAY.format("ann"))
    drop.land(through=1)
    put(drop, "b.csv", TUESDAY.format("bob"))
    drop.land(through=1)
    assert users(drop) == [(1, "ann"), (2, "bob")]
    assert pending.land(drop.dataset, drop.folder, None, 1, drop.now) == []
    assert pending.clean() == [1]


def test_a_column_that_joins_later_changes_no_id(drop: Any) -> None:
    """The same row in an export with one more column, filled in, is a duplicate; so it is of another type in Parquet."""
    put(drop, "a.csv", MONDAY.format("ann"))
    drop.land(through=1)
    (drop.folder / "in" / "b.csv").write_text("when,who,what,colour\n2024-01-01T12:00:00,ann,apple,red\n")
    drop.land(through=1)
    assert users(drop) == [(1, "ann")]


@pytest.mark.slow
def test_one_absurdly_old_event_is_set_aside(drop: Any) -> None:
    """It is older than the newest by more than the limit; the first batch is never late; re-driven, it stays late."""
    put(drop, "a.csv", MONDAY.format("ann"), WEDNESDAY.format("bob"))
    assert (drop.land(through=3), drop.clean()) == (0, 0)
    put(drop, "b.csv", "2022-06-01T12:00:00,eve,apple\n", "2023-02-01T12:00:00,cem,apple\n")
    assert (drop.land(through=3), drop.clean()) == (0, 0)
    [aside] = drop.rows(QUARANTINE)
    assert aside["reasons"] == ["occurred_at: older than the lateness limit: '2022-06-01T12:00:00'"]
    assert [user for _, user in users(drop)] == ["cem", "ann", "bob"]
    assert quarantine.redrive(drop.dataset, "", "", drop.now) == (1, 0)
    text = (drop.folder / "shop.toml").read_text()
    drop.write(shop__toml=text.replace("[interval]", '[interval]\nlateness_limit = "3650d"'))
    assert quarantine.redrive(drop.dataset, "", "", drop.now) == (1, 1)
    assert [user for _, user in users(drop)] == ["eve", "cem", "ann", "bob"]


@pytest.mark.slow
def test_putting_files_together_makes_nothing_be_computed_again(drop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many files of an interval become one, after which nothing is pending, and landing again and landing on go on."""
    for name in ("a", "b"):
        put(drop, f"{name}.csv", MONDAY.format(name))
        drop.land(through=1)
    assert (drop.clean(), pending.clean()) == (0, [])
    assert len(storage.files(BRONZE_EVENTS)[1]) == 2
    monkeypatch.setattr(storage, "MANY_FILES", 1)
    assert drop.land(through=1) == 0
    assert len(storage.files(BRONZE_EVENTS)[1]) == 1
    assert pending.clean() == []
    put(drop, "c.csv", MONDAY.format("c"))
    drop.land(through=1)
    assert len(storage.files(BRONZE_EVENTS)[1]) == 1
    assert (drop.land(from_interval=1), drop.land(through=1)) == (0, 0)
    assert drop.clean() == 0
    assert users(drop) == [(1, "a"), (1, "b"), (1, "c")]


@pytest.mark.slow
def test_another_meaning_of_types_makes_silver_anew(copied_shop: Any) -> None:
    """An edited weight or target is that of all events, also of those that were clean."""
    text = (copied_shop.folder / "shop.toml").read_text()
    copied_shop.write(shop__toml=text.replace("purchase = 5.0", "purchase = 10.0"))
    assert pending.clean() == [UNTIMED, 1, 2, 3]
    assert copied_shop.clean() == 0
    assert {row["weight"] for row in copied_shop.rows(SILVER_EVENTS) if row["event_type"] == "purchase"} == {10.0}
    assert pending.clean() == []


def test_other_rules_are_said_before_more_lands(drop: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """What has landed stays as it was read, nobody need wonder why; landed again, it is read by the rules of now."""
    put(drop, "a.csv", MONDAY.format("ann"), MONDAY.format("bob"))
    assert drop.land(through=1) == 0
    rule = '[[events.exclude]]\nreason = "staff"\ncolumn = "who"\none_of = "bob"\n'
    drop.write(shop__toml=FOLDER_TOML.replace("settle_s = 0", "settle_s = 0\ntypes = { purchase = 9.0 }"))
    pending.main("land", None, 1)
    assert "read otherwise" not in capsys.readouterr().out
    drop.write(shop__toml=FOLDER_TOML + rule)
    pending.main("land", None, 1)
    assert "tiny: the dataset file has its records read otherwise than before" in capsys.readouterr().out
    assert (drop.land(from_interval=1, through=1), drop.clean()) == (0, 0)
    assert drop.values(SILVER_EVENTS, "user_id") == [("ann",)]
    pending.main("land", None, 1)
    assert "read otherwise" not in capsys.readouterr().out


def test_an_excluded_user_stays_excluded_when_redriven(drop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where ids are personal, whether a user is excluded cannot be seen any more: such rows are not re-driven."""
    monkeypatch.setenv("CARTWHEEL_SECRET_PSEUDONYM_KEY", "4a" * 32)
    toml = FOLDER_TOML.replace("[interval]", "personal_user_id = true\n[interval]", 1)
    drop.write(shop__toml=toml + '[[events.exclude]]\nreason = "staff"\ncolumn = "who"\nmatches = "@shop[.]test$"\n')
    put(drop, "a.csv", MONDAY.format("ann@x.test"), "01.01.2024 11:00,eve@shop.test,apple\n")
    assert (drop.land(through=1), drop.clean()) == (0, 0)
    mended = datasets.Events.model_validate(drop.dataset.events[0].model_dump() | {"time_format": "dd.MM.yyyy HH:mm"})
    corrected = drop.dataset.model_copy(update={"events": (mended,)})
    assert quarantine.redrive(corrected, "occurred_at", "", drop.now) == (1, 0)
    assert len(users(drop)) == 1


def test_tables_of_an_older_layout_are_refused(drop: Any) -> None:
    """One line says how to land again."""
    import deltalake
    import pyarrow as pa

    deltalake.write_deltalake(BRONZE_EVENTS.uri, pa.table({"event_id": ["1"], "interval": [1]}))
    with pytest.raises(InputError, match=r"bronze_events is of an older layout.*delete this folder"):
        drop.land(through=1)


def test_a_column_that_joins_a_table_later(copied_shop: Any) -> None:
    """After a column was added to a contract, rows are written to the table that was made before it, which has null."""
    import dataclasses

    from pyspark.sql import functions as F

    from contracts.tables import Column
    from spark_jobs.session import session

    wider = dataclasses.replace(
        SILVER_EVENTS, columns=(*SILVER_EVENTS.columns, Column("channel", "string", nullable=True))
    )
    before = storage.read(session("tests"), wider)
    assert {row["channel"] for row in before.select("channel").distinct().collect()} == {None}
    storage.write(before.where("interval = 1").withColumn("channel", F.lit("web")), wider, replace=[1])
    channels = {row["interval"]: row["channel"] for row in copied_shop.rows(wider)}
    assert (channels[1], channels[2]) == ("web", None)


@pytest.mark.slow
@pytest.mark.parametrize("event_id", ["", 'event_id = "id"\n'])
def test_a_file_whose_writer_stalled(drop: Any, event_id: str) -> None:
    """A last line without its line feed waits: the row lands whole, once, or as it is when the file has not changed for long."""
    drop.write(shop__toml=FOLDER_TOML + event_id + 'price = "cost"\n')
    path = drop.folder / "in" / "a.csv"
    path.write_text("id,when,who,what,cost\n1,2024-01-01T12:00:00,ann,apple,12")
    assert drop.land(through=1) == 0
    assert pending.landed_through() in (None, 1)
    with path.open("a") as file:
        file.write(".50\n2,2024-01-01T12:00:00,bob,apple,3")
    assert drop.land(through=1) == 0
    assert drop.values(BRONZE_EVENTS, "user_id", "price") == [("ann", 12.5)]
    long_ago = path.stat().st_mtime - 301
    os.utime(path, (long_ago, long_ago))
    assert drop.land(through=1) == 0
    assert drop.values(BRONZE_EVENTS, "user_id", "price") == [("ann", 12.5), ("bob", 3.0)]


@pytest.mark.slow
def test_columns_that_are_blank_in_all_rows_are_redriven(drop: Any) -> None:
    """JSON leaves out what is null: a rule on such a column, and an item's name in it, are no reason to refuse."""
    toml = FOLDER_TOML.replace(
        "[events.columns]", '{more}\nexclude = [{{ reason = "no", column = "void", one_of = "x" }}]\n[events.columns]'
    )
    toml += '[items.columns]\nitem_id = "what"\nname = ["title"]\n'
    (drop.folder / "in" / "a.csv").write_text(
        "when,who,what,void,title\n01.01.2024 11:00,ann,apple,,\n2024-01-01,bob,apple,,\n"
    )
    drop.write(shop__toml=toml.format(more=""))
    assert (drop.land(through=1), drop.clean()) == (0, 0)
    drop.write(shop__toml=toml.format(more='time_format = "dd.MM.yyyy HH:mm"'))
    assert quarantine.redrive(drop.dataset, "occurred_at", "", drop.now) == (1, 1)


def test_rows_that_break_the_contract_are_not_written(drop: Any, spark: Any) -> None:
    """Without a value that it wants, or beside what is to be replaced: the table stays as it is."""
    put(drop, "a.csv", MONDAY.format("ann"))
    drop.land(through=1)
    from pyspark.errors import PySparkException
    from pyspark.sql import functions as F

    before = storage.state(BRONZE_EVENTS)
    whole = storage.read(spark, BRONZE_EVENTS)
    torn = whole.withColumn("source", F.lit(None).cast("string")).withColumn("interval", F.lit(2))
    with pytest.raises(PySparkException, match="bronze_events: source is missing in some rows"):
        storage.write(whole.union(torn.select(*whole.columns)), BRONZE_EVENTS, replace="nothing", record={})
    for other in ([2], []):
        with pytest.raises(RuntimeError, match="bronze_events: rows of 1 lie beside what is replaced"):
            storage.write(whole, BRONZE_EVENTS, replace=other, record={})
    assert storage.state(BRONZE_EVENTS) == before
