"""The typed client against a real server."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from contracts.names import MODEL
from contracts.pseudonyms import pseudonym
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


def test_a_rollback_meanwhile_fails_no_request() -> None:
    """A version that is unloaded between asking which one is labelled and asking it gives way to the one labelled now."""
    labelled = [3]

    class RolledBack(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(200, {"model_spec": {"version": str(labelled[0])}})
            labelled[0] = 2

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            if "/versions/2:" in self.path:
                return self._answer(200, {"predictions": [{"items": ["apple"], "scores": [1.0]}]})
            self._answer(404, {"error": "Servable not found for request"})

        def _answer(self, status: int, body: Any) -> None:
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), RolledBack) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with Client(f"http://127.0.0.1:{server.server_port}") as client:
            [answer] = client.recommend(["ann"])
            assert (answer.items, answer.model_version) == (("apple",), 2)
            with pytest.raises(ServingError) as gone:  # a version that was asked for by number is not replaced
                client.recommend(["ann"], version=9)
        server.shutdown()
    assert gone.value.status_code == 404


def test_deadline_without_server() -> None:
    """Where nobody listens, the call ends at its deadline with a transport error."""
    with Client("http://127.0.0.1:9", deadline_s=0.3) as client, pytest.raises(httpx.ConnectError):
        client.available_versions()


def test_pseudonyms_leave_instead_of_ids() -> None:
    """With a key, the body of the request holds pseudonyms in the order of the users and no id; without, the ids."""
    bodies: list[bytes] = []

    class Endpoint(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["content-length"])))
            rows = [{"items": [], "scores": []} for _ in json.loads(bodies[-1])["instances"]]
            answer = json.dumps({"predictions": rows}).encode()
            self.send_response(200)
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
            with Client(url, pseudonym_key=key) as client:
                assert len(client.recommend(ids, version=1)) == 2
        server.shutdown()
    sent = [[each["user_id"] for each in json.loads(body)["instances"]] for body in bodies]
    assert sent == [[pseudonym(each, "secret") for each in ids], ids]
    assert b"example" not in bodies[0]
