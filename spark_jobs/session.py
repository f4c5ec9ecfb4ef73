"""The Spark session of every job, and the timed lines a job prints."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from py4j.protocol import Py4JError
from pyspark import SparkConf, SparkContext
from pyspark.errors import PySparkException
from pyspark.java_gateway import launch_gateway
from pyspark.sql import SparkSession

from contracts.errors import InputError
from contracts.settings import settings
from spark_jobs.pseudonyms import REDACTION
from spark_jobs.scratch import scratch

_EXTENSION = "io.delta.sql.DeltaSparkSessionExtension"
_ASKED_FOR_OFTEN = ("PythonUtils", "functions", "org.apache.spark.sql.functions")
"""PySpark looks them up for each column, and py4j searches all jars for the short ones, each time: once is enough."""
_started_s = time.monotonic()


def say(line: str) -> None:
    """Print one line of progress with the seconds since the job started."""
    print(f"[{time.monotonic() - _started_s:5.1f} s] {line}", flush=True)


def _launch_conf() -> SparkConf:
    """What a JVM must be started with. spark-submit has started one already and is not asked again."""
    conf = SparkConf(loadDefaults=False)
    conf.set("spark.master", settings().spark_master)
    conf.set("spark.driver.memory", settings().spark_driver_memory)
    for key, value in settings().spark_driver_conf.items():
        conf.set(key, value)
    return conf


def session(name: str) -> SparkSession:
    """The running session, else a new one: with Delta, in UTC, quiet."""
    if SparkContext._active_spark_context is not None:  # unlike the active session, known to every thread
        return SparkSession.builder.getOrCreate()
    settings().provide_java()
    gateway = launch_gateway(_launch_conf())
    try:
        gateway.jvm.Thread.currentThread().getContextClassLoader().loadClass(_EXTENSION)
    except Py4JError:
        raise InputError(
            "the jars of Delta are missing", where=str(settings().cache_dir / "spark-jars"), cure="run `make setup`"
        ) from None
    conf = SparkConf(_jvm=gateway.jvm)
    for key, value in {
        "spark.app.name": name,
        "spark.sql.extensions": _EXTENSION,
        "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
        "spark.sql.session.timeZone": "UTC",
        # A shop's columns may differ in case only.
        "spark.sql.caseSensitive": "true",
        # Of a key that an object in JSON has twice, the last one counts.
        "spark.sql.mapKeyDedupPolicy": "LAST_WIN",
        # `store=007` is no number.
        "spark.sql.sources.partitionColumnTypeInference.enabled": "false",
        "spark.sql.shuffle.partitions": str(settings().spark_shuffle_partitions),
        "spark.databricks.delta.snapshotPartitions": "2",
        # Of a table's files, whose names are known, a job on executors finds nothing sooner: 3,000 take half a second here.
        "spark.sql.sources.parallelPartitionDiscovery.threshold": "100000",
        "spark.sql.legacy.parquet.nanosAsLong": "true",
        # Else each column asks the JVM six times to note the line of Python that made it: a fifth of a small job.
        "spark.python.sql.dataFrameDebugging.enabled": "false",
        # `s3://` as deltalake and Arrow have it; a store of one's own seldom has a host name for each bucket.
        "spark.hadoop.fs.s3.impl": "org.apache.hadoop.fs.s3a.S3AFileSystem",
        "spark.hadoop.fs.s3a.path.style.access": "true",
        "spark.ui.enabled": "false",
        "spark.sql.redaction.string.regex": REDACTION,
        "spark.ui.showConsoleProgress": "false",
    }.items():
        conf.set(key, value)
    if not conf.contains("spark.master"):
        conf.set("spark.master", settings().spark_master)
    if settings().spark_is_one_process and "," not in str(scratch()):  # which would make two folders of it
        # What it spills holds ids as they came, and a killed JVM clears nothing: the next process does, here.
        conf.set("spark.local.dir", str(scratch()))
    context = SparkContext(conf=conf, gateway=gateway)
    if context.master.startswith("local"):  # else workers are the first python3 on the PATH, which may be another
        context.pythonExec = sys.executable
    for java_class in _ASKED_FOR_OFTEN:
        setattr(gateway.jvm, java_class, getattr(gateway.jvm, java_class))
    return SparkSession.builder.getOrCreate()


@contextmanager
def plain_failures() -> Iterator[None]:
    """Say a failure of the machine that a person can cure in one line, not in a page of Java.

    Raises:
        InputError: the disk is full or memory has run out.
    """
    try:
        yield
    except (PySparkException, Py4JError, OSError) as error:
        text = str(error)
        if "No space left on device" in text:
            raise InputError(
                "the disk is full", where=str(settings().home_dir), cure="free some space and run it again"
            ) from None
        if "OutOfMemoryError" in text:
            raise InputError(
                "Spark ran out of memory", where="CARTWHEEL_SPARK_DRIVER_MEMORY", cure="give it more, for example 4g"
            ) from None
        raise
