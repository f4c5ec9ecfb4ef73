"""The gateway as clients and operators meet it: a real Envoy, two model servers."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections import Counter
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from contracts.settings import REPOSITORY
from serving.client import Client, ServingError
from serving.gateway.traffic import Traffic
from tests.verbs import MODEL

pytestmark = pytest.mark.slow
V1 = f"/v1/models/{MODEL}"


def test_a_prediction(stable: Any, kit: Any) -> None:
    """The answer is TensorFlow Serving's own; headers and the exposure say who answered it, to whom, when."""
    stable.put(Traffic(stable=1, step=12))
    before = len(stable.lines())
    answer = stable.predict('é"\\', headers={"x-request-id": "chosen", "x-cartwheel-shadow": "9"})
    assert answer.json() == {
        "predictions": [{"items": [f'é"\\{letter}' for letter in "abc"], "scores": [3.1, 2.1, 1.1]}]
    }
    assert answer.headers["x-cartwheel-arm"] == "stable"
    assert answer.headers["x-cartwheel-model-version"] == "1"
    assert answer.headers["x-request-id"] != "chosen"
    line = stable.lines(before + 1)[-1]
    assert json.loads(line.pop("response")) == answer.json()
    assert 0 < line.pop("latency_us") < 5e6
    assert line.pop("served_at").endswith("Z")
    assert line == {
        "request_id": answer.headers["x-request-id"],
        "client": "shop",
        "user_ids": ['é"\\'],
        "arm": "stable",
        "model_version": 1,
        "step": 12,
        "fallback": None,
        "replayed_at": None,
    }
    [shown] = map(json.loads, stable.verb("exposure", line["request_id"]).stdout.splitlines())
    assert (shown["model_version"], shown["step"], shown["user_id"]) == (1, 12, 'é"\\')
    assert shown["items"] == answer.json()["predictions"][0]["items"]
    assert "no answer to nothing" in stable.verb("exposure", "nothing", code=99).stderr


def test_every_form_of_tensorflow_servings_interface(stable: Any) -> None:
    """Columns, labels, versions, status and metadata; errors of the model server pass through as they are."""
    assert stable.predict("x", path=f"{V1}/versions/2:predict").json()["predictions"][0]["scores"][0] == 3.2
    assert stable.predict("x", path=f"{V1}/labels/stable:predict").json()["predictions"][0]["scores"][0] == 3.1
    with stable.http() as http:
        assert http.post(f"{V1}:predict", json={"inputs": {"user_id": ["x"]}}).json()["outputs"]["scores"] == [
            [3.1, 2.1, 1.1]
        ]
        assert {entry["version"] for entry in http.get(V1).json()["model_version_status"]} == {"1", "2"}
        assert http.get(f"{V1}/metadata").json()["model_spec"]["version"] == "1"
        assert http.get(f"{V1}/versions/2/metadata").json()["model_spec"]["version"] == "2"
        for path, status in ((f"{V1}/versions/9:predict", 404), (f"{V1}/labels/nobody:predict", 400)):
            answer = http.post(path, json={"instances": ["x"]})
            assert (answer.status_code, list(answer.json())) == (status, ["error"])
        for body in (b"{", b"", b'{"instances": [{"user": "x"}]}'):
            assert http.post(f"{V1}:predict", content=body).status_code == 400
        assert http.post(f"{V1}/labels/canary:predict", json={"instances": ["x"]}).status_code == 404
        for path in (
            "/",
            "/v1/models/other:predict",
            f"{V1}:classify",
            "/monitoring/prometheus/metrics",
            f"{V1}%2f..:predict",
        ):
            assert http.post(path, json={"instances": ["x"]}).status_code in (400, 404)


def grpc_request(*users: str, model: str = MODEL, **spec: Any) -> predict_pb2.PredictRequest:
    """A prediction for users, as TensorFlow Serving's clients ask for it."""
    request = predict_pb2.PredictRequest(model_spec={"name": model} | spec)
    request.inputs["user_id"].CopyFrom(tf.make_tensor_proto([user.encode() for user in users], shape=[len(users)]))
    return request


