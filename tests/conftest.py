"""What all tests share: an Airflow home that is nobody's, and whole installations in temporary folders."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import xdist.remote
from xdist.scheduler import LoadScopeScheduling

from contracts.ports import free_ports
from contracts.settings import Settings
from tests.waiting import wait_until

# Before anything imports Airflow.
os.environ["AIRFLOW_HOME"] = tempfile.mkdtemp(prefix="cartwheel-airflow-")
atexit.register(shutil.rmtree, os.environ["AIRFLOW_HOME"], ignore_errors=True)
os.environ["AIRFLOW__CORE__LOAD_EXAMPLES"] = "False"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Of every JVM that tests start: it is not worth compiling well what runs for minutes, and Hadoop starts a process for
# each file it writes.
os.environ["JDK_JAVA_OPTIONS"] = (
    "-XX:TieredStopAtLevel=1 -Djdk.lang.Process.launchMechanism=VFORK -Dderby.stream.error.file=/dev/null"
)

# PySpark ends a process whose main module has no file, as a worker of xdist, with status 0: it takes it for doctests.
if "PYTEST_XDIST_WORKER" in os.environ:
    sys.modules["__main__"].__file__ = xdist.remote.__file__

# Where there is no Java, jobs that tests start find the one that `make test` has made.
if "JAVA_HOME" not in os.environ and not shutil.which("java"):
    from contracts.settings import settings

    os.environ["JAVA_HOME"] = str(settings().jre_dir)
    settings.cache_clear()

REPOSITORY = Path(__file__).resolve().parents[1]
PORTS = [name for name in Settings.model_fields if name.endswith("_port")]

IMPATIENT = {
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "30",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
    "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "20",
}
"""A task whose process was killed is noticed within half a minute, not within five."""

APART = ("end_to_end", "faults", "serving", "spark_jobs/test_land.py", "training")
"""Folders whose files share no server, and a file that is long enough for a Spark of its own."""
LONGEST_FIRST = (
    "end_to_end/test_loop.py",
    "spark_jobs",
    "spark_jobs/test_land.py",
    "serving/test_rollout.py",
    "docs",  # short: a worker starts its last test when it knows what comes next, so this waits for the loop
    "training/test_launch.py",
    "faults/test_sources.py",
    "serving/test_canary.py",
    "end_to_end/test_shops.py",
    "spark_jobs/sources",
    "serving/gateway",
    "expectations",
    "training/test_trainer.py",
)
"""Units of tests."""


def unit(nodeid: str) -> str:
    """The tests beside which this one runs, in the same worker: those of its folder, or file, below `tests`."""
    path = Path(nodeid.split("::")[0]).relative_to("tests")
    return str(path if {str(path), str(path.parent)} & {*APART} else path.parent)


class UnitScheduling(LoadScopeScheduling):
    """The tests of a folder share its servers, so they run in one worker, one after the other."""

    def _split_scope(self, nodeid: str) -> str:
        return unit(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> UnitScheduling:
    return UnitScheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest begins, so that none is left for one worker at the end."""
    order = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: order.get(unit(item.nodeid), len(order)))


@dataclass(frozen=True)
class Installation:
    """One installation, driven as a person does: by command line."""

    home: Path
    environment: dict[str, str]

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start `python -m deploy.local ARGUMENTS`, with its output in `output.log`."""
        return self._start([sys.executable, "-m", "deploy.local", *arguments])

    def kill(self, *, but: Collection[int] = ()) -> None:
        """Kill what runs for this installation by -9, but for the processes with these ids."""
        for process in self.processes():
            if process.pid not in but:
                with suppress(psutil.NoSuchProcess):
                    process.kill()

    def make(self, *arguments: str) -> subprocess.Popen[str]:
        """Start the README's command `make ARGUMENTS`, as a terminal does: Ctrl-C goes to its group."""
        return self._start(["make", *arguments])

    def _start(self, command: list[str]) -> subprocess.Popen[str]:
        log = (self.home.parent / "output.log").open("a")
        return subprocess.Popen(
            command, cwd=REPOSITORY, env=self.environment, stdout=log, stderr=subprocess.STDOUT, text=True,
            process_group=0,
        )  # fmt: skip

    def run(self, *arguments: str) -> int:
        """Run it to its end; the exit status."""
        return self.start(*arguments).wait(timeout=1800)

    @property
    def output(self) -> str:
        return (self.home.parent / "output.log").read_text()

    @property
    def summary(self) -> dict:
        return json.loads((self.home / "summary.json").read_text())

    def processes(self) -> list[psutil.Process]:
        """Everything that runs for this installation."""
        own = []
        for process in psutil.process_iter():
            try:
                if (
                    process.environ().get("CARTWHEEL_HOME") == str(self.home)
                    and process.status() != psutil.STATUS_ZOMBIE
                ):
                    own.append(process)
            except psutil.Error:
                continue
        return own


