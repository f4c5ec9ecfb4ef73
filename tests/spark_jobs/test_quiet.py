"""Intervals in which nothing happens, or nobody takes anything, are normal in a small shop: all goes on past them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from contracts.files import write_json
from contracts.settings import settings
from contracts.tables import ITEM_FEATURES, SILVER_EVENTS
from contracts.trainings import training_data
from deploy.local import progress
from spark_jobs import check, pending, storage
from tests.spark_jobs.conftest import DAY_1, DAY_2, DAY_3, HEADER
from tests.verbs import run_verb

VIEWS = "2024-01-04T06:00:00,ann,apple,view,s6,1,1.00,red\n2024-01-04T23:59:00,bob,apple,view,s7,1,1.00,red\n"
DAY_5 = "2024-01-05T23:59:00,ann,apple,purchase,s8,1,1.00,red\n"


def checked_features() -> None:
    """The verdict that the gate writes of the features as they are."""
    table = storage.open_table(ITEM_FEATURES)
    assert table is not None
    verdict = {"passed": True, "table_versions": {ITEM_FEATURES.name: table.version()}}
    write_json(settings().reports_dir / "gates" / "features.json", verdict)


@pytest.mark.slow
def test_an_interval_without_events(shop: Any) -> None:
    """Interval 4 is empty: it lands, is clean, features as of 5 are made, and their gate holds; then 5 goes on as ever."""
    shop.write(events__csv=HEADER + DAY_1 + DAY_2 + DAY_3 + DAY_5)
    shop.build(through=3)
    assert shop.land(through=4) == 0
    assert progress.landed(4)
    assert pending.clean() == [4]
    assert (shop.clean(), shop.features()) == (0, 0)
    assert (pending.clean(), pending.features().any()) == ([], False)
    assert sorted(storage.files(SILVER_EVENTS)) == [1, 2, 3]
    checked_features()
    assert progress.features_ready(5)
    data = training_data()
    assert data is not None
    assert data.as_of == 5
    names = ("HOME", "DATASET", "FOLD_OFFSETS", "TRAINING_INTERVALS")
    values = (settings().home, settings().dataset, "1,2", "2")
    environment = {f"CARTWHEEL_{name}": str(value) for name, value in zip(names, values, strict=True)}
    for gate in ("lists", "features"):
        result = run_verb("expectations", "gate", gate, environment=environment)
        assert result.returncode == 0, result.stdout + result.stderr
    shop.build(through=5)
    checked_features()
    assert progress.features_ready(6)
    assert sorted(storage.files(SILVER_EVENTS)) == [1, 2, 3, 5]


@pytest.mark.slow
def test_an_interval_of_views_only(shop: Any) -> None:
    """In interval 4 people only looked: nobody is active in the sense of the check, and the coming interval is 5."""
    shop.write(events__csv=HEADER + DAY_1 + DAY_2 + DAY_3 + VIEWS)
    path = shop.folder / "check.json"
    assert check.main(shop.dataset, shop.folder, path, users_of_last=2) == 0
    assert json.loads(path.read_text())["active_users"] == {"3": ["ann"], "4": []}
    shop.build(through=4)
    data = training_data()
    assert data is not None
    assert data.as_of == 5
