"""Command line arguments that several jobs share."""

from __future__ import annotations


def interval_number(value: str) -> int | None:
    """Number of an interval; the empty text means: work it out."""
    return int(value) if value.strip() else None
