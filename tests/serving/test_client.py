"""The typed clients: of a model server, and what both do about errors; tests of the gateway try the other one."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from contracts.pseudonyms import pseudonym
from serving.backend import Backend
from serving.client import Client, ServingError
from tests.verbs import MODEL


def test_a_model_server(server: Any, base_of: Callable[..., Path], tools: Any) -> None:
    """Answers come in the order of the users, from the version that was named; errors carry their status."""
    server.configure(tools.model_text(MODEL, base_of(1, 2), [1, 2], stable=1))
    for version in (1, 2):
        server.wait_state(MODEL, version, "AVAILABLE")
    with Backend(f"http://127.0.0.1:{server.rest_port}") as backend:
        assert {version: state.state for version, state in backend.states().items()} == {1: "AVAILABLE", 2: "AVAILABLE"}
        assert backend.labelled("stable") == 1
        first, second = backend.recommend(["x", "y"], version=2)
        assert (first.items, second.items) == (("xa", "xb", "xc"), ("ya", "yb", "yc"))
        assert first.scores == pytest.approx((3.2, 2.2, 1.2))
        assert first.model_version == 2
        assert first.latency_ms > 0
        with pytest.raises(ServingError) as unknown:
            backend.recommend(["x"], version=9)
    assert unknown.value.status_code == 404


def test_deadline_without_server() -> None:
    """Where nobody listens, the call ends at its deadline with a transport error."""
    with Backend("http://127.0.0.1:9", deadline_s=0.3) as backend, pytest.raises(httpx.ConnectError):
        backend.states()


def test_pseudonyms_leave_instead_of_ids() -> None:
    """With a key, the body of the request holds pseudonyms in the order of the users and no id; without, the ids."""
    bodies: list[bytes] = []

    class Endpoint(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["content-length"])))
            rows = [{"items": [], "scores": []} for _ in json.loads(bodies[-1])["instances"]]
            answer = json.dumps({"predictions": rows}).encode()
            # Once it is asked to wait: a client does so, and asks again.
            self.send_response(200 if len(bodies) > 1 else 429)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    ids = ["ann@example.org", " bob@example.org "]
    with ThreadingHTTPServer(("127.0.0.1", 0), Endpoint) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        for key in ("secret", None):
            with Client("token", url, pseudonym_key=key) as client:
                assert len(client.recommend(ids)) == 2
        server.shutdown()
    users = [[each["user_id"] for each in json.loads(body)["instances"]] for body in bodies]
    pseudonyms = [pseudonym(each, "secret") for each in ids]
    assert users == [pseudonyms, pseudonyms, ids]
    assert b"example" not in bodies[0]
