"""The environment that the stack's processes run in, as a pure function of settings and secrets."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path

from contracts.errors import InputError
from contracts.ports import LOOPBACK
from contracts.settings import REPOSITORY, Settings
from deploy.local.java import Java
from deploy.local.processes import MARKER
from deploy.local.secrets import Secrets

AIRFLOW_DATABASE = "cartwheel_airflow"
MLFLOW_DATABASE = "cartwheel_mlflow"


def settings_environment(settings: Settings) -> dict[str, str]:
    """Every setting as its CARTWHEEL_ variable, so that all processes see the same whatever their folder."""
    absolute = {"home": settings.home_dir, "cache": settings.cache_dir, "dataset": settings.dataset_path}
    values = {name: absolute.get(name, getattr(settings, name)) for name in type(settings).model_fields}
    return {
        f"CARTWHEEL_{name.upper()}": ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        for name, value in values.items()
    }


def airflow_environment(settings: Settings, secrets: Secrets) -> dict[str, str]:
    """Airflow's configuration: one api-server worker, LocalExecutor, PostgreSQL, one user `admin`."""
    home = settings.home_dir / "airflow"
    options: dict[str, dict[str, object]] = {
        "core": {
            "dags_folder": REPOSITORY / "dags",
            "plugins_folder": REPOSITORY / "plugins",
            "executor": "cartwheel_airflow.executor.LocalExecutor",
            "parallelism": settings.airflow_parallelism,
            "default_pool_task_slot_count": settings.airflow_parallelism,
            "load_examples": False,
            "dags_are_paused_at_creation": False,
            "fernet_key": secrets.airflow_fernet_key,
            "execution_api_server_url": f"{settings.airflow_url}/execution/",
            "simple_auth_manager_users": "admin:admin",
            "simple_auth_manager_passwords_file": home / "passwords.json",
            # Everything is on this machine; a laptop's own name often does not resolve.
            "hostname_callable": "deploy.local.environment.hostname",
        },
        "database": {
            "sql_alchemy_conn": settings.database_uri(
                AIRFLOW_DATABASE, secrets.postgres_password, "postgresql+psycopg2"
            ),
            "sql_alchemy_pool_size": 2,
        },
        "api": {
            "host": settings.host,
            "port": settings.airflow_port,
            "base_url": settings.airflow_url,
            "workers": 1,
            "expose_config": False,
            "secret_key": secrets.airflow_jwt_secret,
        },
        "api_auth": {"jwt_secret": secrets.airflow_jwt_secret},
        "workers": {"execution_api_timeout": 60},  # 5 s by default, which lost a task at high load
        "dag_processor": {"refresh_interval": 30, "min_file_process_interval": 60, "parsing_processes": 1},
        "logging": {"base_log_folder": home / "logs"},
        "usage_data_collection": {"enabled": False},
    }
    return {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW_CONN_SPARK_DEFAULT": json.dumps(
            {"conn_type": "spark", "host": settings.spark_master, "extra": {"deploy-mode": "client"}}
        ),
        **{
            f"AIRFLOW__{section.upper()}__{name.upper()}": str(value)
            for section, values in options.items()
            for name, value in values.items()
        },
    }


def mlflow_environment(settings: Settings, secrets: Secrets) -> dict[str, str]:
    """For MLflow's clients everywhere and for our own server. The database's password is not for the command line."""
    return {
        "MLFLOW_TRACKING_URI": settings.mlflow_uri,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_BACKEND_STORE_URI": settings.database_uri(
            MLFLOW_DATABASE, secrets.postgres_password, "postgresql+psycopg2"
        ),
        "MLFLOW_ARTIFACTS_DESTINATION": str(settings.home_dir / "mlflow" / "artifacts"),
    }


def stack_environment(settings: Settings, secrets: Secrets, java: Java, path: str) -> dict[str, str]:
    """What is added to the environment of every process of the stack.

    Args:
        path: the PATH to put the virtual environment's programs in front of.
    """
    return {
        MARKER: str(settings.home_dir),
        **settings_environment(settings),
        **airflow_environment(settings, secrets),
        **mlflow_environment(settings, secrets),
        "JAVA_HOME": str(java.home),
        "SPARK_HOME": str(pyspark_folder()),  # another Spark that the reader has would win else
        "PYSPARK_PYTHON": sys.executable,
        "PYSPARK_DRIVER_PYTHON": sys.executable,
        "SPARK_LOCAL_IP": LOOPBACK,
        "PATH": f"{Path(sys.executable).parent}:{path}",
        "GX_ANALYTICS_ENABLED": "False",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "PYTHONUNBUFFERED": "1",  # so that a log shows what led to a crash
        "SPT_NOENV": "1",  # else Airflow's process titles overwrite the marker
    }


def pyspark_folder() -> Path:
    """Where the pyspark wheel lies, which is a SPARK_HOME."""
    spec = find_spec("pyspark")
    if spec is None or spec.origin is None:
        raise InputError("pyspark is not installed", where="the environment", cure="run `make setup`")
    return Path(spec.origin).parent


def hostname() -> str:
    """The name Airflow records for the machine its tasks ran on."""
    return "localhost"
