"""The dataset file: what it accepts, what it refuses and with which words, and how it counts intervals."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts import dataset as datasets
from contracts.dataset import Dataset, Interval
from contracts.errors import InputError
from contracts.settings import REPOSITORY

SMALLEST = """
name = "shop"

[events]
path = "orders.csv"

[events.columns]
user_id = "user"
item_id = "item"
occurred_at = "timestamp"
"""


def loaded(tmp_path: Path, text: str) -> Dataset:
    path = tmp_path / "shop.toml"
    path.write_text(text, encoding="utf-8")
    return datasets.load(path)


def refused(tmp_path: Path, text: str) -> str:
    """The one line that a person reads."""
    with pytest.raises(InputError) as caught:
        loaded(tmp_path, text)
    assert caught.value.where == str(tmp_path / "shop.toml")
    assert caught.value.cure
    return caught.value.what


def test_three_columns_are_enough(tmp_path: Path) -> None:
    """The smallest dataset file has weekly intervals, one event type, unit prices and UTC."""
    shop = loaded(tmp_path, SMALLEST)
    assert shop.interval.length == timedelta(days=7)
    assert shop.time_zone == "UTC"
    assert shop.events[0].files.file_format == "csv"
    assert shop.events[0].only_type == "purchase"
    assert shop.target_types == ("purchase",)
    assert shop.minimum_item_events == 5


@pytest.mark.parametrize("path", sorted((REPOSITORY / "datasets").glob("*.toml")), ids=lambda path: path.stem)
def test_the_datasets_in_the_repository_load(path: Path) -> None:
    """Every dataset file that we ship is valid and is called what it names itself."""
    assert datasets.load(path).name == path.stem


PLAN = """
[promotions]
path = "plan.csv"
[promotions.columns]
item_id = "item"
interval = "week"
"""
EVENTS = SMALLEST.partition("[events]")[2]
"""The rest of the smallest file after its head, to put something in front of."""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = 'shop'", "events: Field required"),
        (SMALLEST.replace('user_id = "user"\n', ""), "events.columns.user_id: Field required"),
        (SMALLEST.replace('"shop"', '"My shop"'), "name: String should match pattern"),
        (SMALLEST + 'colour = "red"\n', "events.columns.colour: Extra inputs are not permitted"),
        (
            SMALLEST.replace("orders.csv", "orders.xlsx"),
            "events: cannot tell the format of 'orders.xlsx': set format to csv, jsonl or parquet",
        ),
        (SMALLEST.replace('"orders.csv"', "[]"), "events.path: Tuple should have at least 1 item"),
        (
            f'name = "shop"\ntime_zone = "Berlin"\n[events]{EVENTS}',
            "time_zone: 'Berlin' is no time zone: write it as Europe/Berlin",
        ),
        (
            f"{SMALLEST}\n[interval]\nlength = '1 month'\n",
            "interval.length: write a length as a number and one of min, h, d, w: 7d",
        ),
        (f"{SMALLEST}\n[interval]\nlength = '0d'\n", "interval.length: write a length as a number"),
        (
            f"{SMALLEST}\n[interval]\nfirst = 2025-01-01T00:00:00+01:00\n",
            "interval.first: is wall-clock time of the shop: leave the offset out",
        ),
        (
            f"{SMALLEST}\n[events.types]\nview = 1.0\ncart = 2.0\n",
            "events: columns.event_type is not given: set default_type to one of types",
        ),
        (f"{SMALLEST}\n[events.types]\nview = 0\n", "events.types.view: Input should be greater than 0"),
        (
            SMALLEST.replace("[events]", '[events]\ndefault_type = "sale"'),
            "events: default_type 'sale' is not in types ['purchase']",
        ),
        (
            SMALLEST.replace("[events]", '[events]\ntargets = ["sale"]'),
            "events: targets names ['sale'], which is not in types ['purchase']",
        ),
        (
            f"{SMALLEST}\n[events.type_names]\nbought = 'sale'\n",
            "events: type_names names ['sale'], which is not in types ['purchase']",
        ),
        (
            f"{SMALLEST}\n[[events.exclude]]\nreason = 'r'\ncolumn = 'c'\n",
            "events.exclude.0: give exactly one of starts_with, one_of, matches",
        ),
        (
            f"{SMALLEST}\n[[events.exclude]]\nreason = 'r'\ncolumn = 'c'\nstarts_with = 'a'\nmatches = 'b'\n",
            "events.exclude.0: give exactly one of starts_with, one_of, matches",
        ),
        (f"{SMALLEST}\n{PLAN}channels = ['a', 'b', 'c']\n", "promotions.columns.channels: "),
        (f"minimum_item_events = 0\n{SMALLEST}", "minimum_item_events: Input should be greater than or equal to 1"),
        ("name = shop", "not valid TOML: "),
    ],
)
def test_a_mistake_is_told_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    """Each refusal begins with the key it is about and says what is wrong with it."""
    assert refused(tmp_path, text).startswith(message)


def test_a_file_that_is_not_utf8_is_no_toml(tmp_path: Path) -> None:
    """Bytes that are no UTF-8 are refused like any other broken TOML."""
    (tmp_path / "shop.toml").write_bytes(b'title = "caf\xe9"')
    with pytest.raises(InputError, match="not valid TOML"):
        datasets.load(tmp_path / "shop.toml")


def test_a_missing_dataset_file_says_how_to_name_one(tmp_path: Path) -> None:
    """No file: the path that was looked for, and the way to give another."""
    with pytest.raises(InputError, match=r"no dataset file.*nowhere\.toml.*DATASET="):
        datasets.load(tmp_path / "nowhere.toml")


@pytest.mark.parametrize(
    ("written", "length"),
    [
        ("5min", timedelta(minutes=5)),
        ("12 h", timedelta(hours=12)),
        ("1d", timedelta(days=1)),
        (" 2w ", timedelta(weeks=2)),
    ],
)
def test_a_length_is_a_number_and_a_unit(written: str, length: timedelta) -> None:
    """Minutes, hours, days and weeks, with or without a blank."""
    assert Interval.model_validate({"length": written}).length == length


@pytest.mark.parametrize(
    ("name", "format_name"),
    [
        ("a.csv", "csv"),
        ("A.CSV.GZ", "csv"),
        ("a.tsv", "csv"),
        ("a.ndjson.bz2", "jsonl"),
        ("in/a.jsonl", "jsonl"),
        ("a.snappy.parquet", "parquet"),
    ],
)
def test_the_ending_tells_the_format(name: str, format_name: str) -> None:
    """The format is told by the ending, whatever its case and compression."""
    assert datasets.Files(path=(name,)).file_format == format_name


MONDAY = Interval(length=timedelta(days=7), first=datetime(2016, 12, 26))


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        (datetime(2016, 12, 25, 23, 59, 59, 999999), 0),
        (datetime(2016, 12, 26), 1),
        (datetime(2017, 1, 1, 23, 59), 1),
        (datetime(2017, 1, 2), 2),
        (datetime(2017, 12, 25), 53),
        (datetime(2016, 12, 12), -1),
    ],
)
def test_intervals_are_counted_from_the_first(moment: datetime, number: int) -> None:
    """Week 1 begins on 26 December 2016; 52 weeks later begins week 53; before week 1 come 0 and -1."""
    assert MONDAY.number(moment) == number


def test_a_label_has_the_time_only_where_it_matters() -> None:
    """A week is named by its date, a five-minute interval by date and time."""
    assert MONDAY.label(53) == "53 (from 2017-12-25)"
    assert Interval(length=timedelta(minutes=5), first=datetime(2019, 10, 1)).label(3) == "3 (from 2019-10-01 00:10:00)"
    assert MONDAY.days == 7.0


lengths = st.timedeltas(min_value=timedelta(minutes=1), max_value=timedelta(weeks=5))
firsts = st.datetimes(min_value=datetime(1990, 1, 1), max_value=datetime(2030, 1, 1))


@given(lengths, firsts, st.integers(-1000, 1000))
def test_an_interval_holds_its_start_and_its_last_microsecond(length: timedelta, first: datetime, number: int) -> None:
    """Start and number are each other's inverse, and an interval ends where the next begins."""
    grid = Interval(length=length, first=first)
    assert grid.number(grid.start(number)) == number
    assert grid.number(grid.start(number + 1) - datetime.resolution) == number


