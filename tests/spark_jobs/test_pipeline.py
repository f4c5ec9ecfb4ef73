"""land -> clean -> features on the tiny shop: every number by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from contracts import names
from contracts.errors import InputError
from contracts.lake import exists
from contracts.settings import settings
from contracts.tables import (
    BRONZE_EVENTS,
    CATEGORY_SHARES,
    ITEM_FEATURES,
    ITEM_INTERVALS,
    ITEMS,
    NUM_USER_BUCKETS,
    PROMOTIONS,
    QUARANTINE,
    SILVER_EVENTS,
    TABLES,
    TRAINING_LISTS,
    UNTIMED,
    USER_HISTORIES,
    USERS,
)
from spark_jobs import pending, storage

FEATURE_TABLES = (ITEM_INTERVALS, USER_HISTORIES, TRAINING_LISTS, CATEGORY_SHARES, ITEM_FEATURES)
EVENT_ROWS = 15


def test_rows_that_landed(built_shop: Any) -> None:
    """All rows are in bronze but the duplicate, also the one without a time; that one is in quarantine as it came."""
    intervals = sorted(row["interval"] for row in built_shop.rows(BRONZE_EVENTS))
    assert intervals == [UNTIMED] + [1] * 3 + [2] * 2 + [3] * 8
    [aside] = [row for row in built_shop.rows(QUARANTINE) if row["interval"] == UNTIMED]
    assert aside["reasons"] == ["occurred_at: not a time: 'yesterday'"]
    assert json.loads(aside["row"])["when"] == "yesterday"


def test_rows_set_aside(built_shop: Any) -> None:
    """Each bad row is in quarantine with its reason, and kept + set aside is what landed."""
    aside = [row for row in built_shop.rows(QUARANTINE) if row["interval"] != UNTIMED]
    assert sorted(reason for row in aside for reason in row["reasons"]) == [
        "event_type: not known: 'wishlist'",
        "excluded: postage",
        "price: below 0",
        "price: not a number: '12,x'",
        "quantity: not a number: 'two'",
        "returned",
        "user_id: missing",
    ]
    assert all(row["interval"] == 3 and json.loads(row["row"])["when"][:10] == "2024-01-03" for row in aside)
    assert len(built_shop.rows(SILVER_EVENTS)) + len(aside) + 1 == len(built_shop.rows(BRONZE_EVENTS)) == EVENT_ROWS - 1


def test_silver(built_shop: Any) -> None:
    """Sound rows carry the weight of their type and whether it is a target."""
    values = built_shop.values(SILVER_EVENTS, "at", "user_id", "item_id", "weight", "target", "quantity")
    assert values == [
        (0.25, "ann", "apple", 5.0, True, 2.0),
        (0.5, "ann", "apple", 1.0, False, 1.0),
        (0.75, "bob", "bread", 1.0, False, 1.0),
        (1.0, "bob", "apple", 5.0, True, 1.0),
        (1.5, "ann", "apple", 5.0, True, 1.0),
        (2.5, "ann", "bread", 5.0, True, 4.0),
    ]


def test_items_users_promotions(built_shop: Any) -> None:
    """Names are joined, hidden groups are not recommendable, and shares count each place once."""
    assert built_shop.values(ITEMS, "item_id", "name", "category", "recommendable") == [
        ("apple", 'Äpfel "rot" · 1 kg', "fruit", True),
        ("bread", "Brot", "bakery", True),
        ("wine", "Wein", "hidden", False),
    ]
    assert built_shop.values(USERS, "user_id", "description") == [("ann", "30 · Ulm"), ("bob", "Bonn")]
    assert built_shop.values(PROMOTIONS, "item_id", "interval", "first_share", "second_share", "any_share") == [
        ("apple", 4, pytest.approx(1 / 3), pytest.approx(1 / 3), pytest.approx(2 / 3)),
        ("bread", 2, 1.0, 0.0, 1.0),
    ]


def test_item_intervals(built_shop: Any) -> None:
    """A basket counts an item once; the gap is from basket to basket."""
    assert built_shop.values(ITEM_INTERVALS, *ITEM_INTERVALS.column_names) == [
        (1, "apple", 1.0, 1.0, 1.0, 0.0, 0.0, 3.0, 3.0, 3.0),
        (1, "bread", 1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0),
        (2, "apple", 2.0, 2.0, 1.0, 1.0, 1.0, 2.0, 4.0, 2.0),
        (3, "bread", 1.0, 1.0, 1.0, 0.0, 0.0, 4.0, 2.0, 4.0),
    ]


def test_item_features(built_shop: Any) -> None:
    """As of 4 and as of 2, by hand."""
    rows = {(row["as_of"], row["item_id"]): row for row in built_shop.rows(ITEM_FEATURES)}
    assert sorted(rows) == [(as_of, item) for as_of in (2, 3, 4) for item in ("apple", "bread")]

    def values(as_of: int, item: str) -> list[float]:
        return [value for name, value in rows[as_of, item].items() if name not in ("as_of", "item_id")]

    assert values(4, "apple") == pytest.approx([0, 3, 3, 3, 3, 2, 2 / 3, 1 / 3, 1.0, 1.4, 1.0, 1 / 3, 1 / 3, 2 / 3])
    assert values(4, "bread") == pytest.approx([1, 2, 2, 2, 1, 2, 1, 0, 0, 0.5, 1.0, 0, 0, 0])
    assert values(2, "bread") == pytest.approx([1, 1, 1, 1, 0, 1, 1, 0, 0, 0, 1.0, 1, 0, 1])


def test_histories_lists_and_shares(built_shop: Any) -> None:
    """Histories are in order of time with the heaviest weight; lists hold targets only; shares add up to 1."""
    assert built_shop.values(USER_HISTORIES, "interval", "user_id", "item_ids", "at", "weights") == [
        (1, "ann", ["apple"], [0.5], [5.0]),
        (1, "bob", ["bread"], [0.75], [1.0]),
        (2, "ann", ["apple"], [1.5], [5.0]),
        (2, "bob", ["apple"], [1.0], [5.0]),
        (3, "ann", ["bread"], [2.5], [5.0]),
    ]
    assert built_shop.values(TRAINING_LISTS, "as_of", "user_id", "target_items") == [
        (1, "ann", ["apple"]),
        (2, "ann", ["apple"]),
        (2, "bob", ["apple"]),
        (3, "ann", ["bread"]),
    ]
    buckets = dict(built_shop.values(USER_HISTORIES, "user_id", "bucket"))
    assert set(buckets.values()) <= set(range(NUM_USER_BUCKETS))
    assert all(buckets[user] == bucket for user, bucket in built_shop.values(TRAINING_LISTS, "user_id", "bucket"))
    assert built_shop.values(CATEGORY_SHARES, *CATEGORY_SHARES.column_names) == [
        (1, "bakery", 0.5),
        (1, "fruit", 0.5),
        (2, "fruit", 1.0),
        (3, "bakery", 1.0),
    ]


def test_spark_reads_every_schema_as_it_is_meant(spark: Any) -> None:
    """Spark's own parser finds the columns of the contract, in order, with the same types and nulls."""
    from pyspark.sql.types import StructType

    spark_names = {"int": "integer", "bigint": "long"}
    for table in TABLES:
        fields = StructType.fromDDL(table.ddl).jsonValue()["fields"]
        assert [field["name"] for field in fields] == table.column_names
        for field, column in zip(fields, table.columns, strict=True):
            assert field["nullable"] is column.nullable, f"{table.name}.{column.name}"
            if isinstance(field["type"], str):
                assert field["type"] == spark_names.get(column.type, column.type), f"{table.name}.{column.name}"
            else:
                assert column.type.startswith(field["type"]["type"]), f"{table.name}.{column.name}"


