"""What makes an event unfit for silver: the one place of these rules. Bounds come from the table's contract."""

from __future__ import annotations

from pyspark.sql import Column, Window
from pyspark.sql import functions as F

from contracts.tables import SILVER_EVENTS

MISSING = "missing"
RETURNED = "returned"

_REQUIRED = ("user_id", "item_id", "event_type")
_BOUNDED = [column for column in SILVER_EVENTS.columns if column.name in ("quantity", "price")]


def reasons() -> Column:
    """Why a row of bronze (with `quantity` filled in) is set aside, `array<string>`; empty for a sound one."""
    tests: list[Column] = [
        F.when(F.col(name).isNull(), F.lit(f"{name}: {MISSING}")) for name in _REQUIRED if name != "event_type"
    ]
    # A type that is not known is a problem of landing already.
    untold = F.col("event_type").isNull() & ~F.exists("problems", lambda problem: problem.startswith("event_type:"))
    tests.append(F.when(untold, F.lit(f"event_type: {MISSING}")))
    tests.append(F.when(F.col("quantity") <= 0, F.lit(RETURNED)))
    for column in _BOUNDED:
        if column.minimum is not None and column.name != "quantity":
            tests.append(
                F.when(F.col(column.name) < column.minimum, F.lit(f"{column.name}: below {column.minimum:,.0f}"))
            )
        if column.maximum is not None:
            tests.append(
                F.when(F.col(column.name) > column.maximum, F.lit(f"{column.name}: above {column.maximum:,.0f}"))
            )
    unsound = F.size("problems") > 0
    for test in tests:
        unsound = unsound | test.isNotNull()
    found = F.concat("problems", F.array_compact(F.array(*tests)))
    # Higher-order functions are slow: only unsound rows go through them.
    return F.when(unsound, found).otherwise(F.array().cast("array<string>"))


def is_duplicate(*scope: str) -> Column:
    """Whether another row that is equal in `scope` is kept instead. One that could be read whole is kept first."""
    window = Window.partitionBy(*scope).orderBy(
        F.size("problems"), "at", "user_id", "item_id", "event_type", "quantity", "price"
    )
    return F.row_number().over(window) > 1
