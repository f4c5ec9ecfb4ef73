"""Start the workers of one training as a barrier stage of Spark, so that any cluster manager of Spark places them.

A stage in which one worker dies is lost as a whole; run again, all go on from the last checkpoint. GPUs are asked for as
Spark does: `spark.task.resource.gpu.amount` and its companions in `spark-defaults.conf`.
Source: https://spark.apache.org/docs/latest/api/python/reference/api/pyspark.BarrierTaskContext.html
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable, Iterator
from functools import partial

from py4j.protocol import Py4JJavaError
from pyspark.sql import SparkSession

from contracts.errors import InputError
from contracts.settings import REPOSITORY, environment, settings


def launch(work: Callable[[], None], num_workers: int) -> None:
    """Run `work` in `num_workers` processes, each of which finds in TF_CONFIG which one it is.

    Raises:
        InputError: a worker failed, or the Spark master has no room for that many.
    """
    settings().provide_java()
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]))
    builder = SparkSession.builder
    for name, value in environment().items():  # of executors that a cluster manager starts
        builder = builder.config(f"spark.executorEnv.{name}", value)
    spark = (
        builder.appName("cartwheel-training")
        .master(settings().spark_master)
        .config("spark.python.worker.reuse", "false")  # a worker's devices are set up once in a process
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .getOrCreate()
    )
    try:
        tasks = spark.sparkContext.parallelize(range(num_workers), num_workers).barrier()
        tasks.mapPartitions(partial(_as_worker, work)).collect()
    except Py4JJavaError as error:
        raise InputError(
            f"training with {num_workers} workers failed: {_reason(str(error.java_exception.getMessage()))}",
            where=f"Spark at {settings().spark_master}",
            cure="see the log above; run again to go on from the last checkpoint",
        ) from None
    finally:
        spark.stop()


def _reason(message: str) -> str:
    """The last line of what a worker said, without the stack that Spark adds."""
    lines = [line.strip() for line in message.partition("\n\tat ")[0].splitlines()]
    return next(line for line in reversed(lines) if line and not line.startswith("SQLSTATE"))[:300]


def _as_worker(work: Callable[[], None], _: Iterator[int]) -> Iterator[None]:
    from pyspark import BarrierTaskContext

    context = BarrierTaskContext.get()
    number = context.partitionId()
    host = context.getTaskInfos()[number].address.rpartition(":")[0]
    with socket.socket() as free:
        free.bind(("", 0))
        addresses = context.allGather(f"{host}:{free.getsockname()[1]}")
    os.environ["TF_CONFIG"] = json.dumps(
        {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": number}}
    )
    work()
    return iter(())
