"""Ports for servers that need any port, as long as nobody else has it."""

from __future__ import annotations

import random
import socket
from itertools import islice

LOOPBACK = "127.0.0.1"

_CANDIDATES = range(15_000, 32_000)
"""Below the ports that systems give to clients and to whoever asks for port 0 (Linux from 32768, IANA from 49152): a server
takes seconds until it listens, and meanwhile one of those may go to somebody else."""


def free_ports(count: int) -> list[int]:
    """`count` different ports on loopback that nobody listens on.

    Raises:
        OSError: there are not so many.
    """
    # Not the shared generator: hypothesis seeds it, and two processes with one seed would take the same ports.
    shuffled = random.SystemRandom().sample(_CANDIDATES, len(_CANDIDATES))
    ports = list(islice(filter(_is_free, shuffled), count))
    if len(ports) < count:
        raise OSError(f"{LOOPBACK} has no {count} free ports from {_CANDIDATES.start} to {_CANDIDATES.stop - 1}")
    return ports


def _is_free(port: int) -> bool:
    try:
        socket.create_server((LOOPBACK, port)).close()
    except OSError:
        return False
    return True
