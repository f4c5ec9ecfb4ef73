"""`python -m serving VERB`: bring versions into service, and back; tokens; start-up."""

from __future__ import annotations

import json
import shlex
import sys
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated

import typer

from contracts.errors import reported
from contracts.names import NOTHING_TO_DO
from serving import command as server
from serving import exposures
from serving.gateway import process as gateway
from serving.gateway import tokens, traffic
from serving.rollout import control, history
from serving.rollout.document import CANARY, SHADOW
from serving.rollout.endpoint import DEADLINE_S, DeploymentError

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
token = typer.Typer(help="Who may ask the gateway.", no_args_is_help=True)
app.add_typer(token, name="token")
Version = Annotated[int, typer.Option(min=1, help="Registered version in MLflow.")]
Share = Annotated[float, typer.Option(min=0, max=1, help="Share of it, from 0 to 1.")]
Deadline = Annotated[float, typer.Option(min=0, help="Longest wait for the endpoint, in seconds.")]

Why = Annotated[str, typer.Option(help="For the history.")]


class Role(StrEnum):
    """How a challenger meets traffic."""

    SHADOW = SHADOW
    CANARY = CANARY


@app.command()
def pending() -> None:
    """Print the version that is on its way, else the challenger that may set out; exit 99 when there is neither."""
    version = control.pending()
    if version is None:
        print("nothing to deploy", file=sys.stderr)
        raise typer.Exit(NOTHING_TO_DO)
    print(version)


@app.command()
def stage(
    version: Version, again: Annotated[bool, typer.Option("--again", help="Also one that was rejected.")] = False
) -> None:
    """Bring a version's files beside those that serve, complete and checked."""
    control.stage(version, again=again)


@app.command()
def validate(version: Version, deadline_s: Deadline = DEADLINE_S) -> None:
    """Try a staged version in a model server of its own: warm-up, golden requests, latency, memory."""
    control.validate(version, deadline_s=deadline_s)


@app.command()
def load(version: Version, deadline_s: Deadline = DEADLINE_S) -> None:
    """Load a validated version on every model server, labelled canary; it has no traffic yet."""
    control.load(version, deadline_s=deadline_s)


@app.command()
def shadow(version: Version, share: Share) -> None:
    """Send a loaded version a copy of a share of the predictions and throw its answers away."""
    control.shadow(version, share)


@app.command()
def canary(version: Version, share: Share) -> None:
    """Let a loaded version answer a share of the users, always the same ones."""
    control.canary(version, share)


@app.command()
def advance(version: Version, to: Annotated[Role, typer.Option(help="How far.")]) -> None:
    """Take a loaded version through its time as shadow or canary, as far as it goes now; exit 99 to ask again later."""
    if not control.advance(version, to.value):
        raise typer.Exit(NOTHING_TO_DO)


@app.command()
def promote(version: Version, why: Why = "", deadline_s: Deadline = DEADLINE_S) -> None:
    """Make a loaded version the champion; the one before stays loaded."""
    control.promote(version, why=why, deadline_s=deadline_s)


@app.command()
def bake(version: Version) -> None:
    """Watch a new champion, and roll it back if it fails where the one before does not; exit 99 to ask again later."""
    if not control.bake(version):
        raise typer.Exit(NOTHING_TO_DO)


@app.command()
def reject(version: Version, why: Why = "asked for") -> None:
    """End a version's way; it does not come again by itself."""
    control.reject(version, why)


@app.command()
def rollback(
    to: Annotated[int | None, typer.Option(min=1, help="Version to go back to; the previous one by default.")] = None,
    why: Why = "asked for",
    deadline_s: Deadline = DEADLINE_S,
) -> None:
    """Take back what was done last, a canary's traffic or a promotion; exit 99 when that was a rollback already."""
    version = control.rollback(to, why=why, deadline_s=deadline_s)
    if version is None:
        print("rolled back already; name a version with --to to go further", file=sys.stderr)
        raise typer.Exit(NOTHING_TO_DO)
    print(version)


@app.command()
def status() -> None:
    """Print what the rollout, endpoints and MLflow say, as JSON; in words, what somebody has deleted."""
    state = control.status()
    print(json.dumps(state, indent=2))
    for version in state["deleted_in_mlflow"] if isinstance(state["deleted_in_mlflow"], list) else []:
        print(
            f"version {version} was deleted in MLflow: what is loaded serves on from its copy here, but it can neither be "
            "staged again nor judged; train another",
            file=sys.stderr,
        )


@app.command("history")
def show_history() -> None:
    """Print every change of what serves whom: when, what, which version, by whom, why."""
    for change in history.changes():
        share = f" at {change.share:.0%}" if change.share else ""
        why = f": {change.why}" if change.why else ""
        print(f"{change.number:4}  {change.time}  version {change.version} {change.what}{share}, by {change.who}{why}")


@app.command()
def exposure(request_id: Annotated[str, typer.Argument(help="The answer's x-request-id.")]) -> None:
    """Print which version answered a request, with what, and at which step of the rollout."""
    rows = exposures.of_request(request_id)
    if not rows:
        print(f"no answer to {request_id} is logged: it was refused, failed, or is not of this shop", file=sys.stderr)
        raise typer.Exit(NOTHING_TO_DO)
    for each in rows:
        print(json.dumps(each))


@app.command()
def initialise() -> None:
    """Write the files that model server and gateway need to start; what is there is kept."""
    control.initialise()


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
        except DeploymentError as error:
            print(f"cartwheel: deployment refused: {error}", file=sys.stderr)
            sys.exit(1)


if __name__ == "__main__":
    main()
