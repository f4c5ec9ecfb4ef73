"""Shops of other kinds, through every stage by its command line to an endpoint that recommends. Without Airflow."""

from __future__ import annotations

import gzip
import json
import shlex
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from mlflow import MlflowClient

from contracts.names import EXPERIMENT
from contracts.ports import free_ports
from contracts.settings import REPOSITORY
from serving.backend import Backend
from tests.verbs import MODEL, run_verb

pytestmark = pytest.mark.slow

PLAIN = """
name = "plain"
[interval]
length = "7d"
first = 2024-01-01T00:00:00
[events]
path = "events.csv.gz"
[events.columns]
user_id = "who"
item_id = "what"
occurred_at = "when"
"""

CLICKS = """
name = "clicks"
[interval]
length = "5min"
first = 2024-01-01T00:00:00
[events]
path = "events.csv.gz"
types = { view = 1.0, cart = 3.0, purchase = 5.0 }
targets = ["cart", "purchase"]
[events.columns]
user_id = "who"
item_id = "what"
occurred_at = "when"
event_type = "kind"
session_id = "visit"
price = "price"
[items.columns]
item_id = "what"
name = ["brand"]
category = "shelf"
"""


def visits(num_steps: int, visits_each: int, step: pd.Timedelta, *, change: int) -> list[tuple[str, str, pd.Timestamp]]:
    """Eighty users, each at some of the steps of time, who come for the same again, else for one of six favourites.

    From the step `change` on they have others: who counts all of the past alike ranks the old ones too high.
    """
    generator = np.random.default_rng(7)
    rows = []
    for user in range(80):
        early, late, item = *generator.choice(40, (2, 6), replace=False), None
        for place in sorted(generator.choice(num_steps, visits_each, replace=False)):
            drawn, favourites = generator.random(), early if place < change else late
            if drawn < 0.5 or item is None:
                item = favourites[generator.integers(6)] if drawn < 0.4 else generator.integers(40)
            when = pd.Timestamp("2024-01-01") + step * int(place) + step / 100 * user
            rows.append((f"user{user}", f"item{item}", when))
    return rows


def plain() -> pd.DataFrame:
    """Ten weeks of user, item and time."""
    return pd.DataFrame(visits(70, 30, pd.Timedelta(days=1), change=35), columns=["who", "what", "when"])


def clicks() -> pd.DataFrame:
    """An hour of views, most of which go on to a cart and some to a purchase."""
    rows = []
    for visit, (user, item, when) in enumerate(visits(60, 30, pd.Timedelta(minutes=1), change=0)):
        kinds = ["view", "cart", "purchase"][: 1 + (visit % 4 > 0) + (visit % 3 == 0)]
        for second, kind in enumerate(kinds):
            shelf = f"shelf{int(item[4:]) % 5}"
            rows.append(
                (user, item, when + pd.Timedelta(milliseconds=second), kind, visit, 9.5, f"brand of {item}", shelf)
            )
    return pd.DataFrame(rows, columns=["who", "what", "when", "kind", "visit", "price", "brand", "shelf"])


def as_clients_send_it(url: str) -> None:
    """What clients of TF Serving send is answered, or refused in words; nothing is answered 500."""

    def ask(body: Any, **headers: str) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return httpx.post(url, content=content, headers=headers, trust_env=False, timeout=60)

    plain = {"instances": [{"user_id": "user3"}]}
    items = ask(plain).json()["predictions"][0]["items"]
    packed = ask(gzip.compress(json.dumps(plain).encode()), **{"Content-Encoding": "gzip"})
    for same in (packed, ask({"instances": ["user3"]}), ask({"instances": [{"user_id": {"b64": "dXNlcjM="}}]})):
        assert same.json()["predictions"][0]["items"] == items
    assert ask({"inputs": {"user_id": ["user3"]}}).json()["outputs"]["items"] == [items]
    odd = [{"user_id": f"A/B 🧦 {number}"} for number in range(2000)]
    assert len(ask({"instances": odd}).json()["predictions"]) == 2000
    history = {"signature_name": "history"}
    request = history | {"instances": [{"item_id": ["no such", items[0]], "age_days": [2.0, 9.0]}]}
    assert len(ask(request).json()["predictions"][0]["items"]) == 10
    for wrong in (
        {"instances": [{"user_id": 1}]}, {"instances": [{"user_id": ["user3"]}]}, {"instances": [{"userId": "user3"}]},
        {"instances": []}, {"instances": [{"user_id": None}]},
        history | {"instances": [{"item_id": ["a"], "age_days": [2.0, 9.0]}]},
    ):  # fmt: skip
        refused = ask(wrong)
        assert (refused.status_code, list(refused.json())) == (400, ["error"]), wrong


