"""From a shop's rows to bronze."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from contracts.dataset import Dataset
from contracts.errors import InputError
from contracts.tables import BRONZE_EVENTS, UNTIMED
from spark_jobs import reading
from spark_jobs.parsing import parse

NOW = datetime(2030, 1, 1, tzinfo=UTC)
ROW = {"when": "2024-01-02T12:00:00", "who": "ann", "what": "apple"}
COLUMNS = {"user_id": "who", "item_id": "what", "occurred_at": "when"}


def dataset(columns: dict[str, str] | None = None, zone: str = "UTC", **events: Any) -> Dataset:
    declaration = {"path": "x.csv", "columns": COLUMNS | (columns or {})} | events
    return Dataset.model_validate(
        {
            "name": "tiny",
            "time_zone": zone,
            "interval": {"length": "1d", "first": datetime(2024, 1, 1)},
            "events": declaration,
        }
    )


def bronze(spark: Any, rows: list[dict[str, Any]], described: Dataset) -> list[dict[str, Any]]:
    names = list(dict.fromkeys(name for row in rows for name in row))
    frame = spark.createDataFrame(
        [[row.get(name) for name in names] for row in rows], ", ".join(f"`{n}` string" for n in names)
    )
    return [row.asDict() for row in parse(frame, described.events[0], described, NOW).collect()]


def test_three_columns_are_enough(spark: Any) -> None:
    """With user, item and time alone the rest takes its default, and each row has an id of its own."""
    [row, other] = bronze(spark, [ROW, ROW | {"who": "bob"}], dataset())
    assert {name: row[name] for name in ("interval", "at", "user_id", "item_id", "event_type", "session_id", "quantity", "price", "problems", "extra")} == {
        "interval": 2, "at": 1.5, "user_id": "ann", "item_id": "apple", "event_type": "purchase", "session_id": None, "quantity": 1.0,
        "price": None, "problems": [], "extra": {},
    }  # fmt: skip
    assert row["occurred_at"] == datetime(2024, 1, 2, 12)
    assert row["source"] == "tiny"
    assert row["event_id"] != other["event_id"]
    assert BRONZE_EVENTS.column_names == list(row)


def test_equal_rows_share_their_id_and_new_columns_do_not_change_it(spark: Any) -> None:
    """The id is a hash of what the row says, so an exact duplicate has the same one, also in a later, wider file."""
    [first, second] = bronze(spark, [ROW, ROW], dataset())
    [wider] = bronze(spark, [ROW | {"colour": None}], dataset())
    assert first["event_id"] == second["event_id"] == wider["event_id"]


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("2024-01-02T12:00:00", {}, datetime(2024, 1, 2, 12)),
        ("2024-01-02 12:00", {}, datetime(2024, 1, 2, 12)),
        ("2024-01-02", {}, datetime(2024, 1, 2)),
        ("2024-01-02T12:00:00+02:00", {}, datetime(2024, 1, 2, 10)),
        ("2024-01-02T12:00:00Z", {"time_is": "local"}, datetime(2024, 1, 2, 12)),
        ("2024-01-02T12:00:00", {"time_is": "local"}, datetime(2024, 1, 2, 11)),
        ("2024-01-02", {"time_is": "local"}, datetime(2024, 1, 1, 23)),
        ("2024-07-02T12:00:00", {"time_is": "local"}, datetime(2024, 7, 2, 10)),
        ("02/01/2024 12.00", {"time_format": "dd/MM/yyyy HH.mm"}, datetime(2024, 1, 2, 12)),
        ("02/01/2024 12.00", {"time_format": "dd/MM/yyyy HH.mm", "time_is": "local"}, datetime(2024, 1, 2, 11)),
        (
            "2024-01-02 12:00:00 UTC",
            {"time_format": "yyyy-MM-dd HH:mm:ss z", "time_is": "local"},
            datetime(2024, 1, 2, 12),
        ),
        *[
            (f"2024-07-02 14:00:00{zone}", {"time_is": "local"}, datetime(2024, 7, 2, 12))
            for zone in (
                "",
                " CEST",
                "+0200",
                " +02:00",
                "+02:00[Europe/Berlin]",
                " Europe/Berlin",
                " GMT+02:00",
                " UTC+2",
            )
        ],
        ("2024-07-02T14:00:00.500 CEST", {}, datetime(2024, 7, 2, 12, 0, 0, 500000)),
        ("1704196800", {"time_format": "epoch_s"}, datetime(2024, 1, 2, 12)),
        ("1704196800500", {"time_format": "epoch_ms"}, datetime(2024, 1, 2, 12, 0, 0, 500000)),
        ("12:30", {}, None),
        ("2024", {}, None),
        ("2024-13-01", {}, None),
        ("", {}, None),
        ("99999999999999999999", {"time_format": "epoch_s"}, None),
        ("soon", {"time_format": "epoch_ms"}, None),
    ],
)
def test_time(spark: Any, text: str, options: dict[str, str], expected: datetime | None) -> None:
    """Times are read by their format; a zone in the value wins over `time_is`; the rest is null and said."""
    [row] = bronze(spark, [ROW | {"when": text}], dataset(zone="Europe/Berlin", **options))
    assert row["occurred_at"] == expected
    assert row["problems"] == (
        [] if expected else [f"occurred_at: not a time: '{text}'" if text else "occurred_at: not a time: missing"]
    )
    assert (row["interval"] == UNTIMED) == (expected is None)


def test_interval_is_of_the_wall_clock(spark: Any) -> None:
    """23:30 UTC is the next day in Berlin; the first instant of an interval belongs to it."""
    rows = bronze(
        spark,
        [
            ROW | {"when": "2024-01-01T23:30:00"},
            ROW | {"when": "2024-01-01T23:00:00"},
            ROW | {"when": "2023-12-31T22:59:59"},
        ],
        dataset(zone="Europe/Berlin"),
    )
    assert [row["interval"] for row in rows] == [2, 2, 0]
    assert rows[1]["at"] == 1.0


def test_numbers_that_cannot_be_read(spark: Any) -> None:
    """A bad number is null, its record is kept, and the reason shows it; a blank one is just unknown."""
    columns = {"quantity": "pieces", "price": "cost"}
    good, bad, blank, wild = bronze(
        spark,
        [ROW | {"pieces": p, "cost": c} for p, c in [("2", "1.5"), ("two", "12,x"), ("", " "), ("1e3", "NaN")]],
        dataset(columns),
    )
    assert (good["quantity"], good["price"], good["problems"]) == (2.0, 1.5, [])
    assert (bad["quantity"], bad["price"]) == (None, None)
    assert bad["problems"] == ["quantity: not a number: 'two'", "price: not a number: '12,x'"]
    assert json.loads(bad["record"]) == ROW | {"pieces": "two", "cost": "12,x"}
    assert good["record"] is None
    assert (blank["quantity"], blank["price"], blank["problems"]) == (None, None, [])
    assert (wild["quantity"], wild["problems"]) == (1000.0, ["price: not a number: 'NaN'"])


def test_decimal_comma_and_line_price(spark: Any) -> None:
    """`1.234,50` for the line of 2 pieces is 617.25 each; without pieces there is no price."""
    described = dataset({"quantity": "pieces", "price": "cost"}, price_is="line", decimal_comma=True)
    line, none = bronze(
        spark, [ROW | {"pieces": "2", "cost": "1.234,50"}, ROW | {"pieces": "0", "cost": "3,00"}], described
    )
    assert line["price"] == 617.25
    assert (none["price"], none["problems"], json.loads(none["record"])["cost"]) == (None, [], "3,00")


def test_types_and_exclusions(spark: Any) -> None:
    """Types get their name, unknown ones are said, blank ones take the default, declared rows are no events."""
    described = dataset(
        {"event_type": "kind"},
        types={"view": 1.0, "purchase": 5.0},
        type_names={"bought": "purchase"},
        default_type="view",
        exclude=[
            {"reason": "cancelled", "column": "invoice", "starts_with": "C"},
            {"reason": "test", "column": "who", "one_of": ["tester"]},
            {"reason": "postage", "column": "what", "matches": "^(POST|DOT)$"},
        ],
    )
    kinds = [ROW | {"kind": kind, "invoice": "1"} for kind in ("bought", "view", "wishlist", "")]
    rows = bronze(
        spark,
        [
            *kinds,
            *(
                ROW | {"kind": "view", "invoice": "1"} | row
                for row in ({"invoice": "C7"}, {"who": "tester"}, {"what": "DOT"})
            ),
        ],
        described,
    )
    assert [row["event_type"] for row in rows[:4]] == ["purchase", "view", None, "view"]
    assert [row["problems"] for row in rows[2:]] == [
        ["event_type: not known: 'wishlist'"],
        [],
        ["excluded: cancelled"],
        ["excluded: test"],
        ["excluded: postage"],
    ]
    assert (rows[2]["extra"], json.loads(rows[2]["record"])["kind"]) == ({"invoice": "1"}, "wishlist")


def test_typed_columns(spark: Any) -> None:
    """Parquet's own types are used: whole numbers kept as doubles are ids without `.0`, real times are times."""
    frame = spark.sql(
        "SELECT timestamp'2024-01-02 12:00:00' AS `when`, 17850.0D AS who, 5L AS what, 2.5D AS cost, named_struct('a', 1) AS `a.b`"
    )
    described = dataset({"price": "cost"})
    [row] = parse(frame, described.events[0], described, NOW).collect()
    assert (row["user_id"], row["item_id"], row["price"], row["at"]) == ("17850", "5", 2.5, 1.5)
    assert row["extra"] == {"a.b": '{"a":1}'}


def test_missing_column_names_those_there_are(spark: Any) -> None:
    """The error names the column, the file and the columns that exist."""
    with pytest.raises(InputError, match=r"no column 'whom'; there are: who, what \(in shop.csv\)"):
        reading.require(spark.sql("SELECT 1 AS who, 2 AS what"), ["who", None, "whom"], "shop.csv")
