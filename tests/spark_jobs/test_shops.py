"""Shops of other kinds."""

from __future__ import annotations

import csv
import json
import random
import subprocess
import sys
from typing import Any

import pytest

from contracts.settings import REPOSITORY
from contracts.tables import (
    BRONZE_EVENTS,
    ITEM_FEATURES,
    ITEMS,
    LEDGER,
    PROMOTIONS,
    QUARANTINE,
    SILVER_EVENTS,
    TRAINING_LISTS,
    UNTIMED,
    USERS,
)
from spark_jobs import storage

PLAIN = """
name = "plain"
[interval]
length = "1h"
first = 2024-01-01T00:00:00
[events]
path = "events.csv"
time_format = "epoch_s"
[events.columns]
occurred_at = "t"
user_id = "u"
item_id = "i"
"""

BROWSING = """
name = "browsing"
[interval]
length = "5min"
first = 2019-10-01T00:00:00
[events]
path = "*.csv.gz"
time_format = "yyyy-MM-dd HH:mm:ss z"
types = { view = 1.0, cart = 3.0, purchase = 5.0 }
[events.columns]
user_id = "user_id"
item_id = "product_id"
occurred_at = "event_time"
event_type = "event_type"
session_id = "user_session"
price = "price"
[items]
not_recommended = ["77"]
[items.columns]
item_id = "product_id"
name = ["brand", "category_code"]
category = "category_code"
type = "category_id"
"""


@pytest.mark.slow
def test_user_item_and_time_only(shop: Any) -> None:
    """Three columns are enough for every table; items are named by their id."""
    start = 1704067200
    rows = [f"{start + hour * 3600},u{user},i{(user + hour) % 3}" for hour in range(4) for user in range(3)]
    shop.write(shop__toml=PLAIN, events__csv="t,u,i\n" + "\n".join(rows) + "\n")
    shop.build()
    assert shop.values(ITEMS, "item_id", "name", "category", "recommendable") == [
        (f"i{n}", f"i{n}", None, True) for n in range(3)
    ]
    assert storage.rows(SILVER_EVENTS) == dict.fromkeys((1, 2, 3, 4), 3)
    assert len(shop.rows(TRAINING_LISTS)) == 12
    assert {row["mean_price"] for row in shop.rows(ITEM_FEATURES)} == {0.0}
    assert (shop.rows(USERS), shop.rows(PROMOTIONS), shop.rows(QUARANTINE)) == ([], [], [])
    assert len({row["session_id"] for row in shop.rows(SILVER_EVENTS)}) == 12


@pytest.mark.slow
def test_browsing_shop_with_items_in_its_events(shop: Any) -> None:
    """Items come from the events: the latest value that is not blank, joined, hidden by type."""
    import gzip

    header = "event_time,event_type,product_id,category_id,category_code,brand,price,user_id,user_session\n"
    lines = [
        "2019-10-01 00:00:00 UTC,view,1,7,,old,2.00,5,a",
        "2019-10-01 00:06:00 UTC,cart,1,7,shoes.men,new,2.00,5,a",
        "2019-10-01 00:11:00 UTC,purchase,1,7,,,2.00,5,a",
        "2019-10-01 00:11:01 UTC,view,2,77,,,3.00,6,b",
    ]
    (shop.folder / "part-1.csv.gz").write_bytes(gzip.compress((header + "\n".join(lines[:2]) + "\n").encode()))
    (shop.folder / "part-2.csv.gz").write_bytes(gzip.compress((header + "\n".join(lines[2:]) + "\n").encode()))
    shop.write(shop__toml=BROWSING)
    assert (shop.land(), shop.clean()) == (0, 0)
    assert shop.values(ITEMS, *ITEMS.column_names) == [
        ("1", "new · shoes.men", "shoes.men", "7", True, True),
        ("2", "2", None, "77", False, True),
    ]
    assert shop.values(SILVER_EVENTS, "interval", "weight", "target") == [
        (1, 1.0, True),
        (2, 3.0, True),
        (3, 1.0, True),
        (3, 5.0, True),
    ]


@pytest.mark.slow
def test_items_in_events_that_are_json(shop: Any) -> None:
    """Their names and categories come from fields that no column of events stands for, and that not each record has."""
    toml = BROWSING.replace("*.csv.gz", "*.jsonl")
    view = {"event_time": "2019-10-01 00:00:00 UTC", "event_type": "view", "user_id": "5", "user_session": "a"}
    events = [
        view | {"product_id": "1", "brand": "old", "category_code": "shoes"},
        view | {"product_id": "2", "price": 1},
    ]
    shop.write(shop__toml=toml, a__jsonl="".join(f"{json.dumps(event)}\n" for event in events))
    assert (shop.land(), shop.clean()) == (0, 0)
    assert shop.values(ITEMS, "item_id", "name", "category") == [("1", "old · shoes", "shoes"), ("2", "2", None)]


@pytest.mark.slow
def test_any_garbage_is_accounted_for(shop: Any) -> None:
    """Whatever stands in the cells, every row is in silver or in quarantine, and silver keeps the contract's bounds."""
    chance = random.Random(7)
    cells = ["", " ", "ann", "apple", "purchase", "view", "s1", "1", "-1", "0", "1e308", "1e999", "-0.0", "NaN", "null", "'", '"', "ä\t", "2024-01-01",
             "2024-01-02T03:04:05Z", "2024-02-30", "0000-00-00", "2999-12-31T23:59:59", "99999-01-01", "1,5", "\\", "\\N", "#", "=1+1", "x" * 5000, "💥"]  # fmt: skip
    with (shop.folder / "events.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["when", "who", "what", "kind", "visit", "pieces", "cost", "colour"])
        for _ in range(400):
            row = [chance.choice(cells) for _ in range(chance.choice([7, 8, 8, 8, 9]))]
            if chance.random() < 0.7:
                row[:4] = ["2024-01-02T03:04:05", "ann", "apple", chance.choice(["view", "purchase"])]
            writer.writerow(row)
    assert shop.land(through=9_999_999) == 0  # some of it is in the year 2999
    assert shop.clean() == 0
    in_bronze = storage.rows(BRONZE_EVENTS)
    aside = in_bronze[UNTIMED]
    landed = sum(in_bronze.values()) - aside
    ledger = {
        kind: sum(row[kind] for row in shop.rows(LEDGER)) for kind in ("read", "landed", "quarantined", "duplicates")
    }
    assert ledger == {"read": 400, "landed": landed, "quarantined": aside, "duplicates": 400 - landed - aside}
    assert sum(storage.rows(SILVER_EVENTS).values()) + sum(storage.rows(QUARANTINE).values()) == landed + aside
    for row in shop.rows(SILVER_EVENTS):
        for column in SILVER_EVENTS.columns:
            value = row.get(column.name)
            if value is not None and column.minimum is not None:
                assert value >= column.minimum
            if value is not None and column.maximum is not None:
                assert value <= column.maximum


@pytest.mark.slow
def test_a_mistake_is_one_line(shop: Any) -> None:
    """A mistake of a person, found by a job as a process, is one line and exit status 2, without a page of Java."""
    shop.write(shop__toml=(shop.folder / "shop.toml").read_text().replace('"pieces"', '"amount"'))
    command = [sys.executable, "-m", "spark_jobs.check"]
    failed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert failed.returncode == 2
    errors = [line for line in failed.stderr.splitlines() if line.startswith("cartwheel: error")]
    assert len(errors) == 1
    assert "no column 'amount'; there are: when, who" in errors[0]
    assert "Traceback" not in failed.stderr
    assert "\tat " not in failed.stderr
