"""`make bench-batch`: recommending to all users by Spark, beside the model's function alone in one process, the floor.

Asks the champion of the installation at CARTWHEEL_HOME, which `make run` has filled, for each of its users ten times.
Writes `docs/benchmarks/batch.json`: records of case, users, seconds, users_per_second, peak_mib, medians of three. Each case
has processes of its own, and is measured once the model is loaded.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import pyarrow.compute as pc
from deltalake import DeltaTable

from contracts.champion import champion
from contracts.errors import InputError, reported
from contracts.files import write_json
from contracts.settings import REPOSITORY, settings
from contracts.tables import USER_HISTORIES
from tests.benchmarks.family import Family

RESULT = REPOSITORY / "docs" / "benchmarks" / "batch.json"
COPIES, ROUNDS = 10, 3
FLOOR, SPARK = "the function alone, one process", "Spark, {} worker{}"


def user_ids() -> list[str]:
    ids = DeltaTable(USER_HISTORIES.uri).to_pyarrow_table(columns=["user_id"])["user_id"]
    return COPIES * pc.unique(ids).to_pylist()


def floor() -> Callable[[], None]:
    """Asks for all users, a thousand at a time."""
    import tensorflow as tf

    model, users = champion(), user_ids()
    loaded = tf.saved_model.load(str(model.folder))

    def ask() -> None:
        for start in range(0, len(users), 1000):
            loaded.signatures["serving_default"](user_id=tf.constant(users[start : start + 1000]))

    loaded.signatures["serving_default"](user_id=tf.constant(users[:1000]))
    return ask


def spark() -> Callable[[], None]:
    """Asks for all users in the workers of CARTWHEEL_SPARK_MASTER."""
    import functools

    from spark_jobs.scoring import score
    from spark_jobs.session import session

    started = session("bench")
    rows = [(user,) for user in user_ids()]
    users = started.createDataFrame(rows, "user_id string").repartition(4 * started.sparkContext.defaultParallelism)
    users = users.persist()
    users.count()
    answers = users.mapInArrow(
        functools.partial(score, folder=str(champion().folder)),
        "user_id string, items array<string>, scores array<double>",
    )

    def ask() -> None:
        answers.write.format("noop").mode("overwrite").save()

    ask()
    return ask


def measure(case: str) -> None:
    """Print a record without the case's name and memory."""
    ask, seconds = floor() if case == FLOOR else spark(), []
    for _ in range(ROUNDS):
        started = time.monotonic()
        ask()
        seconds.append(time.monotonic() - started)
    users, median = len(user_ids()), statistics.median(seconds)
    print(json.dumps({"users": users, "seconds": round(median, 1), "users_per_second": round(users / median)}))


def main() -> None:
    """Measure every case.

    Raises:
        InputError: no model serves.
    """
    if len(sys.argv) > 1:
        measure(sys.argv[1])
        return
    if champion() is None:
        raise InputError("no model serves", where=str(settings().home_dir), cure="run `make run` first")
    records = []
    cores = os.cpu_count() or 1
    cases = {FLOOR: 1} | {SPARK.format(n, "s" * (n > 1)): n for n in dict.fromkeys((1, cores))}
    for case, workers in cases.items():
        environment = os.environ | {"CARTWHEEL_SPARK_MASTER": f"local[{workers}]"}
        command = [sys.executable, "-m", "tests.benchmarks.batch", case]
        process = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True)
        with Family(process.pid) as family:
            output, _ = process.communicate()
        record = {"case": case, **json.loads(output.splitlines()[-1]), "peak_mib": round(family.peak_mib)}
        print(record, flush=True)
        records.append(record)
    write_json(RESULT, records)


if __name__ == "__main__":
    with reported():
        main()
