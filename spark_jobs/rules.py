"""What makes an event unfit for silver: the one place of these rules. Bounds come from the table's contract."""

from __future__ import annotations

from typing import Any

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from contracts.tables import SILVER_EVENTS

MISSING = "missing"
RETURNED = "returned"

_REQUIRED = ("user_id", "item_id", "event_type")
_BOUNDED = [column for column in SILVER_EVENTS.columns if column.name in ("quantity", "price")]


def _tests() -> list[Column]:
    """What cleaning says against a row, beside the problems that reading it had."""
    tests: list[Column] = [
        F.when(F.col(name).isNull(), F.lit(f"{name}: {MISSING}")) for name in _REQUIRED if name != "event_type"
    ]
    # A type that is not known is a problem of landing already.
    untyped = F.col("event_type").isNull() & ~F.exists("problems", lambda problem: problem.startswith("event_type:"))
    tests.append(F.when(untyped, F.lit(f"event_type: {MISSING}")))
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
    return tests


def is_fit() -> Column:
    """Whether a row of bronze is fit for silver."""
    fit = F.size("problems") == 0
    for test in _tests():
        fit = fit & test.isNull()
    return fit


def reasons() -> Column:
    """Why a row of bronze is set aside, `array<string>`; empty for one that is fit."""
    # Higher-order functions are slow: only unfit rows go through them.
    problems = F.concat("problems", F.array_compact(F.array(*_tests())))
    return F.when(is_fit(), F.array().cast("array<string>")).otherwise(problems)


def count_reasons(judged: DataFrame) -> list[dict[str, Any]]:
    """Each kind of reason with its number of rows and an example, most frequent first.

    Args:
        judged: has `reasons` and, for the example, `record`.
    """
    reasons_of_rows = judged.where(F.size("reasons") > 0).select(F.explode("reasons").alias("reason"), "record")
    # `price: not a number: '12,x'`: the kind is what stands before the value.
    by_kind = reasons_of_rows.groupBy(F.substring_index("reason", ": '", 1).alias("kind"))
    counts = by_kind.agg(F.count("*").alias("rows"), F.min("record").alias("example"))
    return [row.asDict() for row in counts.orderBy(F.desc("rows"), "kind").collect()]


def none_usable(num_rows: int, worst: dict[str, Any]) -> str:
    """What to say of rows none of which is fit, by the first of `count_reasons`."""
    return f"none of {num_rows:,} rows can be used: {worst['kind']} ({worst['rows']:,} rows)"


NONE_USABLE_CURE = "correct [events.columns], types or time_format"


def is_duplicate() -> Column:
    """Whether another row of the same interval and event_id is kept instead."""
    window = Window.partitionBy("interval", "event_id").orderBy(
        F.size("problems"), "at", "user_id", "item_id", "event_type", "quantity", "price"
    )
    return F.row_number().over(window) > 1
