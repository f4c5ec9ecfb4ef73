"""A challenger meets shoppers: a real gateway in front of a model server, verdicts from what was counted."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pandas as pd
import pytest
import tensorflow as tf
from deltalake import write_deltalake
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from contracts.names import NOTHING_TO_DO
from contracts.ports import free_ports
from contracts.settings import settings
from contracts.tables import ATTRIBUTIONS, EXPOSURES
from serving.rollout import outcomes
from tests.serving.installation import Shop
from tests.verbs import MODEL

pytestmark = pytest.mark.slow


class OpenShop(Shop):
    """A shop whose gateway runs, and that shoppers ask."""

    def open(self) -> None:
        """Deploy a first model, start the servers and wait until it answers."""
        port, metrics_port = free_ports(2)
        self.settings |= {
            "CARTWHEEL_GATEWAY_PORT": str(port), "CARTWHEEL_GATEWAY_METRICS_PORT": str(metrics_port),
            "CARTWHEEL_GATEWAY_REQUESTS_PER_S": "100000", "CARTWHEEL_GATEWAY_TIMEOUT_MS": "10000",
            "CARTWHEEL_ROLLOUT_SHADOW_SHARE": "1", "CARTWHEEL_ROLLOUT_SHARES": "0.1,0.3",
            "CARTWHEEL_ROLLOUT_MIN_REQUESTS": "40",
        }  # fmt: skip
        self.verb("initialise")
        self.server.argv = self.server_command()
        self.server.start()
        self.gateway = subprocess.Popen(shlex.split(self.verb("command", "--gateway").stdout))
        token = self.verb("token", "issue", "shop").stdout.strip()
        self.http = httpx.Client(
            base_url=f"http://127.0.0.1:{port}",
            headers={"authorization": f"Bearer {token}"}, trust_env=False, timeout=30,
        )  # fmt: skip
        self.deploy(self.register(1))
        end_s = time.monotonic() + 60
        while time.monotonic() < end_s:
            try:
                if self.http.get("/readyz").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        raise AssertionError("the gateway does not get ready")

    def close(self) -> None:
        self.server.stop()
        self.gateway.kill()
        self.gateway.wait()

    def ask(self, user: str) -> httpx.Response:
        return self.http.post(f"/v1/models/{MODEL}:predict", json={"instances": [{"user_id": user}]})

    def shoppers(self, count: int) -> Counter[tuple[int, str, str]]:
        """Let shoppers ask; how many were answered with which status, in which arm, by which version."""
        counts: Counter[tuple[int, str, str]] = Counter()
        for number in range(count):
            answer = self.ask(f"user-{number}")
            headers = answer.headers
            counts[
                answer.status_code, headers.get("x-cartwheel-arm", ""), headers.get("x-cartwheel-model-version", "")
            ] += 1
        time.sleep(0.2)
        return counts

    def advance(self, version: int, to: str, code: int) -> str:
        return self.verb("advance", "--version", str(version), "--to", to, code=code).stderr


@pytest.fixture(scope="module")
def opened(
    tmp_path_factory: pytest.TempPathFactory, mlflow_store: Path, exported: Callable[..., Path], tools: Any
) -> Iterator[OpenShop]:
    folder = tmp_path_factory.mktemp("open")
    shutil.copy(mlflow_store, folder / "mlflow.db")
    shop = OpenShop(folder, exported, tools)
    try:
        shop.open()
        yield shop
    finally:
        shop.close()


@pytest.fixture
def shop(opened: OpenShop) -> OpenShop:
    """The shop with nothing on its way."""
    if (challenger := opened.rollout()["challenger"]) is not None:
        opened.verb("reject", "--version", str(challenger))
    return opened


def test_a_good_challenger_becomes_champion(shop: OpenShop) -> None:
    """From one share to the next, as shoppers ask; each step waits for enough of them."""
    champion = str(shop.rollout()["champion"])
    version = shop.register(2)
    shop.bring(version)
    assert "it takes 40 predictions, 0 were made" in shop.advance(version, "shadow", NOTHING_TO_DO)
    assert shop.shoppers(50) == {(200, "stable", champion): 50}
    assert "as shadow at 100.0%: pass: 50 predictions, 0 failed" in shop.advance(version, "shadow", 0)
    assert "it takes 40 predictions" in shop.advance(version, "canary", NOTHING_TO_DO)
    answered = shop.shoppers(600)
    assert 40 <= answered[200, "canary", str(version)] <= 85
    assert answered.total() == answered[200, "canary", str(version)] + answered[200, "stable", champion] == 600
    assert "as canary at 10.0%: pass" in shop.advance(version, "canary", NOTHING_TO_DO)
    assert 130 <= shop.shoppers(600)[200, "canary", str(version)] <= 230
    assert "it may lose more than 0.05 of the hit rate" in shop.advance(version, "canary", NOTHING_TO_DO)
    settings, shop.settings = shop.settings, shop.settings | {"CARTWHEEL_ROLLOUT_PATIENCE_H": "0"}
    assert "as canary at 30.0%: pass: undecided after 0.0 hours" in shop.advance(version, "canary", 0)
    shop.settings = settings
    shop.bring(version, "promote")
    assert shop.shoppers(50) == {(200, "stable", str(version)): 50}
    assert [what for number, what, _ in shop.history() if number == version] == [
        *("staged", "validated", "loaded", "shadow", "passed", "canary", "passed", "canary", "passed", "promoted")
    ]


@pytest.mark.parametrize(("kind", "reason"), [("failing", "50 of 50 predictions failed"), ("slow", "p90 is")])
def test_a_bad_challenger_is_stopped_as_shadow(shop: OpenShop, kind: str, reason: str) -> None:
    """It fails, or takes long, for shoppers that no golden request is of; not one of them has noticed."""
    champion = str(shop.rollout()["champion"])
    version = shop.register(3, kind)
    shop.bring(version)
    shop.shoppers(100)
    time.sleep(6)  # Envoy puts the histograms of its threads together every five seconds
    shop.advance(version, "shadow", NOTHING_TO_DO)
    assert shop.shoppers(50) == {(200, "stable", champion): 50}
    time.sleep(6)
    assert reason in shop.advance(version, "shadow", 1)
    assert shop.history()[-1] == (version, "rejected", int(champion))
    assert shop.rollout()["change"]["evidence"]["requests"] == 50
    shop.verb("pending", code=NOTHING_TO_DO)


def test_a_bad_canary_is_stopped_and_has_never_had_more_than_its_share(shop: OpenShop) -> None:
    """Those whom it has failed are few, and are answered by the champion from then on."""
    champion = str(shop.rollout()["champion"])
    version = shop.register(3, "failing")
    shop.bring(version)
    shop.verb("canary", "--version", str(version), "--share", "0.1")
    answered = shop.shoppers(400)
    failed = sum(count for (status, arm, _), count in answered.items() if arm == "canary" or status != 200)
    assert 15 <= failed <= 65
    assert answered[200, "stable", champion] == 400 - failed
    assert "predictions failed, and 0 of the champion's" in shop.advance(version, "canary", 1)
    assert shop.shoppers(400) == {(200, "stable", champion): 400}
    assert f"version {version} was stopped" not in shop.verb("history").stdout
    assert f"version {version} rejected, by " in shop.verb("history").stdout


def test_a_bad_canary_is_stopped_also_where_it_is_asked_by_grpc(shop: OpenShop) -> None:
    """At the model server's own socket; what it fails is counted for its arm by the status that HTTP has for it."""
    champion, version = shop.rollout()["champion"], shop.register(3, "failing")
    shop.bring(version)
    shop.verb("canary", "--version", str(version), "--share", "0.3")
    bearer = [("authorization", shop.http.headers["authorization"])]
    answered: Counter[tuple[int | None, str]] = Counter()
    with grpc.insecure_channel(f"127.0.0.1:{shop.http.base_url.port}") as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        for number in range(200):
            request = predict_pb2.PredictRequest(model_spec={"name": MODEL})
            request.inputs["user_id"].CopyFrom(tf.make_tensor_proto([f"user-{number}"]))
            try:
                answer = stub.Predict(request, metadata=bearer, timeout=10)
                answered[answer.model_spec.version.value, "OK"] += 1
            except grpc.RpcError as error:
                answered[None, error.code().name] += 1
    assert answered.keys() == {(champion, "OK"), (None, "INVALID_ARGUMENT")}
    assert 35 <= answered[None, "INVALID_ARGUMENT"] <= 85
    time.sleep(0.2)
    assert "predictions failed, and 0 of the champion's" in shop.advance(version, "canary", 1)


