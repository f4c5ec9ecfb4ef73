"""`python -m deploy.local VERB`: the stack on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from contracts.errors import InputError, reported
from contracts.settings import REPOSITORY, settings

app = typer.Typer(
    help="Run Cartwheel on this machine.", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)
console = Console(soft_wrap=True)


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def _stop_on_signals() -> None:
    """Let SIGTERM and a closed terminal end the verb as Ctrl-C does: cleaning up."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)


@app.command()
def prepare() -> None:
    """Find a Java and fetch the Spark jars."""
    from deploy.local import stack

    java = stack.prepare(settings(), console)
    console.print(f"  Java {java.version} by {java.source}: {java.home}", highlight=False)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def check(context: typer.Context) -> None:
    """Check the data of a shop before running on it; options go to `python -m spark_jobs.check`."""
    from deploy.local import stack

    os.environ.update(stack.added_environment(settings(), stack.prepare(settings(), console)))
    command = [sys.executable, "-m", "spark_jobs.check", *context.args]
    raise typer.Exit(subprocess.run(command, cwd=REPOSITORY, check=False).returncode)


@app.command()
def up() -> None:
    """Start everything and wait until it is healthy."""
    from deploy.local import stack

    _stop_on_signals()
    stack.up(settings(), console)
    console.print(stack.status(settings()))


@app.command()
def down() -> None:
    """Stop everything, also what a killed run left behind."""
    from deploy.local import stack

    stack.down(settings(), console)
    console.print("  Nothing is running.")


@app.command()
def status() -> None:
    """Show each program, its memory and its address."""
    from deploy.local import stack

    console.print(stack.status(settings()))


@app.command()
def logs(
    name: Annotated[str, typer.Argument(help="Program, as `status` shows it, or supervisord.")] = "",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep showing what is added.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="How many lines from the end.")] = 100,
) -> None:
    """Show the end of a program's log."""
    folder = settings().home_dir / "logs"
    path = folder / f"{name}.log"
    if not path.is_file():
        names_of_logs = ", ".join(sorted(log.stem for log in folder.glob("*.log"))) or "none yet"
        raise InputError(f"no log of {name!r}", where=str(folder), cure=f"name one of these: {names_of_logs}")
    with suppress(KeyboardInterrupt):
        subprocess.run(["tail", "-n", str(lines), *(["-F"] if follow else []), "--", str(path)], check=True)


@app.command()
def run(
    once: Annotated[bool, typer.Option("--once", help="Stop everything after the loop.")] = False,
    intervals: Annotated[int | None, typer.Option(min=0, help="Intervals to replay, instead of the setting's.")] = None,
    with_challenger: Annotated[
        bool, typer.Option("--with-challenger", help="Train twice, and roll the second model out while shoppers come.")
    ] = False,
) -> None:
    """Start everything, run the whole loop, and stay up until Ctrl-C."""
    from contracts.files import locked
    from deploy.local import stack
    from deploy.local.supervision import connect

    _stop_on_signals()
    stack.make_home(settings())
    home = settings().home_dir
    result = 130
    with locked(
        home / "run" / "loop.lock", what="this installation runs its loop already", cure="`make down` stops it"
    ):
        try:
            # Processes that the loop starts itself carry the marker too, and so are found by `down`.
            os.environ.update(stack.up(settings(), console))
            from deploy.local import loop

            result = loop.run_loop(intervals=intervals, with_challenger=with_challenger)
            if not once:
                reason = "" if result == 0 else ", so that you can see what failed"
                console.print(f"  Everything stays up{reason}: Ctrl-C stops it.")
                while connect(home) is not None:
                    time.sleep(2)
        except KeyboardInterrupt:
            console.print("\n  Stopping, please wait.")
        finally:
            with stack.undisturbed():
                stack.down(settings(), console)
    raise typer.Exit(result)


@app.command(hidden=True)
def publish_numbers() -> None:
    """Put the numbers of the last run into README.md and docs/summary.json (for maintainers)."""
    from contracts.settings import REPOSITORY
    from deploy.local import summary

    summary.publish(REPOSITORY / "README.md", REPOSITORY / "docs" / "summary.json")


def main() -> None:
    with reported():
        app()


if __name__ == "__main__":
    main()
