"""A tiny shop whose every number is known by hand, and one Spark session for all tests."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import deltalake
import pytest

from contracts import dataset as datasets
from contracts.settings import settings
from contracts.tables import Table

pytest.importorskip("pyspark")

TOML = """
name = "tiny"
minimum_item_events = 1
[interval]
length = "1d"
first = 2024-01-01T00:00:00
[events]
path = "events.csv"
settle_s = 0
types = { view = 1.0, purchase = 5.0 }
targets = ["purchase"]
exclude = [{ reason = "postage", column = "what", starts_with = "POST" }]
[events.columns]
occurred_at = "when"
user_id = "who"
item_id = "what"
event_type = "kind"
session_id = "visit"
quantity = "pieces"
price = "cost"
[items]
path = "items.csv"
not_recommended = ["hidden"]
[items.columns]
item_id = "id"
name = ["title", "size"]
category = "group"
[users]
path = "users.csv"
[users.columns]
user_id = "id"
description = ["age", "town"]
[promotions]
path = "plan.csv"
[promotions.columns]
item_id = "id"
interval = "day"
channels = ["shelf", "leaflet"]
place = "store"
"""

HEADER = "when,who,what,kind,visit,pieces,cost,colour\n"
DAY_1 = """2024-01-01T06:00:00,ann,apple,purchase,s1,2,1.00,red
2024-01-01T12:00:00,ann,apple,view,s1,1,1.00,red
2024-01-01T18:00:00,bob,bread,view,s2,1,,
"""
DAY_2 = """2024-01-02T12:00:00,ann,apple,purchase,s3,1,2.00,green
2024-01-02T00:00:00,bob,apple,purchase,s4,1,2.00,green
"""
DAY_3 = """2024-01-03T12:00:00,ann,bread,purchase,s5,4,0.50,
"""
BAD_ROWS = """2024-01-03T12:00:00,ann,bread,purchase,s5,4,0.50,
2024-01-03T13:00:00,ann,apple,purchase,s6,two,1.00,
2024-01-03T13:00:01,ann,apple,purchase,s6,-1,1.00,
2024-01-03T13:00:02,ann,apple,purchase,s6,1,"12,x",
2024-01-03T13:00:03,,apple,purchase,s6,1,1.00,
2024-01-03T13:00:04,ann,apple,wishlist,s6,1,1.00,
2024-01-03T13:00:05,ann,POST,purchase,s6,1,1.00,
2024-01-03T13:00:06,ann,apple,purchase,s6,1,-3,
yesterday,ann,apple,purchase,s6,1,1.00,
"""
EVENTS = HEADER + DAY_1 + DAY_2 + DAY_3 + BAD_ROWS
ITEMS = 'id,title,size,group\napple,Äpfel "rot",1 kg,fruit\nbread,Brot,,bakery\nwine,Wein,,hidden\n'
USERS = "id,age,town\nann,30,Ulm\nbob,,Bonn\n"
PLAN = "id,day,store,shelf,leaflet\napple,4,1,1,0\napple,4,1,1,0\napple,4,2,0,A\nbread,4,3,0,0\nbread,2,1,1,0\n"


@dataclass
class Shop:
    """A shop's folder and its home; the jobs run on it as their command lines would."""

    folder: Path

    def use(self) -> None:
        """Point the settings here."""
        self._patch.setenv("CARTWHEEL_HOME", str(self.folder / "home"))
        self._patch.setenv("CARTWHEEL_DATASET", str(self.folder / "shop.toml"))
        self._patch.setenv("CARTWHEEL_DATA_DIR", "")
        self._patch.setenv("CARTWHEEL_FOLD_OFFSETS", "1,2")
        self._patch.setenv("CARTWHEEL_TRAINING_INTERVALS", "2")
        settings.cache_clear()

    _patch: pytest.MonkeyPatch

    def write(self, **files: str) -> None:
        for name, text in files.items():
            (self.folder / name.replace("__", ".")).write_text(text, encoding="utf-8")

    @property
    def dataset(self) -> datasets.Dataset:
        return datasets.load(self.folder / "shop.toml")

    @property
    def now(self) -> datetime:
        return datetime.now(UTC)

    def land(self, through: int | None = None, from_interval: int | None = None) -> int:
        from spark_jobs import land

        return land.main(self.dataset, self.folder, from_interval, through, self.now)

    def clean(self) -> int:
        from spark_jobs import clean

        return clean.main(self.dataset)

    def features(self, coming: int | None = None) -> int:
        from spark_jobs import features

        return features.main(coming)

    def attribute(self, interval: int) -> int:
        from spark_jobs import attribute

        return attribute.main(interval)

    def build(self, through: int | None = None) -> None:
        assert (self.land(through), self.clean(), self.features()) == (0, 0, 0)

    def log_exposures(self, *exposures: dict[str, Any], torn: str = "") -> None:
        """Lines of the gateway's log: each of one user, or with `user_ids` of several, who get the same items."""
        path = self.folder / "home" / "exposures" / "gateway.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as log:
            for one in exposures:
                users = one.get("user_ids", [one.get("user_id")])
                day = f"2024-01-{one['interval']:02}T01:00:00Z"
                shown = {"items": one["items"], "scores": [1.0] * len(one["items"])}
                line = {
                    "request_id": one["request_id"], "served_at": "2026-01-01T00:00:00.000000Z",
                    "replayed_at": one.get("served_at", day), "client": "shop", "user_ids": users,
                    "arm": one.get("arm", "stable"), "model_version": 7, "fallback": one.get("fallback"),
                    "response": json.dumps({"predictions": [shown] * len(users)}), "latency_us": 2000,
                }  # fmt: skip
                log.write(json.dumps(line) + "\n")
            log.write(torn)

    def expose(self, *exposures: dict[str, Any], torn: str = "") -> None:
        """Log exposures and land them."""
        from spark_jobs import exposures as job

        self.log_exposures(*exposures, torn=torn)
        job.land(self.dataset)

    def rows(self, table: Table) -> list[dict[str, Any]]:
        """All rows in the order of the table's key, without times of landing."""
        arrow = deltalake.DeltaTable(table.uri).to_pyarrow_table()
        order = [c.name for c in table.columns if c.type in ("int", "string", "double")]
        rows_of_table = [{k: v for k, v in row.items() if not k.endswith("ingested_at")} for row in arrow.to_pylist()]
        for row in rows_of_table:
            if "row" in row:
                row["row"] = json.dumps({k: v for k, v in json.loads(row["row"]).items() if k != "ingested_at"})
        return sorted(rows_of_table, key=lambda row: [str(row[name]) for name in order])

    def values(self, table: Table, *columns: str) -> list[tuple[Any, ...]]:
        return sorted(tuple(row[column] for column in columns) for row in self.rows(table))