def test_by_grpc(stable: Any) -> None:
    """Answers are TensorFlow Serving's own, of the arm's version, and logged as by REST; a version that is named is asked."""
    stable.put(Traffic(stable=1, canary=2, canary_share=0.3, step=17))
    bearer = [("authorization", f"Bearer {stable.token}")]
    before, num_counted = len(stable.lines()), stable.metric("envoy_cartwheel_requests", step="17", status="200")
    with grpc.insecure_channel(f"127.0.0.1:{stable.port}") as channel, stable.http() as http:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        arms = Counter()
        for number in range(60):
            user = f'ü"{number}'
            answer, call = stub.Predict.with_call(grpc_request(user), metadata=bearer, timeout=10)
            headers = dict(call.initial_metadata())
            arms[headers["x-cartwheel-arm"]] += 1
            by_rest = http.post(f"{V1}:predict", json={"instances": [user]}).headers
            assert headers["x-cartwheel-arm"] == by_rest["x-cartwheel-arm"]
            version = int(headers["x-cartwheel-model-version"])
            assert answer.model_spec.version.value == version == {"stable": 1, "canary": 2}[headers["x-cartwheel-arm"]]
            items = [f"{user}{letter}".encode() for letter in "abc"]
            assert tf.make_ndarray(answer.outputs["items"]).tolist() == [items]
        assert arms.keys() == {"stable", "canary"}
        [line] = [line for line in stable.lines(before + 120) if line["request_id"] == headers["x-request-id"]]
        assert json.loads(line["response"]) == {
            "outputs": {
                "items": [[item.decode() for item in items]],
                "scores": [pytest.approx([n + version / 10 for n in (3, 2, 1)], abs=1e-6)],
            }
        }
        assert (line["user_ids"], line["arm"], line["model_version"], line["step"]) == (
            [user], headers["x-cartwheel-arm"], version, 17,
        )  # fmt: skip
        assert stable.metric("envoy_cartwheel_requests", step="17", status="200") == num_counted + 120

        for spec, number in (({"version": {"value": 2}}, 2), ({"version_label": "stable"}, 1)):
            answer = stub.Predict(grpc_request("x", "y", **spec), metadata=bearer, timeout=10)
            assert answer.model_spec.version.value == number
            assert tf.make_ndarray(answer.outputs["items"]).shape == (2, 3)
        metadata_request = get_model_metadata_pb2.GetModelMetadataRequest(
            model_spec={"name": MODEL}, metadata_field=["signature_def"]
        )
        assert stub.GetModelMetadata(metadata_request, metadata=bearer, timeout=10).model_spec.version.value == 1
        status = get_model_status_pb2.GetModelStatusRequest(model_spec={"name": MODEL})
        models = model_service_pb2_grpc.ModelServiceStub(channel)
        assert len(models.GetModelStatus(status, metadata=bearer, timeout=10).model_version_status) == 2


def test_what_grpc_is_refused(stable: Any) -> None:
    """Nobody without a token, no other model, nothing that changes a model server; failures are counted, and not logged."""
    stable.put(Traffic(stable=1, step=18))
    before = len(stable.lines())
    with grpc.insecure_channel(f"127.0.0.1:{stable.port}") as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        models = model_service_pb2_grpc.ModelServiceStub(channel)
        reload = model_management_pb2.ReloadConfigRequest(config={"model_config_list": {}})
        wrong = grpc_request("x")
        wrong.inputs["user"].CopyFrom(wrong.inputs["user_id"])
        for call, request, code, options in (
            (stub.Predict, grpc_request("x"), grpc.StatusCode.UNAUTHENTICATED, {"metadata": []}),
            (stub.Predict, grpc_request("x", model="other"), grpc.StatusCode.NOT_FOUND, {}),
            (stub.Predict, grpc_request("x", version_label="canary"), grpc.StatusCode.NOT_FOUND, {}),
            (stub.Predict, grpc_request("x", version={"value": 9}), grpc.StatusCode.NOT_FOUND, {}),
            (stub.Predict, wrong, grpc.StatusCode.INVALID_ARGUMENT, {}),
            (
                stub.Predict,
                grpc_request(*"x" * 99),
                grpc.StatusCode.UNIMPLEMENTED,
                {"compression": grpc.Compression.Gzip},
            ),
            (stub.Classify, classification_pb2.ClassificationRequest(), grpc.StatusCode.UNIMPLEMENTED, {}),
            (models.HandleReloadConfigRequest, reload, grpc.StatusCode.UNIMPLEMENTED, {}),
        ):
            with pytest.raises(grpc.RpcError) as failure:
                call(request, **{"metadata": [("authorization", f"Bearer {stable.token}")], "timeout": 10} | options)
            assert failure.value.code() is code, (request, failure.value)
    assert stable.metric("envoy_cartwheel_requests", step="18", status="404") == 1
    assert stable.metric("envoy_cartwheel_requests", step="18", status="400") == 1
    assert len(stable.lines()) == before


