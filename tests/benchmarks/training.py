"""`make bench-training`: training as the shop's users multiply.

Reads the feature tables of the installation at CARTWHEEL_HOME, which `make run` has filled, and copies every user with
what belongs to them under other names. Writes `docs/benchmarks/training.json`: records of scale, users, lists,
examples_peak_mib, peak_mib, examples_seconds, fit_seconds, seconds_per_million_lists (of an epoch), each of a process of its own that trains
one model without folds for one epoch. What is exported is not part of it: see docs/scaling.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable, write_deltalake

from contracts import dataset as datasets
from contracts.files import write_json
from contracts.settings import REPOSITORY, settings
from contracts.tables import ITEM_FEATURES, ITEMS, TRAINING_LISTS, USER_HISTORIES

RESULT = REPOSITORY / "docs" / "benchmarks" / "training.json"
_USERS_AT_ONCE = 10


def multiply(folder: Path, scale: int) -> None:
    """The tables that training reads, with every user `scale` times, under `folder`."""
    for table in (ITEMS, ITEM_FEATURES):
        shutil.copytree(table.uri, folder / "tables" / table.name)
    for table in (USER_HISTORIES, TRAINING_LISTS):
        rows = DeltaTable(table.uri).to_pyarrow_table()
        for first in range(0, scale, _USERS_AT_ONCE):
            copies = [renamed(rows, copy) for copy in range(first, min(first + _USERS_AT_ONCE, scale))]
            write_deltalake(
                str(folder / "tables" / table.name), pa.concat_tables(copies), mode="append",
                partition_by=[*table.partition_by],
            )  # fmt: skip


def renamed(rows: pa.Table, copy: int) -> pa.Table:
    names = pc.binary_join_element_wise(rows["user_id"].cast(pa.string()), str(copy), "-")
    return rows.set_column(rows.column_names.index("user_id"), "user_id", names)


def train() -> None:
    """What is measured; prints a record."""
    from training.config import from_settings
    from training.data import load_items, parts
    from training.trainer import train

    started = time.monotonic()
    times, peaks_mib = {}, {}

    def say(line: str) -> None:
        for sign, name in ((" lists of ", "examples"), (": epoch 1", "fit")):
            if sign in line:
                times[name] = time.monotonic() - started
                peaks_mib[name] = peak_mib()
        print(line, file=sys.stderr, flush=True)

    config = from_settings()
    shop = load_items(datasets.load(settings().dataset_path), {}, config.training_intervals)
    with tempfile.TemporaryDirectory(dir=settings().home_dir) as folder:
        train(shop, parts(shop), config, say, Path(folder))
        shards = [json.loads(path.read_text()) for path in Path(folder).glob("examples/*.json")]
    num_lists, fit_s = sum(shard["num_lists"] for shard in shards), times["fit"] - times["examples"]
    record = {
        "lists": num_lists,
        "examples_peak_mib": peaks_mib["examples"],
        "peak_mib": peaks_mib["fit"],
        "examples_seconds": round(times["examples"], 1),
        "fit_seconds": round(fit_s, 1),
        "seconds_per_million_lists": round(1e6 * fit_s / num_lists),
    }
    print(json.dumps(record))


def peak_mib() -> int:
    """The highest resident memory of this process. What `getrusage` says may be that of the process that started it."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) // 1024


def measured(scale: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="cartwheel-bench-") as parent:
        folder = Path(parent)
        multiply(folder, scale)
        environment = os.environ | {
            "CARTWHEEL_HOME": str(folder),
            "CARTWHEEL_FOLD_OFFSETS": "1000000",
            "CARTWHEEL_TRAINING_EPOCHS": "1",
        }
        command = [sys.executable, "-m", "tests.benchmarks.training", "--measure"]
        result = subprocess.run(command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        ids = DeltaTable(str(folder / "tables" / USER_HISTORIES.name)).to_pyarrow_table(columns=["user_id"])["user_id"]
        users = len(pc.unique(ids))
        return {"scale": scale, "users": users, **json.loads(result.stdout.splitlines()[-1])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scales", type=int, nargs="+", default=[1, 10, 30])
    parser.add_argument("--write", type=Path, default=RESULT, help="where the records go")
    parser.add_argument("--measure", action="store_true", help="train the tables at CARTWHEEL_HOME and print a record")
    chosen = parser.parse_args()
    if chosen.measure:
        train()
        return
    records = []
    for scale in chosen.scales:
        records.append(measured(scale))
        print(json.dumps(records[-1]), flush=True)
    write_json(chosen.write, records)


if __name__ == "__main__":
    main()
