"""The life of one installation: prepare, up, down, status."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import psutil
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from contracts.errors import InputError
from contracts.files import lock_holder, locked, write_text
from contracts.settings import Settings
from deploy.local import classes, environment, postgres, preflight
from deploy.local import programs as catalogue
from deploy.local.jars import ensure_jars, read_lock
from deploy.local.java import Java, find_java
from deploy.local.processes import marked, memory_mib, sweep
from deploy.local.programs import Program
from deploy.local.secrets import Secrets, read_or_create
from deploy.local.supervision import Supervisor, connect, launch, socket_path

DEADLINE_S = 300.0
LOG_TAIL_LINES = 25


@contextmanager
def step(console: Console, what: str) -> Iterator[None]:
    """Say what is being done, then how long it took."""
    start = time.monotonic()
    with console.status(what):
        yield
    console.print(f"  {what} [dim]{time.monotonic() - start:.1f} s[/dim]", highlight=False)


def prepare(settings: Settings, console: Console) -> Java:
    """Find a Java, fetch the Spark jars, archive what Spark loads of them. Quick when all is there.

    Raises:
        InputError: see `find_java` and `ensure_jars`.
    """
    make_home(settings)
    with step(console, "Java and Spark jars"):
        java = find_java(settings)
        are_fetched = (settings.cache_dir / "spark-jars").is_dir()
        if are_fetched:
            ensure_jars(settings, java)
    if not are_fetched:
        _fetch_jars(settings, java, console)
    if classes.is_missing(settings, java):
        with step(console, "An archive of Spark's classes: jobs start faster by it"):
            classes.archive_classes(settings, java)
    return java


def _fetch_jars(settings: Settings, java: Java, console: Console) -> None:
    with Progress(TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), console=console) as progress:
        task = progress.add_task("Fetching the Spark jars (24 MB)", total=len(read_lock()))

        def arrived(name: str) -> None:
            progress.update(task, advance=1)
            if not console.is_terminal:
                console.print(f"    {name}", highlight=False)

        ensure_jars(settings, java, arrived)


def make_home(settings: Settings) -> None:
    """Make the home folder, private to its owner (passable when we are root, as PostgreSQL runs as another user)."""
    home = settings.home_dir
    if "%" in str(home):
        raise InputError(
            "supervisord takes no % in a path", where=f"CARTWHEEL_HOME={home}", cure="choose another folder"
        )
    if not (home / "run").exists():
        home.mkdir(parents=True, exist_ok=True)
        home.chmod(0o711 if os.geteuid() == 0 else 0o700)
    for name in ("run", "logs", "airflow", "mlflow"):
        (home / name).mkdir(mode=0o700, exist_ok=True)
    settings.cache_dir.mkdir(parents=True, exist_ok=True)


def added_environment(settings: Settings, java: Java) -> dict[str, str]:
    """What the stack's processes have in their environment beyond ours."""
    secrets = read_or_create(settings.secrets_path)
    return environment.stack_environment(settings, secrets, java, os.environ.get("PATH", os.defpath))