def served(verb: Callable[..., str], rest_port: int, log: Path) -> list[list[str]]:
    """Roll version 1 out to a model server; its items for user3 and for somebody new."""
    verb("serving", "initialise")
    command = shlex.split(verb("serving", "command"))
    with (
        log.open("w") as output,
        subprocess.Popen(command, cwd=REPOSITORY, stdout=output, stderr=subprocess.STDOUT) as server,
    ):
        try:
            url = f"http://127.0.0.1:{rest_port}"
            while True:
                assert server.poll() is None, log.read_text()
                try:
                    httpx.get(f"{url}/v1/models/{MODEL}", trust_env=False)
                    break
                except httpx.TransportError:
                    time.sleep(0.1)
            for step in ("stage", "validate", "load", "promote"):
                verb("serving", step, "--version", "1")
            with Backend(url) as backend:
                answers = backend.recommend(["user3", "somebody-new"], version=1)
            as_clients_send_it(f"{url}/v1/models/{MODEL}/labels/stable:predict")
        finally:
            server.terminate()
    assert {answer.model_version for answer in answers} == {1}
    return [answer.items for answer in answers]


def exported(folder: Path) -> list[list[str]]:
    """The items that a SavedModel has for user3 and for somebody new."""
    model = tf.saved_model.load(str(folder))
    answer = model.signatures["serving_default"](user_id=tf.constant(["user3", "somebody-new"]))
    return [[item.decode() for item in items] for items in answer["items"].numpy()]


@pytest.mark.parametrize(
    ("declared", "events", "last", "is_served"),
    [(PLAIN, plain, 10, True), (CLICKS, clicks, 12, False)],
    ids=["plain", "clicks"],
)
def test_a_shop_goes_through_every_stage(
    spark: Any, mlflow_store: Path, tmp_path: Path, declared: str, events: Callable[[], pd.DataFrame], last: int,
    is_served: bool,
) -> None:  # fmt: skip
    """Three columns are enough, and so is a click stream with its items in it: landed, gated, learned; one is served."""
    (tmp_path / "shop.toml").write_text(declared)
    events().to_csv(tmp_path / "events.csv.gz", index=False)
    (tmp_path / "mlflow.db").write_bytes(mlflow_store.read_bytes())
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    MlflowClient(tracking_uri=store).create_experiment(EXPERIMENT, artifact_location=str(tmp_path / "artifacts"))
    [rest_port] = free_ports(1)
    environment = {
        "CARTWHEEL_HOME": str(tmp_path / "home"),
        "CARTWHEEL_DATASET": str(tmp_path / "shop.toml"),
        "CARTWHEEL_MLFLOW_TRACKING_URI": store,
        "CARTWHEEL_REST_PORT": str(rest_port),
        "CARTWHEEL_FOLD_OFFSETS": "1,2",
        "CARTWHEEL_TRAINING_INTERVALS": "5",
        "CARTWHEEL_TRAINING_EPOCHS": "16",  # of six steps each
        "CARTWHEEL_GATE_UNSURE": "pass",  # of eighty users
        "CARTWHEEL_SECRET_VERDICT_KEY": "5e" * 32,
    }

    def verb(*command: str) -> str:
        result = run_verb(*command, environment=environment)
        assert result.returncode == 0, f"{command}: {result.stdout}{result.stderr}"
        return result.stdout

    verb("spark_jobs.land", "--through", str(last))
    verb("expectations", "gate", "raw")
    verb("spark_jobs.clean")
    verb("expectations", "gate", "clean")
    verb("spark_jobs.features")
    verb("expectations", "gate", "lists")
    verb("expectations", "gate", "features")
    assert verb("monitoring", "decide").splitlines()[-1] == "retrain"
    key = verb("monitoring", "should-train").splitlines()[-1]
    for step in ("train", "gate", "register"):
        verb("training", step, "--key", key)
    if is_served:
        answers = served(verb, rest_port, tmp_path / "server.log")
    else:
        answers = exported(tmp_path / "home" / "training" / key / "saved_model")
    assert [len(set(items)) for items in answers] == [10, 10]
    taken = events().query("who == 'user3'").sort_values("when").what
    lately = taken[len(taken) // 2 :].value_counts()
    # What they came for last, which every second visit is for again, or one of their favourites.
    assert answers[0][0] in {taken.iloc[-1], *lately.index[:3]}