@pytest.fixture(scope="module")
def install() -> Iterator[Callable[..., Installation]]:
    """Make an installation with the settings given; everything is stopped and deleted at the end of the module.

    Not under pytest's own folder: a second pytest closes that to other users, and PostgreSQL runs as one where we are root.
    """
    installations: list[Installation] = []
    parent = Path(tempfile.mkdtemp(prefix="cartwheel-"))

    def make(**settings: object) -> Installation:
        home = parent / f"home_{len(installations)}" / "var"
        home.mkdir(parents=True)
        ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
        chosen = {"home": home, "cache": REPOSITORY / "var" / "cache", **ports, **settings}
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(("CARTWHEEL_", "AIRFLOW"))
        }
        own = {f"CARTWHEEL_{name.upper()}": str(value) for name, value in chosen.items()}
        installation = Installation(home, inherited | own | IMPATIENT)
        installations.append(installation)
        return installation

    yield make
    for installation in installations:
        installation.run("down")
    shutil.rmtree(parent)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty installation, in the process of the test."""
    from contracts.settings import settings

    monkeypatch.setenv("CARTWHEEL_HOME", str(tmp_path))
    settings.cache_clear()
    yield tmp_path
    settings.cache_clear()


@dataclass(frozen=True)
class Database:
    """A PostgreSQL with a database `shop`."""

    port: int
    password: str

    @property
    def url(self) -> str:
        return f"jdbc:postgresql://127.0.0.1:{self.port}/shop"

    def connect(self) -> Any:
        import psycopg2

        return psycopg2.connect(
            host="127.0.0.1", port=self.port, user="postgres", password=self.password, dbname="shop",
            options="-c timezone=UTC",
        )  # fmt: skip

    def execute(self, *statements: str) -> None:
        connection = self.connect()
        connection.autocommit = True
        with connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
        connection.close()


@contextmanager
def running_postgres() -> Iterator[Database]:
    """A PostgreSQL of our own; not under pytest's folder, which is closed to the user it runs as where we are root."""
    from contracts.settings import Settings
    from deploy.local import postgres
    from deploy.local.secrets import Secrets

    parent = Path(tempfile.mkdtemp(prefix="cartwheel-"))
    [port] = free_ports(1)
    own, secrets = Settings(_env_file=None, home=parent / "home", postgres_port=port), Secrets()
    own.home_dir.mkdir()
    postgres.prepare(own, secrets)
    user = postgres.owner()
    as_user = {} if user.name is None else {"user": user.uid, "group": user.gid, "extra_groups": []}
    process = subprocess.Popen(
        postgres.command(own), cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **as_user
    )
    try:
        postgres.wait_and_create(own, secrets, ["shop"], lambda: None)
        yield Database(port, secrets.postgres_password)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)
        shutil.rmtree(parent)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Database]:
    with running_postgres() as server:
        yield server


@pytest.fixture(scope="session")
def s3_server() -> Iterator[dict[str, str]]:
    """An S3 server on loopback, in a process of its own; the environment of whoever uses it."""
    [port] = free_ports(1)
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: httpx.get(url), "the S3 server")
        yield {
            "AWS_ENDPOINT_URL": url,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_PROXY": "127.0.0.1",
        }
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture
def bucket(s3_server: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """An empty bucket in a store that the environment names."""
    import boto3

    for name, value in s3_server.items():
        monkeypatch.setenv(name, value)
    store = boto3.resource("s3", endpoint_url=s3_server["AWS_ENDPOINT_URL"])
    return store.create_bucket(Bucket=f"shop-{uuid.uuid4().hex[:8]}")


@pytest.fixture(scope="session")
def prometheus_bin() -> Path:
    """Folder of `prometheus`, `promtool` and `prometheus-alertmanager`."""
    packages = ("prometheus", "prometheus-alertmanager")
    if not all(map(shutil.which, packages)):
        pytest.skip(f"needs Debian's packages {' and '.join(packages)}")
    return Path(str(shutil.which("prometheus"))).parent


@pytest.fixture
def alertmanager(prometheus_bin: Path, tmp_path: Path) -> Iterator[str]:
    """Address of an Alertmanager with the configuration of this repository."""
    import httpx

    [port] = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    argv = [
        prometheus_bin / "prometheus-alertmanager", f"--web.listen-address=127.0.0.1:{port}",
        "--cluster.listen-address=", f"--storage.path={tmp_path / 'alerts'}",
        f"--config.file={REPOSITORY / 'monitoring' / 'prometheus' / 'alertmanager.yml'}",
    ]  # fmt: skip
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: httpx.get(f"{url}/-/ready", trust_env=False).is_success, "Alertmanager")
        yield url
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="session")
def mlflow_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SQLite file of an empty MLflow. Copy it: making its tables takes seconds."""
    import mlflow

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    uri = f"sqlite:///{path}"
    assert not mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri).search_registered_models()
    return path


FOR_FEW_ROWS = {
    # Plans are interpreted: compiling each takes longer than running it on a few rows. Jobs that tests start as
    # processes compile as ever.
    "spark.sql.codegen.wholeStage": "false",
    "spark.sql.codegen.factoryMode": "NO_CODEGEN",
    "spark.sql.adaptive.enabled": "false",
}


@pytest.fixture(scope="session")
def spark() -> Iterator[Any]:
    """The session of the jobs, small."""
    from contracts.settings import settings
    from spark_jobs.session import session

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CARTWHEEL_SPARK_MASTER", "local[2]")
        patch.setenv("CARTWHEEL_SPARK_DRIVER_MEMORY", "1g")
        patch.setenv("CARTWHEEL_SPARK_SHUFFLE_PARTITIONS", "1")
        settings.cache_clear()
        started = session("tests")
    for name, value in FOR_FEW_ROWS.items():
        started.conf.set(name, value)
    settings.cache_clear()
    yield started
    started.stop()
