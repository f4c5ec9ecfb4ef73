"""The pure parts of deployment: desired state, differences, history, commands."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer.testing

from contracts.errors import InputError
from contracts.settings import settings
from serving.__main__ import app
from serving.client import Recommendation
from serving.command import server_command
from serving.desired import Desired, parse, read, render, write
from serving.rollout import history, steps
from serving.rollout.document import Rollout
from serving.rollout.endpoint import differences

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("desired", [Desired(), Desired((7,)), Desired((9, 4), {"stable": 4, "canary": 9})])
def test_desired_state_round_trip(desired: Desired, tmp_path: Path) -> None:
    """The rendered config reads back as the same state."""
    assert parse(render(desired, tmp_path), "config") == desired


def test_empty_state_names_no_model(tmp_path: Path) -> None:
    """Without versions the config lists no model: an empty version list would unload everything."""
    assert "config {" not in render(Desired(), tmp_path)


def _deploy_often(model: str, config: Path) -> None:
    os.environ |= {"CARTWHEEL_MODEL": model, "CARTWHEEL_SERVING_CONFIG": str(config)}
    settings.cache_clear()
    for version in range(1, 101):
        write(Desired((version,), {"stable": version}))
        assert read() == Desired((version,), {"stable": version})


def test_shops_write_into_one_config_at_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one writes while the other does is not lost."""
    config, fork = home / "models.config", multiprocessing.get_context("fork")
    shops = [fork.Process(target=_deploy_often, args=(model, config)) for model in ("one", "two")]
    for shop in shops:
        shop.start()
    for shop in shops:
        shop.join()
    assert [shop.exitcode for shop in shops] == [0, 0]
    for model in ("one", "two"):
        monkeypatch.setenv("CARTWHEEL_MODEL", model)
        settings.cache_clear()
        assert parse(config.read_text(), "") == Desired((100,), {"stable": 100})


def test_labels_need_versions() -> None:
    """A label that points outside the loaded versions is a mistake."""
    with pytest.raises(ValueError, match="outside"):
        Desired((1,), {"stable": 2})


def test_broken_config_is_an_input_error() -> None:
    """A config that does not parse is reported with its place."""
    with pytest.raises(InputError, match=r"models\.config"):
        parse("nonsense", "models.config")


@pytest.mark.parametrize(
    ("items", "scores", "same"),
    [
        (["a", "b"], [1.0, 0.5], True),
        (["a", "b"], [1.00009, 0.5], True),
        (["a", "b"], [1.0002, 0.5], False),
        (["b", "a"], [1.0, 0.5], False),
        (["a", "b"], [1.0], False),
        (["a", "b"], [float("nan"), 0.5], False),
    ],
)
def test_differences(items: list[str], scores: list[float], same: bool) -> None:
    """Items must be equal and scores within 1e-4; no number is never equal."""
    answer = Recommendation(tuple(items), tuple(scores), 1, 1.0)
    assert (differences([answer], {"items": [["a", "b"]], "scores": [[1.0, 0.5]]}) == []) is same


def test_history_survives_a_torn_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line torn by a crash counts as not written and spoils no other; a change is written once."""
    path = tmp_path / "history.jsonl"
    monkeypatch.setattr(history, "history_path", lambda: path)
    first = steps.stage(Rollout(), 1)
    history.catch_up(first)
    history.catch_up(first)
    with path.open("a") as file:
        file.write('{"number": 2, "time": "2026')
    second = steps.reject(first, 1, "why")
    history.catch_up(second)
    assert [(change.number, change.what) for change in history.changes()] == [(1, "staged"), (2, "rejected")]


@pytest.mark.parametrize("words", ["pending", "load --version 3", "rollback", "rollback --to 2", "status"])
def test_commands_parse(words: str) -> None:
    """The commands that the deployment DAG renders are accepted by the parser."""
    result = typer.testing.CliRunner().invoke(app, [*words.split(), "--help"])
    assert result.exit_code == 0


def test_no_server_opens_a_port_for_grpc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """gRPC has no login and can change what is served: both servers of ours have it on a socket only."""
    for path, program in ((str(tmp_path), "tensorflow_model_server"), ("", sys.executable)):
        (tmp_path / "tensorflow_model_server").touch(mode=0o755)
        monkeypatch.setenv("PATH", path)
        argv = server_command()
        assert argv[0].endswith(program)
        assert "--port=0" in argv
        assert f"--grpc_socket_path={settings().gateway_dir / 'model.sock'}" in argv


def test_configured_server_must_exist(tmp_path: Path) -> None:
    """A configured model server that is not there is one clear line and exit 2."""
    env = {"CARTWHEEL_MODEL_SERVER": "/nonexistent", "CARTWHEEL_HOME": str(tmp_path)}
    argv = [sys.executable, "-m", "serving", "command"]
    result = subprocess.run(argv, cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=60)
    assert result.returncode == 2
    assert "CARTWHEEL_MODEL_SERVER" in result.stderr
