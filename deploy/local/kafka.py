"""`python -m deploy.local.kafka`: a real Apache Kafka on this machine, one node, for trying it out and for tests.

Its state is one folder: started on it again, it goes on with the topics there, also after a kill.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import psutil

from contracts.errors import InputError, reported
from contracts.files import locked, write_text
from contracts.ports import LOOPBACK, free_ports
from contracts.settings import Settings, settings
from deploy.local.jars import ensure_jars
from deploy.local.java import Java, find_java

PORT = 9092
HEAP_MIB = 512
_UP = "Kafka Server started"
_LOGGING = {
    "defaultLogLevel": "warn",
    "log.kafka.server.KafkaRaftServer": "info",  # says when it is up
    "showDateTime": "true",
    "dateTimeFormat": "yyyy-MM-dd'T'HH:mm:ss.SSSXXX",
}


@dataclass(frozen=True)
class Broker:
    """A running broker. `address` is what clients call its bootstrap server."""

    process: subprocess.Popen[bytes]
    address: str
    log: Path


def jars(settings: Settings, java: Java, advance: Callable[[str], None] = lambda name: None) -> list[Path]:
    """The verified jars of Kafka, fetched first when they are not there (44 MB).

    Raises:
        InputError: see `ensure_jars`.
    """
    settings.cache_dir.mkdir(parents=True, exist_ok=True)
    return ensure_jars(settings, java, advance, name="kafka")


def server_properties(data: Path, port: int, controller_port: int, more: Mapping[str, str]) -> dict[str, str]:
    """Kafka's configuration: broker and controller in one process, on loopback, nothing replicated.

    Args:
        more: properties added to these or put in their place; `listeners` are added to ours.
    """
    plain = f"PLAINTEXT://{LOOPBACK}:{port}"
    listeners = ",".join(filter(None, [plain, more.get("listeners")]))
    return {
        "process.roles": "broker,controller",
        "node.id": "1",
        # The voters of this file, unlike those that `--standalone` writes into the data, may change their port.
        "controller.quorum.voters": f"1@{LOOPBACK}:{controller_port}",
        "controller.listener.names": "CONTROLLER",
        "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT,"
        "SSL:SSL,SASL_SSL:SASL_SSL",
        "inter.broker.listener.name": "PLAINTEXT",
        "log.dirs": str(data),
        "num.partitions": "1",
        "offsets.topic.num.partitions": "1",
        "offsets.topic.replication.factor": "1",
        "transaction.state.log.num.partitions": "1",
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "share.coordinator.state.topic.num.partitions": "1",
        "share.coordinator.state.topic.replication.factor": "1",
        "share.coordinator.state.topic.min.isr": "1",
        "group.initial.rebalance.delay.ms": "0",
        "broker.session.timeout.ms": "3000",  # how long a start after a kill waits for the dead broker's session
        "broker.heartbeat.interval.ms": "500",
        **more,
        "listeners": f"{listeners},CONTROLLER://{LOOPBACK}:{controller_port}",
        "advertised.listeners": listeners,
    }


def start(
    java: Java,
    jars: Sequence[Path],
    home: Path,
    port: int = 0,
    properties: Mapping[str, str] | None = None,
    *,
    deadline_s: float = 60.0,
) -> Broker:
    """Start a broker whose state is in `home`, and wait until it serves. Only one may use a folder at a time.

    Args:
        port: 0 takes a free one.
        properties: Kafka's own, beyond `server_properties`.

    Raises:
        InputError: the port is taken, or it does not come up.
    """
    controller_port, own_port = free_ports(2)
    port = port or own_port
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            raise InputError(
                f"port {port} cannot be listened on: {error.strerror}", where="Kafka", cure="choose another with --port"
            ) from None
    _stop_left_over(home)
    data, file, log = home / "data", home / "server.properties", home / "kafka.log"
    program = [
        str(java.home / "bin" / "java"), f"-Xmx{HEAP_MIB}m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1",
        *(f"-Dorg.slf4j.simpleLogger.{name}={value}" for name, value in _LOGGING.items()),
        "-cp", os.pathsep.join(map(str, jars)),
    ]  # fmt: skip
    if not data.exists():
        _format(program, home, port, controller_port)
    _write(file, server_properties(data, port, controller_port, properties or {}))
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*program, "kafka.Kafka", str(file)],
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for us, who then stop it in order
        )  # fmt: skip
    write_text(home / "pid", str(process.pid))
    broker = Broker(process, f"{LOOPBACK}:{port}", log)
    end = time.monotonic() + deadline_s
    try:
        while _UP not in (text := log.read_text(encoding="utf-8", errors="replace")):
            if process.poll() is not None or time.monotonic() > end:
                errors = [line for line in text.splitlines() if re.search("ERROR|Exception", line)] or text.splitlines()
                raise InputError(
                    f"Kafka did not come up: {errors[-1] if errors else 'it said nothing'}", where=str(log),
                    cure=f"see that log; if the data is damaged, remove {home}",
                )  # fmt: skip
            time.sleep(0.1)
    except BaseException:
        stop(broker, grace_s=5.0)
        raise
    return broker


def stop(broker: Broker, *, grace_s: float = 20.0) -> None:
    """Stop a broker: by request, then by force."""
    with suppress(ProcessLookupError):
        broker.process.terminate()
    try:
        broker.process.wait(grace_s)
    except subprocess.TimeoutExpired:
        broker.process.kill()
        broker.process.wait()


def _format(program: list[str], home: Path, port: int, controller_port: int) -> None:
    """Make the data folder: whole or not at all."""
    staging = home / "data.staging"
    shutil.rmtree(staging, ignore_errors=True)
    file = home / "format.properties"
    _write(file, server_properties(staging, port, controller_port, {}))
    tool = [*program, "kafka.tools.StorageTool"]
    identity = subprocess.run([*tool, "random-uuid"], capture_output=True, text=True, check=False).stdout.split()
    result = subprocess.run(
        [*tool, "format", "-t", identity[-1] if identity else "", "-c", str(file)],
        capture_output=True, text=True, errors="replace", check=False,
    )  # fmt: skip
    if result.returncode != 0:
        raise InputError(
            f"Kafka's data folder could not be made: {(result.stderr or result.stdout).strip().splitlines()[-1:]}",
            where=str(home), cure="see that the folder can be written to and the disk has space",
        )  # fmt: skip
    staging.rename(home / "data")


def _write(file: Path, properties: Mapping[str, str]) -> None:
    """As Java reads properties. For us only: some hold passwords."""
    lines = [f"{name}={value}".replace("\\", "\\\\") for name, value in properties.items()]
    write_text(file, "\n".join(lines) + "\n", mode=0o600)


def _stop_left_over(home: Path) -> None:
    """Stop the broker of a launcher that was killed: our caller holds the folder, so it is nobody's."""
    try:
        process = psutil.Process(int((home / "pid").read_text(encoding="utf-8")))
        if str(home / "server.properties") in process.cmdline():
            process.terminate()
            process.wait(20)
    except psutil.TimeoutExpired:
        process.kill()
    except (OSError, ValueError, psutil.Error):
        return


def arg_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m deploy.local.kafka", description=__doc__)
    parser.add_argument("--port", type=int, default=PORT, help=f"port to listen on (default {PORT}; 0: a free one)")
    return parser


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def main(port: int) -> None:
    """Run a broker in the foreground until Ctrl-C.

    Raises:
        InputError: it runs already, or see `start`.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    home = settings().home_dir / "kafka"
    lock = locked(home / "lock", what="this Kafka runs already", cure="use that one, or stop it with Ctrl-C")
    with lock, suppress(KeyboardInterrupt):
        java = find_java(settings())
        if not (settings().cache_dir / "kafka-jars").is_dir():
            print("fetching the jars of Apache Kafka (44 MB)", flush=True)
        broker = start(java, jars(settings(), java), home, port)
        try:
            print(f"Kafka listens on {broker.address}; its data is in {home}. Ctrl-C stops it.", flush=True)
            status = broker.process.wait()
            raise InputError(f"Kafka ended with status {status}", where=str(broker.log), cure="see that log")
        finally:
            stop(broker)


if __name__ == "__main__":
    arguments = arg_parser().parse_args()
    with reported():
        main(arguments.port)