def test_who_may_ask(stable: Any, kit: Any, tools: Any) -> None:
    """Nobody without a valid token of ours; a revoked one is refused within a moment; only admins choose an arm."""
    request = {"json": {"instances": ["x"]}}
    with httpx.Client(base_url=stable.url, trust_env=False) as http:
        assert http.post(kit.PREDICT, **request).status_code == 401
        assert http.get(V1).status_code == 401
        for path in ("/livez", "/readyz"):
            assert http.get(path).status_code == 200
    other = kit.Gateway.__new__(kit.Gateway)
    other.environment = stable.environment | {"CARTWHEEL_HOME": str(stable.home / "other")}
    stranger = other.issue("shop")
    short = stable.issue("short", "--days", str(1 / 86_400))
    time.sleep(7)  # what the gateway allows for clocks that differ is over
    for token in (stranger, short, "nonsense", stable.token[:-4] + "AAAA"):
        with stable.http(token) as http:
            assert http.post(kit.PREDICT, **request).status_code == 401

    admin = stable.issue("operator", "--scope", "admin")
    stable.put(replace(Traffic(stable=1), canary=2, canary_share=0.0))
    for name, value in (("x-cartwheel-arm", "canary"), ("x-cartwheel-served-at", "2017-01-01T00:00:00Z")):
        assert stable.predict("x", headers={name: value}).status_code == 403
    with stable.http(admin) as http:
        answer = http.post(kit.PREDICT, **request, headers={"x-cartwheel-arm": "canary"})
        assert answer.headers["x-cartwheel-model-version"] == "2"

    new = stable.verb("token", "rotate", "operator").stdout.strip()
    old_key = next(line.split()[0] for line in stable.verb("token", "list").stdout.splitlines() if "operator" in line)
    with stable.http(admin) as before, stable.http(new) as after:
        assert {before.get(V1).status_code, after.get(V1).status_code} == {200}
        stable.verb("token", "revoke", old_key)
        tools.wait_until(lambda: before.get(V1).status_code == 401, "the old token to be refused")
        assert after.get(V1).status_code == 200
    stable.verb("token", "revoke", "operator")
    stable.verb("token", "revoke", "operator", code=2)
    assert stable.token not in stable.log.read_text() + stable.exposures.read_text()


def test_the_canarys_share(stable: Any, kit: Any) -> None:
    """Changed under load without a failed request; the same users get the same arm, and exposures say which."""
    with kit.Load(stable) as load:
        for share in (0.1, 0.5, 0.0, 0.3):
            stable.put(Traffic(stable=1, canary=2, canary_share=share))
            time.sleep(0.5)
    assert {status for status, *_ in load.answers} == {200}
    assert {version for _, version, _ in load.answers} == {"1", "2"}
    before = len(stable.lines())
    with stable.http() as http:
        arms = [
            [http.post(kit.PREDICT, json={"instances": [f"u{user}"]}).headers["x-cartwheel-arm"] for user in range(400)]
            for _ in range(2)
        ]
    assert arms[0] == arms[1]
    assert 0.22 < arms[0].count("canary") / 400 < 0.38
    lines = stable.lines(before + 800)[before:]
    assert Counter((line["arm"], line["model_version"]) for line in lines) == {
        ("stable", 1): 2 * arms[0].count("stable"),
        ("canary", 2): 2 * arms[0].count("canary"),
    }
    assert stable.predict("u1", "u2").headers["x-cartwheel-arm"] == "stable"


