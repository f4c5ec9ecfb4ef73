"""Whatever a source holds, landing ends, and every record is in one of three places."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from contracts.tables import BRONZE_EVENTS, LEDGER, UNTIMED

TOML = """
name = "tiny"
[interval]
length = "1d"
first = 2024-01-01T00:00:00
[events]
path = "events.jsonl"
settle_s = 0
[events.columns]
occurred_at = "when"
user_id = "who"
item_id = "what"
quantity = "pieces"
"""
EXAMPLES = int(os.environ.get("CARTWHEEL_TEST_FUZZ_EXAMPLES", "4"))
"""Landings, each of up to 150 lines; `make test-long` tries many more."""
WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | WORDS
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3))
GOOD = st.fixed_dictionaries(
    {
        "who": st.sampled_from(["ann", "bob"]),
        "what": st.sampled_from(["apple", "bread"]),
        "when": st.datetimes(datetime(2024, 1, 1), datetime(2024, 1, 9)).map(datetime.isoformat),
        "pieces": st.integers(1, 9),
    }
)


def dumped(value: Any) -> bytes:
    return json.dumps(value).encode()


MALFORMED = st.one_of(
    GOOD.map(dumped).flatmap(lambda line: st.integers(1, len(line) - 1).map(lambda end: line[:end])),  # truncated
    GOOD.map(lambda row: dumped(row | {"when": "1970-01-01T00:00:00"})),
    GOOD.map(lambda row: dumped(row | {"when": "2100-06-01T00:00:00"})),
    GOOD.map(lambda row: dumped(row | {"when": float("nan")})),
    st.binary(max_size=40).map(lambda junk: junk.replace(b"\n", b" ").replace(b"\r", b" ")),
    SCALARS.map(dumped),
)
"""Records that cannot be put into an interval."""
ODD = st.one_of(
    st.tuples(GOOD, st.dictionaries(WORDS, VALUES, max_size=3)).map(lambda both: dumped(both[1] | both[0])),
    GOOD.map(lambda row: dumped(row | {"pieces": float("inf")})),
    GOOD.map(lambda row: dumped(row | {"who": "x" * 100_000})),
    GOOD.map(lambda row: dumped(row)[:-1] + b', "who": "cem", "who": "dan"}'),  # keys given twice
    GOOD.map(lambda row: dumped(row)[:-1] + b', "note": "\xff\xfe"}'),  # another encoding
)
"""Records that lie in an interval, however odd."""


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(GOOD.map(dumped), min_size=1, max_size=30), st.lists(MALFORMED, max_size=60), st.lists(ODD, max_size=60)
)
@example(
    good=[b'{"who": "ann", "what": "apple", "when": "2024-01-01T00:00:00", "pieces": 1}'],
    malformed=[b"\xbb", b"\xef"],  # of the mark that Windows writes, single bytes
    odd=[],
)
def lands_all(shop: Any, good: list[bytes], malformed: list[bytes], odd: list[bytes]) -> None:
    """Land a file of these lines into an empty home, and hold the ledger against the tables."""
    import shutil

    shutil.rmtree(shop.folder / "home", ignore_errors=True)
    lines = [line for line in (*good, *malformed, *odd) if line.strip()]
    (shop.folder / "events.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    assert shop.land(through=40) == 0
    everything, ledger = shop.rows(BRONZE_EVENTS), shop.rows(LEDGER)
    bronze = [row for row in everything if row["interval"] != UNTIMED]
    aside = [row for row in everything if row["interval"] == UNTIMED]
    sums = {kind: sum(row[kind] for row in ledger) for kind in ("read", "landed", "quarantined", "duplicates")}
    assert sums["read"] == len(lines)
    assert (sums["landed"], sums["quarantined"]) == (len(bronze), len(aside))
    assert sums["read"] == sums["landed"] + sums["quarantined"] + sums["duplicates"]
    assert len({row["event_id"] for row in everything}) == len(everything)
    # What is sound has landed, each once, as it was.
    expected = {(row["who"], row["what"], row["when"][:19], row["pieces"]) for row in map(json.loads, good)}
    landed = {
        (row["user_id"], row["item_id"], row["occurred_at"].isoformat()[:19], row["quantity"])
        for row in bronze
        if not row["problems"]
    }
    assert expected <= landed
    now = datetime.now(UTC) + timedelta(days=2)
    assert all(datetime(1970, 1, 3, tzinfo=UTC) < row["occurred_at"] < now for row in bronze)
    assert all(row["problems"] and row["record"] for row in aside)


@pytest.mark.slow
def test_nothing_stops_landing_and_nothing_is_lost(shop: Any) -> None:
    """Truncated and foreign lines, other encodings, huge fields, clocks of 1970 and 2100, keys given twice."""
    shop.write(shop__toml=TOML)
    lands_all(shop)


@pytest.mark.slow
def test_an_id_is_of_what_the_row_says(spark: Any, tmp_path: Path) -> None:
    """Rows have one id exactly if they say the same, whatever the order of their keys."""
    from contracts.dataset import Dataset
    from spark_jobs.parsing import parse

    described = Dataset.model_validate(
        {
            "name": "tiny",
            "interval": {"length": "1d", "first": datetime(2024, 1, 1)},
            "events": {"path": "x.jsonl", "columns": {"user_id": "a", "item_id": "b", "occurred_at": "c"}},
        }
    )

    @settings(max_examples=2 * EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        st.lists(st.tuples(*[st.none() | st.sampled_from(["", "a", "b=", "\x1f", "ab"])] * 4), min_size=2, max_size=60)
    )
    def holds(rows: list[tuple[str | None, ...]]) -> None:
        for order in ("abcd", "dcba"):
            shuffled = [tuple(row["abcd".index(name)] for name in order) for row in rows]
            frame = spark.createDataFrame(shuffled, ", ".join(f"{name} string" for name in order))
            ids.setdefault(order, {}).clear()
            parsed = parse(frame, described.events[0], described, datetime(2030, 1, 1, tzinfo=UTC)).collect()
            for row, event in zip(rows, parsed, strict=True):
                assert ids[order].setdefault(event["event_id"], row) == row
        assert ids["abcd"] == ids["dcba"]
        assert len(ids["abcd"]) == len(set(rows))

    ids: dict[str, dict[str, Any]] = {}
    holds()
