from __future__ import annotations

import json
from collections.abc import Callable

from contracts.settings import Settings
from deploy.local import environment
from deploy.local.secrets import Secrets

SECRETS = Secrets("admin-word", "jwt-word", "fernet-word", "pass/word@1")


def test_passwords_are_quoted_in_addresses(make_settings: Callable[..., Settings]) -> None:
    """A password with characters that mean something in an address reaches the database as it is."""
    uri = make_settings(postgres_port=5999).database_uri("shop", SECRETS.postgres_password, "postgresql+psycopg2")
    assert uri == "postgresql+psycopg2://postgres:pass%2Fword%401@127.0.0.1:5999/shop"


def test_an_outside_database_replaces_our_own(make_settings: Callable[..., Settings]) -> None:
    """The server, login and options of CARTWHEEL_DATABASE_URL are kept; the database is ours."""
    settings = make_settings(database_url="postgresql://u:p@db:5432?sslmode=require")
    uri = settings.database_uri("cartwheel_mlflow", SECRETS.postgres_password)
    assert uri == "postgresql://u:p@db:5432/cartwheel_mlflow?sslmode=require"


def test_settings_survive_the_way_through_the_environment(make_settings: Callable[..., Settings]) -> None:
    """Settings read back from the variables they were turned into are the same settings."""
    settings = make_settings(fold_offsets=(2, 5), seed=7, spark_master="local[3]")
    variables = environment.settings_environment(settings)
    values = {name.removeprefix("CARTWHEEL_").lower(): value for name, value in variables.items()}
    assert Settings(_env_file=None, **values).model_dump() == settings.model_dump() | {"dataset": settings.dataset_path}


def test_airflow_knows_spark_and_its_own_port(make_settings: Callable[..., Settings]) -> None:
    """Airflow's own API is reached at the port of the settings, and spark_default is the master of the settings."""
    settings = make_settings(airflow_port=8999, spark_master="spark://there:7077")
    variables = environment.airflow_environment(settings, SECRETS)
    assert variables["AIRFLOW__CORE__EXECUTION_API_SERVER_URL"] == "http://127.0.0.1:8999/execution/"
    assert json.loads(variables["AIRFLOW_CONN_SPARK_DEFAULT"])["host"] == "spark://there:7077"
    assert "admin-word" not in "".join(variables.values())
