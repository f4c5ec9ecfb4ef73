"""Cartwheel's page in Airflow's UI, and who notes how runs end. Airflow imports this file in all its processes: what serves the page is made on demand."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from airflow.plugins_manager import AirflowPlugin


class CartwheelPlugin(AirflowPlugin):
    """The page `cartwheel_airflow.pages` in the navigation, served by the api-server."""

    name = "cartwheel"
    external_views = [  # noqa: RUF012 - Airflow's interface
        {"name": "Cartwheel", "href": "/cartwheel/", "destination": "nav", "url_route": "cartwheel"}
    ]

    @cached_property
    def listeners(self) -> list[Any]:  # type: ignore[override]
        from cartwheel_airflow import runs

        return [runs]

    @cached_property
    def fastapi_apps(self) -> list[dict[str, Any]]:  # type: ignore[override]
        from cartwheel_airflow import pages

        return [{"name": "Cartwheel", "app": pages.application(), "url_prefix": pages.URL}]
