from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from contracts.errors import InputError
from contracts.settings import settings
from deploy.local import classes, jars
from deploy.local.environment import pyspark_folder
from deploy.local.java import find_java

# printf one | sha256sum
ONE = "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.jar").write_text("one")
    return tmp_path


def test_the_right_jars_pass(folder: Path) -> None:
    """A folder with exactly the listed content is accepted."""
    jars.verify(folder, {"a.jar": ONE})


def test_a_changed_jar_is_refused(folder: Path) -> None:
    """A jar with another content than the committed one is an error that names it."""
    (folder / "a.jar").write_text("two")
    with pytest.raises(InputError, match=r"a\.jar has a wrong sha256"):
        jars.verify(folder, {"a.jar": ONE})


def test_missing_and_unexpected_jars_are_refused(folder: Path) -> None:
    """A jar that is missing and a file that is not listed are both named."""
    (folder / "evil.jar").write_text("x")
    with pytest.raises(InputError, match=r"b\.jar is missing; evil\.jar is unexpected"):
        jars.verify(folder, {"a.jar": ONE, "b.jar": ONE})


def test_no_listed_jar_is_in_the_wheel_already() -> None:
    """The committed list has none of the artifacts that the pyspark wheel brings itself."""
    lock = jars.read_lock()
    assert "delta-spark_4.2_2.13-4.4.0.jar" in lock
    assert all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in lock.values())

    def artifact(name: str) -> str:
        return re.sub(r"-\d[^-]*\.jar$", "", name)

    wheel = {artifact(path.name) for path in (pyspark_folder() / "jars").glob("*.jar")}
    assert len(wheel) > 100
    assert not {artifact(name) for name in lock} & wheel


def test_the_archive_of_classes_fits_this_environment(tmp_path: Path) -> None:
    """Spark's driver takes its classes from the archive that `prepare` has made."""
    java = find_java(settings())
    if classes.is_missing(settings(), java):
        classes.archive_classes(settings(), java)
    assert not classes.is_missing(settings(), java)
    loaded = tmp_path / "classes.log"
    options = f"{settings().spark_driver_java_options} -Xlog:class+load:file={loaded}"
    class_path = settings().spark_driver_conf["spark.driver.extraClassPath"]
    submit = [
        pyspark_folder() / "bin" / "spark-submit", "--driver-java-options", options, "--driver-class-path", class_path,
        "--version",
    ]  # fmt: skip
    subprocess.run(submit, check=True, capture_output=True)
    [line] = re.findall(r".* org\.apache\.spark\.deploy\.SparkSubmit source: .*", loaded.read_text())
    assert line.endswith("source: shared objects file (top)"), line
