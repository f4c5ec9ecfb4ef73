"""A shop small enough to check by hand: 5 intervals, users a, b, c, items 1 to 4."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from deltalake import CommitProperties, write_deltalake

from contracts.tables import BRONZE_EVENTS, TABLES

INTERVALS = range(1, 6)
BASKETS = {"a": ("1", "2"), "b": ("2", "3"), "c": ("1", "3")}
"""In each interval each user takes these two items, at a time of their own."""
AT = {"a": 0.1, "b": 0.2, "c": 0.3}
MOMENT = pd.Timestamp("2024-01-01", tz="UTC")

Frames = dict[str, pd.DataFrame]
_ARROW = {
    "string": pa.string(),
    "int": pa.int32(),
    "bigint": pa.int64(),
    "double": pa.float64(),
    "boolean": pa.bool_(),
    "timestamp": pa.timestamp("us", "UTC"),
    "array<string>": pa.list_(pa.string()),
    "array<double>": pa.list_(pa.float64()),
    "map<string,string>": pa.map_(pa.string(), pa.string()),
}


def silver() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "event_id": f"{interval}{user}{item}",
            "interval": interval,
            "user_id": user,
            "item_id": item,
            "event_type": "purchase",
            "weight": 1.0,
            "target": True,
            "occurred_at": MOMENT,
            "at": interval - 1 + AT[user],
            "session_id": f"{interval}{user}",
            "quantity": 1.0,
            "price": 2.0,
            "bronze_ingested_at": MOMENT,
        }
        for interval in INTERVALS
        for user, items in BASKETS.items()
        for item in items
    )


def shop() -> Frames:
    """Every table a gate reads, all in order: each item but 4 is taken twice an interval, so 10 times in all."""
    events = silver()
    bronze = events.drop(columns=["weight", "target", "bronze_ingested_at"]).assign(
        source="shop",
        problems=[[] for _ in range(len(events))],
        extra=[[] for _ in range(len(events))],
        record=None,
        ingested_at=MOMENT,
    )
    zeros = dict.fromkeys(("first_events", "gaps", "gap_intervals", "quantity", "spend", "priced_quantity"), 0.0)
    return {
        "bronze_events": bronze,
        "silver_events": events,
        "items": pd.DataFrame(
            {"item_id": item, "name": "thing", "category": None, "type": "t", "recommendable": True, "seen": True}
            for item in "1234"
        ),
        "item_intervals": pd.DataFrame(
            {"interval": interval, "item_id": item, "events": 2.0, "target_events": 2.0} | zeros
            for interval in INTERVALS
            for item in "123"
        ),
        "item_features": pd.DataFrame(
            {"as_of": as_of, "item_id": item, "events_1": 2.0, "events_4": 8.0, "events_13": 2.0 * (as_of - 1)}
            | {"events_all": 2.0 * (as_of - 1), "target_events_4": 8.0, "buyers_all": 2.0, "first_share_4": 0.0}
            | {"repeat_share": 0.5, "mean_gap": 1.0, "mean_price": 2.0, "price_ratio": 1.0}
            | dict.fromkeys(("promotion_first", "promotion_second", "promotion_any"), 0.0)
            for as_of in (5, 6)
            for item in "123"
        ),
        "user_histories": pd.DataFrame(
            {
                "interval": interval,
                "user_id": user,
                "item_ids": list(items),
                "at": [interval - 1 + AT[user] for _ in items],
                "weights": [1.0 for _ in items],
                "bucket": 0,
            }
            for interval in INTERVALS
            for user, items in BASKETS.items()
        ),
        "category_shares": pd.DataFrame(
            {"interval": interval, "category": category, "share": 0.5} for interval in INTERVALS for category in "xy"
        ),
        "training_lists": pd.DataFrame(
            {"as_of": as_of, "user_id": user, "target_items": list(items), "bucket": 0}
            for as_of in INTERVALS
            for user, items in BASKETS.items()
        ),
    }


def save(frames: Frames, through: int | None = None) -> None:
    """Write the tables as the contract types them; columns a frame lacks stay away.

    Args:
        through: the last complete interval, as landing notes it with the commit of bronze.
    """
    for table in TABLES:
        if table.name in frames:
            frame = frames[table.name]
            columns = [column for column in table.columns if column.name in frame]
            schema = pa.schema([(column.name, _ARROW[column.type]) for column in columns])
            data = pa.Table.from_pandas(frame[schema.names], schema=schema, preserve_index=False)
            metadata = (
                {"userMetadata": json.dumps({"through": through})} if table is BRONZE_EVENTS and through else None
            )
            write_deltalake(
                table.uri,
                data,
                partition_by=list(table.partition_by) or None,
                mode="overwrite",
                commit_properties=CommitProperties(custom_metadata=metadata),
            )


@pytest.fixture
def frames() -> Frames:
    """The shop's tables as frames, to break before they are saved."""
    return shop()


@pytest.fixture
def saved(home: Path) -> Callable[..., None]:
    """Saves frames as the tables of an empty installation."""
    return save
