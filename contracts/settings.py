"""Every setting of Cartwheel, and the only module that reads the environment.

Settings come from `CARTWHEEL_*` environment variables, then from the file `.env` in the
repository's root. `.env.example` and the table in the README are generated from this module:
`python -m contracts settings`.
"""

from __future__ import annotations

import getpass
import json
import os
import shutil
import sys
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote, urlsplit

from pydantic import BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from contracts.errors import InputError
from contracts.files import read_json
from contracts.ports import LOOPBACK

REPOSITORY = Path(__file__).resolve().parent.parent


def _numbers(value: Any) -> Any:
    """Accept `1,7,13` beside a real list."""
    return [part for part in value.split(",") if part.strip()] if isinstance(value, str) else value


Shares = Annotated[
    tuple[Annotated[float, Field(gt=0, lt=1)], ...], NoDecode, BeforeValidator(_numbers), Field(min_length=1)
]
Numbers = Annotated[tuple[int, ...], NoDecode, BeforeValidator(_numbers)]


def _json_object(value: Any) -> Any:
    """Accept JSON, or nothing, beside a real mapping."""
    return json.loads(value or "{}") if isinstance(value, str) else value


Properties = Annotated[dict[str, str], NoDecode, BeforeValidator(_json_object)]
Port = Annotated[int, Field(ge=1, le=65535)]


def _urls(value: str) -> tuple[str, ...]:
    return tuple(url.strip().rstrip("/") for url in value.split(",") if url.strip())


