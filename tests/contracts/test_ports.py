"""Free ports."""

from __future__ import annotations

import socket

import pytest

from contracts import ports


def test_ports_are_different_free_and_not_those_that_a_system_gives_to_clients() -> None:
    taken = ports.free_ports(50)
    assert len(set(taken)) == 50
    with socket.create_server((ports.LOOPBACK, 0)) as given_by_the_system:
        assert max(taken) < given_by_the_system.getsockname()[1]
    for port in taken:
        socket.create_server((ports.LOOPBACK, port)).close()


def test_a_port_that_somebody_listens_on_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server((ports.LOOPBACK, 0)) as server:
        used = server.getsockname()[1]
        monkeypatch.setattr(ports, "_CANDIDATES", range(used, used + 1))
        with pytest.raises(OSError, match="no 1 free ports"):
            ports.free_ports(1)
