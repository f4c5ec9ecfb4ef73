"""The one error a person caused and a person can cure."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn


class InputError(Exception):
    """Bad input, said in one line: what is wrong, where, and the cure.

    Args:
        what: what is wrong, without a full stop.
        where: the file, setting, column or address it was found at.
        cure: what the reader should do about it.
    """

    def __init__(self, what: str, *, where: str, cure: str) -> None:
        self.what, self.where, self.cure = what, where, cure
        super().__init__(f"{what} (in {where}). Cure: {cure}")


@contextmanager
def reported(fail: Callable[[int], NoReturn] = sys.exit) -> Iterator[None]:
    """Turn an `InputError` into one line on stderr and exit status 2, with no traceback."""
    try:
        yield
    except InputError as error:
        print(f"cartwheel: error: {error}", file=sys.stderr)
        fail(2)
