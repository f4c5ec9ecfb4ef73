"""Recommend to every user: the champion's answers become the table `recommendations`.

Users are answered by buckets. What is done is kept, so that a run that was killed is gone on with; the table changes at
the end, in one commit.
"""

from __future__ import annotations

import argparse
import functools
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from pyspark.sql import functions as F

from contracts.dataset import load
from contracts.errors import reported
from contracts.settings import settings
from contracts.tables import RECOMMENDATIONS, USER_HISTORIES
from spark_jobs import pending, storage
from spark_jobs.features import rows_before
from spark_jobs.scoring import score
from spark_jobs.scratch import STAGING, clear_staging
from spark_jobs.session import plain_failures, say, session

ANSWERS = f"{STAGING}/recommendations"
USERS_AT_ONCE = 100_000
"""So many are answered before what is done is kept: less would cost more than it saves."""


def arg_parser() -> argparse.ArgumentParser:
    return argparse.ArgumentParser(prog="recommend", description=__doc__)


def _work(version: int) -> tuple[Path, str]:
    """Which buckets have a version's answers to the users there are now, and where these are staged; that of others goes."""
    everything, made_of = (
        settings().home_dir / "spool" / "recommendations",
        f"{version}-{storage.state(USER_HISTORIES)}",
    )
    finished = everything / made_of
    if not finished.exists():
        shutil.rmtree(everything, ignore_errors=True)
        clear_staging(ANSWERS)
        finished.mkdir(parents=True)
    return finished, f"{ANSWERS}/{made_of}"


def _groups(num_users: Mapping[int, int]) -> Iterator[list[int]]:
    """Buckets to answer at once, by the number of users of each."""
    group: list[int] = []
    for bucket in sorted(num_users):
        group.append(bucket)
        if sum(num_users[each] for each in group) >= USERS_AT_ONCE:
            yield group
            group = []
    if group:
        yield group


@storage.writing()
def main() -> int:
    """Bring `recommendations` up to date; the exit status is 0, also when there was nothing to do."""
    model = pending.recommend()
    if model is None:
        print("nothing to do: everybody has the champion's recommendations, or no model serves")
        return 0
    (finished, answers), spark = _work(model.version), session("recommend")
    horizon = load(settings().dataset_path).interval.horizon
    coming = max(storage.files(USER_HISTORIES), default=0) + 1
    users = rows_before(storage.read(spark, USER_HISTORIES), coming, horizon).select("user_id", "bucket").distinct()
    answered = functools.partial(score, folder=str(model.folder))
    sizes = {row["bucket"]: row["count"] for row in users.groupBy("bucket").count().collect()}
    for group in _groups({bucket: size for bucket, size in sizes.items() if not (finished / str(bucket)).exists()}):
        rows = users.where(F.col("bucket").isin(group))
        rows = rows.repartitionByRange(spark.sparkContext.defaultParallelism, "bucket", "user_id")
        scored = rows.mapInArrow(answered, "user_id string, bucket int, items array<string>, scores array<double>")
        storage.stage(scored.withColumn("model_version", F.lit(model.version)), RECOMMENDATIONS, answers, beside=True)
        for bucket in group:
            (finished / str(bucket)).touch()
        say(f"{sum(sizes[bucket] for bucket in group):,} users answered, to bucket {group[-1]} of {max(sizes)}")
    # A commit moves the answers: killed in it, they are computed again.
    shutil.rmtree(finished)
    record = {"model_version": model.version}
    num_users = storage.commit(answers, RECOMMENDATIONS, replace="all", record=record)
    clear_staging(answers)
    say(f"{RECOMMENDATIONS.name}: {num_users:,} users, by version {model.version}")
    return 0


if __name__ == "__main__":
    arg_parser().parse_args()
    with reported(), plain_failures():
        sys.exit(main())
