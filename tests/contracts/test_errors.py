"""The one error a person can cure: how it reads, and how a command line ends with it."""

from __future__ import annotations

import pytest

from contracts.errors import InputError, reported


def test_an_error_says_what_where_and_the_cure() -> None:
    """All three parts are in the one line."""
    error = InputError("no column 'user'", where="orders.csv", cure="correct its name")
    assert str(error) == "no column 'user' (in orders.csv). Cure: correct its name"


def test_a_command_line_ends_with_one_line_and_status_two(capsys: pytest.CaptureFixture[str]) -> None:
    """No traceback, nothing on stdout, exit status 2."""
    with pytest.raises(SystemExit) as caught, reported():
        raise InputError("no column 'user'", where="orders.csv", cure="correct its name")
    shown = capsys.readouterr()
    assert caught.value.code == 2
    assert shown.err == "cartwheel: error: no column 'user' (in orders.csv). Cure: correct its name\n"
    assert shown.out == ""


def test_other_errors_are_not_swallowed() -> None:
    """A bug keeps its traceback."""
    with pytest.raises(ZeroDivisionError), reported():
        raise ZeroDivisionError
