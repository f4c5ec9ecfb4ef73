"""An archive of the classes that Spark's driver loads, so that a job's JVM maps them instead of reading 300 jars.

Made once for an environment and a Java, by a job on a single event. The JVM passes over an archive that was made by
another Java or of other jars, and over one that is missing: then jobs start more slowly, and that is all.

Source: https://docs.oracle.com/en/java/javase/17/vm/class-data-sharing.html
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from contracts.files import locked, sha256, write_text
from contracts.settings import REPOSITORY, Settings
from deploy.local.java import Java

_REHEARSAL = """
from pyspark import SparkContext
from contracts.tables import ITEM_INTERVALS, SILVER_EVENTS, USER_HISTORIES
from spark_jobs import features, storage
from spark_jobs.session import session

spark = session("rehearsal")
event = {"interval": "1", "at": "0.5D", "weight": "1D", "quantity": "1D", "price": "1D", "target": "true"}
moments = {name: "timestamp'2024-01-01'" for name in ("occurred_at", "bronze_ingested_at")}
values = [f"{(event | moments).get(name, repr(name))} AS {name}" for name in SILVER_EVENTS.column_names]
storage.write(spark.range(1).selectExpr(*values), SILVER_EVENTS, replace=[1], record={})
entries = features.basket_entries(storage.read(spark, SILVER_EVENTS), storage.read(spark, USER_HISTORIES), 60)
storage.write(features.item_intervals(entries.persist()), ITEM_INTERVALS, record={})

# The JVM writes the archive when it ends, which Python does not wait for by itself.
gateway = SparkContext._gateway
spark.stop()
gateway.proc.stdin.close()
gateway.proc.wait()
"""


def is_missing(settings: Settings, java: Java) -> bool:
    """Whether it has not been tried yet with this very Java and these jars, and there is a place for an archive."""
    stamp = _stamp(settings)
    is_stamped = stamp.exists() and stamp.read_text(encoding="utf-8") == _build(settings, java)
    return not is_stamped and os.access(stamp.parent, os.W_OK)


def _stamp(settings: Settings) -> Path:
    """The Java and the jars that the archive was made with, or could not be."""
    return settings.class_archive.with_suffix(".java")


def _build(settings: Settings, java: Java) -> str:
    plain = {name: value for name, value in os.environ.items() if name not in ("JDK_JAVA_OPTIONS", "JAVA_TOOL_OPTIONS")}
    command = [java.home / "bin" / "java", "-version"]  # which says first what it takes from these
    version = subprocess.run(command, env=plain, capture_output=True, text=True, check=True).stderr
    return f"{version}{settings.cache_dir}\n{sha256(Path(__file__).with_name('spark_jars.sha256'))}\n"


def archive_classes(settings: Settings, java: Java) -> None:
    """Make `settings.class_archive`. Where that fails, jobs do without: the reason is in `spark-classes.log` beside it."""
    archive = settings.class_archive
    with locked(archive.with_suffix(".lock")), tempfile.TemporaryDirectory(prefix="cartwheel-") as folder:
        if not is_missing(settings, java):  # another installation has made it while we waited
            return
        archive.unlink(missing_ok=True)
        part = archive.with_suffix(".part")
        own = {
            "CARTWHEEL_HOME": folder,
            "CARTWHEEL_CACHE": str(settings.cache_dir),
            "JAVA_HOME": str(java.home),
            "JDK_JAVA_OPTIONS": f"-XX:TieredStopAtLevel=1 -XX:ArchiveClassesAtExit={part}",
        }
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("CARTWHEEL_")}
        with archive.with_suffix(".log").open("wb") as log:
            result = subprocess.run(
                [sys.executable, "-c", _REHEARSAL],
                cwd=REPOSITORY,
                env=inherited | own,
                stdout=log,
                stderr=log,
                check=False,
            )
        if result.returncode == 0 and part.exists():
            part.rename(archive)
        write_text(_stamp(settings), _build(settings, java))
