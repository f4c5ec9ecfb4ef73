"""`cartwheel-model-server`: flags, start-up and shutdown."""

from __future__ import annotations

import argparse
import errno
import json
import logging
import os
import signal
import socket
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from contracts.errors import InputError, reported
from serving.local_server import NAME
from serving.local_server.configs import batching, grpc_credentials, monitoring_path, parse_config

IGNORED_FLAGS = (
    "enable_per_model_batching_parameters",
    "flush_filesystem_caches",
    "force_allow_any_version_labels_for_unavailable_models",
    "enable_model_warmup",
    "enforce_session_run_timeout",
    "grpc_channel_arguments",
    "grpc_max_threads",
    "num_load_threads",
    "num_request_iterations_for_warmup",
    "num_unload_threads",
    "per_process_gpu_memory_fraction",
    "platform_config_file",
    "remove_unused_fields_from_bundle_metagraph",
    "rest_api_enable_cors_support",
    "rest_api_num_threads",
    "saved_model_tags",
    "tensorflow_session_parallelism",
)
"""Flags of TF Serving that change nothing here."""
GRACE_S = 3

log = logging.getLogger("cartwheel-model-server")


def _flag(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() in ("true", "1")


def arg_parser() -> argparse.ArgumentParser:
    """The flags, named as those of `tensorflow_model_server`."""
    parser = argparse.ArgumentParser("cartwheel-model-server", description=NAME, allow_abbrev=False)
    switch: dict[str, Any] = {"type": _flag, "nargs": "?", "const": True, "default": False}
    parser.add_argument("--version", action="version", version=NAME)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (not a flag of TF Serving)")
    parser.add_argument("--port", type=int, default=8500, help="gRPC port, 0 for none")
    parser.add_argument("--grpc_socket_path", default="", help="a UNIX socket for gRPC, beside or instead of the port")
    parser.add_argument("--rest_api_port", type=int, default=0, help="REST port, 0 for none")
    parser.add_argument("--rest_api_timeout_in_ms", type=int, default=30_000)
    parser.add_argument("--model_name", default="default", help="ignored with --model_config_file")
    parser.add_argument("--model_base_path", default="", help="ignored with --model_config_file")
    parser.add_argument("--model_config_file", type=Path, help="a ModelServerConfig in text format")
    parser.add_argument("--model_config_file_poll_wait_seconds", type=float, default=0, help="0 reads it once")
    parser.add_argument("--file_system_poll_wait_seconds", type=float, default=1, help="0 looks once for each config")
    parser.add_argument("--max_num_load_retries", type=int, default=5)
    parser.add_argument("--load_retry_interval_micros", type=int, default=60_000_000)
    parser.add_argument("--allow_version_labels_for_unavailable_models", **switch)
    parser.add_argument("--ssl_config_file", type=Path, help="an SSLConfig in text format: TLS for gRPC, not for REST")
    parser.add_argument("--monitoring_config_file", type=Path, help="a MonitoringConfig in text format")
    parser.add_argument("--enable_batching", **switch)
    parser.add_argument("--batching_parameters_file", type=Path, help="BatchingParameters in text format")
    parser.add_argument("--prefer_tflite_model", **switch, help="model.tflite, where there is one")
    parser.add_argument("--tensorflow_intra_op_parallelism", type=int, default=2)
    parser.add_argument("--tensorflow_inter_op_parallelism", type=int, default=2)
    for name in IGNORED_FLAGS:
        parser.add_argument(f"--{name}", nargs="?", const="true", help="known, but changes nothing here")
    return parser


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname).1s %(message)s", stream=sys.stderr)
    args = arg_parser().parse_args()
    for name in IGNORED_FLAGS:
        if getattr(args, name) is not None:
            log.warning("--%s changes nothing in the local server", name)
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)
    code = 0
    try:
        with reported():
            serve(args)
    except SystemExit as stop:
        code = int(stop.code or 0)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    # TensorFlow's and gRPC's threads may still run a request: they would hold up, or crash, a normal exit.
    os._exit(code)


