"""The page in Airflow's UI: served by the app that Airflow mounts, to those who are logged in and nobody else."""

from __future__ import annotations

import importlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import write_deltalake
from fastapi import FastAPI
from fastapi.testclient import TestClient

from contracts import tables
from contracts.settings import settings
from monitoring import status

MOMENT = datetime(2026, 3, 1, 4, 5, tzinfo=UTC)


def ledger_row(source: str, batch: int, interval: int, *counts: int) -> dict[str, Any]:
    read, landed, quarantined, duplicates = counts
    return {
        "source": source, "batch": batch, "interval": interval, "read": read, "landed": landed,
        "quarantined": quarantined, "duplicates": duplicates, "bronze_version": batch, "committed_at": MOMENT,
    }  # fmt: skip


@pytest.fixture
def server(home: Path) -> FastAPI:
    """What the api-server does with the plugin: its app mounted under its prefix, beside an auth manager."""
    from airflow.api_fastapi.app import create_auth_manager
    from airflow.models.revoked_token import RevokedToken
    from airflow.settings import engine

    RevokedToken.__table__.create(engine, checkfirst=True)  # all of Airflow's schema that a login asks
    create_auth_manager()
    (app,) = importlib.import_module("cartwheel_plugin").CartwheelPlugin().fastapi_apps
    server = FastAPI()
    server.mount(app["url_prefix"], app["app"])
    return server


@pytest.fixture
def visitor(server: FastAPI) -> TestClient:
    """Somebody who is not logged in."""
    return TestClient(server, raise_server_exceptions=False)


@pytest.fixture
def reader(server: FastAPI) -> TestClient:
    """Somebody whose browser sends Airflow's cookie, with the least role that may look at things."""
    from airflow.api_fastapi.app import get_auth_manager
    from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser

    token = get_auth_manager().generate_jwt(SimpleAuthManagerUser(username="reader", role="viewer"))
    return TestClient(server, cookies={"_token": token})


