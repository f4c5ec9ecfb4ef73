"""`python -m serving VERB`: publish, verify, promote and roll back versions; share out traffic; tokens; start-up."""

from __future__ import annotations

import json
import shlex
import sys
from datetime import UTC, datetime
from typing import Annotated

import typer

from contracts.errors import reported
from contracts.names import NOTHING_TO_DO
from serving import command as server
from serving import publish as deployment
from serving import split
from serving.gateway import process as gateway
from serving.gateway import tokens, traffic

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
token = typer.Typer(help="Who may ask the gateway.", no_args_is_help=True)
app.add_typer(token, name="token")
Version = Annotated[int, typer.Option(min=1, help="Registered version in MLflow.")]
Share = Annotated[float, typer.Option(min=0, max=1, help="Share of it, from 0 to 1.")]
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
def canary(version: Version, share: Share) -> None:
    """Let a verified version answer a share of the users, always the same ones; 0 ends it."""
    with deployment.exclusive():
        split.canary(version, share)


@app.command()
def shadow(version: Version, share: Share) -> None:
    """Send a verified version a copy of a share of the predictions and throw its answers away; 0 ends it."""
    with deployment.exclusive():
        split.shadow(version, share)


@app.command()
def initialise() -> None:
    """Write the files that model server and gateway need to start; what is there is kept."""
    with deployment.exclusive():
        server.initialise()
        gateway.initialise()


@app.command()
def render() -> None:
    """Print the gateway's whole configuration as Envoy would read it in one piece."""
    print(json.dumps(gateway.rendered(traffic.read()), indent=2))


@app.command()
def command(of_gateway: Annotated[bool, typer.Option("--gateway", help="That of the gateway.")] = False) -> None:
    """Print the command line that starts the model server, or the gateway."""
    print(shlex.join(gateway.command() if of_gateway else server.server_command()))


Scope = Annotated[str, typer.Option(help="predict; or admin, who may also choose arm and time.")]
Days = Annotated[float, typer.Option(help="How long it is valid.")]


@token.command()
def issue(
    client: Annotated[str, typer.Argument(help="Who it is for; limits and exposures go by this name.")],
    scope: Scope = tokens.PREDICT,
    days: Days = 90,
) -> None:
    """Print a new token. It is kept nowhere: hand it over, and issue another one when it is lost."""
    print(tokens.issue(client, scope, lifetime_s=days * tokens.DAY_S))


@token.command("list")
def list_() -> None:
    """Print key, client, scope and end of every token that is valid."""
    for key in tokens.valid_keys():
        print(f"{key.kid}  {key.scope:7}  {datetime.fromtimestamp(key.expires_s, UTC):%Y-%m-%d %H:%M}  {key.client}")


@token.command()
def revoke(
    name: Annotated[str, typer.Argument(help="A key, as `token list` shows it, or a client: all its keys.")],
) -> None:
    """Refuse a token from now on."""
    for key in tokens.revoke(name):
        print(f"revoked {key.kid} of {key.client}")


@token.command()
def rotate(client: Annotated[str, typer.Argument(help="A client that has a token.")], days: Days = 90) -> None:
    """Print a new token for a client, of the same scope; the one before is valid until you revoke it."""
    old = tokens.of_client(client)
    print(tokens.issue(client, old[-1].scope, lifetime_s=days * tokens.DAY_S))
    for key in old:
        print(f"when {client} has moved: python -m serving token revoke {key.kid}", file=sys.stderr)


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
