"""`python -m monitoring pending|observe|decide|should-train|should-refresh|export`: exit 99: there is nothing to do."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from contracts.errors import reported
from contracts.names import NOTHING_TO_DO

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)


@app.command()
def pending() -> None:
    """Exit 0 and say why when a decision is due, else 99."""
    with reported():
        from monitoring import journal

        reason = journal.is_pending()
        typer.echo(reason or "nothing to decide")
        if reason is None:
            raise typer.Exit(NOTHING_TO_DO)


@app.command()
def observe(interval: Annotated[int, typer.Option(help="The interval whose live traffic is measured.")]) -> None:
    """Print the live metrics of an interval as JSON, by model version."""
    with reported():
        from contracts.settings import settings
        from monitoring import quality, sources

        live_by_version = quality.by_version(sources.attributions(interval), settings().gate_confidence)
        typer.echo(json.dumps({version: asdict(live) for version, live in live_by_version.items()}, indent=1))


@app.command()
def decide() -> None:
    """Decide for the coming interval; the last line is `retrain`, `refresh` or `keep`."""
    with reported():
        from monitoring import journal

        record = journal.decide_now()
        decision = record["decision"]
        verb = "retrain" if decision["retrain"] else "refresh" if decision["refresh"] else "keep"
        typer.echo(f"interval {record['interval']}: {verb}: {'; '.join(decision['reasons'])}")
        typer.echo(verb)


@app.command()
def should_train(
    force: Annotated[
        bool, typer.Option("--force/--no-force", help="A person wants it: do not ask the decisions.")
    ] = False,
) -> None:
    """Exit 0 when a training is due, its key as the last line, else 99."""
    with reported():
        from monitoring import journal

        due = journal.training_due(force=force)
        if due is None:
            typer.echo("no training is due")
            raise typer.Exit(NOTHING_TO_DO)
        key, reason = due
        typer.echo(reason)
        typer.echo(key)


@app.command()
def should_refresh(
    force: Annotated[
        bool, typer.Option("--force/--no-force", help="A person wants it: do not ask the decisions.")
    ] = False,
) -> None:
    """Exit 0 when the champion is to get newer data, the key of the refresh as the last line, else 99."""
    with reported():
        from monitoring import journal

        due = journal.refresh_due(force=force)
        if due is None:
            typer.echo("no refresh is due")
            raise typer.Exit(NOTHING_TO_DO)
        key, reason = due
        typer.echo(reason)
        typer.echo(key)


@app.command()
def export() -> None:
    """Serve the page for Prometheus until stopped."""
    with reported():
        from monitoring import exporter

        exporter.serve()


if __name__ == "__main__":
    app()
