"""A tiny SavedModel, and model servers in processes of their own."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from contracts.ports import free_ports
from tests.waiting import wait_until

REPOSITORY = Path(__file__).resolve().parents[2]
REAL_SERVER = shutil.which("tensorflow_model_server")


class Server:
    """One model server process, the file it polls, and its addresses."""

    def __init__(self, kind: str, folder: Path, config: str = "", *flags: str, start: bool = True) -> None:
        self.grpc_port, self.rest_port = free_ports(2)
        self.config_path = folder / "models.config"
        self.config_path.write_text(f"# a config\n{config}")
        monitoring = folder / "monitoring.config"
        monitoring.write_text('prometheus_config { enable: true, path: "/monitoring/prometheus/metrics" }')
        program = [REAL_SERVER] if kind == "real" else [sys.executable, "-m", "serving.local_server"]
        self.argv = [
            *program,
            f"--port={self.grpc_port}",
            f"--rest_api_port={self.rest_port}",
            f"--model_config_file={self.config_path}",
            "--model_config_file_poll_wait_seconds=1",
            "--max_num_load_retries=0",
            "--allow_version_labels_for_unavailable_models=true",
            f"--monitoring_config_file={monitoring}",
            *flags,
        ]
        self.log = folder / "server.log"
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.rest_port}", trust_env=False, timeout=60)
        self.process: subprocess.Popen[bytes] | None = None
        if start:
            self.start()

    def start(self) -> None:
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(self.argv, cwd=REPOSITORY, stdout=log, stderr=log)
        wait_until(self._answers, f"the server to start:\n{self.log.read_text()}")

    def _answers(self) -> bool:
        assert self.process
        assert self.process.poll() is None, self.log.read_text()
        return self.http.get("/v1/models/none").status_code == 404

    def stop(self) -> int:
        assert self.process
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(30)
        finally:
            self.process.kill()
            self.process.wait()

    def configure(self, *models: str) -> None:
        """Put models into the file, and by gRPC for immediacy; raises `grpc.RpcError` when it is refused."""
        import grpc
        from google.protobuf import text_format
        from tensorflow_serving.apis import model_management_pb2, model_service_pb2_grpc
        from tensorflow_serving.config import model_server_config_pb2

        text = f"model_config_list {{ {' '.join(models)} }}"
        beside = self.config_path.with_suffix(".new")
        beside.write_text(text)
        beside.replace(self.config_path)
        request = model_management_pb2.ReloadConfigRequest(
            config=text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
        )
        with grpc.insecure_channel(f"127.0.0.1:{self.grpc_port}") as channel:
            model_service_pb2_grpc.ModelServiceStub(channel).HandleReloadConfigRequest(request, timeout=60)

    def states(self, model: str) -> dict[int, tuple[str, str]]:
        """State and error code of each version."""
        answer = self.http.get(f"/v1/models/{model}")
        if answer.status_code == 404:
            return {}
        entries = answer.json()["model_version_status"]
        return {int(entry["version"]): (entry["state"], entry["status"]["error_code"]) for entry in entries}

    def wait_state(self, model: str, version: int, state: str) -> None:
        wait_until(lambda: self.states(model).get(version, ("",))[0] == state, f"{model} {version} to be {state}")

    def predict(self, path: str, body: Any) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.http.post(f"/v1/models/{path}:predict", content=content)


def model_text(name: str, base: Path, versions: list[int] | None = None, **labels: int) -> str:
    """One `config { ... }` of a ModelServerConfig; the latest version by default."""
    policy = f"specific {{ {' '.join(f'versions: {version}' for version in versions)} }}" if versions else "latest {}"
    labelled = " ".join(f'version_labels {{ key: "{label}" value: {number} }}' for label, number in labels.items())
    return (
        f'config {{ name: "{name}" base_path: "{base}" model_platform: "tensorflow" '
        f"model_version_policy {{ {policy} }} {labelled} }}"
    )


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Folders of SavedModels: user `x` gets items xa, xb, xc with scores 3, 2, 1 plus a tenth of the number.

    A `failing` one refuses users whose id begins with u, a `slow` one takes its time for them: no golden request is of
    such a user.
    """
    import tensorflow as tf

    folder = tmp_path_factory.mktemp("exported")

    class Recommender(tf.Module):  # type: ignore[misc]
        def __init__(self, offset: float, kind: str) -> None:
            self.offset, self.kind = tf.Variable(offset), kind

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="user_id")])
        def recommend(self, user_id: Any) -> dict[str, Any]:
            rows = tf.shape(user_id)[0]
            letters = tf.tile(tf.constant([["a", "b", "c"]]), [rows, 1])
            scores = tf.tile(tf.constant([[3.0, 2.0, 1.0]]), [rows, 1]) + self.offset
            is_shopper = tf.reduce_any(tf.strings.regex_full_match(user_id, "u.*"))
            if self.kind == "failing":
                with tf.control_dependencies([tf.debugging.Assert(~is_shopper, ["not for shoppers"])]):
                    scores = tf.identity(scores)
            if self.kind == "slow":
                # It sleeps, and leaves the processor to others.
                types: dict[str, Any] = {"output_types": [tf.int64], "output_shapes": [tf.TensorShape([])]}
                one = tf.data.Dataset.range(1)._variant_tensor
                late = tf.raw_ops.SleepDataset(
                    input_dataset=one, sleep_microseconds=80_000 * tf.cast(is_shopper, tf.int64), **types
                )
                [nothing] = tf.raw_ops.DatasetToSingleElement(dataset=late, **types)
                scores += tf.cast(nothing, tf.float32)
            return {"items": tf.strings.join([tf.repeat(user_id[:, None], 3, axis=1), letters]), "scores": scores}

        @tf.function(input_signature=[tf.TensorSpec([], tf.string, name=name) for name in ("started", "pipe")])
        def blocked(self, started: Any, pipe: Any) -> dict[str, Any]:
            """Write the file `started`, then hang until somebody opens the named pipe to read."""
            with tf.control_dependencies([tf.io.write_file(started, "")]):
                written = tf.io.write_file(pipe, "x")
            with tf.control_dependencies([written]):
                return {"answer": tf.constant("done")}

    def export(number: int, kind: str = "") -> Path:
        path = folder / f"{number}{kind}"
        if not path.exists():
            model = Recommender(number / 10, kind)
            signatures = {"serving_default": model.recommend, "blocked": model.blocked}
            tf.saved_model.save(model, str(path), signatures=signatures)
        return path

    return export


@pytest.fixture(scope="session")
def base_of(exported: Callable[[int], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes a base path that holds the given versions."""

    def make(*versions: int) -> Path:
        base = tmp_path_factory.mktemp("base")
        for version in versions:
            shutil.copytree(exported(version), base / str(version))
        return base

    return make


@pytest.fixture(scope="module", params=["local", *(["real"] if REAL_SERVER else [])])
def kind(request: pytest.FixtureRequest) -> str:
    """The local model server, and TF Serving's own where it is installed."""
    return str(request.param)


@pytest.fixture(scope="module")
def server(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that started with an empty config, and takes LiteRT files where there are any."""
    running = Server(kind, tmp_path_factory.mktemp("server"), "", "--prefer_tflite_model=true")
    try:
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="session")
def tools() -> SimpleNamespace:
    """The functions of this file: under importlib mode tests cannot import it."""
    return SimpleNamespace(Server=Server, model_text=model_text, wait_until=wait_until)
