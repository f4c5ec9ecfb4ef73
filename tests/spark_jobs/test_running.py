"""The interval that is not over yet: in silver with the landing that brought it, and nothing is made of it before its time."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from contracts.errors import InputError
from contracts.settings import settings
from contracts.tables import (
    BRONZE_EVENTS,
    CATEGORY_SHARES,
    ITEM_FEATURES,
    ITEM_INTERVALS,
    ITEMS,
    QUARANTINE,
    SILVER_EVENTS,
    TRAINING_LISTS,
    UNTIMED,
    USER_HISTORIES,
)
from expectations.snapshot import open_snapshot
from spark_jobs import land, pending, storage
from tests.spark_jobs.conftest import BAD_ROWS, DAY_1, DAY_2, DAY_3, HEADER, PLAN, TOML, USERS, Shop
from tests.spark_jobs.conftest import ITEMS as ITEMS_FILE

MADE_OF_SILVER = (ITEM_INTERVALS, USER_HISTORIES, TRAINING_LISTS, CATEGORY_SHARES, ITEM_FEATURES)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def two_days(spark: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a shop of which days 1 and 2 are over and built. Copy it to change it."""
    with pytest.MonkeyPatch.context() as patch:
        shop = Shop(tmp_path_factory.mktemp("two_days"), patch)
        text = TOML.replace('"events.csv"', '"in"\nformat = "csv"')
        shop.write(shop__toml=text, items__csv=ITEMS_FILE, users__csv=USERS, plan__csv=PLAN)
        (shop.folder / "in").mkdir()
        put(shop, "1.csv", DAY_1 + DAY_2)
        shop.use()
        shop.build(through=2)
    settings.cache_clear()
    return shop.folder


