"""Paths as Spark wants them."""

from __future__ import annotations

import re
from collections.abc import Iterable


def literal(paths: Iterable[object]) -> list[str]:
    """Paths of files and folders there are: Spark takes a path for a pattern, and `orders[1].csv` for `orders1.csv`."""
    return [re.sub(r"([\\*?\[\]{}])", r"\\\1", str(path)) for path in paths]
