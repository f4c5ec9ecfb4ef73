"""Feature tables, written without Spark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
from deltalake import write_deltalake

from contracts.tables import ITEM_FEATURES, ITEMS, TRAINING_LISTS, USER_HISTORIES, Table

SHOP = """
name = "tiny"
[interval]
length = "1d"
first = 2024-01-01T00:00:00
[events]
path = "events.csv"
columns = { user_id = "who", item_id = "what", occurred_at = "when" }
"""


def write_shop(folder: Path) -> Path:
    """The dataset file."""
    path = folder / "shop.toml"
    path.write_text(SHOP)
    return path


def write_items(count: int, as_ofs: range) -> list[str]:
    """ITEMS `i00`, `i01`, ... and their ITEM_FEATURES, the later the better sold; the ids."""
    items = [f"i{number:02d}" for number in range(count)]
    text = {"name": "", "category": "", "type": "", "recommendable": True, "seen": True}
    write_table(ITEMS, [text | {"item_id": item} for item in items])
    write_table(
        ITEM_FEATURES,
        [
            {"as_of": n, "item_id": item, "events_all": 9, "target_events_4": place}
            for n in as_ofs
            for place, item in enumerate(items)
        ],
    )
    return items


def write_table(table: Table, rows: list[dict[str, Any]]) -> None:
    """Write a table; a number that a row lacks is 0."""
    kinds = {"string": pa.string(), "int": pa.int32(), "double": pa.float64(), "boolean": pa.bool_()}
    kinds |= {"bigint": pa.int64(), "array<string>": pa.list_(pa.string()), "array<double>": pa.list_(pa.float64())}
    schema = pa.schema([(column.name, kinds[column.type]) for column in table.columns])
    data = pa.Table.from_pylist([dict.fromkeys(table.column_names, 0) | row for row in rows], schema)
    write_deltalake(table.uri, data, partition_by=[*table.partition_by])


def write_tables(coming: int) -> None:
    """Twelve items and four users as of all intervals up to the coming one; each user took an item in each interval."""
    items = write_items(12, range(2, coming + 1))
    taken = {f"u{user}": [items[(user + n) % 12] for n in range(1, coming)] for user in range(4)}
    write_table(
        USER_HISTORIES,
        [
            {"interval": n, "user_id": user, "item_ids": [item], "at": [n - 0.5], "weights": [1.0], "bucket": 0}
            for user, bought in taken.items()
            for n, item in enumerate(bought, 1)
        ],
    )
    write_table(
        TRAINING_LISTS,
        [
            {"as_of": n, "user_id": user, "target_items": [bought[n - 1]], "bucket": 0}
            for n in range(1, coming)
            for user, bought in taken.items()
        ],
    )