def _stop(signum: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(0)


def serve(args: argparse.Namespace) -> None:
    """Load what the config names, open the ports, serve until a signal.

    Raises:
        InputError: a flag, the config, a port or every version of a model is not usable.
        SystemExit: a signal came.
    """
    _check_flags(args)
    parameters = batching(args.batching_parameters_file) if args.enable_batching else None
    metrics_path = monitoring_path(args.monitoring_config_file)
    credentials = grpc_credentials(args.ssl_config_file)
    rest_socket = _bound(args.host, args.rest_api_port, "--rest_api_port") if args.rest_api_port else None
    if args.port:
        _bound(args.host, args.port, "--port").close()  # early and clear; gRPC binds once models are loaded
    text = _read_config(args)
    config = parse_config(text, str(args.model_config_file or "--model_base_path"))
    log.info("%s is starting.", NAME)

    # TensorFlow takes seconds to import: every mistake above is reported before. It would import Keras, and with it
    # scikit-learn, for nothing a SavedModel needs: without, 7 s and 170 MB less.
    sys.modules.setdefault("keras", None)  # type: ignore[arg-type]
    import tensorflow as tf
    import uvicorn

    from serving.local_server import grpc_api, rest
    from serving.local_server.batching import Batcher
    from serving.local_server.status import StatusError
    from serving.local_server.versions import Versions
    from serving.local_server.warmup import load

    tf.get_logger().setLevel("ERROR")
    cores = os.cpu_count() or 1
    batcher = Batcher(parameters) if parameters else None
    # As many as the real one has where requests wait in them while their batch fills.
    threads = 4 * cores if batcher else cores + 2
    versions = Versions(
        lambda path: load(
            path,
            intra_op_threads=args.tensorflow_intra_op_parallelism,
            inter_op_threads=args.tensorflow_inter_op_parallelism,
            batcher=batcher,
            prefers_lite=args.prefer_tflite_model,
        ),
        max_num_load_retries=args.max_num_load_retries,
        load_retry_interval_s=max(args.load_retry_interval_micros, 0) / 1e6,
        poll_wait_s=args.file_system_poll_wait_seconds,
        labels_for_unavailable=args.allow_version_labels_for_unavailable_models,
    )
    try:
        versions.apply(config)
    except StatusError as error:
        raise InputError(
            f"Failed to start server. Error: {error}",
            where=str(args.model_config_file or args.model_base_path),
            cure="name a version that loads, or start with an empty config",
        ) from None

    grpc_server = grpc_api.server(versions, threads=threads)
    _listen(grpc_server, args, credentials)
    grpc_server.start()
    if args.model_config_file and args.model_config_file_poll_wait_seconds > 0:
        threading.Thread(target=_poll_config, args=(versions, args, text), name="config", daemon=True).start()
    try:
        if rest_socket is None:
            grpc_server.wait_for_termination()
            return
        log.info("Exporting HTTP/REST API at: %s:%d ...", args.host, args.rest_api_port)
        application = rest.app(
            versions, metrics_path=metrics_path, timeout_s=args.rest_api_timeout_in_ms / 1000, threads=threads
        )
        options = uvicorn.Config(
            application,
            http="httptools",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=GRACE_S,
        )
        uvicorn.Server(options).run(sockets=[rest_socket])
    finally:
        log.info("Shutting down.")
        grpc_server.stop(GRACE_S).wait(GRACE_S)


def _check_flags(args: argparse.Namespace) -> None:
    """Refuse flags that say nothing together."""
    if args.model_config_file is None and not args.model_base_path:
        raise InputError("neither --model_config_file nor --model_base_path", where="the flags", cure="give one")
    if not args.port and not args.grpc_socket_path:
        raise InputError("neither --port nor --grpc_socket_path", where="the flags", cure="give one")
    if args.port == args.rest_api_port:
        raise InputError(f"one port ({args.port}) for gRPC and REST", where="the flags", cure="give each its own")
    if args.batching_parameters_file and not args.enable_batching:
        raise InputError(
            "--batching_parameters_file without --enable_batching", where="the flags", cure="give both or neither"
        )


def _listen(grpc_server: Any, args: argparse.Namespace, credentials: Any) -> None:
    """Bind the port and the socket for gRPC."""

    def add(address: str) -> None:
        if credentials is None:
            grpc_server.add_insecure_port(address)
        else:
            grpc_server.add_secure_port(address, credentials)

    if args.port:
        try:
            add(f"{args.host}:{args.port}")
        except RuntimeError:
            if credentials is None:
                raise _port_in_use(args.host, args.port, "--port") from None
            raise InputError(
                f"gRPC cannot listen on {args.host}:{args.port} with this key and certificate",
                where="--ssl_config_file",
                cure="put in the PEM of a key and of its certificate, and see that nothing else has the port",
            ) from None
        log.info("Running gRPC ModelServer at %s:%d ...", args.host, args.port)
    if args.grpc_socket_path:
        try:
            add(f"unix:{args.grpc_socket_path}")
        except RuntimeError as error:
            raise InputError(
                f"cannot listen on {args.grpc_socket_path}: {error}",
                where="--grpc_socket_path",
                cure="name a file of at most 107 bytes in a folder that you may write to",
            ) from None
        log.info("Running gRPC ModelServer at unix:%s ...", args.grpc_socket_path)


def _poll_config(versions: Any, args: argparse.Namespace, applied: str) -> None:
    """Apply the config file whenever it changed, and again while it was refused; a broken one is only logged."""
    from serving.local_server.status import StatusError

    pause, last_error = threading.Event(), ""
    while not pause.wait(args.model_config_file_poll_wait_seconds):
        try:
            text = _read_config(args)
            if text == applied:
                continue
            versions.apply(parse_config(text, str(args.model_config_file)))
            applied, last_error = text, ""
        except (InputError, StatusError) as error:
            if str(error) != last_error:
                log.error("Failed to reload the config: %s", error)
            last_error = str(error)


def _read_config(args: argparse.Namespace) -> str:
    if args.model_config_file is None:
        name, path = json.dumps(args.model_name), json.dumps(args.model_base_path)
        return f'model_config_list {{ config {{ name: {name} base_path: {path} model_platform: "tensorflow" }} }}'
    try:
        return str(args.model_config_file.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"cannot read the model config: {error}", where="--model_config_file", cure="name a readable file"
        ) from None


def _bound(host: str, port: int, flag: str) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise _port_in_use(host, port, flag) from None
        raise InputError(f"cannot listen on {host}:{port}: {error}", where=flag, cure="give a usable address") from None
    except OverflowError as error:
        raise InputError(str(error), where=flag, cure="give a port from 1 to 65535") from None
    return bound


def _port_in_use(host: str, port: int, flag: str) -> InputError:
    return InputError(f"port {port} on {host} is in use", where=flag, cure="stop what listens there or use another")


if __name__ == "__main__":
    main()
