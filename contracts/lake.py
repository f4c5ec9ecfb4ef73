"""The lake: where the tables lie, how they are opened, and the locks of those who write them.

It is a folder, or an address in an object store (`s3://bucket/folder`). Of a store, credentials, region and endpoint are
those of the environment (`AWS_ACCESS_KEY_ID` and so on), which deltalake, Arrow and Spark read alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import TYPE_CHECKING

from contracts.errors import InputError
from contracts.files import locked
from contracts.settings import settings
from contracts.tables import Table

if TYPE_CHECKING:
    from deltalake import DeltaTable
    from pyarrow.fs import FileSystem


def is_remote() -> bool:
    """Whether the lake lies in an object store, which several hosts share."""
    return "://" in settings().lake_uri


def filesystem() -> tuple[FileSystem, str]:
    """What reads and writes single files of the lake, and the path of the lake in it."""
    from pyarrow import fs

    system, root = fs.FileSystem.from_uri(settings().lake_uri)
    return system, root


def open_table(table: Table, version: int | None = None) -> DeltaTable | None:
    """The table for reading without Spark; None when it has not been written yet."""
    from deltalake import DeltaTable
    from deltalake.exceptions import TableNotFoundError

    try:
        return DeltaTable(table.uri, version=version)
    except TableNotFoundError:
        return None


def exists(table: Table) -> bool:
    """Whether the table has a commit; a folder that a killed creation left behind is none."""
    return open_table(table) is not None


def version_of(table: Table) -> int | None:
    """Delta version of a table; None when it has not been written yet."""
    opened = open_table(table)
    return None if opened is None else opened.version()


@contextmanager
def lock(name: str, *, shared: bool = False) -> Iterator[None]:
    """Hold a lock of all who write the lake; wait for it. It is released however this process ends.

    Of a folder, it is a file; of an object store, which has no locks, an advisory lock of the database that Airflow has:
    hosts that share the one share the other.

    Raises:
        InputError: the database cannot be reached, or was lost while the lock was held.

    Source: https://www.postgresql.org/docs/current/explicit-locking.html#ADVISORY-LOCKS
    """
    if not is_remote():
        with locked(settings().home_dir / "run" / f"{name}.lock", shared=shared):
            yield
        return
    import psycopg

    password = "" if settings().database_url else settings().secret("postgres_password")
    key = f"cartwheel {settings().lake_uri} {name}"
    function = f"lock{'_shared' if shared else ''}(hashtextextended(%s, 0))"
    with ExitStack() as stack:
        with _plain_failures(name):
            address = settings().database_uri("postgres", password)
            connection = stack.enter_context(closing(psycopg.connect(address, autocommit=True)))
            connection.execute(f"SELECT pg_advisory_{function}", [key])
        yield
        with _plain_failures(name):  # without the connection, others may have had the lock meanwhile
            connection.execute(f"SELECT pg_advisory_un{function}", [key])


@contextmanager
def _plain_failures(name: str) -> Iterator[None]:
    """Say in one line that the database of the lock is not there."""
    import psycopg

    try:
        yield
    except psycopg.OperationalError as error:
        raise InputError(
            f"the lock {name!r} of the lake is not to be had: {str(error).splitlines()[0]}",
            where="CARTWHEEL_DATABASE_URL",
            cure="see that PostgreSQL runs and stays reachable from here, and run it again",
        ) from None