def up(settings: Settings, console: Console) -> dict[str, str]:
    """Start everything and wait until it is healthy. Does nothing when it is; restarts it when settings have changed.

    Returns:
        The environment that the stack's processes have beyond ours.

    Raises:
        InputError: something is missing, in the way, or died while starting; nothing is left running then.
    """
    home = settings.home_dir
    java = prepare(settings, console)
    with locked(home / "run" / "up.lock", what="this installation is being started already"):
        secrets = read_or_create(settings.secrets_path)
        added = added_environment(settings, java)
        programs = catalogue.programs(settings)
        configuration = catalogue.render(programs, home, socket_path(home))
        # The PATH differs from terminal to terminal and is no reason to restart.
        compared = {name: value for name, value in added.items() if name != "PATH"}
        fingerprint = hashlib.sha256(json.dumps([configuration, compared], sort_keys=True).encode()).hexdigest()

        supervisor = connect(home)
        if supervisor is not None and _read(home / "run" / "fingerprint") != fingerprint:
            console.print("  The settings have changed since the stack was started: restarting it.")
            down(settings, console)
            supervisor = None
        if supervisor is None:
            left_over = sweep(home)
            if left_over:
                console.print(f"  Stopped {left_over} processes that an earlier run left behind.")
            preflight.check_disk(home)
            preflight.check_ports(settings.host, preflight.ports(settings))
        try:
            if supervisor is None:
                _write_files(settings, secrets, configuration)
                if not settings.database_url:
                    with step(console, "PostgreSQL's data folder"):
                        notices = postgres.prepare(settings, secrets)
                    for notice in notices:
                        console.print(f"  {notice}", highlight=False)
                with step(console, "The files of model server and gateway"):
                    catalogue.serving_verb("initialise")
                supervisor = launch(home, home / "run" / "supervisord.conf", added)
                write_text(home / "run" / "fingerprint", fingerprint)
            _start(settings, secrets, supervisor, programs, console)
        except BaseException:
            with undisturbed():
                down(settings, console)
            raise
    return added


def _start(
    settings: Settings, secrets: Secrets, supervisor: Supervisor, programs: list[Program], console: Console
) -> None:
    home, named = settings.home_dir, {program.name: program for program in programs}
    if catalogue.POSTGRES in named:
        supervisor.start(named[catalogue.POSTGRES].address)
    with step(console, "PostgreSQL"):
        databases = (environment.AIRFLOW_DATABASE, environment.MLFLOW_DATABASE)
        embedded = [catalogue.POSTGRES] if catalogue.POSTGRES in named else []
        postgres.wait_and_create(settings, secrets, databases, lambda: _check_alive(home, supervisor, embedded))

    services = [program for program in programs if program.group == catalogue.SERVICES]
    for program in services:
        if not program.needs_schema:
            supervisor.start(program.address)
    _migrate(settings, secrets, supervisor, named[catalogue.MIGRATE], console)
    for program in services:
        supervisor.start(program.address)
    _wait(settings, supervisor, services, console)


def _wait(settings: Settings, supervisor: Supervisor, services: list[Program], console: Console) -> None:
    """Wait until all services are healthy, saying when each is."""
    start = time.monotonic()
    pending = {program.name: program for program in services}
    # The gateway's certificate is for those who ask from outside.
    with httpx.Client(timeout=5, trust_env=False, verify=False) as client, console.status("") as line:  # noqa: S501
        while pending:
            states = _check_alive(settings.home_dir, supervisor, [program.name for program in services])
            for name, program in list(pending.items()):
                if catalogue.healthy(client, program, settings.airflow_url, states[name]["start"]):
                    console.print(
                        f"  {name} [dim]{time.monotonic() - start:.1f} s[/dim] {program.url}", highlight=False
                    )
                    del pending[name]
            line.update(f"Waiting for {', '.join(pending)}")
            if pending and time.monotonic() - start > DEADLINE_S:
                raise _died(settings.home_dir, next(iter(pending)), f"is not healthy after {DEADLINE_S:.0f} s")
            time.sleep(0.5 if pending else 0)


def _migrate(settings: Settings, secrets: Secrets, supervisor: Supervisor, program: Program, console: Console) -> None:
    """Bring Airflow's schema up to date, unless this version did so already."""
    stamp = settings.home_dir / "airflow" / "migrated"
    uri = settings.database_uri(environment.AIRFLOW_DATABASE, secrets.postgres_password)

    def state() -> str:
        return f"{version('apache-airflow-core')} {postgres.airflow_revision(uri)}"

    if _read(stamp) == state():
        return
    with step(console, "Airflow's database schema"):
        supervisor.start(program.address)
        end = time.monotonic() + DEADLINE_S
        while (info := supervisor.states()[program.name])["statename"] in ("STARTING", "RUNNING"):
            if time.monotonic() > end:
                break
            time.sleep(0.2)
        if info["statename"] != "EXITED" or info["exitstatus"] != 0:
            raise _died(settings.home_dir, program.name, f"ended with status {info['exitstatus']}")
    write_text(stamp, state())


