"""Command line arguments that several jobs share."""

from __future__ import annotations

import argparse


def add_interval(parser: argparse.ArgumentParser, name: str, meaning: str) -> None:
    """Add an argument that holds the number of an interval; the empty text and its absence mean None: work it out."""
    parser.add_argument(name, type=_number, default=None, metavar="N", help=meaning)


def _number(value: str) -> int | None:
    return int(value) if value.strip() else None


def add_flag(parser: argparse.ArgumentParser, name: str, meaning: str) -> None:
    """Add a flag, to which a DAG may give `True` or `False`."""
    parser.add_argument(name, nargs="?", const=True, default=False, type=_truth, help=meaning)


def _truth(value: str) -> bool:
    return {"True": True, "False": False}[value]
