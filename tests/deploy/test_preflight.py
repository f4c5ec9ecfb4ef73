from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from contracts.errors import InputError
from contracts.settings import Settings
from deploy.local import preflight


def test_a_port_in_use_is_named_with_its_setting() -> None:
    """The error names the port, the variable that sets it, and a port that is free."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(InputError) as caught:
            preflight.check_ports("127.0.0.1", {"mlflow_port": port})
    assert f"port {port} on 127.0.0.1" in caught.value.what
    assert caught.value.where == "CARTWHEEL_MLFLOW_PORT"
    proposed = int(caught.value.cure.rpartition("CARTWHEEL_MLFLOW_PORT=")[2])
    preflight.check_ports("127.0.0.1", {"mlflow_port": proposed})


def test_one_port_for_two_servers_is_refused(make_settings: Callable[..., Settings]) -> None:
    """Two settings with one port are named before anything is started."""
    port = make_settings().airflow_port
    with pytest.raises(InputError, match="CARTWHEEL_AIRFLOW_PORT and CARTWHEEL_REST_PORT"):
        preflight.check_ports("127.0.0.1", {"airflow_port": port, "rest_port": port})


def test_outside_servers_need_no_port_here(make_settings: Callable[..., Settings]) -> None:
    """Only the servers that this installation starts itself are checked."""
    outside = {"database_url": "postgresql://u:p@db:1", "mlflow_tracking_uri": "http://m", "serving_url": "http://s"}
    assert list(preflight.ports(make_settings(**outside))) == [
        "airflow_port",
        "gateway_port",
        "gateway_metrics_port",
        "loop_metrics_port",
    ]
    assert len(preflight.ports(make_settings())) == 7


def test_a_full_disk_is_refused(tmp_path: Path) -> None:
    """More space than any disk has is refused, and none at all is enough when none is needed."""
    preflight.check_disk(tmp_path, needed_gib=0)
    with pytest.raises(InputError, match="GiB of disk are free"):
        preflight.check_disk(tmp_path, needed_gib=1e9)