@pytest.fixture
def live(two_days: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A shop that lands by a schedule; days 1 and 2 are over and built, of day 3 there is nothing."""
    shutil.copytree(two_days, tmp_path / "copy")
    (tmp_path / "copy" / "in" / "1.csv").unlink()  # it would be another file, by its path
    monkeypatch.setenv("CARTWHEEL_INGEST_SCHEDULE", "* * * * *")
    shop = Shop(tmp_path / "copy", monkeypatch)
    shop.use()
    yield shop
    settings.cache_clear()


def put(shop: Any, name: str, rows: str) -> None:
    (shop.folder / "in" / name).write_text(HEADER + rows)


def running(shop: Any) -> tuple[list[tuple[Any, ...]], int]:
    """User, item and weight of each row of day 3 in silver, and the number of its rows in quarantine."""
    rows = shop.values(SILVER_EVENTS, "interval", "user_id", "item_id", "weight")
    aside = [row for row in shop.rows(QUARANTINE) if row["interval"] == 3]
    return [row[1:] for row in rows if row[0] == 3], len(aside)


def test_what_is_new_is_there_with_its_landing_and_nothing_is_made_of_it(live: Any, built: Path) -> None:
    """Each landing adds its rows and leaves the files there are; when the day is over, all is as if it had come at once."""
    complete, states = open_snapshot(SILVER_EVENTS).digest, {table: storage.state(table) for table in MADE_OF_SILVER}
    bad = BAD_ROWS.splitlines(keepends=True)
    put(live, "2.csv", DAY_3 + bad[1])
    assert live.land(through=2) == 0
    assert running(live) == ([("ann", "bread", 5.0)], 1)
    assert storage.recorded(SILVER_EVENTS)["bronze"] == storage.state(BRONZE_EVENTS)  # what is looked through is short
    first_files = storage.files(SILVER_EVENTS)[3]
    put(live, "3.csv", "".join([bad[0], *bad[2:]]))  # the first is known already, the last has no time
    put(live, "4.csv", DAY_3.replace("ann", "cem").replace("bread", "wine"))
    assert live.land(through=2) == 0
    assert running(live) == ([("ann", "bread", 5.0), ("cem", "wine", 5.0)], 7)
    assert first_files < storage.files(SILVER_EVENTS)[3]
    assert pending.running() == {}
    # Nothing is made of it, no gate looks at it, and nobody knows the items in it.
    live.expose({"interval": 3, "request_id": "r", "user_id": "cem", "items": ["wine"]})
    assert pending.attribute() == []
    assert pending.clean() == [UNTIMED]
    assert (live.clean(), live.features(), pending.features().any()) == (0, 0, False)
    assert {table: storage.state(table) for table in MADE_OF_SILVER} == states
    assert open_snapshot(SILVER_EVENTS).digest == complete
    assert ("wine", False) in live.values(ITEMS, "item_id", "seen")
    # The day is over; what nobody ought to have sent is taken back.
    (live.folder / "in" / "4.csv").unlink()
    put(live, "5.csv", DAY_1)
    assert land.main(live.dataset, live.folder, 3, None, live.now, allow_fewer=True) == 0
    assert (live.clean(), live.features()) == (0, 0)
    tables = (SILVER_EVENTS, QUARANTINE, *MADE_OF_SILVER)
    rows_by_table = {table.name: live.rows(table) for table in tables}
    at_once = replace(live, folder=built)
    at_once.use()
    assert {table.name: at_once.rows(table) for table in tables} == rows_by_table


@pytest.mark.parametrize("table", [QUARANTINE, SILVER_EVENTS])
def test_a_landing_that_was_killed_is_made_good(live: Any, monkeypatch: pytest.MonkeyPatch, table: Any) -> None:
    """Before either of its two commits: the next one has every row once, also those that landed meanwhile."""
    bad = BAD_ROWS.splitlines(keepends=True)
    put(live, "2.csv", DAY_3 + bad[1])
    assert live.land(through=2) == 0
    put(live, "3.csv", DAY_3.replace("ann", "cem") + bad[2])
    commit = storage.commit

    def dies(folder: str, to: Any, **options: Any) -> int:
        if to is table:
            raise KeyboardInterrupt
        return commit(folder, to, **options)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "commit", dies)
        with pytest.raises(KeyboardInterrupt):
            live.land(through=2)
    assert running(live) == ([("ann", "bread", 5.0)], 1 if table is QUARANTINE else 2)
    assert pending.land(live.dataset, live.folder, None, 2, live.now) == [2]
    put(live, "4.csv", bad[3])
    assert live.land(through=2) == 0
    assert running(live) == ([("ann", "bread", 5.0), ("cem", "bread", 5.0)], 3)
    assert pending.running() == {}
    assert pending.land(live.dataset, live.folder, None, 2, live.now) == []


def test_what_was_taken_back_or_means_something_else_is_made_anew(live: Any) -> None:
    """Rows that were taken out, or have another weight: silver has each row once, as it is now."""
    put(live, "2.csv", DAY_3 + DAY_3.replace("ann", "cem"))
    assert live.land(through=2) == 0
    put(live, "2.csv", DAY_3)
    assert (
        land.main(live.dataset, live.folder, 3, None, live.now.replace(year=2024, month=1, day=3), allow_fewer=True)
        == 0
    )
    assert running(live) == ([("ann", "bread", 5.0)], 0)
    live.write(shop__toml=(live.folder / "shop.toml").read_text().replace("purchase = 5.0", "purchase = 9.0"))
    assert (live.clean(), live.land(through=2)) == (0, 0)
    assert running(live) == ([("ann", "bread", 9.0)], 0)


def test_a_dataset_file_of_another_shop_cleans_nothing(live: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused before anything is read by its rules, also what waits to be cleaned."""
    with monkeypatch.context() as patch:
        patch.setenv("CARTWHEEL_INGEST_SCHEDULE", "")
        settings.cache_clear()
        put(live, "2.csv", DAY_3)
        assert live.land(through=2) == 0
    settings.cache_clear()
    assert [*pending.running()] == [3]
    state = storage.state(SILVER_EVENTS)
    live.write(shop__toml=(live.folder / "shop.toml").read_text().replace('name = "tiny"', 'name = "other"'))
    with pytest.raises(InputError, match="'tiny', not 'other'"):
        live.land(through=2)
    assert storage.state(SILVER_EVENTS) == state


def test_small_files_are_put_together(live: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A landing a minute leaves no thousand files a day, and nothing is read again for it."""
    monkeypatch.setattr(storage, "MANY_FILES", 2)
    for number, user in enumerate("abcd", start=2):
        put(live, f"{number}.csv", DAY_3.replace("ann", user))
        assert live.land(through=2) == 0
        assert pending.running() == {}
    assert running(live)[0] == [(user, "bread", 5.0) for user in "abcd"]
    assert len(storage.files(SILVER_EVENTS)[3]) < 4


def test_a_source_that_cannot_be_read_holds_up_no_other(live: Any) -> None:
    """What one source brought is in silver, while the other is said to be broken."""
    text = (live.folder / "shop.toml").read_text().replace("[events]", '[[events]]\nname = "a"')
    start, _, columns = text.partition("[events.columns]")
    columns = columns.partition("[items]")[0]
    of_events = start[start.index("[[events]]") :] + "[events.columns]" + columns
    second = of_events.replace('"a"', '"b"').replace('"in"', '"broken"')
    live.write(shop__toml=text.replace(of_events, of_events + second))
    (live.folder / "broken").mkdir()
    (live.folder / "broken" / "1.csv").write_text("nothing,that,is,declared\n1,2,3,4\n")
    put(live, "2.csv", DAY_3.replace("ann", "dan"))
    with pytest.raises(InputError, match="broken"):
        live.land(through=2)
    assert ("dan", "bread", 5.0) in running(live)[0]