Opener = Callable[[Path], Shop]


@pytest.fixture
def open_shop(monkeypatch: pytest.MonkeyPatch) -> Iterator[Opener]:
    """Make a tiny shop in a folder."""

    def opened(folder: Path) -> Shop:
        folder.mkdir(parents=True, exist_ok=True)
        shop = Shop(folder, monkeypatch)
        shop.write(shop__toml=TOML, events__csv=EVENTS, items__csv=ITEMS, users__csv=USERS, plan__csv=PLAN)
        shop.use()
        return shop

    yield opened
    settings.cache_clear()


@pytest.fixture
def shop(spark: Any, open_shop: Opener, tmp_path: Path) -> Shop:
    """A tiny shop on which nothing ran yet."""
    return open_shop(tmp_path / "shop")


@pytest.fixture(scope="session")
def built(spark: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny shop whose three days are landed, cleaned and made features of. Copy it to change it."""
    with pytest.MonkeyPatch.context() as patch:
        shop = Shop(tmp_path_factory.mktemp("built"), patch)
        shop.write(shop__toml=TOML, events__csv=EVENTS, items__csv=ITEMS, users__csv=USERS, plan__csv=PLAN)
        shop.use()
        shop.build()
    settings.cache_clear()
    return shop.folder


@pytest.fixture
def built_shop(built: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    """The shop of `built`, to be read only."""
    shop = Shop(built, monkeypatch)
    shop.use()
    yield shop
    settings.cache_clear()


@pytest.fixture
def copied_shop(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    """A copy of `built` to work on."""
    import shutil

    shutil.copytree(built, tmp_path / "copy")
    shop = Shop(tmp_path / "copy", monkeypatch)
    shop.use()
    yield shop
    settings.cache_clear()