def _check_alive(home: Path, supervisor: Supervisor, names: list[str]) -> dict[str, dict[str, Any]]:
    """The programs' states; InputError, having shown the end of its log, if one of them is not running."""
    try:
        states = supervisor.states()
    except OSError:
        raise InputError(
            "supervisord ended while the stack was starting", where=str(home / "logs" / "supervisord.log"),
            cure="run it again if you stopped it, else read that log",
        ) from None  # fmt: skip
    for name in names:
        if states[name]["statename"] not in ("STARTING", "RUNNING"):
            raise _died(home, name, "stopped while starting")
    return states


def _died(home: Path, name: str, how: str) -> InputError:
    path = catalogue.log_path(home, name)
    for line in tail(path, LOG_TAIL_LINES):
        Console(stderr=True).print(f"    {name} | {line}", markup=False, highlight=False, soft_wrap=True)
    return InputError(f"{name} {how}", where=str(path), cure="read the lines above or that log, and run it again")


def tail(path: Path, lines: int) -> list[str]:
    """The last lines of a text file; none if it is not there."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 400 * lines))
            return file.read().decode(errors="replace").splitlines()[-lines:]
    except FileNotFoundError:
        return []


def down(settings: Settings, console: Console) -> int:
    """Stop everything of this installation, also what a killed supervisor left behind, and whoever is starting it.

    Returns:
        How many processes had to be swept up.
    """
    home = settings.home_dir
    holders = [lock_holder(home / "run" / name) for name in ("loop.lock", "up.lock")]
    spared = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    others = [pid for pid in dict.fromkeys(holders) if pid and pid not in spared]
    for pid in others:
        _signal(pid, signal.SIGTERM)
    supervisor = connect(home)
    if supervisor is not None:
        with step(console, "Stopping the stack"):
            supervisor.shutdown()
    swept = sweep(home)
    if swept:
        console.print(f"  Stopped {swept} processes that were left behind.")
    for pid in others:
        try:
            psutil.Process(pid).wait(20)
        except psutil.TimeoutExpired:
            _signal(pid, signal.SIGKILL)
        except psutil.Error:
            pass
    if others:
        sweep(home)
    return swept


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Let a second Ctrl-C not interrupt the cleaning up, which takes a bounded time."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def status(settings: Settings) -> Table:
    """Program, state, pid, memory of its process tree in MiB, and address."""
    table = Table(
        "Program", "State", "PID", "MiB", "Address", title=f"Cartwheel in {settings.home_dir}", title_justify="left"
    )
    supervisor = connect(settings.home_dir)
    if supervisor is None:
        left_over = len(marked(settings.home_dir))
        table.add_row("supervisord", f"{left_over} ORPHANS: make down" if left_over else "STOPPED", "", "", "")
        return table
    urls = {program.name: program.url for program in catalogue.programs(settings)}
    for name, info in supervisor.states().items():
        if name == catalogue.MIGRATE:
            continue
        tree: list[psutil.Process] = []
        if info["pid"]:
            try:
                process = psutil.Process(info["pid"])
                tree = [process, *process.children(recursive=True)]
            except psutil.Error:
                pass
        state = info["statename"]
        row = (name, state, str(info["pid"] or ""), f"{memory_mib(tree):.0f}" if tree else "", urls.get(name, ""))
        table.add_row(*row, style="" if state in ("RUNNING", "STARTING") else "red")
    used_mib = memory_mib(marked(settings.home_dir))
    table.caption = f"All: {used_mib:.0f} MiB. Airflow's user is admin, its password is in {settings.secrets_path}."
    table.caption_justify = "left"
    return table


def _write_files(settings: Settings, secrets: Secrets, configuration: str) -> None:
    home = settings.home_dir
    write_text(home / "run" / "supervisord.conf", configuration, mode=0o600)
    passwords = json.dumps({"admin": secrets.airflow_admin_password})
    write_text(home / "airflow" / "passwords.json", passwords, mode=0o600)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
