"""The local server as a process: start, refusal to start, stop."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from contracts.errors import InputError
from contracts.ports import free_ports
from serving.local_server.__main__ import arg_parser
from serving.local_server.configs import grpc_credentials, monitoring_path

REPOSITORY = Path(__file__).resolve().parents[3]


def run(*flags: str) -> subprocess.CompletedProcess[str]:
    """The local server with flags that should make it refuse to start."""
    argv = [sys.executable, "-m", "serving.local_server", *flags]
    return subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)


def test_says_what_it_is_and_stops(tools: Any, tmp_path: Path) -> None:
    """It starts on an empty config, tells in log and header that it is the local one, and ends cleanly on SIGTERM."""
    server = tools.Server("local", tmp_path)
    try:
        header = server.http.get("/v1/models/none").headers["x-cartwheel-local-server"]
        beside = run(f"--port={server.grpc_port}", f"--model_config_file={server.config_path}")
    finally:
        code = server.stop()
    assert code == 0
    assert header == "development"
    assert "local model server" in server.log.read_text()
    assert beside.returncode == 2
    assert beside.stderr.count("\n") == 1
    assert f"port {server.grpc_port} on 127.0.0.1 is in use" in beside.stderr


@pytest.mark.parametrize(
    ("flags", "what"),
    [
        (["--unknown_flag=1", "--model_base_path=x"], "--unknown_flag"),
        (["--ssl_config_file=x", "--model_base_path=x"], "--ssl_config_file"),
        ([], "--model_base_path"),
        (["--port=0", "--rest_api_port=1", "--model_base_path=x"], "--grpc_socket_path"),
        (["--model_config_file=/nonexistent"], "/nonexistent"),
    ],
)
def test_refuses_bad_flags(flags: list[str], what: str) -> None:
    """Unknown flags and unusable files end the server with exit 2 and name the culprit."""
    result = run(*flags)
    assert result.returncode == 2
    assert what in result.stderr


def test_grpc_is_encrypted_as_the_config_says(tools: Any, tmp_path: Path) -> None:
    """Whoever trusts the certificate and has one of the same authority is answered; nobody else is."""
    import grpc
    from tensorflow_serving.apis import get_model_status_pb2, model_service_pb2_grpc

    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
         "-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "cert.pem")],
        check=True, capture_output=True,
    )  # fmt: skip
    key, certificate = ((tmp_path / f"{name}.pem").read_text() for name in ("key", "cert"))
    config = tmp_path / "ssl.config"
    texts = {"server_key": key, "server_cert": certificate, "custom_ca": certificate}
    config.write_text(
        "".join(f"{name}: {json.dumps(text)}\n" for name, text in texts.items()) + "client_verify: true\n"
    )
    server = tools.Server("local", tmp_path, "", f"--ssl_config_file={config}")

    def code(credentials: Any) -> Any:
        address = f"localhost:{server.grpc_port}"
        channel = grpc.secure_channel(address, credentials) if credentials else grpc.insecure_channel(address)
        with channel:
            request = get_model_status_pb2.GetModelStatusRequest()
            request.model_spec.name = "none"
            with pytest.raises(grpc.RpcError) as error:
                model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(request, timeout=20)
        return error.value.code()

    try:
        root = certificate.encode()
        assert code(grpc.ssl_channel_credentials(root, key.encode(), root)) == grpc.StatusCode.NOT_FOUND
        assert code(grpc.ssl_channel_credentials(root)) == grpc.StatusCode.UNAVAILABLE
        assert code(None) == grpc.StatusCode.UNAVAILABLE
    finally:
        server.stop()


def test_a_key_that_is_none_is_named(tmp_path: Path) -> None:
    """It is not taken for a port in use."""
    (tmp_path / "models.config").touch()
    (tmp_path / "ssl.config").write_text('server_key: "x" server_cert: "y"')
    [port] = free_ports(1)
    files = [f"--model_config_file={tmp_path / 'models.config'}", f"--ssl_config_file={tmp_path / 'ssl.config'}"]
    result = run(f"--port={port}", *files)
    assert result.returncode == 2
    assert "with this key and certificate (in --ssl_config_file)" in result.stderr


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("server_key: 1", "no SSLConfig"),
        ('server_key: "x"', "no server_cert"),
        ('server_key: "x" server_cert: "y" client_verify: true', "no custom_ca"),
    ],
)
def test_an_ssl_config_that_is_none(text: str, what: str, tmp_path: Path) -> None:
    """It is refused before anything starts."""
    (tmp_path / "ssl.config").write_text(text)
    with pytest.raises(InputError, match=what):
        grpc_credentials(tmp_path / "ssl.config")


def test_version_says_it_is_local() -> None:
    """The version string says that this is a development stand-in."""
    assert "development stand-in" in run("--version").stdout


def test_flags_of_the_real_server_parse() -> None:
    """Flags parse with `=`, switches with and without a value, and TF Serving's defaults hold."""
    args = arg_parser().parse_args(["--model_base_path=x", "--enable_batching", "--port=1"])
    assert (args.port, args.enable_batching, args.max_num_load_retries) == (1, True, 5)
    assert args.allow_version_labels_for_unavailable_models is False
    args = arg_parser().parse_args(["--allow_version_labels_for_unavailable_models=true"])
    assert args.allow_version_labels_for_unavailable_models is True


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ('prometheus_config { enable: true, path: "/p" }', "/p"),
        ("prometheus_config: { enable: true }", "/monitoring/prometheus/metrics"),
        ('prometheus_config { enable: false path: "/p" }', None),
        ("", None),
    ],
)
def test_monitoring_config(tmp_path: Path, text: str, path: str | None) -> None:
    """The Prometheus page is where the config says, and nowhere unless it is enabled."""
    file = tmp_path / "monitoring.config"
    file.write_text(text)
    assert monitoring_path(file) == path


@pytest.mark.slow
def test_a_socket_instead_of_a_port(tools: Any, base_of: Callable[..., Path], tmp_path: Path) -> None:
    """gRPC answers at the socket, also where a killed server has left one, and no port is open for it."""
    import grpc
    from tensorflow_serving.apis import get_model_status_pb2, model_service_pb2_grpc

    path = tmp_path / "model.sock"
    config = f"model_config_list {{ {tools.model_text('m', base_of(1), [1])} }}"
    server = tools.Server("local", tmp_path, config, "--port=0", f"--grpc_socket_path={path}", start=False)
    for _ in range(2):
        server.start()
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = "m"
        with grpc.insecure_channel(f"unix:{path}") as channel:
            answer = model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(request, timeout=60)
        assert [entry.version for entry in answer.model_version_status] == [1]
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", server.grpc_port)) != 0
        server.process.kill()
        server.process.wait()


@pytest.mark.slow
def test_failed_load_at_start(tools: Any, base_of: Callable[..., Path], tmp_path: Path) -> None:
    """With one version broken it starts on the other; with none left it does not start and says why."""
    base = base_of(1, 2)
    (base / "2" / "saved_model.pb").write_bytes(b"garbage")
    server = tools.Server("local", tmp_path, f"model_config_list {{ {tools.model_text('m', base, [1, 2])} }}")
    try:
        server.wait_state("m", 1, "AVAILABLE")
        server.wait_state("m", 2, "END")
    finally:
        server.stop()
    server.config_path.write_text(f"model_config_list {{ {tools.model_text('m', base, [2])} }}")
    result = run(*server.argv[3:])
    assert result.returncode == 2
    assert "did not become available" in result.stderr
