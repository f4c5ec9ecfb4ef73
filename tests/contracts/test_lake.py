"""The locks of a lake in a store, which has none of its own: in a real PostgreSQL."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from contracts import lake
from contracts.errors import InputError
from contracts.settings import REPOSITORY, Settings, settings
from tests.waiting import wait_until

HOLDER = """
import sys
from contracts import lake
with lake.lock("tables", shared=sys.argv[1] == "shared"):
    print("holds it", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int, str], None]]:
    """Set a lake in a store, and the database of its locks."""

    def use(port: int, password: str) -> None:
        monkeypatch.setenv("CARTWHEEL_LAKE", "s3://shop/lake/")
        monkeypatch.setenv("CARTWHEEL_DATABASE_URL", f"postgresql://postgres:{password}@127.0.0.1:{port}")
        settings.cache_clear()

    yield use
    settings.cache_clear()


@contextmanager
def holder(mode: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock."""
    command = [sys.executable, "-c", HOLDER, mode]
    with subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "holds it\n"
        yield process
        process.kill()


def test_whoever_writes_waits_for_whoever_must_be_alone(
    postgres_server: Any, store: Callable[[int, str], None]
) -> None:
    """Until that process is killed. Many share a lock, and another lock is another's."""
    store(postgres_server.port, postgres_server.password)
    entered = threading.Event()

    def write() -> None:
        with lake.lock("tables", shared=True):
            entered.set()

    with holder("shared"), lake.lock("tables", shared=True):
        pass
    with holder("alone") as process, lake.lock("clean"):
        writer = threading.Thread(target=write)
        writer.start()
        assert not entered.wait(1.0)
        process.kill()
        wait_until(entered.is_set, "the lock")
        writer.join()


def test_a_lock_that_was_lost_is_an_error(postgres_server: Any, store: Callable[[int, str], None]) -> None:
    """Others may have written meanwhile. An error of what was done under it stays that error."""
    store(postgres_server.port, postgres_server.password)
    mine = "pid <> pg_backend_pid() AND query LIKE '%pg_advisory_lock%'"
    with pytest.raises(InputError, match="the lock 'tables' of the lake is not to be had"), lake.lock("tables"):
        postgres_server.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {mine}")
    with pytest.raises(psycopg.OperationalError, match="of another database"), lake.lock("tables"):
        raise psycopg.OperationalError("of another database")


def test_no_lock_without_its_database(store: Callable[[int, str], None]) -> None:
    """Nobody writes the tables of a store unlocked."""
    store(1, "x")
    refusal = pytest.raises(InputError, match=r"the lock 'tables' of the lake is not to be had.*CARTWHEEL_DATABASE_URL")
    with refusal, lake.lock("tables"):
        raise AssertionError


@pytest.mark.parametrize(
    ("value", "uri"), [("", "/shop/tables"), ("/mnt/lake", "/mnt/lake"), ("s3://shop/lake/", "s3://shop/lake")]
)
def test_where_tables_lie(value: str, uri: str) -> None:
    """In a folder, or in a store."""
    assert Settings(_env_file=None, home=Path("/shop"), lake=value).lake_uri == uri