def test_a_switch_is_one_file_and_fails_nothing(stable: Any, kit: Any) -> None:
    """Back and forth under load: every answer is of one of the two versions, and of the new one right after."""
    with kit.Load(stable) as load:
        for version in (2, 1, 2, 1, 2):
            stable.put(Traffic(stable=version))
            for _ in range(5):
                assert stable.predict("x").headers["x-cartwheel-model-version"] == str(version)
    assert len(load.answers) > 100
    assert {(status, fallback) for status, _, fallback in load.answers} == {(200, False)}


def test_what_envoy_refuses_changes_nothing(stable: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Routes that do not validate are not written; a broken file is not taken, and put back."""
    from serving.gateway import process, routes

    path = stable.home / "gateway" / "routes.json"
    before = path.read_text()
    whole = routes.route_configuration
    monkeypatch.setattr(
        routes, "route_configuration", lambda *arguments: whole(*arguments) | {"virtual_hosts": [{"name": ""}]}
    )
    with pytest.raises(Exception, match="Envoy refuses"):
        stable.put(Traffic(stable=2))
    monkeypatch.setattr(process, "validate", lambda _: None)
    monkeypatch.setattr(process, "SWAP_DEADLINE_S", 0.5)
    with pytest.raises(Exception, match="did not take"):
        stable.put(Traffic(stable=2))
    assert path.read_text() == before
    assert stable.predict("x").headers["x-cartwheel-model-version"] == "1"


def test_a_shadow_sees_its_share_and_changes_no_answer(stable: Any, kit: Any, replicas: list[Any]) -> None:
    """Half of the predictions reach version 2, too; who asked gets version 1, and one exposure."""

    def num_shadowed() -> int:
        pages = [server.http.get("/monitoring/prometheus/metrics").text for server in replicas]
        lines = [line for page in pages for line in page.splitlines()]
        return sum(
            int(float(line.split()[-1])) for line in lines if line.startswith(":tensorflow:serving:request_count")
        )

    stable.put(Traffic(stable=1, shadow=2, shadow_share=0.5))
    before, before_lines = num_shadowed(), len(stable.lines())
    answers = [stable.predict("x") for _ in range(300)]
    assert {answer.headers["x-cartwheel-model-version"] for answer in answers} == {"1"}
    time.sleep(0.5)
    assert 100 < num_shadowed() - before - 300 < 200
    assert stable.metric("envoy_cluster_upstream_rq_total", envoy_cluster_name="shadow") > 100
    assert len(stable.lines(before_lines + 300)) == before_lines + 300


def test_numbers_for_prometheus(stable: Any, tools: Any) -> None:
    """Requests and their time by arm and version; nothing else of the admin page is on that port."""
    stable.put(Traffic(stable=1, canary=2, canary_share=1.0, step=7))
    names = {"arm": "canary", "model_version": "2", "status": "200"}
    before = stable.metric("envoy_cartwheel_requests", **names)
    for _ in range(5):
        stable.predict("x")
    time.sleep(0.2)
    assert stable.metric("envoy_cartwheel_requests", **names) == before + 5
    assert stable.metric("envoy_cartwheel_requests", step="7", **names) == 5
    # Envoy puts the histograms of its threads together every five seconds.
    tools.wait_until(lambda: stable.metric("envoy_cartwheel_latency_ms_count", **names) >= before + 5, "their times")
    with httpx.Client(trust_env=False) as http:
        for path in ("/stats", "/quitquitquit", "/config_dump", "/"):
            assert http.post(stable.metrics_url.replace("/metrics", path)).status_code == 404
    page = httpx.get(stable.metrics_url, trust_env=False).text
    relying = ("docs/gateway.md", "monitoring/prometheus/alerts.yml", "monitoring/grafana/cartwheel.json")
    named = {
        name for path in relying for name in re.findall(r"\benvoy_(?!cluster_name)\w+", (REPOSITORY / path).read_text())
    }
    assert len(named) > 5
    assert {name for name in named if not re.search(rf"^{name}(_count)?{{", page, re.MULTILINE)} == set()
    assert (stable.home / "gateway" / "admin.sock").stat().st_mode & 0o077 == 0


def test_the_typed_client(stable: Any) -> None:
    """Answers in the order of the users, with version and request id; a replay names the time it stands for."""
    before = len(stable.lines())
    admin = stable.issue("replay", "--scope", "admin")
    with Client(admin, stable.url) as client:
        first, second = client.recommend(["x", "y"], served_at="2017-01-02T03:04:05Z")
        assert (first.items, second.items) == (("xa", "xb", "xc"), ("ya", "yb", "yc"))
        assert first.scores == pytest.approx((3.1, 2.1, 1.1))
        assert (first.model_version, first.fallback, first.latency_ms > 0) == (1, False, True)
        assert client.recommend([]) == []
        with pytest.raises(ServingError) as refused:
            client.recommend(["x"], arm="canary")
    assert refused.value.status_code == 404
    [line] = stable.lines(before + 1)[before:]
    assert (line["request_id"], line["replayed_at"]) == (first.request_id, "2017-01-02T03:04:05Z")
    assert line["user_ids"] == ["x", "y"]
    with Client("nonsense", stable.url) as client, pytest.raises(ServingError) as stranger:
        client.recommend(["x"])
    assert stranger.value.status_code == 401


def test_slow_and_large_requests_are_bounded(stable: Any) -> None:
    """A body above the limit is refused; a client that sends its headers, or its body, drop by drop is cut off."""
    with stable.http() as http:
        assert http.post(f"{V1}:predict", content=b"x" * (1024 * 1024 + 1)).status_code == 413
        assert http.post(f"{V1}:predict", content=b"{}", headers={"x-large": "x" * 100_000}).status_code == 431
    request = f"POST {V1}:predict HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {stable.token}\r\n"
    for start, longest_s in ((request, 20), (f"{request}content-length: 100\r\n\r\n", 30)):
        with socket.create_connection(("127.0.0.1", stable.port)) as connection:
            connection.sendall(start.encode())
            connection.settimeout(longest_s)
            start_s = time.monotonic()
            answer = connection.recv(4096)
            assert time.monotonic() - start_s < longest_s
            assert b" 408 " in answer.splitlines()[0]


def test_replicas_die(stable: Any, kit: Any, replicas: list[Any], urls: list[str], tools: Any) -> None:
    """One killed under load: no request fails. Both: the popular list for each user, marked, at once; then back."""
    with kit.Load(stable) as load:
        time.sleep(0.5)
        replicas[1].process.kill()
        time.sleep(2)
    assert {(status, version, fallback) for status, version, fallback in load.answers} == {(200, "1", False)}
    replicas[0].process.kill()
    replicas[0].process.wait()
    before = len(stable.lines())
    times_ms = []
    with stable.http() as http:
        for users in (["x"], ["x", "y"]):
            for _ in range(10):
                start_s = time.perf_counter()
                answer = http.post(kit.PREDICT, json={"instances": users})
                times_ms.append((time.perf_counter() - start_s) * 1e3)
                assert answer.status_code == 200
                assert answer.headers["x-cartwheel-fallback"] == "popular"
                assert answer.json() == {"predictions": [kit.POPULAR] * len(users)}
                assert "x-cartwheel-model-version" not in answer.headers
    print(f"a fallback takes {sorted(times_ms)[10]:.1f} ms")
    assert max(times_ms) < 5000  # far from the ten seconds that a model gets here
    lines = stable.lines(before + 20)[before:]
    assert {line["fallback"] for line in lines} == {"popular"}
    assert json.loads(lines[-1]["response"]) == {"predictions": [kit.POPULAR] * 2}
    with Client(stable.token, stable.url) as client:
        assert [(answer.fallback, answer.model_version) for answer in client.recommend(["x"])] == [(True, None)]
    with stable.http() as http:
        assert http.get(V1).status_code == 503  # a status is no recommendation
    stable.put(Traffic(stable=1))  # nothing is popular before the first deployment
    refused = stable.predict("x")
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    tools.wait_until(lambda: httpx.get(f"{stable.url}/readyz", trust_env=False).status_code == 503, "readyz to say so")
    for server in replicas:
        server.start()
    tools.wait_until(lambda: stable.predict("x").status_code == 200, "a replica to be back")


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_ten_minutes_of_trouble(stable: Any, kit: Any, replicas: list[Any], tools: Any) -> None:
    """Under load versions are rolled and replicas killed in turn: no wrong answer, no error, every answer is logged."""
    end_s = time.monotonic() + float(os.environ.get("CARTWHEEL_TEST_SOAK_S", "600"))
    before = len(stable.lines())
    states = [Traffic(stable=1), Traffic(stable=1, canary=2, canary_share=0.2), Traffic(stable=2)]
    with kit.Load(stable, threads=3) as load:
        for turn in itertools.count():
            if time.monotonic() > end_s:
                break
            stable.put(replace(states[turn % 3], popular=json.dumps(kit.POPULAR)))
            time.sleep(5)
            replica = replicas[turn % 2]
            replica.process.kill()
            replica.process.wait()
            time.sleep(5)
            replica.start()
            tools.wait_until(
                lambda: stable.metric("envoy_cluster_membership_healthy", envoy_cluster_name="model") == 2,
                "it to be back",
            )
    assert len(load.answers) > 1000
    assert {status for status, *_ in load.answers} == {200}
    # Of a machine that is busy with other things, too, one model server may be dead while the other is late.
    assert sum(fallback for *_, fallback in load.answers) < len(load.answers) / 1000
    assert all(load.right)
    lines = stable.lines(before + len(load.answers))[before:]
    assert {line["request_id"] for line in lines} == set(load.request_ids)
    assert len(lines) == len(load.request_ids) == len(load.answers)


def test_a_killed_gateway(stable: Any, kit: Any, tools: Any) -> None:
    """What it loses by -9 under load is of the last milliseconds; it comes back with the traffic and tokens it had."""
    before, answered = len(stable.lines()), 0
    with stable.http() as http:
        for number in range(300):
            assert http.post(kit.PREDICT, json={"instances": [f"k{number}"]}).status_code == 200
            answered += 1
    stable.process.send_signal(signal.SIGKILL)
    stable.process.wait()
    assert before + answered - 20 <= len(stable.lines()) <= before + answered
    stable.start()
    tools.wait_until(lambda: stable.predict("x").headers.get("x-cartwheel-model-version") == "1", "it to be back")


def test_a_limit_for_each_client(urls: list[str], tmp_path: Path, kit: Any) -> None:
    """Too many requests of one client are refused with the time to wait; another is not touched. No page may ask."""
    gateway = kit.Gateway(tmp_path, urls, requests_per_s="5", max_body_kib="1", cors_origins="https://shop.example")
    try:
        gateway.put(Traffic(stable=1))
        other = gateway.issue("other")
        with gateway.http() as http:
            answers = [http.post(kit.PREDICT, json={"instances": ["x"]}) for _ in range(60)]
        refused = [answer for answer in answers if answer.status_code == 429]
        assert 5 <= 60 - len(refused) < 60
        assert 429 not in [answer.status_code for answer in answers[:5]]
        assert {answer.headers["retry-after"] for answer in refused} == {"1"}
        with gateway.http(other) as http:
            assert http.post(kit.PREDICT, json={"instances": ["x"]}).status_code != 429
            assert http.post(kit.PREDICT, content=b"x" * 1025).status_code == 413
            preflight = {"origin": "https://shop.example", "access-control-request-method": "POST"}
            allowed = http.options(kit.PREDICT, headers=preflight)
            assert allowed.headers["access-control-allow-origin"] == "https://shop.example"
            denied = http.options(kit.PREDICT, headers=preflight | {"origin": "https://evil.example"})
            assert "access-control-allow-origin" not in denied.headers
        # It starts where nobody has a token yet, and lets nobody in.
        for client in ("shop", "other"):
            gateway.verb("token", "revoke", client)
        gateway.stop()
        gateway.start()
        assert gateway.predict("x").status_code == 401
    finally:
        gateway.stop()


def test_traces_go_to_a_collector(urls: list[str], tmp_path: Path, kit: Any, tools: Any) -> None:
    """A span of each request in OpenTelemetry's own form, and no token in it."""
    bodies: list[bytes] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = b""
            while size := int(self.rfile.readline(), 16):  # Envoy sends it in chunks
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            if self.path == "/v1/traces":
                bodies.append(body)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        gateway = kit.Gateway(tmp_path, urls, otlp_url=f"http://127.0.0.1:{collector.server_port}")
        try:
            gateway.put(Traffic(stable=1))
            request_id = gateway.predict("x").headers["x-request-id"]
            tools.wait_until(lambda: any(request_id.encode() in body for body in bodies), "a span")
        finally:
            gateway.stop()
            collector.shutdown()
    assert all(b"cartwheel-gateway" in body for body in bodies)
    assert not any(gateway.token.encode() in body for body in bodies)


def certificate(folder: Path, name: str) -> None:
    """tls.crt and tls.key for 127.0.0.1 and localhost, in place by rename as a mounted secret changes."""
    staging = folder / f".{name}"
    staging.mkdir(parents=True)
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost",
         "-keyout", str(staging / "tls.key"), "-out", str(staging / "tls.crt")],
        check=True, capture_output=True,
    )  # fmt: skip
    for file in ("tls.key", "tls.crt"):
        (staging / file).replace(folder / file)


