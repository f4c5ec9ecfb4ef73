"""A real standalone master and worker of Spark, and a lake in S3: the jobs give what they give in one process."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pyspark
import pytest

from contracts.ports import free_ports
from contracts.settings import REPOSITORY, settings
from contracts.tables import (
    BRONZE_EVENTS,
    ITEM_FEATURES,
    QUARANTINE,
    SILVER_EVENTS,
    TRAINING_LISTS,
    USER_HISTORIES,
)
from spark_jobs import erase

pytestmark = pytest.mark.slow

DRIVER = """
import json, os, runpy, sys
from functools import partial
from pathlib import Path

from spark_jobs.session import session
from training.launch import launch

for job in ("land", "clean", "features"):
    sys.argv = [job]
    try:
        runpy.run_module(f"spark_jobs.{job}", run_name="__main__")
    except SystemExit as end:
        assert not end.code, job
spark = session("tests")
print(spark.sparkContext.master, len(spark.sparkContext._jsc.sc().statusTracker().getExecutorInfos()))
spark.stop()

def work(folder):
    index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
    (folder / str(index)).write_text(json.dumps({"config": os.environ["TF_CONFIG"], "parent": os.getppid()} | {
        name: value for name, value in os.environ.items() if name.startswith("CARTWHEEL_")
    }))

launch(partial(work, Path(os.environ["FOLDER"])), 2)
"""


def _words(bucket: Any) -> set[str]:
    """All words in the values of Parquet files and in the logs of tables."""
    words: set[str] = set()
    for each in bucket.objects.all():
        content = each.get()["Body"].read()
        if each.key.endswith(".parquet"):
            content = str(pq.ParquetFile(io.BytesIO(content)).read().to_pylist()).encode()
        words |= {*re.findall(r"\w+", content.decode())}
    return words


@pytest.fixture
def master(tmp_path: Path) -> Iterator[str]:
    """Address of a standalone master with one worker of two cores, both on this machine."""
    settings().provide_java()
    spark_class = Path(pyspark.__file__).parent / "bin" / "spark-class"
    port, page, page_of_worker = free_ports(3)
    url = f"spark://127.0.0.1:{port}"
    deploy = "org.apache.spark.deploy"
    commands = [
        [f"{deploy}.master.Master", "--host", "127.0.0.1", "--port", port, "--webui-port", page],
        [
            f"{deploy}.worker.Worker", "--host", "127.0.0.1", "--cores", 2, "--memory", "2g", "--work-dir",
            tmp_path / "work", "--webui-port", page_of_worker, url,
        ],
    ]  # fmt: skip
    foreign = {name: value for name, value in os.environ.items() if not name.startswith("CARTWHEEL_")}
    with ExitStack() as stack, (tmp_path / "cluster.log").open("w") as log:
        for command in commands:
            process = subprocess.Popen(
                [spark_class, *map(str, command)], env=foreign | {"SPARK_LOCAL_IP": "127.0.0.1"}, stdout=log, stderr=log
            )
            stack.callback(process.wait, 30)
            stack.callback(process.terminate)
        yield url


def test_a_standalone_cluster_with_its_lake_in_a_store_gives_the_same(
    master: str, bucket: Any, postgres_server: Any, built: Path, open_shop: Callable[[Path], Any], tmp_path: Path
) -> None:
    """Tables equal those of one process; the workers of a training are placed there and have its settings. Erased, a user
    is in no object of the store.
    """
    tables = (BRONZE_EVENTS, SILVER_EVENTS, QUARANTINE, USER_HISTORIES, TRAINING_LISTS, ITEM_FEATURES)
    shop = open_shop(tmp_path / "shop")
    own = {"CARTWHEEL_SPARK_MASTER": master, "CARTWHEEL_SPARK_SHUFFLE_PARTITIONS": "2", "FOLDER": str(tmp_path)}
    own |= {
        "SPARK_LOCAL_IP": "127.0.0.1",
        "PYSPARK_PYTHON": sys.executable,
        "CARTWHEEL_SECRET_SHOP_DB": "not to be sent",
    }
    lake = {
        "CARTWHEEL_LAKE": f"s3://{bucket.name}/lake",
        "CARTWHEEL_DATABASE_URL": f"postgresql://postgres:{postgres_server.password}@127.0.0.1:{postgres_server.port}",
    }
    own |= lake
    result = subprocess.run(
        [sys.executable, "-c", DRIVER],
        cwd=REPOSITORY,
        env=os.environ | own,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert f"{master} 2" in result.stdout.splitlines()  # the driver, and an executor
    assert not [*(shop.folder / "home").glob("tables/*")]
    for name, value in (lake | {"CARTWHEEL_SECRET_PSEUDONYM_KEY": "k"}).items():
        shop._patch.setenv(name, value)
    settings.cache_clear()
    of_the_cluster = {table.name: shop.rows(table) for table in tables}
    staged = [each.key for each in bucket.objects.filter(Prefix="lake/staging/")]
    assert staged in ([], ["lake/staging/"])  # the mark of an empty folder
    assert {"ann", "bob"} <= _words(bucket)
    assert erase.main("ann", None) == 0
    assert "ann" not in _words(bucket)
    assert "bob" in _words(bucket)

    for name in lake:
        shop._patch.delenv(name)
    settings.cache_clear()
    here = type(shop)(built, shop._patch)
    here.use()
    assert of_the_cluster == {table.name: here.rows(table) for table in tables}

    workers = [json.loads((tmp_path / str(index)).read_text()) for index in (0, 1)]
    [cluster] = {json.dumps(json.loads(worker["config"])["cluster"]) for worker in workers}
    assert len(set(json.loads(cluster)["worker"])) == 2
    for worker in workers:
        assert worker["CARTWHEEL_HOME"] == str(tmp_path / "shop" / "home")
        assert "CARTWHEEL_SECRET_SHOP_DB" not in worker