def test_schemas_are_those_of_the_contract(built_shop: Any, spark: Any) -> None:
    """Columns, types and what may be null are as declared."""
    from pyspark.sql.types import StructType

    for table in TABLES:
        if exists(table):
            declared = StructType.fromDDL(table.ddl)
            schema = storage.read(spark, table).schema
            assert [(f.name, f.dataType.simpleString()) for f in schema] == [
                (f.name, f.dataType.simpleString()) for f in declared
            ]


def test_nothing_to_do(built_shop: Any) -> None:
    """All that landed is clean and made features of: every step says so."""
    assert (pending.clean(), pending.features().any(), pending.attribute()) == ([], False, [])
    assert [pending.main(step, None, None) for step in ("clean", "features", "attribute")] == [names.NOTHING_TO_DO] * 3
    assert pending.main("land", None, 3) == names.NOTHING_TO_DO
    before = {table.name: storage.state(table) for table in TABLES}
    assert (built_shop.clean(), built_shop.features(), built_shop.land(through=2), built_shop.land()) == (0, 0, 0, 0)
    assert {table.name: storage.state(table) for table in TABLES} == before


def test_range_without_events(built_shop: Any) -> None:
    """Asking for intervals that hold nothing says what was asked and what there is."""
    with pytest.raises(InputError, match="no events in intervals 8 to 9: there are intervals 1 to 3"):
        built_shop.land(through=9, from_interval=8)


