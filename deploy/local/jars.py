"""The jars of Delta, Kafka and PostgreSQL for Spark: fetched once by the Ivy in the pyspark wheel, checked always.

What is fetched stands in `spark_jars.ivy.xml`, what must come of it in `spark_jars.sha256`. After changing the
former, `python -m deploy.local lock-jars` writes the latter.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from contracts.errors import InputError
from contracts.files import locked
from contracts.settings import Settings
from deploy.local.environment import pyspark_folder
from deploy.local.java import Java

IVY_FILE = Path(__file__).with_name("spark_jars.ivy.xml")
LOCK_FILE = Path(__file__).with_name("spark_jars.sha256")


def read_lock(path: Path = LOCK_FILE) -> dict[str, str]:
    """sha256 in hexadecimal by file name, in the format of sha256sum."""
    lines = (line.split(maxsplit=1) for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    return {name: digest for digest, name in lines}


def digests(folder: Path) -> dict[str, str]:
    """sha256 in hexadecimal by file name of everything in `folder`."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def verify(folder: Path, lock: dict[str, str]) -> None:
    """Check that `folder` holds exactly what `lock` says.

    Raises:
        InputError: a file is missing, changed or unexpected.
    """
    found = digests(folder)
    wrong = [
        *(f"{name} is missing" for name in lock.keys() - found.keys()),
        *(f"{name} is unexpected" for name in found.keys() - lock.keys()),
        *(f"{name} has a wrong sha256" for name in lock.keys() & found.keys() if lock[name] != found[name]),
    ]  # fmt: skip
    if wrong:
        raise InputError(
            "; ".join(sorted(wrong)),
            where=str(folder),
            cure="remove that folder and run `make run` again; if it comes back, do not trust the network you are on",
        )


def ensure_jars(settings: Settings, java: Java, advance: Callable[[str], None] = lambda name: None) -> list[Path]:
    """The verified Spark jars, fetched into `settings.cache_dir / "spark-jars"` if they are not there yet.

    Args:
        advance: called with the name of each jar that has arrived.

    Raises:
        InputError: a jar does not match the committed list, or they cannot be fetched.
    """
    folder, lock = settings.cache_dir / "spark-jars", read_lock()
    if not folder.is_dir():
        with locked(settings.cache_dir / "spark-jars.lock"):
            if not folder.is_dir():  # another installation may have fetched them while we waited
                for left_over in settings.cache_dir.glob("spark-jars.staging-*"):
                    shutil.rmtree(left_over)
                staging = Path(tempfile.mkdtemp(prefix="spark-jars.staging-", dir=settings.cache_dir))
                staging.chmod(0o755)
                try:
                    fetch(java, staging / "jars", staging / "ivy", advance)
                    verify(staging / "jars", lock)
                    (staging / "jars").rename(folder)
                finally:
                    shutil.rmtree(staging, ignore_errors=True)
    verify(folder, lock)
    return [folder / name for name in sorted(lock)]


def fetch(java: Java, folder: Path, cache: Path, advance: Callable[[str], None] = lambda name: None) -> None:
    """Resolve `spark_jars.ivy.xml` into `folder` with the wheel's own Ivy.

    Raises:
        InputError: a jar cannot be had, most likely for want of a network.
    """
    command = [
        str(java.home / "bin" / "java"), f"-Divy.default.ivy.user.dir={cache}", "-jar", str(_ivy_jar()),
        "-ivy", str(IVY_FILE), "-cache", str(cache / "cache"), "-types", "jar", "bundle",
        "-retrieve", f"{folder}/[artifact]-[revision].[ext]",
    ]  # fmt: skip
    log: list[str] = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as ivy:
        assert ivy.stdout is not None
        try:
            for line in ivy.stdout:
                log.append(line.strip())
                arrived = re.search(r"\[SUCCESSFUL ] \S+#([^;]+);", line)
                if arrived:
                    advance(arrived[1])
        except BaseException:
            ivy.kill()
            raise
    if ivy.returncode != 0 or not folder.is_dir():
        reason = next((line for line in log if "error" in line.lower() or "not found" in line.lower()), "Ivy failed")
        raise InputError(
            f"the Spark jars could not be fetched: {reason}",
            where="Maven Central",
            cure="connect to the internet and run it again, or set CARTWHEEL_CACHE to a folder that has spark-jars",
        )


def _ivy_jar() -> Path:
    return max(pyspark_folder().glob("jars/ivy-*.jar"))
