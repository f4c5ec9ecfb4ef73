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
    found = json.loads(path.read_text())
    assert [found[name] for name in ("rows", "usable_rows", "priced_rows", "users", "items")] == [15, 7, 6, 2, 2]
    assert (found["first_interval"], found["last_interval"], found["last_complete_interval"]) == (1, 3, 2)
    assert found["active_users"] == {"2": ["ann", "bob"], "3": ["ann"]}
    assert found["events_by_interval"] == {"1": 3, "2": 2, "3": 2}
    assert found["events_by_type"] == {"purchase": 5, "view": 2}
    assert found["items_described"] == 2
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