def test_a_share_that_a_kill_has_kept_back(shop: OpenShop) -> None:
    """The document says that it is a canary, and the gateway does not know: looking at it again gives it its share."""
    version = shop.register(2)
    shop.bring(version)
    shop.killed_at("gateway.process.put", "advance", "--version", str(version), "--to", "canary")
    assert (shop.rollout()["state"], shop.answering()[0]) == ("canary", shop.rollout()["champion"])
    shop.advance(version, "canary", NOTHING_TO_DO)
    assert shop.shoppers(300)[200, "canary", str(version)] > 10


def test_a_canary_that_shoppers_take_less_of_is_stopped(shop: OpenShop, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what landed and was attributed; it answers without error, and as fast as the champion."""
    version = shop.register(2)
    shop.bring(version)
    shop.verb("canary", "--version", str(version), "--share", "0.3")
    step = shop.rollout()["step"]
    users = range(3000)
    shown = pd.DataFrame({
        "interval": 1, "request_id": [f"r{user}" for user in users], "step": step,
        "arm": ["canary" if user % 3 == 0 else "stable" for user in users], "items": [["a"]] * 3000, "scores": [[1.0]] * 3000,
    })  # fmt: skip
    # A fifth of the canary's users take what they are shown, and half of the champion's.
    hits = [user % 5 == 0 if user % 3 == 0 else user % 2 == 0 for user in users]
    attributions = shown[["interval", "request_id"]].assign(
        user_id=[f"u{user}" for user in users], taken_items=[["a"] if hit else ["x"] for hit in hits]
    )
    monkeypatch.setenv("CARTWHEEL_HOME", str(shop.folder))
    settings.cache_clear()
    for table, rows in ((EXPOSURES, shown), (ATTRIBUTIONS, attributions)):
        write_deltalake(table.uri, rows, partition_by=["interval"], mode="overwrite")
    settings.cache_clear()
    assert "shoppers take less of it: hit rate 0.200 of 1000 users" in shop.advance(version, "canary", 1)
    assert shop.rollout()["change"]["evidence"]["gain"][2] < 0
    assert shop.rollout()["challenger"] is None


def test_a_bad_champion_is_rolled_back_by_itself(shop: OpenShop) -> None:
    """Promoted by a person without being a canary, it fails; the one before does not, and answers again."""
    champion = shop.rollout()["champion"]
    shop.deploy(shop.register(2))
    before, version = shop.rollout()["champion"], shop.register(3, "failing")
    shop.verb("bake", "--version", str(champion))  # it is not the newest, and nobody watches it
    shop.deploy(version)
    shop.verb("bake", "--version", str(version), code=NOTHING_TO_DO)
    assert set(shop.shoppers(60)) == {(400, "stable", str(version))}
    assert f"version {version} was rolled back: 60 of 60" in shop.verb("bake", "--version", str(version), code=1).stderr
    assert shop.shoppers(20) == {(200, "stable", str(before)): 20}
    assert shop.history()[-1] == (version, "rolled back", before)
    shop.verb("bake", "--version", str(version))
    settings, shop.settings = shop.settings, shop.settings | {"CARTWHEEL_ROLLOUT_BAKE_MINUTES": "0"}
    good = shop.register(4)
    shop.deploy(good)
    shop.verb("bake", "--version", str(good))
    shop.settings = settings


def test_an_alert_takes_a_champion_back(shop: OpenShop, alertmanager: str, tools: Any) -> None:
    """One that asks for it, is not silenced and began after the promotion; an Alertmanager that is away takes nothing back."""

    def alert(name: str, **labels: str) -> None:
        fired = {"labels": {"alertname": name} | labels, "annotations": {"summary": "it is bad"}}
        httpx.post(f"{alertmanager}/api/v2/alerts", json=[fired]).raise_for_status()

    alert("Earlier", cartwheel="rollback")
    before, version = shop.rollout()["champion"], shop.register(4)
    shop.deploy(version)
    promoted_s = time.time()
    settings, shop.settings = shop.settings, shop.settings | {"CARTWHEEL_ROLLOUT_ALERTMANAGER_URL": alertmanager}
    alert("Other", severity="critical")
    shop.verb("bake", "--version", str(version), code=NOTHING_TO_DO)
    away = shop.settings | {"CARTWHEEL_ROLLOUT_ALERTMANAGER_URL": "http://127.0.0.1:1"}
    shop.settings, here = away, shop.settings
    assert "Alertmanager does not answer" in shop.verb("bake", "--version", str(version), code=NOTHING_TO_DO).stderr
    shop.settings = here
    tools.wait_until(lambda: time.time() > promoted_s + 1, "the second of the promotion to be over")
    alert("Errors", cartwheel="rollback")
    assert "alert Errors: it is bad" in shop.verb("bake", "--version", str(version), code=1).stderr
    assert shop.history()[-1] == (version, "rolled back", before)
    shop.settings = settings


def test_rolled_back_under_load(shop: OpenShop) -> None:
    """Ten thousand requests, none fails; once the gateway has gone back, nobody gets the version that was left."""
    before, version = shop.rollout()["champion"], shop.register(4)
    shop.deploy(version)
    answers: list[tuple[float, int, str]] = []
    stop = threading.Event()

    def load() -> None:
        with httpx.Client(base_url=shop.http.base_url, headers=shop.http.headers, trust_env=False, timeout=30) as http:
            while not stop.is_set():
                answer = http.post(f"/v1/models/{MODEL}:predict", json={"instances": [{"user_id": "user-1"}]})
                answers.append((time.time(), answer.status_code, answer.headers.get("x-cartwheel-model-version", "")))

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    while len(answers) < 5_000:
        time.sleep(0.05)
    shop.verb("rollback")
    while len(answers) < 10_000:
        time.sleep(0.05)
    stop.set()
    for thread in threads:
        thread.join()
    assert {(status, answered) for _, status, answered in answers} == {(200, str(before)), (200, str(version))}
    swapped_s = (shop.folder / "gateway" / "routes.json").stat().st_mtime
    last_s = max(moment for moment, _, answered in answers if answered == str(version))
    assert last_s - swapped_s < 1, "it took too long for a busy machine, even"
    print(f"the last answer of version {version} came {1e3 * (last_s - swapped_s):.0f} ms after the swap")


def test_model_servers_that_disagree(shop: OpenShop, exported: Callable[..., Path], tools: Any, tmp_path: Path) -> None:
    """One that answers otherwise, or that cannot load it, stops the version; one that is down leaves it on its way."""
    champion = shop.rollout()["champion"]
    other = tools.Server("local", tmp_path, start=False)
    version = shop.register(5)
    for number, kind in ((champion, 1), (version, 6)):
        shutil.copytree(exported(kind), tmp_path / "models" / str(number))
    other.config_path.write_text(
        f"model_config_list {{ {tools.model_text(MODEL, tmp_path / 'models', [champion, version], stable=champion, canary=version)} }}"
    )
    shop.bring(version, "stage", "")
    both = ",".join(f"http://127.0.0.1:{each.rest_port}" for each in (shop.server, other))
    settings_before, shop.settings = shop.settings, shop.settings | {"CARTWHEEL_SERVING_URL": both}
    try:
        words = ("load", "--version", str(version), "--deadline-s", "3")
        assert (
            f"for version {version} to be AVAILABLE at http://127.0.0.1:{other.rest_port}"
            in shop.verb(*words, code=1).stderr
        )
        assert shop.rollout()["state"] == "loaded"  # as is wanted still
        shop.verb("reject", "--version", str(version))  # which waits for nobody who is dead, nor does a rollback
        assert shop.rollout()["challenger"] is None
        shop.verb("stage", "--version", str(version), "--again")
        shop.note_validation()
        other.start()
        assert "does not answer as trained at" in shop.verb(*words, code=1).stderr
        assert shop.rollout()["rejected"][str(version)].startswith(f"version {version} does not answer")
    finally:
        shop.settings = settings_before
        if other.process:
            other.stop()


def test_outcomes_of_a_step_are_read_from_the_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of that step only, and of nobody who was pinned; without tables, or from before there were steps, there are none."""
    monkeypatch.setenv("CARTWHEEL_HOME", str(tmp_path))
    settings.cache_clear()
    assert outcomes.of_step(3) == {}
    rows = [
        ("r1", 7, 3, "canary", ["a"]), ("r2", 8, 3, "stable", ["b"]), ("r3", 7, 2, "canary", ["a"]), ("r4", 7, 3, "pinned", ["a"]),
    ]  # fmt: skip
    exposures = pd.DataFrame(rows, columns=["request_id", "interval", "step", "arm", "items"]).assign(
        scores=[[1.0]] * 4
    )
    write_deltalake(EXPOSURES.uri, exposures.drop(columns="step"), partition_by=["interval"])
    attributions = pd.DataFrame(
        {"interval": [7, 8, 7], "request_id": ["r1", "r2", "r3"], "user_id": ["ann", "bob", "cid"]}
    )
    attributions = attributions.assign(taken_items=[["a"], ["x"], ["a"]])
    write_deltalake(ATTRIBUTIONS.uri, attributions, partition_by=["interval"])
    assert outcomes.of_step(3) == {}
    write_deltalake(EXPOSURES.uri, exposures, partition_by=["interval"], mode="overwrite", schema_mode="overwrite")
    by_arm = outcomes.of_step(3)
    settings.cache_clear()
    assert {arm: (each.num_lists, each.num_users, each.hit_rate) for arm, each in by_arm.items()} == {
        "canary": (1, 1, 1.0), "stable": (1, 1, 0.0),
    }  # fmt: skip
    assert json.dumps(vars(by_arm["canary"]))
