"""What must hold before anything is started, each said in one line with its cure."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

from contracts.errors import InputError
from contracts.ports import free_ports
from contracts.settings import Settings

FREE_DISK_GIB = 2


def ports(settings: Settings) -> dict[str, int]:
    """Setting by setting, the ports that this installation's own servers listen on."""
    port_by_setting = {
        "airflow_port": settings.airflow_port,
        "gateway_port": settings.gateway_port,
        "gateway_metrics_port": settings.gateway_metrics_port,
        "loop_metrics_port": settings.loop_metrics_port,
    }
    if not settings.mlflow_tracking_uri:
        port_by_setting["mlflow_port"] = settings.mlflow_port
    if not settings.database_url:
        port_by_setting["postgres_port"] = settings.postgres_port
    if not settings.serving_url:
        port_by_setting["rest_port"] = settings.rest_port
    return port_by_setting


def check_ports(host: str, port_by_setting: dict[str, int]) -> None:
    """Check that every port is free on `host` and wanted once.

    Raises:
        InputError: it is not; names the port and its setting.
    """
    variable_by_port: dict[int, str] = {}
    for setting, port in port_by_setting.items():
        variable = f"CARTWHEEL_{setting.upper()}"
        if port in variable_by_port:
            raise InputError(
                f"port {port} is given to both {variable_by_port[port]} and {variable}", where="the settings",
                cure=f"give {variable} another port",
            )  # fmt: skip
        variable_by_port[port] = variable
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                raise InputError(
                    f"port {port} on {host} cannot be used: {(error.strerror or str(error)).lower()}",
                    where=variable,
                    cure=f"stop what listens there, or take another port: {variable}={free_ports(1)[0]}",
                ) from None


def check_disk(folder: Path, needed_gib: float = FREE_DISK_GIB) -> None:
    """Check that `folder` lies on a disk with `needed_gib` free.

    Raises:
        InputError: it does not.
    """
    free_gib = shutil.disk_usage(folder).free / 2**30
    if free_gib < needed_gib:
        raise InputError(
            f"only {free_gib:.1f} GiB of disk are free, {needed_gib} GiB are needed", where=str(folder),
            cure="free some space, or set CARTWHEEL_HOME to a folder on another disk",
        )  # fmt: skip