@pytest.fixture
def shop(home: Path) -> None:
    """Two sources, one with a batch that does not balance; three quarantined rows; a failed gate; a decision; a model."""
    ledger = [
        ledger_row("<b>web</b>", 1, 7, 10, 6, 3, 1),
        ledger_row("<b>web</b>", 2, 8, 20, 20, 0, 0),
        ledger_row("files", 1, 8, 5, 4, 0, 0),
    ]
    write_deltalake(tables.LEDGER.uri, pa.Table.from_pylist(ledger))
    untimed = tables.UNTIMED
    rows = [(untimed, ["occurred_at: 'when?'"]), (untimed, ["occurred_at: 'never'"]), (8, ["returned"])]
    quarantine = [
        {"interval": interval, "source": "files", "event_id": str(number), "reasons": reasons, "row": "{}"}
        for number, (interval, reasons) in enumerate(rows)
    ]  # fmt: skip
    write_deltalake(tables.QUARANTINE.uri, pa.Table.from_pylist(quarantine), partition_by=["interval"])
    reports = home / "reports"
    for folder in ("gates", "monitoring", "data_docs/expectations"):
        (reports / folder).mkdir(parents=True)
    failure = {"table": "items", "column": "name", "observed": "<i>2</i> of 5 rows", "rule": "must not be null"}
    verdict = {"passed": False, "line": "gate clean FAILED", "table_versions": {"items": 3}, "failures": [failure]}
    (reports / "gates" / "clean.json").write_text(json.dumps(verdict))
    (reports / "data_docs" / "index.html").write_text("<p>all answers</p>")
    (reports / "data_docs" / "expectations" / "items.html").write_text("<p>rules of items</p>")
    for interval, reason in ((9, "too early"), (10, "drift of 0.3")):
        report = {"interval": interval, "decision": {"retrain": interval == 10, "reasons": [reason]}}
        (reports / "monitoring" / f"{interval}.json").write_text(json.dumps(report))
    (home / "serving").mkdir()
    change = {"version": 5, "what": "canary", "time": "2026-03-01T04:05:06+00:00", "who": "<i>me</i>", "why": "so"}
    rollout = {"champion": 4, "previous": 3, "challenger": 5, "state": "canary", "share": 0.1, "change": change}
    (home / "serving" / "rollout.json").write_text(json.dumps(rollout))
    report = {
        "version": 5,
        "what": "rejected",
        "share": 0,
        "evidence": {"requests": 120, "failed": 30},
        "why": "<b>bad",
    }
    lines = [change | {"share": 0.1, "evidence": {}}, report | {"time": "later", "who": "me"}]
    (home / "serving" / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"vers')


@pytest.mark.parametrize("path", ["", "docs/index.html", "docs/expectations/items.html", "docs/../../secrets.json"])
def test_nobody_reads_without_a_login(shop: None, visitor: TestClient, path: str) -> None:
    """Without Airflow's token there is no page and no file, and nothing describes the app."""
    response = visitor.get(f"/cartwheel/{path}")
    assert response.status_code in (401, 404)
    assert "answers" not in response.text
    assert "rules of items" not in response.text
    if ".." not in path:
        assert response.status_code == 401


@pytest.mark.parametrize("path", ["openapi.json", "redoc"])
def test_the_app_does_not_describe_itself(visitor: TestClient, path: str) -> None:
    """The routes that FastAPI adds by itself, which no login guards, are off."""
    assert visitor.get(f"/cartwheel/{path}").status_code == 404


def test_a_user_without_a_role_is_refused(shop: None, server: FastAPI) -> None:
    """A login alone is not enough: Airflow's own rule for reading its pages holds here too."""
    from airflow.api_fastapi.app import get_auth_manager
    from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser

    token = get_auth_manager().generate_jwt(SimpleAuthManagerUser(username="guest", role=None))
    client = TestClient(server, headers={"Authorization": f"Bearer {token}"})
    assert client.get("/cartwheel/").status_code == 403


def test_the_page_links_to_where_a_browser_finds_mlflow(
    shop: None, reader: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In Compose programs reach MLflow by a name that no browser knows."""
    monkeypatch.setenv("CARTWHEEL_MLFLOW_TRACKING_URI", "http://mlflow:5000")
    for link, shown in (("", "http://mlflow:5000"), ("http://127.0.0.1:5000", "http://127.0.0.1:5000")):
        monkeypatch.setenv("CARTWHEEL_MLFLOW_LINK", link)
        settings.cache_clear()
        assert f"{shown}/#/models/recommender" in reader.get("/cartwheel/").text


def test_the_page_tells_what_the_tables_say(shop: None, reader: TestClient) -> None:
    """Sums of the ledger, reasons of the quarantine with their command, the verdict, the decision and the champion."""
    html = " ".join(reader.get("/cartwheel/").text.split())
    web = '<td class="number">2</td><td class="number">30</td> <td class="number">26</td><td class="number">3</td><td class="number">1</td>'
    assert f'<td>&lt;b&gt;web&lt;/b&gt;</td>{web} <td><span class="good">✓ yes' in html
    assert html.count("✗ no<") == 1
    assert "2026-03-01 04:05 UTC" in html
    assert "10 read, 6 landed, 3 quarantined, 1 duplicates" in html
    assert '<td>occurred_at</td><td class="number">2</td> <td>without a time</td>' in html
    assert "<code>python -m spark_jobs.quarantine redrive --reason occurred_at --source files</code>" in html
    assert "items.name: &lt;i&gt;2&lt;/i&gt; of 5 rows (must not be null)" in html
    assert '<a href="docs/expectations/items.html">items</a>' in html
    assert "retrain</p> <ul><li>drift of 0.3</li>" in html
    assert "Version 4, before it version 3" in html
    assert "On its way: version 5, canary at 10 % of the traffic" in html
    assert "version 5 canary, 2026-03-01T04:05:06+00:00, by &lt;i&gt;me&lt;/i&gt;: so" in html
    assert html.index("✗ rejected") < html.index("<td>canary</td>")
    assert '<td class="number">120</td><td class="number">30</td> <td>&lt;b&gt;bad</td>' in html
    assert "<b>web" not in html


def test_an_empty_installation_has_a_page(reader: TestClient) -> None:
    """Before the first landing there is nothing to tell, and the page says so."""
    html = reader.get("/cartwheel/").text
    assert "Nothing has landed with a ledger yet" in html
    assert "Nothing is set aside" in html
    assert "Nothing was deployed yet" in html
    assert html.count("none yet") == 4


def test_one_broken_file_does_not_hide_the_rest(shop: None, home: Path, reader: TestClient) -> None:
    """A report that is not JSON is named; the ledger is still there."""
    (home / "reports" / "gates" / "clean.json").write_text('{"passed": tr')
    html = reader.get("/cartwheel/").text
    assert "Cannot be read: InputError: not JSON" in html
    assert "&lt;b&gt;web" in html


def test_the_data_docs_are_served_and_nothing_beside_them(shop: None, home: Path, reader: TestClient) -> None:
    """Files of their folder, by their place in it; no way out by dots, by an absolute path or by a link."""
    (home / "secrets.json").write_text("hidden")
    (home / "reports" / "data_docs" / "link.html").symlink_to(home / "secrets.json")
    assert reader.get("/cartwheel/docs/expectations/items.html").text == "<p>rules of items</p>"
    for path in (
        "..%2f..%2fsecrets.json",
        "%2e%2e/%2e%2e/secrets.json",
        f"%2f{home}/secrets.json",
        "link.html",
        "%00",
        "",
    ):
        response = reader.get(f"/cartwheel/docs/{path}")
        assert response.status_code == 404, path
        assert "hidden" not in response.text


def test_airflow_finds_the_page(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Airflow loads the plugin from the plugins folder, without error, with its place in the navigation."""
    from airflow import plugins_manager

    monkeypatch.setenv("AIRFLOW__CORE__PLUGINS_FOLDER", str(Path(__file__).resolve().parents[2] / "plugins"))
    monkeypatch.setattr(
        plugins_manager.settings, "PLUGINS_FOLDER", str(Path(__file__).resolve().parents[2] / "plugins")
    )
    plugins_manager._get_plugins.cache_clear()
    plugins, errors = plugins_manager._get_plugins()
    plugins_manager._get_plugins.cache_clear()
    assert errors == {}
    (plugin,) = [plugin for plugin in plugins if plugin.name == "cartwheel"]
    (view,) = plugin.external_views
    assert (view["name"], view["destination"], view["href"]) == (
        "Cartwheel",
        "nav",
        plugin.fastapi_apps[0]["url_prefix"] + "/",
    )


def test_how_runs_end_is_noted(home: Path) -> None:
    """Of our DAGs, the last run that has ended."""
    from airflow.models.dagrun import DagRun
    from cartwheel_airflow import runs

    assert runs in importlib.import_module("cartwheel_plugin").CartwheelPlugin().listeners
    for dag_id, state, note in (
        ("ingest_events", "success", runs.on_dag_run_success),
        ("ingest_events", "failed", runs.on_dag_run_failed),
        ("somebody_elses", "failed", runs.on_dag_run_failed),
    ):
        run = DagRun(dag_id=dag_id, run_id="r1", state=state)
        run.end_date = MOMENT
        note(run)
    ended = {"state": "failed", "run_id": "r1", "ended": MOMENT.isoformat()}
    assert status.runs() == {"ingest_events": ended}
