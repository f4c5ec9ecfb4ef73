"""`python -m contracts settings`: the README's table of settings and `.env.example`, made from `contracts.settings`.

`python -m contracts pseudonym`: what callers send instead of a personal user id."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic.fields import FieldInfo

from contracts.errors import InputError, reported
from contracts.pseudonyms import pseudonym
from contracts.settings import REPOSITORY, Settings, settings

BEGIN = "<!-- settings: written by `python -m contracts settings --write` -->"
END = "<!-- /settings -->"
ENV_HEADER = """\
# Settings of Cartwheel, each with its default. Copy this file to `.env` and uncomment what you change;
# a variable of the environment wins over `.env`. Written by `python -m contracts settings --write`.
"""


def variable(name: str) -> str:
    """The environment variable of a field of `Settings`."""
    return f"CARTWHEEL_{name.upper()}"


def default(field: FieldInfo) -> str:
    """The default as one writes it in the environment; empty for none."""
    value = field.default
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def markdown() -> str:
    """A table of every setting."""
    rows = ["| Variable | Default | What it is |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        shown = f"`{default(field)}`" if default(field) else "empty"
        rows.append(f"| `{variable(name)}` | {shown} | {(field.description or '').replace('|', chr(92) + '|')} |")
    return "\n".join(rows) + "\n"


def env() -> str:
    """The text of `.env.example`: nothing in it changes anything until a line is uncommented."""
    fields = Settings.model_fields.items()
    lines = [f"# {field.description}\n#{variable(name)}={default(field)}\n" for name, field in fields]
    return "\n".join([ENV_HEADER, *lines])


def with_table(text: str, where: str = "README.md") -> str:
    """A text with the table between its markers brought up to date.

    Raises:
        InputError: the markers are not there, once each and in order.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise InputError(
            "the markers of the settings table are missing",
            where=where,
            cure=f"put {BEGIN} and {END} on lines of their own",
        )
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{markdown()}{END}{rest.partition(END)[2]}"


def write(folder: Path = REPOSITORY) -> None:
    """Bring `README.md` and `.env.example` in a folder up to date."""
    readme = folder / "README.md"
    readme.write_text(with_table(readme.read_text(encoding="utf-8"), str(readme)), encoding="utf-8")
    (folder / ".env.example").write_text(env(), encoding="utf-8")


def pseudonyms(user_ids: Iterable[str]) -> Iterator[str]:
    """The pseudonym of each id, in their order, by the secret key of this installation.

    Raises:
        InputError: there is no key, or an id is no valid text.
    """
    key = settings().secret("pseudonym_key")
    return (pseudonym(user_id, key) for user_id in user_ids)


def arg_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m contracts", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    every = verbs.add_parser("settings", help="print every setting, its default and its meaning")
    every.add_argument("--format", choices=("markdown", "env"), default="markdown")
    every.add_argument("--write", action="store_true", help="update README.md and .env.example instead")
    pseudonym_verb = verbs.add_parser("pseudonym", help="print the pseudonym of each user id")
    pseudonym_verb.add_argument(
        "user_ids",
        nargs="*",
        metavar="ID",
        help="none: one a line from standard input, where no list of processes shows it",
    )
    return parser


def main() -> None:
    arguments = arg_parser().parse_args()
    with reported():
        if arguments.verb == "pseudonym":
            for line in pseudonyms(arguments.user_ids or (line.rstrip("\r\n") for line in sys.stdin)):
                print(line)
        elif arguments.write:
            write()
        else:
            print({"markdown": markdown, "env": env}[arguments.format](), end="")


if __name__ == "__main__":
    main()