def test_a_table_whose_creation_was_killed_is_made_by_the_contract(shop: Any) -> None:
    """Killed before the first commit, the next run makes the table anew, with its partitions and what must not be null."""
    assert shop.land(through=3) == 0
    log = Path(SILVER_EVENTS.uri) / "_delta_log"
    (log / "_staged_commits").mkdir(parents=True)
    (log / ".00000000000000000000.json.6a2f5eea.tmp").write_text("{}")
    assert shop.clean() == 0
    table = storage.open_table(SILVER_EVENTS)
    assert table is not None
    assert table.metadata().partition_columns == ["interval"]
    assert [field.nullable for field in table.schema().fields] == [column.nullable for column in SILVER_EVENTS.columns]


@pytest.mark.slow
def test_running_again_changes_nothing(copied_shop: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Landing the same again and bringing all up to date gives equal tables."""
    tables = (BRONZE_EVENTS, QUARANTINE, SILVER_EVENTS, ITEMS, USERS, PROMOTIONS, *FEATURE_TABLES)
    before = {table.name: copied_shop.rows(table) for table in tables}
    assert copied_shop.land(through=3, from_interval=1) == 0
    assert pending.main("clean", None, None) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "untimed,1,2,3"  # what Airflow takes for the result
    assert (copied_shop.clean(), copied_shop.features()) == (0, 0)
    assert {table.name: copied_shop.rows(table) for table in tables} == before


@pytest.mark.slow
def test_late_change_touches_only_what_it_must(copied_shop: Any, spark: Any, open_shop: Any, tmp_path: Any) -> None:
    """An event added to day 2 leaves day 1 alone, and the result is that of building from scratch."""
    late = "2024-01-02T18:00:00,bob,bread,purchase,s9,1,1.00,\n"
    before = {
        table.name: storage.files(table)
        for table in (SILVER_EVENTS, ITEM_INTERVALS, USER_HISTORIES, TRAINING_LISTS, ITEM_FEATURES)
    }
    text = (copied_shop.folder / "events.csv").read_text()
    copied_shop.write(events__csv=text + late)
    assert copied_shop.land(through=2, from_interval=2) == 0
    assert pending.clean() == [UNTIMED, 2]
    assert copied_shop.clean() == 0
    todo = pending.features()
    assert (todo.item_intervals, todo.training_lists, todo.item_features) == ([2, 3], [2], [3, 4])
    assert copied_shop.features() == 0
    for name, untouched in {
        "silver_events": (1, 3),
        "item_intervals": (1,),
        "user_histories": (1, 3),
        "training_lists": (1, 3),
        "item_features": (2,),
    }.items():
        after = storage.files(next(table for table in TABLES if table.name == name))
        assert all(after[value] == before[name][value] for value in untouched)
    tables = (SILVER_EVENTS, *FEATURE_TABLES)
    patched = {table.name: copied_shop.rows(table) for table in tables}
    scratch = open_shop(tmp_path / "scratch")
    scratch.write(events__csv=text + late)
    scratch.build()
    assert {table.name: scratch.rows(table) for table in tables} == patched


def test_future_changes_nothing(built_shop: Any, spark: Any) -> None:
    """Shuffling, scaling and dropping what happens from interval n on leaves the features as of n as they are."""
    from pyspark.sql import functions as F

    from spark_jobs.features import item_features, rows_before

    sums, promotions = storage.read(spark, ITEM_INTERVALS), storage.read(spark, PROMOTIONS)
    future = F.col("interval") >= 3
    other = F.when(F.col("item_id") == "apple", "bread").otherwise("apple")
    noise = sums.select(
        *[
            F.when(future, F.col(n) * 9 + 1).otherwise(F.col(n)).alias(n)
            if n not in ("interval", "item_id")
            else F.col(n)
            for n in sums.columns
        ]
    )
    noise = noise.withColumn("item_id", F.when(future, other).otherwise(F.col("item_id")))

    def rows(changed: Any) -> list[Any]:
        return sorted(item_features(changed, promotions, [3], 60).collect())

    assert rows(noise) == rows(sums) == rows(sums.where(~future)) != []
    histories = storage.read(spark, USER_HISTORIES)
    assert {(row["interval"], row["user_id"]) for row in rows_before(histories, 3, 60).collect()} == {
        (1, "ann"), (1, "bob"), (2, "ann"), (2, "bob"),
    }  # fmt: skip
    assert {(row["interval"], row["user_id"]) for row in rows_before(histories, 3, 1).collect()} == {
        (2, "ann"),
        (2, "bob"),
    }


def test_what_lies_beyond_the_horizon_counts_for_nothing(built_shop: Any, spark: Any) -> None:
    """One interval back, day 4 knows of day 3 only; half of one back, ann's apple of the day before is a first one."""
    from spark_jobs.features import basket_entries, item_features, rows_before

    sums, promotions = storage.read(spark, ITEM_INTERVALS), storage.read(spark, PROMOTIONS)
    [row] = item_features(sums, promotions, [4], 1).collect()
    assert (row["item_id"], row["events_all"], row["buyers_all"]) == ("bread", 1.0, 1.0)
    day_2 = storage.read(spark, SILVER_EVENTS).where("interval = 2")
    for horizon, gap in ((1, 1.0), (0.5, None)):
        histories = rows_before(storage.read(spark, USER_HISTORIES), 2, 1)
        rows = basket_entries(day_2, histories, horizon).collect()
        assert {row["user_id"]: row["gap"] for row in rows} == {"ann": gap, "bob": None}


def test_a_gap_is_the_time_since_the_last_one(built_shop: Any, spark: Any) -> None:
    """Ann took apples at 0.5 and 1.5: those of day 4 come two days after."""
    from spark_jobs.features import basket_entries, rows_before

    apples = storage.read(spark, SILVER_EVENTS).where("interval = 2 AND user_id = 'ann'")
    day_4 = apples.selectExpr(*[f"{value} AS {name}" for name, value in {
        name: {"interval": "4", "at": "3.5D"}.get(name, name) for name in SILVER_EVENTS.column_names
    }.items()])  # fmt: skip
    histories = rows_before(storage.read(spark, USER_HISTORIES), 4, 60)
    assert [row["gap"] for row in basket_entries(day_4, histories, 60).collect()] == [2.0]


@pytest.mark.slow
def test_killed_between_commits(shop: Any, built: Path) -> None:
    """However many tables a run had written when it was killed, the runs after it end with the same tables."""
    real, left, kills = storage.commit, 0, 0

    def dies(*args: Any, **kwargs: Any) -> int:
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        return real(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "commit", dies)
        for step in (shop.land, shop.clean, shop.features):
            for writes in range(9):
                left = writes
                try:
                    assert step() == 0
                    break
                except KeyboardInterrupt:
                    kills += 1
    assert kills > 5
    assert not pending.features().any()
    tables = (QUARANTINE, SILVER_EVENTS, ITEMS, *FEATURE_TABLES)
    rows_by_table = {table.name: shop.rows(table) for table in tables}
    never_killed = replace(shop, folder=built)
    never_killed.use()
    assert {table.name: never_killed.rows(table) for table in tables} == rows_by_table


@pytest.mark.slow
def test_what_is_known_of_items_changes(copied_shop: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Another category in the items' file, and another excluded one: shares and items are made anew, and no event."""
    before = {table.name: storage.state(table) for table in (SILVER_EVENTS, ITEM_INTERVALS, ITEM_FEATURES)}
    items = (copied_shop.folder / "items.csv").read_text().replace("bakery", "bread and cake")
    toml = (copied_shop.folder / "shop.toml").read_text().replace('["hidden"]', '["hidden", "fruit"]')
    copied_shop.write(items__csv=items, shop__toml=toml)
    assert pending.build() == [3]
    assert copied_shop.clean() == 0
    assert pending.build() == [3], "also when the run was killed here"
    assert copied_shop.features() == 0
    assert dict(copied_shop.values(ITEMS, "item_id", "recommendable")) == {"apple": False, "bread": True, "wine": False}
    assert copied_shop.values(CATEGORY_SHARES, "interval", "category") == [
        (1, "bread and cake"), (1, "fruit"), (2, "fruit"), (3, "bread and cake"),
    ]  # fmt: skip
    assert {table.name: storage.state(table) for table in (SILVER_EVENTS, ITEM_INTERVALS, ITEM_FEATURES)} == before
    assert not pending.features().any()
    assert "clean " not in capsys.readouterr().out


@pytest.mark.slow
def test_interval_of_bad_rows_only_is_cleaned_once(copied_shop: Any) -> None:
    """It is landed as the next one, and is not pending for ever because silver holds nothing of it."""
    text = (copied_shop.folder / "events.csv").read_text()
    copied_shop.write(events__csv=text + "2024-01-04T13:00:01,ann,apple,purchase,s6,-1,1.00,\n")
    assert (copied_shop.land(), pending.clean()) == (0, [4])
    assert copied_shop.clean() == 0
    assert 4 in storage.files(BRONZE_EVENTS)
    assert 4 not in storage.files(SILVER_EVENTS)
    assert pending.clean() == []
    assert len([row for row in copied_shop.rows(QUARANTINE) if row["interval"] == UNTIMED]) == 1


def test_settings_point_at_a_tmp_folder(built_shop: Any) -> None:
    """No test works on a real installation."""
    assert built_shop.folder in Path(settings().lake_uri).parents
