from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

from supervisor.options import ServerOptions

from contracts.settings import Settings
from deploy.local import programs, supervision


def parse(text: str, folder: Path) -> ServerOptions:
    """What supervisord itself makes of a configuration."""
    path = folder / "supervisord.conf"
    path.write_text(text)
    options = ServerOptions()
    options.realize(["-c", str(path)])
    return options


def test_supervisord_reads_what_we_render(tmp_path: Path, make_settings: Callable[..., Settings]) -> None:
    """supervisord gets every program with its very argv, also where a path has spaces and quotes."""
    home = tmp_path / 'it\'s "my" home'
    (home / "run").mkdir(parents=True)
    (home / "logs").mkdir()
    settings = make_settings(home=home, serving_url="http://elsewhere")
    expected = programs.programs(settings)
    options = parse(programs.render(expected, home, home / "run" / "s"), home)
    processes = {process.name: process for group in options.process_group_configs for process in group.process_configs}
    assert {name: shlex.split(process.command) for name, process in processes.items()} == {
        program.name: program.argv for program in expected
    }
    assert not any(process.autostart for process in processes.values())


def test_services_stop_before_the_database(make_settings: Callable[..., Settings], tmp_path: Path) -> None:
    """supervisord stops groups from the highest priority down: the database comes last."""
    (tmp_path / "logs").mkdir()
    (tmp_path / "run").mkdir()
    own = programs.programs(make_settings(serving_url="http://elsewhere"))
    options = parse(programs.render(own, tmp_path, tmp_path / "s"), tmp_path)
    order = sorted(options.process_group_configs, key=lambda group: group.priority)
    assert [group.name for group in order] == ["database", "migration", "services"]


def test_outside_servers_are_not_started(make_settings: Callable[..., Settings]) -> None:
    """With outside servers for the rest, Airflow's programs, the gateway and the page for Prometheus remain."""
    outside = {"database_url": "postgresql://u:p@db:1", "mlflow_tracking_uri": "http://m", "serving_url": "http://s"}
    names = [program.name for program in programs.programs(make_settings(**outside))]
    assert all(name.startswith("airflow-") or name in ("gateway", "loop-metrics") for name in names)
    assert len(names) == 7


def test_a_long_home_gets_a_short_private_socket(tmp_path: Path) -> None:
    """A socket path is never too long for the system, and its folder is private and differs by installation."""
    short = supervision.socket_path(Path("/srv/cartwheel"))
    long = supervision.socket_path(tmp_path / ("x" * 120))
    other = supervision.socket_path(tmp_path / ("y" * 120))
    try:
        assert short == Path("/srv/cartwheel/run/supervisord.sock")
        assert len(str(long)) < 90
        assert long != other
        assert long.parent.stat().st_mode & 0o777 == 0o700
    finally:
        long.parent.rmdir()
        other.parent.rmdir()
