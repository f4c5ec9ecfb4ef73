"""The command line that starts the model server."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from contracts.errors import InputError
from contracts.files import write_text
from contracts.settings import settings
from serving import desired

METRICS_PATH = "/monitoring/prometheus/metrics"


def monitoring_config_path() -> Path:
    return settings().serving_dir / "monitoring.config"


def initialise() -> None:
    """Write the files the server needs before it first starts: a config without models, and the metrics page's.

    Existing ones are kept. The config is never an empty file, which TF Serving cannot map into memory.
    """
    if not desired.config_path().exists():
        desired.write(desired.Desired())
    if not monitoring_config_path().exists():
        write_text(monitoring_config_path(), f'prometheus_config {{ enable: true, path: "{METRICS_PATH}" }}\n')


def server_command(
    *,
    host: str | None = None,
    rest_port: int | None = None,
    config: Path | None = None,
    socket: Path | None = None,
) -> list[str]:
    """argv of the model server: the configured one, that on the PATH, else our local one.

    Args:
        host: where it answers REST, instead of the one that serves; so are `rest_port`, `config` and `socket`.

    Mind that `tensorflow_model_server` listens for REST on all interfaces whatever `CARTWHEEL_HOST` says.

    Raises:
        InputError: the configured path is no file.
    """
    flags = [
        # gRPC knows no login, and whoever reaches it may change what is served: no port, but a socket of our own folder.
        # Without either, TensorFlow Serving does not start (tensorflow/serving#1790).
        "--port=0",
        f"--grpc_socket_path={socket or settings().model_socket}",
        f"--rest_api_port={rest_port or settings().rest_port}",
        f"--model_config_file={config or desired.config_path()}",
        "--model_config_file_poll_wait_seconds=1",
        "--max_num_load_retries=1",
        "--load_retry_interval_micros=1000000",
        "--allow_version_labels_for_unavailable_models=true",
        "--num_load_threads=1",
        f"--monitoring_config_file={monitoring_config_path()}",
    ]
    if configured := settings().model_server:
        if not Path(configured).is_file():
            raise InputError(
                f"there is no model server at {configured}",
                where="CARTWHEEL_MODEL_SERVER",
                cure="give the path of tensorflow_model_server, or leave it empty for the local one",
            )
        return [configured, *flags]
    if executable := shutil.which("tensorflow_model_server"):
        return [executable, *flags]
    return [sys.executable, "-m", "serving.local_server", f"--host={host or settings().host}", *flags]