class Settings(BaseSettings):
    """All settings, checked on reading. Paths that are not absolute are taken from the repository's root."""

    model_config = SettingsConfigDict(
        env_prefix="CARTWHEEL_", env_file=REPOSITORY / ".env", extra="ignore", frozen=True
    )

    # Where things are
    home: Path = Field(Path("var"), description="Folder that holds all state of this installation.")
    cache: Path = Field(
        Path("var/cache"), description="Folder for downloads that installations may share (Spark jars)."
    )
    dataset: Path = Field(
        Path("datasets/complete_journey.toml"), description="The file that describes the shop's data."
    )

    model: str = Field(
        "recommender",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$",
        description="Name of the model, in its address and in MLflow. Shops that share a TF Serving or an MLflow have "
        "different ones.",
    )

    data_dir: str = Field(
        "", description="Folder that relative paths in the dataset file start from. Empty: the folder of that file."
    )

    lake: str = Field(
        "",
        description="Where the tables lie: a folder, or an address as s3://bucket/folder. Empty: the folder tables of "
        "CARTWHEEL_HOME.",
    )

    # Addresses
    host: str = Field("127.0.0.1", description="Address every server listens on. Anything but loopback publishes it.")
    airflow_port: Port = Field(8080, description="Airflow's web UI and API.")
    mlflow_port: Port = Field(5000, description="MLflow's UI and API.")
    postgres_port: Port = Field(5433, description="The embedded PostgreSQL.")
    rest_port: Port = Field(8501, description="TF Serving's REST API, behind the gateway.")
    airflow_api_url: str = Field("", description="Where programs reach Airflow, if not at host and port.")
    gateway_port: Port = Field(8600, description="The gateway: the endpoint that recommends.")
    gateway_metrics_port: Port = Field(8601, description="The gateway's page for Prometheus, /metrics.")
    loop_metrics_port: Port = Field(8602, description="The page for Prometheus of all else, /metrics.")
    database_url: str = Field(
        "",
        repr=False,
        description="An outside PostgreSQL server instead of the embedded one, as postgresql://user:password@host:port.",
    )
    mlflow_tracking_uri: str = Field("", description="An outside MLflow server instead of our own.")
    mlflow_link: str = Field("", description="Where a browser finds MLflow, if not at the address that programs use.")
    serving_url: str = Field(
        "", description="REST addresses of outside TF Servings instead of the local one, separated by commas."
    )
    serving_grpc_url: str = Field(
        "",
        description="gRPC addresses of the same TF Servings, as http://one:8500 or unix:/path. Empty: the local one's; of "
        "outside ones none, and the gateway speaks REST only.",
    )
    serving_config: str = Field(
        "",
        description="The file of models (--model_config_file) of a TF Serving that serves other models, too: ours is "
        "entered beside them. Empty: a file in CARTWHEEL_HOME.",
    )
    serving_ca_file: str = Field(
        "", description="Authorities (PEM) that sign the certificates of TF Servings at https. Empty: the system's."
    )

    # The gateway
    gateway_tls_dir: str = Field(
        "", description="Folder with tls.crt and tls.key, read again when they are replaced. Empty: plain HTTP."
    )
    gateway_timeout_ms: int = Field(1000, ge=1, description="Longest wait for a model, all tries together.")
    gateway_fallback: bool = Field(
        True, description="Whether the gateway answers with what is popular when no model does, instead of an error."
    )
    gateway_requests_per_s: int = Field(1000, ge=1, description="Requests a second that one client may make.")
    gateway_max_body_kib: int = Field(1024, ge=1, description="Largest body of a request.")
    gateway_cors_origins: str = Field(
        "", description="Origins whose pages may ask from a browser, separated by commas. Empty: none."
    )
    gateway_otlp_url: str = Field(
        "", description="Collector of OpenTelemetry (OTLP over HTTP) that gets the gateway's traces. Empty: no traces."
    )

    # Engines
    java_home: str = Field(
        "", description="A Java 17 or newer to use. Empty: JAVA_HOME, the PATH, then a JRE from PyPI."
    )
    spark_master: str = Field("local[2]", description="Spark master the jobs are submitted to.")
    spark_driver_memory: str = Field("2g", description="Memory of a Spark job's driver.")
    spark_shuffle_partitions: int = Field(4, ge=1, description="Partitions of a shuffle: about two for each core.")
    model_server: str = Field(
        "", description="Path of tensorflow_model_server. Empty: the PATH, else the local model server."
    )
    airflow_parallelism: int = Field(
        3, ge=2, description="Task processes Airflow may run at once; one training or Spark driver counts as two."
    )

    # The loop
    ingest_schedule: str = Field(
        "", description="Cron expression of ingest_events. Empty: only when triggered, as a replay does."
    )
    replay_intervals: int = Field(
        1, ge=0, description="How many intervals `make run` holds back and replays as live traffic."
    )
    top_k: int = Field(
        10, ge=10, le=100, description="Length of a list of recommendations; metrics look at the first 10 places."
    )

    # Training
    seed: int = Field(20170102, description="Seed of everything random.")
    training_intervals: int = Field(12, ge=1, description="How many intervals of lists a model learns from.")
    fold_offsets: Numbers = Field(
        (1, 7, 13), description="Evaluation folds, as intervals before the coming one (1 is the latest complete one)."
    )
    training_epochs: int = Field(4, ge=1, description="Passes over the training lists.")
    ranker: Annotated[dict[str, Any], NoDecode, BeforeValidator(_json_object)] = Field(
        {},
        description="Parts of the model's configuration that are to be others, as JSON: what search_configuration "
        "proposes. Empty: those of training/config.py.",
    )
    search_trials: int = Field(24, ge=2, description="The most configurations that search_configuration tries.")
    training_workers: int = Field(
        1, ge=1, description="Processes that train together, as tasks of the Spark master. They share CARTWHEEL_HOME."
    )

    # Gate
    gate_confidence: float = Field(
        0.95, ge=0.5, lt=1, description="One-sided confidence with which a challenger must beat each baseline."
    )
    gate_tolerance: float = Field(
        0.02,
        ge=0,
        lt=1,
        description="Share of the champion's ndcg_at_10, also in each fold and of each kind of user and item, that a "
        "challenger may lose.",
    )
    gate_unsure: Literal["block", "pass"] = Field(
        "block", description="What becomes of a challenger when there are too few lists to tell which model is better."
    )
    gate_max_model_mib: int = Field(512, ge=1, description="Largest SavedModel that may be deployed.")
    gate_max_latency_ms: float = Field(
        100.0, gt=0, description="Largest median time of one prediction of the exported model."
    )

    # Rollout
    rollout_shadow_share: float = Field(
        0.1, ge=0, le=1, description="Share of predictions that a new version gets a copy of first. 0: none."
    )
    rollout_shares: Shares = Field(
        (0.01, 0.1, 0.5), description="Shares of the users that a new version answers, one after the other."
    )
    rollout_min_requests: int = Field(
        100, ge=1, description="Predictions that a new version must have made at each share."
    )
    rollout_confidence: float = Field(
        0.95, ge=0.5, lt=1, description="Confidence with which a new version is found to be worse, or not much worse."
    )
    rollout_max_lost_hit_rate: float = Field(
        0.05, gt=0, lt=1, description="How much lower than the champion's the new version's live hit_rate_at_10 may be."
    )
    rollout_max_latency_ratio: float = Field(
        2.0, gt=1, description="How many times as slow as the champion the new version may be."
    )
    rollout_patience_h: float = Field(24.0, ge=0, description="Hours after which a share counts as undecided.")
    rollout_undecided: Literal["promote", "reject", "wait"] = Field(
        "promote",
        description="What becomes of a version of which nothing bad is known, but not enough: promote, reject or wait.",
    )
    rollout_max_memory_mib: int = Field(
        4096, ge=1, description="Most memory that a model server may take that has nothing but the version loaded."
    )
    rollout_bake_minutes: float = Field(
        30.0, ge=0, description="How long a new champion is watched, and rolled back by itself if it fails."
    )
    rollout_alertmanager_url: str = Field(
        "",
        description="Alertmanager that is asked meanwhile: an alert with the label cartwheel=rollback takes it back. "
        "Empty: none.",
    )
    rollout_approval: bool = Field(
        False, description="Whether a person must approve, in Airflow, before a new version becomes the champion."
    )

    # Recommendations for everybody (batch_recommend)
    recommendations_database_url: str = Field(
        "",
        repr=False,
        description="Database that gets the recommendations for all users as a table, as "
        "postgresql://user:password@host:port/database. Empty: none.",
    )
    recommendations_kafka: Properties = Field(
        {},
        repr=False,
        description="Kafka that gets the recommendations for all users: properties of librdkafka as JSON, at least "
        "bootstrap.servers. Empty: none.",
    )
    recommendations_topic: str = Field(
        "recommendations",
        pattern=r"^[A-Za-z0-9._-]{1,249}$",
        description="The topic that gets the recommendations for all users.",
    )

    # Monitoring
    retrain_after_intervals: int = Field(
        4, ge=1, description="Age in intervals at which a model is retrained in any case."
    )
    refresh_after_intervals: int = Field(
        1, ge=0, description="Age in intervals at which a model gets newer data without training; 0: never."
    )
    retrain_quality_drop: float = Field(
        0.25, gt=0, lt=1, description="Relative loss of live ndcg_at_10 against evaluation that asks for retraining."
    )
    retrain_drift: float = Field(
        0.2,
        gt=0,
        le=1,
        description="Jensen-Shannon distance of the latest two intervals to those trained on, beyond what is usual, "
        "that asks for retraining.",
    )

    @property
    def home_dir(self) -> Path:
        return REPOSITORY / self.home

    @property
    def cache_dir(self) -> Path:
        return REPOSITORY / self.cache

    @property
    def dataset_path(self) -> Path:
        return REPOSITORY / self.dataset

    @property
    def data_path(self) -> Path:
        return REPOSITORY / self.data_dir if self.data_dir else self.dataset_path.parent

    @property
    def lake_uri(self) -> str:
        """The address of an object store, or an absolute path."""
        folder = REPOSITORY / (self.lake or self.home / "tables")
        return self.lake.rstrip("/") if "://" in self.lake else str(folder)

    def database_uri(self, database: str, password: str, scheme: str = "postgresql") -> str:
        """Address of a database on the server of `database_url`, or on the embedded one, which has this password."""
        own = f"postgresql://postgres:{quote(password, safe='')}@{LOOPBACK}:{self.postgres_port}"
        return urlsplit(self.database_url or own)._replace(scheme=scheme, path=f"/{database}").geturl()

    @property
    def spark_is_one_process(self) -> bool:
        """Whether the driver runs all by itself: no executor of its own, no other host."""
        return self.spark_master == "local" or self.spark_master.startswith("local[")

    @property
    def spark_driver_conf(self) -> dict[str, str]:
        """What the driver's JVM must be started with."""
        jars = sorted(str(jar) for jar in (self.cache_dir / "spark-jars").glob("*.jar"))
        # Spark copies `spark.jars` to each executor, also to one in the same process.
        own = {"spark.driver.extraClassPath": ":".join(jars)}
        return {
            "spark.driver.extraJavaOptions": self.spark_driver_java_options,
            **(own if self.spark_is_one_process else {"spark.jars": ",".join(jars)}),
        }

    @property
    def spark_driver_java_options(self) -> str:
        """For the driver's JVM."""
        logging = (REPOSITORY / "spark_jobs" / "log4j2.properties").as_uri()
        options = f"-XX:+UseParallelGC -Dlog4j2.configurationFile={logging}"
        if self.class_archive.exists():
            # One that does not fit is passed over, and no warning of the JVM lands in what a job prints.
            options += f" -XX:SharedArchiveFile={self.class_archive} -Xlog:disable -Xlog:all=error:stderr"
        return options

    @property
    def class_archive(self) -> Path:
        """Of the classes that Spark's driver loads (`deploy.local.classes`): it belongs to the jars of this environment."""
        return Path(sys.prefix) / "spark-classes.jsa"

    @property
    def jre_dir(self) -> Path:
        """The home of the Java that `deploy.local` puts here where the machine has none."""
        return self.home_dir / "java"

    def provide_java(self) -> None:
        """Set JAVA_HOME for an engine that starts a JVM, if the machine has no Java of its own."""
        if self.java_home:
            os.environ["JAVA_HOME"] = self.java_home
        elif "JAVA_HOME" not in os.environ and not shutil.which("java") and self.jre_dir.is_dir():
            os.environ["JAVA_HOME"] = str(self.jre_dir)

    @property
    def exposures_dir(self) -> Path:
        """The gateway's log of what it has shown (`contracts.exposures`), until it has landed in `exposures`."""
        return self.home_dir / "exposures"

    @property
    def training_dir(self) -> Path:
        return self.home_dir / "training"

    @property
    def reports_dir(self) -> Path:
        """What gates and monitoring decided, as JSON, and the Data Docs of Great Expectations."""
        return self.home_dir / "reports"

    @property
    def serving_dir(self) -> Path:
        """`models.config` and `models/NAME/VERSION` as TF Serving reads them."""
        return self.home_dir / "serving"

    @property
    def gateway_dir(self) -> Path:
        """What Envoy reads, and its admin socket."""
        return self.home_dir / "gateway"

    @property
    def gateway_tls_path(self) -> Path:
        return REPOSITORY / self.gateway_tls_dir

    @property
    def secrets_path(self) -> Path:
        return self.home_dir / "secrets.json"

    def secret(self, name: str) -> str:
        """A secret by name: the variable CARTWHEEL_SECRET_NAME, else the entry `name` of `secrets_path` (JSON).

        Raises:
            InputError: it is in neither, or that file is open to others.
        """
        variable = f"CARTWHEEL_SECRET_{name.upper()}"
        if value := os.environ.get(variable):
            return value
        if self.secrets_path.exists() and self.secrets_path.stat().st_mode & 0o077:
            raise InputError(
                "the file of secrets can be read by others", where=str(self.secrets_path), cure="chmod 600 that file"
            )
        value = read_json(self.secrets_path).get(name.lower())
        if not value:
            raise InputError(
                f"no secret {name!r}",
                where=variable,
                cure=f"set that variable, or add {name.lower()!r} to {self.secrets_path}",
            )
        return str(value)

    @property
    def mlflow_uri(self) -> str:
        return self.mlflow_tracking_uri or f"http://{self.host}:{self.mlflow_port}"

    @property
    def airflow_url(self) -> str:
        return self.airflow_api_url.rstrip("/") or f"http://{self.host}:{self.airflow_port}"

    @property
    def loop_metrics_url(self) -> str:
        return f"http://{self.host}:{self.loop_metrics_port}/metrics"

    @property
    def serving_urls(self) -> tuple[str, ...]:
        """REST addresses of the model servers, which hold the same versions."""
        return _urls(self.serving_url) or (f"http://{self.host}:{self.rest_port}",)

    @property
    def serving_grpc_urls(self) -> tuple[str, ...]:
        """gRPC addresses of the model servers; none where nobody has said them."""
        return _urls(self.serving_grpc_url) or (() if self.serving_url else (f"unix:{self.model_socket}",))

    @property
    def model_socket(self) -> Path:
        """Where the local model server answers gRPC, beside the gateway's own socket."""
        return self.gateway_dir / "model.sock"

    @property
    def gateway_url(self) -> str:
        scheme = "https" if self.gateway_tls_dir else "http"
        return f"{scheme}://{self.host}:{self.gateway_port}"


@cache
def settings() -> Settings:
    """The settings of this process.

    Raises:
        InputError: a setting has a value that does not fit.
    """
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        shown = f"={first['input']!r}" if Settings.model_fields[name].repr else ""  # else it may hold a password
        raise InputError(
            f"CARTWHEEL_{name.upper()}{shown}: {first['msg']}",
            where="the environment or .env",
            cure=f"give it a value that fits: {Settings.model_fields[name].description}",
        ) from None


def environment() -> dict[str, str]:
    """The variables of this process's settings, for one on another host that shall have the same; without secrets."""
    shown = {f"CARTWHEEL_{name.upper()}" for name, field in Settings.model_fields.items() if field.repr}
    return {name: value for name, value in os.environ.items() if name in shown}


def actor() -> str:
    """Who runs this, for records of what was done: the task of Airflow, else the account."""
    if dag := os.environ.get("AIRFLOW_CTX_DAG_ID"):
        return f"Airflow, {dag} {os.environ.get('AIRFLOW_CTX_DAG_RUN_ID', '')}".strip()
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's account without a name
        return f"account {os.getuid()}"
