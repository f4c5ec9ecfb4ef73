"""Land what the gateway has shown to whom: its log becomes rows of `exposures`, each request once.

The sizes of the files that a commit was made of are part of it. A file is deleted only when its size has been the same
since, so what the gateway may still have written to one that it was told to leave lands the next time.
"""

from __future__ import annotations

import time
from pathlib import Path

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from contracts import exposures as log
from contracts.dataset import Dataset
from contracts.pseudonyms import LENGTH
from contracts.settings import settings
from contracts.tables import EXPOSURES
from spark_jobs import storage
from spark_jobs.parsing import interval_time
from spark_jobs.paths import for_spark
from spark_jobs.pseudonyms import pseudonym_of, without_erased
from spark_jobs.session import say, session
from spark_jobs.staging import CORRUPT

KEPT_S = 60
"""For how long a file that has landed is kept, in case the gateway was slow to leave it."""
_LINE = (
    "request_id string, served_at string, replayed_at string, client string, user_ids array<string>, arm string, "
    "model_version int, step int, fallback string, response string, latency_us bigint"
)
_LIST = "struct<items: array<string>, scores: array<double>>"
_RESPONSE = (
    f"struct<predictions: array<{_LIST}>, outputs: struct<items: array<array<string>>, scores: array<array<double>>>>"
)


def sizes(paths: list[Path]) -> dict[str, int]:
    """Bytes of each file, by name."""
    return {path.name: path.stat().st_size for path in paths}


def waiting() -> bool:
    """Whether the gateway's log holds what has not landed. Changes nothing, and needs no Spark."""
    current = log.current_log()
    new = current.exists() and current.stat().st_size > 0
    return new or bool(sizes(log.finished_logs()).items() - _landed().items())


def _landed() -> dict[str, int]:
    return dict(storage.recorded(EXPOSURES, "files").get("files", {}))


def exposures(lines: DataFrame, dataset: Dataset) -> DataFrame:
    """EXPOSURES rows of the gateway's log: one for each list of an answer.

    Args:
        lines: rows as the gateway writes them.
    """
    answer = F.from_json("response", _RESPONSE)
    columns = F.arrays_zip(
        answer["outputs"]["items"].alias("items"), answer["outputs"]["scores"].alias("scores")
    )  # of a request in columns
    lists = F.coalesce(answer["predictions"], columns.cast(f"array<{_LIST}>"))
    several = F.size("lists") > 1
    each = lines.withColumn("lists", lists).select(
        "*", several.alias("several"), F.posexplode("lists").alias("place", "list")
    )
    served_at = F.coalesce("replayed_at", "served_at").try_cast("timestamp")
    user_id = _stored(F.get("user_ids", "place"), dataset.personal_user_id)
    return (
        each.withColumns({"served_at": served_at, "user_id": user_id})
        .where("list.items IS NOT NULL AND served_at IS NOT NULL")
        .select(
            (F.floor(interval_time(F.col("served_at"), dataset)) + 1).cast("int").alias("interval"),
            F.when(F.col("several"), F.concat_ws("/", "request_id", "place"))
            .otherwise(F.col("request_id"))
            .alias("request_id"),
            "served_at",
            "user_id",
            "client",
            F.coalesce("arm", F.lit("pinned")).alias("arm"),
            F.when(F.col("fallback").isNull(), F.col("model_version")).alias("model_version"),
            "step",
            F.col("list.items").alias("items"),
            F.coalesce("list.scores", F.array().cast("array<double>")).alias("scores"),
            F.coalesce(F.col("latency_us") / 1000, F.lit(0.0)).alias("latency_ms"),
        )
        .dropDuplicates(["request_id"])
    )


def _stored(user_id: Column, personal: bool) -> Column:
    """The user as the tables know them, also where a caller sent the shop's own id."""
    if not personal:
        return user_id
    is_pseudonym = user_id.rlike(f"^[0-9a-f]{{{LENGTH}}}$")
    return F.when(is_pseudonym, user_id).otherwise(pseudonym_of(user_id, settings().secret("pseudonym_key")))


def land(dataset: Dataset) -> int:
    """Land what is new in the gateway's log; the number of rows. Killed at any instant, the next run goes on."""
    is_left = log.finish_log()
    paths, landed = log.finished_logs(), _landed()
    size_by_path = sizes(paths)
    new = [path for path in paths if landed.get(path.name) != size_by_path[path.name]]
    num_rows = _land(session("land"), new, size_by_path, dataset) if new else 0
    old_s = time.time() - KEPT_S
    for path in paths:
        if is_left and path.stat().st_size == size_by_path[path.name] and path.stat().st_mtime < old_s:
            path.unlink()
    return num_rows


def _land(spark: SparkSession, new: list[Path], size_by_path: dict[str, int], dataset: Dataset) -> int:
    # Spark fills in what it can of a line that was torn by a kill: only this column says that it was.
    lines = spark.read.schema(f"{_LINE}, {CORRUPT} string").json(for_spark(new)).persist()
    is_torn = F.col(CORRUPT).isNotNull()
    rows = without_erased(exposures(lines.where(~is_torn), dataset)).persist()
    unreadable = lines.where(is_torn).count()
    intervals = [row["interval"] for row in rows.select("interval").distinct().collect()]
    landed = storage.read(spark, EXPOSURES).where(F.col("interval").isin(intervals)).select("request_id")
    fresh = rows.join(landed, "request_id", "left_anti") if intervals else rows
    num_rows = storage.write(fresh.coalesce(1), EXPOSURES, replace="nothing", record={"files": size_by_path})
    rows.unpersist()
    lines.unpersist()
    say(f"{EXPOSURES.name}: {num_rows:,} rows landed, {unreadable} lines that could not be read")
    return num_rows
