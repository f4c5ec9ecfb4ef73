from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from contracts.errors import InputError
from contracts.settings import REPOSITORY, settings
from deploy.local import jars, kafka
from deploy.local.java import Java, find_java


@pytest.fixture(scope="module")
def java() -> Java:
    return find_java(settings())


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A folder for a broker's state; whatever runs on it is killed at the end."""
    yield tmp_path / "kafka"
    with suppress(OSError, psutil.Error):
        psutil.Process(int((tmp_path / "kafka" / "pid").read_text())).kill()


def test_everything_listens_on_loopback(tmp_path: Path) -> None:
    """Listeners that are added stand beside ours, and each but the controller's is advertised."""
    properties = kafka.server_properties(tmp_path, 1, 2, {"listeners": "SSL://127.0.0.1:3", "num.partitions": "7"})
    assert properties["advertised.listeners"] == "PLAINTEXT://127.0.0.1:1,SSL://127.0.0.1:3"
    assert properties["listeners"] == "PLAINTEXT://127.0.0.1:1,SSL://127.0.0.1:3,CONTROLLER://127.0.0.1:2"
    assert properties["num.partitions"] == "7"


def test_the_listed_jars_are_the_broker_alone() -> None:
    """The committed list names Kafka 4.3.1 once, and one binding of slf4j."""
    lock = jars.read_lock("kafka")
    assert [name for name in lock if name.startswith("kafka_")] == ["kafka_2.13-4.3.1.jar"]
    assert [name for name in lock if name.startswith("slf4j-")] == ["slf4j-api-1.7.36.jar", "slf4j-simple-1.7.36.jar"]


def test_a_taken_port_is_refused(java: Java, home: Path) -> None:
    """A port that another program listens on is named, and nothing is made."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(InputError, match=rf"port {other.getsockname()[1]} cannot be listened on"):
            kafka.start(java, [], home, other.getsockname()[1])
    assert not home.exists()


@pytest.mark.slow
def test_a_broker_that_cannot_start_says_why(java: Java, home: Path) -> None:
    """A property that Kafka refuses is said with the log's name, and nothing is left running."""
    with pytest.raises(InputError, match=r"Kafka did not come up: .*kafka\.log"):
        kafka.start(java, kafka.jars(settings(), java), home, 0, {"log.retention.ms": "soon"})
    assert not psutil.pid_exists(int((home / "pid").read_text()))


@pytest.mark.slow
def test_the_launcher_runs_one_broker_and_cleans_up(java: Java, tmp_path: Path, home: Path) -> None:
    """One at a time; what a killed launcher left is stopped by the next one, which has its messages on another port."""
    kafka.jars(settings(), java)
    environment = {
        "CARTWHEEL_HOME": str(tmp_path),
        "CARTWHEEL_CACHE": str(settings().cache_dir),
        "PATH": f"{java.home}/bin",
    }
    command = [sys.executable, "-m", "deploy.local.kafka", "--port", "0"]

    def launch() -> subprocess.Popen[str]:
        return subprocess.Popen(
            command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def listening(launcher: subprocess.Popen[str]) -> tuple[int, str]:
        assert launcher.stdout is not None
        match = re.match(r"Kafka listens on (127\.0\.0\.1:\d+);", launcher.stdout.readline())
        assert match
        return int((home / "pid").read_text()), match[1]

    with launch() as first:
        left_over, address = listening(first)
        producer = Producer({"bootstrap.servers": address})
        producer.produce("kept", b"ann")
        assert producer.flush(30) == 0
        with launch() as second:
            assert "this Kafka runs already" in second.communicate(timeout=60)[1]
            assert second.returncode == 2
        first.kill()
    assert psutil.pid_exists(left_over)
    with launch() as third:
        running, address = listening(third)
        assert not psutil.pid_exists(left_over)
        consumer = Consumer({"bootstrap.servers": address, "group.id": "test", "auto.offset.reset": "earliest"})
        consumer.assign([TopicPartition("kept", 0, 0)])
        message = consumer.poll(30)
        assert message is not None
        assert message.value() == b"ann"
        consumer.close()
        third.terminate()
    assert third.returncode == 0
    assert not psutil.pid_exists(running)
