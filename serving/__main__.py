"""`python -m serving VERB`: publish, verify, promote and roll back versions; start-up of the model server."""

from __future__ import annotations

import json
import shlex
import sys
from typing import Annotated

import typer

from contracts.errors import reported
from contracts.names import NOTHING_TO_DO
from serving import command as server
from serving import publish as deployment

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
Version = Annotated[int, typer.Option(min=1, help="Registered version in MLflow.")]
Deadline = Annotated[float, typer.Option(min=0, help="Longest wait for the endpoint, in seconds.")]


@app.command()
def pending() -> None:
    """Print the challenger that waits for deployment; exit 99 when there is none."""
    version = deployment.pending()
    if version is None:
        print("nothing to deploy", file=sys.stderr)
        raise typer.Exit(NOTHING_TO_DO)
    print(version)


@app.command()
def publish(version: Version, deadline_s: Deadline = deployment.DEADLINE_S) -> None:
    """Load a version beside the champion, labelled canary."""
    with deployment.exclusive():
        deployment.publish(version, deadline_s=deadline_s)


@app.command()
def verify(version: Version) -> None:
    """Replay the golden requests at a published version."""
    with deployment.exclusive():
        print(json.dumps(deployment.verify(version)))


@app.command()
def promote(version: Version, deadline_s: Deadline = deployment.DEADLINE_S) -> None:
    """Make a verified version the champion."""
    with deployment.exclusive():
        deployment.promote(version, deadline_s=deadline_s)


@app.command()
def rollback(
    to: Annotated[int | None, typer.Option(min=1, help="Version to go back to; the previous one by default.")] = None,
    deadline_s: Deadline = deployment.DEADLINE_S,
) -> None:
    """Go back to the previous champion, or a named version; exit 99 when that was done already."""
    with deployment.exclusive():
        version = deployment.rollback(to, deadline_s=deadline_s)
    if version is None:
        print("rolled back already; name a version with --to to go further", file=sys.stderr)
        raise typer.Exit(NOTHING_TO_DO)
    print(version)


@app.command()
def status() -> None:
    """Print what config, ledger, endpoint and MLflow say, as JSON; in words, what somebody has deleted."""
    found = deployment.status()
    print(json.dumps(found, indent=2))
    for version in found["deleted_in_mlflow"] if isinstance(found["deleted_in_mlflow"], list) else []:
        print(
            f"version {version} was deleted in MLflow: what is loaded serves on from its copy here, but it can neither be "
            "published again nor judged; train another",
            file=sys.stderr,
        )


@app.command()
def initialise() -> None:
    """Write the files the model server needs to start; existing ones are kept."""
    with deployment.exclusive():
        server.initialise()


@app.command()
def command() -> None:
    """Print the command line that starts the model server."""
    print(shlex.join(server.server_command()))


def arg_parser() -> object:
    """The parser of all verbs (a click group), for tests of rendered commands."""
    return typer.main.get_command(app)


def main() -> None:
    with reported():
        try:
            app()
        except deployment.DeploymentError as error:
            print(f"cartwheel: deployment refused: {error}", file=sys.stderr)
            sys.exit(1)


if __name__ == "__main__":
    main()
