"""What a person is told of new data before anything runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from contracts.errors import InputError
from spark_jobs import check


def test_report(shop: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows, problems with an example, range, counts and coverage are told and written."""
    path = shop.folder / "out" / "check.json"
    assert check.main(shop.dataset, shop.folder, path, users_of_last=1) == 0
    facts = json.loads(path.read_text())
    assert [facts[name] for name in ("rows", "usable_rows", "priced_rows", "users", "items")] == [15, 7, 6, 2, 2]
    assert (facts["first_interval"], facts["last_interval"], facts["last_complete_interval"]) == (1, 3, 2)
    assert facts["active_users"] == {"2": ["ann", "bob"], "3": ["ann"]}
    assert facts["events_by_interval"] == {"1": 3, "2": 2, "3": 2}
    assert facts["events_by_type"] == {"purchase": 5, "view": 2}
    assert facts["items_described"] == 2
    assert "busiest_user" not in facts
    printed = capsys.readouterr().out
    assert "1 row   quantity: not a number\n              e.g. {" in printed
    assert "from 2024-01-01 06:00:00 to 2024-01-03 12:00:00" in printed
    assert "warning: 53% of the rows cannot be used" in printed
    assert "           1            3 █" in printed


def test_intervals_too_long(shop: Any) -> None:
    """Every event in one interval: the cure is a shorter one."""
    shop.write(shop__toml=(shop.folder / "shop.toml").read_text().replace('length = "1d"', 'length = "4w"'))
    with pytest.raises(InputError, match=r"all events lie in one interval of 28 days.*set a shorter interval.length"):
        check.main(shop.dataset, shop.folder, None)


def test_no_usable_row(shop: Any, tmp_path: Path) -> None:
    """A time format that does not fit leaves nothing, and the error says why."""
    shop.write(
        shop__toml=(shop.folder / "shop.toml").read_text().replace("[events]", '[events]\ntime_format = "dd.MM.yyyy"')
    )
    with pytest.raises(InputError, match="none of 15 rows can be used: occurred_at: not a time"):
        check.main(shop.dataset, shop.folder, tmp_path / "check.json")
    assert not (tmp_path / "check.json").exists()


LINES = 'name = "lines"\n[interval]\nlength = "1d"\n[events]\npath = "a.csv"\n{more}\n[events.columns]\nuser_id = "who"\nitem_id = "what"\noccurred_at = "when"\n'


def orders(rows: int = 60) -> list[tuple[str, str, str, str, str]]:
    """Order, user, item, time, and when the order was cancelled: on its first line only, of one order in ten."""
    return [
        (
            str(number // 3), f"u{number % 25}", f"p{number % 7}", f"2024-01-0{1 + number % 5}T12:00:{number % 60:02}",
            "2024-01-09" if number % 30 == 0 else "",
        )
        for number in range(rows)
    ]  # fmt: skip


def output_of(shop: Any, capsys: pytest.CaptureFixture[str], toml: str, rows: list[tuple[str, ...]]) -> str:
    text = "order,who,what,when,cancelled\n" + "".join(",".join(row) + "\n" for row in rows)
    shop.write(shop__toml=toml, a__csv=text)
    capsys.readouterr()
    assert check.main(shop.dataset, shop.folder) == 0
    return capsys.readouterr().out


@pytest.mark.slow
def test_what_is_legal_but_hardly_meant(shop: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Guests under one id, an order's number as event_id, a status on the first line of each order, too many bad rows."""
    plain = LINES.format(more="")
    assert "warning: user" not in output_of(shop, capsys, plain, orders())
    guests = [(order, "0" if int(order) % 3 == 0 else who, what, when, no) for order, who, what, when, no in orders()]
    assert "warning: user '0' has 35% of all events" in output_of(shop, capsys, plain, guests)
    assert "warning: 40 of 60 rows would count as duplicates: is order unique?" in output_of(
        shop,
        capsys,
        plain + 'event_id = "order"\n',
        [(*row[:3], f"2024-01-0{1 + int(row[0]) % 5}T12:00:00", "") for row in orders()],
    )
    exclude = '[[events.exclude]]\nreason = "cancelled"\ncolumn = "cancelled"\nmatches = "."\n'
    assert "'cancelled' is filled in on one line of each 'order' only" in output_of(
        shop, capsys, plain + 'session_id = "order"\n' + exclude, orders()
    )
    late = [(*row[:3], "soon" if number % 2 else row[3], "") for number, row in enumerate(orders())]
    assert "50% of the rows have problems: the gate raw stops the run at 20%" in output_of(shop, capsys, plain, late)


@pytest.mark.slow
def test_times_of_another_unit_than_declared(shop: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """A few seconds among milliseconds are read as what they are; where most are of another unit, that is said."""
    from datetime import UTC, datetime

    def seconds(when: str) -> int:
        return int(datetime.fromisoformat(when).replace(tzinfo=UTC).timestamp())

    toml = LINES.format(more='time_format = "epoch_ms"')
    mixed = [
        (*row[:3], str(seconds(row[3]) * (1 if number % 20 == 0 else 1000)), "") for number, row in enumerate(orders())
    ]
    assert "from 2024-01-01 12:00:00 to 2024-01-05 12:00:59" in output_of(shop, capsys, toml, mixed)
    with pytest.raises(InputError, match="'when' looks like microseconds, and time_format says epoch_ms"):
        output_of(shop, capsys, toml, [(*row[:3], str(seconds(row[3]) * 1_000_000), "") for row in orders()])


def test_a_list_is_no_id(shop: Any) -> None:
    """A field of JSON that holds others is set aside with that reason, and never an item by its text."""
    toml = LINES.format(more="").replace("a.csv", "a.jsonl")
    shop.write(shop__toml=toml, a__jsonl='{"who": "ann", "what": [{"id": 1}], "when": "2024-01-01"}\n' * 3)
    with pytest.raises(InputError, match="none of 3 rows can be used: item_id: a list or an object, not an id"):
        check.main(shop.dataset, shop.folder)
