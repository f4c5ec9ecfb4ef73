"""`python -m expectations gate NAMES`: exit 0 when all gates passed, 1 when one did not, 2 on bad input."""

from __future__ import annotations

from typing import Annotated

import typer

from contracts.errors import reported

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)


@app.callback()
def main() -> None:
    """Great Expectations gates over the tables."""


@app.command()
def gate(
    names: Annotated[list[str], typer.Argument(help="raw, clean, features, lists", metavar="GATE...")],
    full: Annotated[
        bool, typer.Option(help="Check every row again, not only what is new since the last pass.")
    ] = False,
) -> None:
    """Check the tables of some gates and write each verdict to reports_dir/gates/GATE.json; the first that fails is the last."""
    with reported():
        from expectations.gate import check

        for name in names:
            verdict = check(name, full=full)
            for failure in verdict.failures:
                typer.echo(f"FAILED {failure.line}")
            typer.echo(verdict.line)
            if not verdict.passed:
                raise typer.Exit(1)


if __name__ == "__main__":
    app()