def test_the_wall_clock_decides_and_the_change_of_clocks_moves_no_midnight(tmp_path: Path) -> None:
    """In Berlin 29 March 2026 has 23 hours, from 23:00 UTC to 22:00 UTC; it is one daily interval all the same."""
    head = 'name = "shop"\ntime_zone = "Europe/Berlin"\n[interval]\nlength = "1d"\nfirst = 2026-03-28T00:00:00\n'
    shop = loaded(tmp_path, f"{head}[events]{EVENTS}")
    starts = datetime(2026, 3, 28, 23, tzinfo=UTC)
    ends = datetime(2026, 3, 29, 22, tzinfo=UTC)
    assert shop.interval.number(shop.wall_clock(starts - datetime.resolution)) == 1
    assert shop.interval.number(shop.wall_clock(starts)) == 2
    assert shop.interval.number(shop.wall_clock(ends - datetime.resolution)) == 2
    assert shop.interval.number(shop.wall_clock(ends)) == 3
    assert shop.wall_clock(datetime(2026, 7, 1, 12)) == datetime(2026, 7, 1, 14), "naive moments are UTC"


def test_paths_start_at_the_given_folder_and_globs_need_one_match(tmp_path: Path) -> None:
    """A relative path and a glob are found below the folder; addresses are left alone."""
    (tmp_path / "orders.csv").touch()
    assert datasets.resolve("orders.csv", tmp_path) == str(tmp_path / "orders.csv")
    assert datasets.resolve("*.csv", tmp_path) == str(tmp_path / "*.csv")
    assert datasets.resolve("s3a://bucket/orders", tmp_path) == "s3a://bucket/orders"


@pytest.mark.parametrize("path", ["orders.csv", "*.csv", "package:contracts/nothing.csv"])
def test_a_file_that_is_not_there_is_named(tmp_path: Path, path: str) -> None:
    """The whole path that was looked for, and where to correct it."""
    with pytest.raises(InputError, match="no such file") as caught:
        datasets.resolve(path, tmp_path)
    assert caught.value.where.endswith(path.removeprefix("package:contracts/"))
    assert "path" in caught.value.cure


def test_a_package_that_is_not_installed_is_named(tmp_path: Path) -> None:
    """`package:` names a package of this environment."""
    with pytest.raises(InputError, match="package 'no_such_shop' is not installed"):
        datasets.resolve("package:no_such_shop/data.csv", tmp_path)
