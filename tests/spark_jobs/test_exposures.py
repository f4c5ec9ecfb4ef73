"""The gateway's log becomes rows: each list once, whatever is killed, and nothing is deleted before it has landed."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from contracts import exposures as log
from contracts.settings import settings
from contracts.tables import EXPOSURES
from serving.exposures import of_request
from spark_jobs import exposures, pending, storage

ONE = {"interval": 3, "items": ["bread", "apple"]}
COLUMNS = ("request_id", "interval", "user_id", "model_version", "items")


def aged() -> None:
    """Make the finished logs old enough to be deleted."""
    for path in log.finished_logs():
        os.utime(path, (0, 0))


def test_one_row_for_each_list(copied_shop: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Of several users each has a row; a replayed request stands for its own time, another for when it was served."""
    torn_late = json.dumps(
        {
            "request_id": "r8",
            "response": json.dumps({"predictions": [{"items": ["a"], "scores": [1.0]}]}),
            "served_at": "2026-01-01T00:00:00Z",
            "user_ids": ["ann"],
        }
    )[:-5]
    copied_shop.log_exposures(
        ONE | {"request_id": "r1", "user_id": "ann"},
        ONE | {"request_id": "r2", "user_ids": ["ann", "bob"]},
        ONE | {"request_id": "r3", "user_id": "eve", "fallback": "popular", "arm": None},
        ONE | {"request_id": "r4", "user_id": None},
        ONE | {"request_id": "r5", "user_id": "bob", "served_at": None},
        torn='{"request_id": "r6", "user_\n' + torn_late + "\n",
    )
    path = log.current_log()
    columnar = {"items": [["bread"], ["apple"]], "scores": [[2.0], [1.0]]}
    line = json.loads(path.read_text().splitlines()[1]) | {
        "request_id": "r7",
        "response": json.dumps({"outputs": columnar}),
    }
    path.write_text(json.dumps(line) + "\n" + path.read_text())
    assert exposures.waiting()
    assert exposures.land(copied_shop.dataset) == 8
    assert "8 rows landed, 2 lines that could not be read" in capsys.readouterr().out
    both = ["bread", "apple"]
    for request_id, who in (("r1", ["ann"]), ("r2", ["ann", "bob"]), ("r7", ["ann", "bob"]), ("r", [])):
        assert [shown["user_id"] for shown in of_request(request_id)] == who
    served_today = (datetime(2026, 1, 1) - datetime(2024, 1, 1)).days + 1
    assert copied_shop.values(EXPOSURES, *COLUMNS) == sorted(
        [
            ("r1", 3, "ann", 7, both),
            ("r2/0", 3, "ann", 7, both),
            ("r2/1", 3, "bob", 7, both),
            ("r3", 3, "eve", None, both),
            ("r4", 3, None, 7, both),
            ("r5", served_today, "bob", 7, both),
            ("r7/0", 3, "ann", 7, ["bread"]),
            ("r7/1", 3, "bob", 7, ["apple"]),
        ]
    )
    assert copied_shop.rows(EXPOSURES)[0]["served_at"] == datetime(2024, 1, 3, 1, tzinfo=UTC)
    assert {row["latency_ms"] for row in copied_shop.rows(EXPOSURES)} == {2.0}


def test_each_lands_once(copied_shop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after the commit, given twice, or written late to a file that has landed: no row twice, none lost."""
    shop = copied_shop
    before = storage.total_rows(EXPOSURES)
    shop.log_exposures(ONE | {"request_id": "r1", "user_id": "ann"})
    with monkeypatch.context() as killed:
        killed.setattr(storage, "commit", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            exposures.land(shop.dataset)
    assert storage.total_rows(EXPOSURES) == before
    assert exposures.land(shop.dataset) == 1
    assert not exposures.waiting()
    [finished] = log.finished_logs()  # young: the gateway may still have it open
    assert exposures.land(shop.dataset) == 0

    late = json.loads(finished.read_text()) | {"request_id": "r2"}
    with finished.open("a") as file:
        file.write(json.dumps(late) + "\n")
    shop.log_exposures(ONE | {"request_id": "r1", "user_id": "ann"}, ONE | {"request_id": "r3", "user_id": "bob"})
    assert exposures.waiting()
    assert exposures.land(shop.dataset) == 2
    aged()
    assert exposures.land(shop.dataset) == 0
    assert list(settings().exposures_dir.iterdir()) == []
    assert [row[0] for row in shop.values(EXPOSURES, "request_id")] == ["r1", "r2", "r3"]
    assert not exposures.waiting()


def test_landing_events_lands_exposures(copied_shop: Any) -> None:
    """Also when there is no event that is new."""
    copied_shop.land()

    def to_land() -> list[int]:
        return pending.land(copied_shop.dataset, copied_shop.folder, None, 3, copied_shop.now)

    assert to_land() == []
    copied_shop.log_exposures(ONE | {"request_id": "r1", "user_id": "ann"})
    assert to_land() == [pending.landed_through()]
    assert copied_shop.land(3) == 0
    assert to_land() == []
    assert copied_shop.values(EXPOSURES, "request_id") == [("r1",)]


def test_a_gateway_that_was_not_told(copied_shop: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As long as it may still write to a file, that file stays."""
    import httpx

    def hanging(**_: Any) -> httpx.Client:
        return httpx.Client(
            transport=httpx.MockTransport(lambda _: (_ for _ in ()).throw(httpx.ReadTimeout("slow"))),
            base_url="http://x",
        )

    monkeypatch.setattr(log, "admin", hanging)
    copied_shop.log_exposures(ONE | {"request_id": "r1", "user_id": "ann"})
    for _ in range(2):
        exposures.land(copied_shop.dataset)
        aged()
    assert len(log.finished_logs()) == 1
    monkeypatch.undo()
    copied_shop.use()
    exposures.land(copied_shop.dataset)
    assert log.finished_logs() == []