def test_tls_whose_certificate_is_renewed(urls: list[str], tmp_path: Path, kit: Any, tools: Any) -> None:
    """Encrypted, and with the new certificate soon after it was put there, without a restart."""
    folder = tmp_path / "tls"
    missing = {"CARTWHEEL_HOME": str(tmp_path), "CARTWHEEL_GATEWAY_TLS_DIR": str(folder)}
    assert "there is no tls.crt" in kit.run_verb("serving", "initialise", environment=missing).stderr
    certificate(folder, "first")
    gateway = kit.Gateway(tmp_path, urls, tls_dir=str(folder))
    try:
        gateway.put(Traffic(stable=1))
        trusted = str(folder / "tls.crt")
        with Client(gateway.token, gateway.url, verify=trusted) as client:
            tools.wait_until(lambda: not client.recommend(["x"])[0].fallback, "an answer")
        with pytest.raises(httpx.TransportError):
            httpx.get(gateway.url.replace("https", "http") + "/livez", trust_env=False)
        certificate(folder, "second")

        def renewed() -> bool:
            with httpx.Client(verify=trusted, trust_env=False) as http:
                return http.get(f"{gateway.url}/livez").status_code == 200

        tools.wait_until(renewed, "the new certificate")
    finally:
        gateway.stop()


class Constant(BaseHTTPRequestHandler):
    """A model server that answers everything with one list."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.do_POST()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        body = b'{"predictions": [{"items": ["a"], "scores": [1.0]}]}'
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.mark.parametrize("is_known", [True, False])
def test_a_model_server_whose_certificate_nobody_knows(tmp_path: Path, kit: Any, tools: Any, is_known: bool) -> None:
    """It is asked only if an authority that the gateway trusts has signed its certificate, for its very name."""
    certificate(tmp_path / "tls", "backend")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Constant)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "tls" / "tls.crt", tmp_path / "tls" / "tls.key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    authority = str(tmp_path / "tls" / "tls.crt") if is_known else ""
    gateway = kit.Gateway(tmp_path, [f"https://localhost:{server.server_port}"], authority)
    try:
        gateway.put(Traffic(stable=1, popular=json.dumps(kit.POPULAR)))
        time.sleep(2)  # until it was looked at
        shown = gateway.predict("x").json()["predictions"][0]
        assert shown == ({"items": ["a"], "scores": [1.0]} if is_known else kit.POPULAR)
    finally:
        gateway.stop()
        server.shutdown()
