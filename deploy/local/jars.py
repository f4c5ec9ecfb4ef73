"""Jars from Maven: fetched once by the Ivy in the pyspark wheel, checked always.

What is fetched stands in `NAME_jars.ivy.xml`, what must come of it in `NAME_jars.sha256` (the format of sha256sum):
`spark` for Delta, Kafka and PostgreSQL in Spark's jobs, `kafka` for a local Kafka broker.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from contracts.errors import InputError
from contracts.files import locked, sha256
from contracts.settings import Settings
from deploy.local.environment import pyspark_folder
from deploy.local.java import Java


def read_lock(name: str = "spark") -> dict[str, str]:
    """sha256 in hexadecimal by file name, as committed."""
    text = Path(__file__).with_name(f"{name}_jars.sha256").read_text(encoding="utf-8")
    lines = (line.split(maxsplit=1) for line in text.splitlines() if line.strip())
    return {name: digest for digest, name in lines}


def digests(folder: Path) -> dict[str, str]:
    """sha256 in hexadecimal by file name of everything in `folder`."""
    return {path.name: sha256(path) for path in sorted(folder.iterdir())}


def verify(folder: Path, lock: dict[str, str]) -> None:
    """Check that `folder` holds exactly what `lock` says.

    Raises:
        InputError: a file is missing, changed or unexpected.
    """
    digest_by_name = digests(folder)
    wrong = [
        *(f"{name} is missing" for name in lock.keys() - digest_by_name.keys()),
        *(f"{name} is unexpected" for name in digest_by_name.keys() - lock.keys()),
        *(f"{name} has a wrong sha256" for name in lock.keys() & digest_by_name.keys() if lock[name] != digest_by_name[name]),
    ]  # fmt: skip
    if wrong:
        raise InputError(
            "; ".join(sorted(wrong)),
            where=str(folder),
            cure="remove that folder and run `make run` again; if it comes back, do not trust the network you are on",
        )


def ensure_jars(
    settings: Settings, java: Java, advance: Callable[[str], None] = lambda name: None, *, name: str = "spark"
) -> list[Path]:
    """The verified jars, fetched into `settings.cache_dir / "NAME-jars"` if they are not there yet.

    Args:
        advance: called with the name of each jar that has arrived.
        name: which list of jars, `spark` or `kafka`.

    Raises:
        InputError: a jar does not match the committed list, or they cannot be fetched.
    """
    folder, lock = settings.cache_dir / f"{name}-jars", read_lock(name)
    if not folder.is_dir():
        with locked(folder.with_suffix(".lock")):
            if not folder.is_dir():  # another installation may have fetched them while we waited
                for left_over in settings.cache_dir.glob(f"{name}-jars.staging-*"):
                    shutil.rmtree(left_over)
                staging = Path(tempfile.mkdtemp(prefix=f"{name}-jars.staging-", dir=settings.cache_dir))
                staging.chmod(0o755)
                try:
                    fetch(name, java, staging / "jars", staging / "ivy", advance)
                    verify(staging / "jars", lock)
                    (staging / "jars").rename(folder)
                finally:
                    shutil.rmtree(staging, ignore_errors=True)
    verify(folder, lock)
    return [folder / jar for jar in sorted(lock)]


def fetch(name: str, java: Java, folder: Path, cache: Path, advance: Callable[[str], None] = lambda name: None) -> None:
    """Resolve `NAME_jars.ivy.xml` into `folder` with the wheel's own Ivy.

    Raises:
        InputError: a jar cannot be had, most likely for want of a network.
    """
    command = [
        str(java.home / "bin" / "java"), f"-Divy.default.ivy.user.dir={cache}", "-jar", str(_ivy_jar()),
        "-ivy", str(Path(__file__).with_name(f"{name}_jars.ivy.xml")), "-cache", str(cache / "cache"), "-types", "jar", "bundle",
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
            f"the jars of {name.capitalize()} could not be fetched: {reason}",
            where="Maven Central",
            cure=f"connect to the internet and run it again, or set CARTWHEEL_CACHE to a folder that has {name}-jars",
        )


def _ivy_jar() -> Path:
    return max(pyspark_folder().glob("jars/ivy-*.jar"))
