"""The champion's answers to everybody, by a real SavedModel in Spark's workers, beside those of a real model server."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from contracts import champion
from contracts.files import write_json
from contracts.lake import exists
from contracts.ports import free_ports
from contracts.settings import REPOSITORY, settings
from contracts.tables import RECOMMENDATIONS, USER_HISTORIES
from spark_jobs import pending, recommend, storage
from tests.verbs import MODEL


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SavedModel that knows ann, and nobody else of the shop's users but bob."""
    from tests.training.tiny import CONFIG, make_ranker, tiny_shop
    from training.export import export

    folder = tmp_path_factory.mktemp("model") / "1"
    export(make_ranker(), tiny_shop(), CONFIG, folder)
    return folder


@pytest.fixture
def shop(copied_shop: Any, model: Path) -> Any:
    """The tiny shop, built, with a third user whom the model does not know. No model serves."""
    with (copied_shop.folder / "events.csv").open("a", encoding="utf-8") as file:
        file.write("2024-01-03T08:00:00,zoe,apple,purchase,s9,1,1.00,\n")
    copied_shop.build()
    for version in (1, 2):
        shutil.copytree(model, champion.base_path() / str(version))
    return copied_shop


def serve(version: int) -> None:
    """Make a version the champion, for whoever asks the document."""
    write_json(champion.document_path(), {"champion": version})


def served(model: Path, users: list[str], folder: Path) -> list[dict[str, Any]]:
    """What a model server answers."""
    rest, grpc = free_ports(2)
    command = [sys.executable, "-m", "serving.local_server", f"--rest_api_port={rest}", f"--port={grpc}"]
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(
            [*command, f"--model_name={MODEL}", f"--model_base_path={model.parent}"],
            cwd=REPOSITORY, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
    url, end_s = f"http://127.0.0.1:{rest}/v1/models/{MODEL}:predict", time.monotonic() + 60
    try:
        while time.monotonic() < end_s:
            try:
                answer = httpx.post(url, json={"instances": [{"user_id": user} for user in users]}, trust_env=False)
                if answer.status_code == 200:
                    return answer.json()["predictions"]
            except httpx.TransportError:
                time.sleep(0.2)
        raise AssertionError((folder / "server.log").read_text())
    finally:
        server.terminate()
        server.wait(30)


@pytest.mark.slow
def test_everybody_gets_what_the_endpoint_answers(shop: Any, model: Path, tmp_path: Path) -> None:
    """The same items and scores, also for whom the model does not know; each user once, in the bucket of the histories."""
    assert pending.recommend() is None
    assert recommend.main() == 0
    assert not exists(RECOMMENDATIONS)
    serve(1)
    assert recommend.main() == 0
    rows = shop.rows(RECOMMENDATIONS)
    assert [(row["user_id"], row["model_version"]) for row in rows] == [("ann", 1), ("bob", 1), ("zoe", 1)]
    online = served(model, ["ann", "bob", "zoe"], tmp_path)
    assert [row["items"] for row in rows] == [row["items"] for row in online]
    np.testing.assert_allclose([row["scores"] for row in rows], [row["scores"] for row in online], rtol=1e-6)
    assert rows[0]["items"] != rows[2]["items"]
    assert pending.recommend() is None
    before = storage.state(RECOMMENDATIONS)
    assert recommend.main() == 0
    assert storage.state(RECOMMENDATIONS) == before
    serve(2)
    assert recommend.main() == 0
    assert {row["model_version"] for row in shop.rows(RECOMMENDATIONS)} == {2}


@pytest.mark.slow
def test_a_killed_run_is_gone_on_with(shop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after its first bucket and again in the commit, it ends with everybody; what was done is done once."""
    monkeypatch.setattr(recommend, "USERS_AT_ONCE", 1)
    serve(1)
    stage, staged = storage.stage, []

    def counted(*arguments: Any, **options: Any) -> None:
        if len(staged) == 1 and not killed:
            killed.append("between two buckets")
            raise KeyboardInterrupt
        staged.append(arguments)
        stage(*arguments, **options)

    def cut(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    killed: list[str] = []
    monkeypatch.setattr(storage, "stage", counted)
    with pytest.raises(KeyboardInterrupt):
        recommend.main()
    assert not exists(RECOMMENDATIONS)
    with monkeypatch.context() as patch:
        patch.setattr(storage.deltalake.DeltaTable, "create_write_transaction", cut)
        with pytest.raises(KeyboardInterrupt):
            recommend.main()
    assert len(staged) == len({bucket for _, bucket in shop.values(USER_HISTORIES, "user_id", "bucket")}) > 1
    assert shop.rows(RECOMMENDATIONS) == []
    assert recommend.main() == 0
    assert shop.values(RECOMMENDATIONS, "user_id") == [("ann",), ("bob",), ("zoe",)]
    assert list((settings().home_dir / "spool" / "recommendations").iterdir()) == []


@pytest.mark.slow
def test_a_model_is_loaded_once_in_a_worker(spark: Any, model: Path) -> None:
    """Sixteen tasks, and then sixteen more, are answered by the same workers without loading it again."""
    from spark_jobs import scoring

    def loads(batches: Any) -> Any:
        import pyarrow as pa

        assert sum(len(batch) for batch in scoring.score(batches, folder=str(model))) == 1
        yield pa.RecordBatch.from_pydict({"pid": [os.getpid()], "loads": [scoring._signature.cache_info().misses]})

    users = spark.range(16, numPartitions=16).selectExpr("cast(id AS string) AS user_id")
    tasks = users.mapInArrow(loads, "pid bigint, loads bigint")
    first, second = ([(row["pid"], row["loads"]) for row in tasks.collect()] for _ in range(2))
    assert len(set(first)) <= 2 < len(first)
    assert set(second) <= set(first)
