"""The typed client against a real server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from contracts.names import MODEL
from serving.client import Client, ServingError


def test_recommend(server: Any, base_of: Callable[..., Path], tools: Any) -> None:
    """Answers come in the order of the users, from the labelled or the named version; errors carry their status."""
    server.configure(tools.model_text(MODEL, base_of(1, 2), [1, 2], stable=1))
    for version in (1, 2):
        server.wait_state(MODEL, version, "AVAILABLE")
    with Client(f"http://127.0.0.1:{server.rest_port}") as client:
        assert client.available_versions() == [1, 2]
        first, second = client.recommend(["x", "y"])
        assert (first.items, second.items) == (("xa", "xb", "xc"), ("ya", "yb", "yc"))
        assert first.scores == pytest.approx((3.1, 2.1, 1.1))
        assert first.model_version == 1
        assert first.latency_ms > 0
        assert client.recommend(["x"], version=2)[0].scores == pytest.approx((3.2, 2.2, 1.2))
        assert client.recommend([]) == []
        with pytest.raises(ServingError) as unknown:
            client.recommend(["x"], version=9)
    assert unknown.value.status_code == 404


def test_deadline_without_server() -> None:
    """Where nobody listens, the call ends at its deadline with a transport error."""
    with Client("http://127.0.0.1:9", deadline_s=0.3) as client, pytest.raises(httpx.ConnectError):
        client.available_versions()
