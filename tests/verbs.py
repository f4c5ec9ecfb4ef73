"""A stage's command line, run in this process: a new Python would first import for seconds what is here already."""

from __future__ import annotations

import importlib
import io
import itertools
import multiprocessing
import os
import runpy
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

import pytest

from contracts.settings import Settings, settings

MODEL: str = Settings.model_fields["model"].default
"""The model's name where no setting says another."""


@dataclass(frozen=True)
class Ended:
    """What is left of a command, as `subprocess.CompletedProcess` names it."""

    returncode: int
    stdout: str
    stderr: str


def run_verb(module: str, *words: str, environment: dict[str, str]) -> Ended:
    """What `python -m MODULE WORDS` does, with these CARTWHEEL_ variables and no others."""
    stdout, stderr, code = io.StringIO(), io.StringIO(), 0
    with (
        pytest.MonkeyPatch.context() as patch,
        redirect_stdout(stdout),
        redirect_stderr(stderr),
        warnings.catch_warnings(),
    ):
        for name in [name for name in os.environ if name.startswith("CARTWHEEL_")]:
            patch.delenv(name)
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.setattr(sys, "argv", [module, *words])
        settings.cache_clear()
        warnings.filterwarnings("ignore", category=RuntimeWarning, module="runpy")  # it was imported before, too
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except Exception:
            traceback.print_exc()  # as Python itself does
            code = 1
    settings.cache_clear()
    return Ended(code, stdout.getvalue(), stderr.getvalue())


_WARM = multiprocessing.get_context("forkserver")
_WARM.set_forkserver_preload(["serving.__main__", "mlflow"])


def run_killed_verb(
    module: str, *words: str, at: str | Sequence[str], environment: dict[str, str], nth: int = 1
) -> int:
    """Start `python -m MODULE WORDS` and let it die by -9 where it would call `at`, a function `module.name` of the stage.

    Args:
        at: or several functions, all of whose calls count.
        nth: which call it dies of.

    Returns:
        The exit status; -9 if it got there.
    """
    child = _WARM.Process(
        target=_run_until, args=(module, words, [at] if isinstance(at, str) else at, nth, environment)
    )
    child.start()
    child.join(300)
    child.kill()  # one that hangs is not left behind
    child.join()
    return child.exitcode


def _run_until(module: str, words: tuple[str, ...], at: Sequence[str], nth: int, environment: dict[str, str]) -> None:
    calls = itertools.count(1)

    def dying(function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **named: Any) -> Any:
            if next(calls) == nth:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **named)

        return called

    for each in at:
        name, function = each.rsplit(".", 1)
        place = importlib.import_module(f"{module}.{name}")
        setattr(place, function, dying(getattr(place, function)))
    sys.exit(run_verb(module, *words, environment=environment).returncode)
