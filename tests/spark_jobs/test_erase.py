"""Pseudonyms by Spark, and a user who is erased: gone from every file, without a trace on anybody else."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import deltalake
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from contracts import exposures
from contracts.errors import InputError
from contracts.lake import exists
from contracts.pseudonyms import pseudonym
from contracts.settings import settings
from contracts.tables import (
    ATTRIBUTIONS,
    BRONZE_EVENTS,
    ERASED,
    ITEM_INTERVALS,
    ITEMS,
    QUARANTINE,
    RECOMMENDATIONS,
    SILVER_EVENTS,
    TRAINING_LISTS,
    UNTIMED,
    USER_HISTORIES,
    USERS,
)
from spark_jobs import erase, pending, storage

KEY = "0f" * 32
WHO = "ann.o'hara+shop@mail.example.org"
TABLES = (
    BRONZE_EVENTS,
    SILVER_EVENTS,
    USERS,
    USER_HISTORIES,
    TRAINING_LISTS,
    ATTRIBUTIONS,
    RECOMMENDATIONS,
    QUARANTINE,
)


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CARTWHEEL_SECRET_PSEUDONYM_KEY", KEY)


@hypothesis_settings(max_examples=12, deadline=None)
@given(
    texts=st.lists(st.none() | st.text(), min_size=1, max_size=40),
    key=st.sampled_from(["k", KEY, KEY + "0", "ключ" * 40]),
)
@example(texts=["", " ", " ann ", "ann\t", "Zoe\u0308", "Zo\u00eb", "x" * 100_000, "\x00", None], key=KEY)
def test_spark_computes_the_same_pseudonyms(spark: Any, texts: list[str | None], key: str) -> None:
    """Spark and Python agree on any text and on keys shorter and longer than a block; null stays null."""
    from spark_jobs.pseudonyms import pseudonym_of

    frame = spark.createDataFrame([(n, text) for n, text in enumerate(texts)], "n int, user_id string")
    rows = frame.select("n", pseudonym_of(frame.user_id, key).alias("told")).orderBy("n").collect()
    assert [row["told"] for row in rows] == [None if text is None else pseudonym(text, key) for text in texts]


def test_plans_do_not_show_the_key(spark: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """By the redaction of our sessions, `explain` shows no part of the padded key."""
    from spark_jobs.pseudonyms import REDACTION, pseudonym_of

    frame = spark.range(3).selectExpr("cast(id as string) AS user_id")
    inner = bytes(byte ^ 0x36 for byte in KEY.encode()).hex()

    def shown() -> str:
        frame.select(pseudonym_of(frame.user_id, KEY)).explain(True)
        return capsys.readouterr().out.lower()

    assert inner[:32] not in shown()
    spark.conf.set("spark.sql.redaction.string.regex", "nothing is like this")
    try:
        assert inner in shown()  # else the line before proves nothing
    finally:
        spark.conf.set("spark.sql.redaction.string.regex", REDACTION)


@pytest.fixture(scope="module")
def folder_of_ann(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the shop of `ann` is built once."""
    return tmp_path_factory.mktemp("ann") / "shop"


@pytest.fixture
def ann(spark: Any, folder_of_ann: Path, open_shop: Callable[[Path], Any], tmp_path: Path) -> Any:
    """A copy of the tiny shop whose user ann is WHO, all built, with traces of her in every place there is."""

    def opened(folder: Path) -> Any:
        shop = open_shop(folder)
        for name in ("events.csv", "users.csv"):
            path = folder / name
            path.write_text(path.read_text(encoding="utf-8").replace("ann,", f"{WHO},"), encoding="utf-8")
        with (folder / "events.csv").open("a", encoding="utf-8") as file:
            file.write(f"no time,{WHO},apple,purchase,s6,1,1.00,red,a column too many\n")
        return shop

    if not folder_of_ann.exists():
        first = opened(folder_of_ann)
        first.build()
        one = {"interval": 3, "items": ["bread"]}
        first.expose(one | {"request_id": "r1", "user_id": WHO}, one | {"request_id": "r2", "user_id": "bob"})
        assert first.attribute(3) == 0
        recommended = [
            {"user_id": user, "items": ["bread"], "scores": [1.0], "model_version": 7, "bucket": 3}
            for user in (WHO, "bob")
        ]
        storage.create(RECOMMENDATIONS)
        rows = pa.Table.from_pylist(recommended, storage.arrow_schema(RECOMMENDATIONS))
        deltalake.write_deltalake(RECOMMENDATIONS.uri, rows, mode="append")
        deltalake.DeltaTable(BRONZE_EVENTS.uri).create_checkpoint()
    shutil.copytree(folder_of_ann, tmp_path / "copy")
    shop = opened(tmp_path / "copy")
    home = settings().home_dir
    several = {"interval": 3, "items": ["bread"], "request_id": "r3", "user_ids": [WHO, "bob"]}
    shop.log_exposures(several, torn=f'{{"request_id": "r4", "user_ids": ["{WHO}"')
    for name, content in {
        "summary.json": {"dataset": "tiny", "example": {"user_id": WHO, "taken": []}, "curl": f"curl {WHO}"},
        "reports/check.json": {
            "rows": 9,
            "active_users": {"3": [WHO, "bob"]},
            "problems": [{"kind": "returned", "example": json.dumps({"who": WHO})}],
        },
        "reports/gates/clean.json": {"passed": False, "failures": [{"observed": f"1 row; e.g. {WHO}, bob"}]},
        "reports/gates/raw.json": {"passed": True},
        "training/as_of_4_v1/run.json": {"run_id": "1"},
        "training/as_of_4_v1/result.json": {"as_of": 4},
        "training/as_of_5_v2/work/examples/4-00001.json": {"killed while it was made of": WHO},
        "training/as_of_4_v1/saved_model/golden_requests.json": {"instances": [{"user_id": WHO}]},
    }.items():
        path = home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    (home / "logs").mkdir()
    (home / "logs" / "check.log").write_text(f'e.g. {{"who":"{WHO}"}}\n')
    (home / "spool" / "web").mkdir(parents=True)
    (home / "spool" / "web" / "1.jsonl").write_text(f'{{"who": " {WHO} "}}\n{{"who": "bob"}}\n')
    return shop


def traces(folder: Path) -> set[str]:
    """Files that hold WHO, or as much of it as Delta's statistics keep: in their bytes, or in a Parquet file's values."""
    names = set()
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            if path.suffix == ".parquet":
                content += str(pq.read_table(path, partitioning=None).to_pylist()).encode()
            if WHO.encode()[:32] in content or WHO.replace("'", "\\'").encode() in content:
                names.add(str(path.relative_to(folder)))
    return names


def rows_of_others(shop: Any) -> dict[str, list[dict[str, Any]]]:
    return {
        table.name: [row for row in shop.rows(table) if WHO not in json.dumps(row, default=str)] for table in TABLES
    }


@pytest.mark.slow
def test_an_erased_user_is_in_no_file(ann: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """All of ann goes, as counted by hand, from tables, their logs and former versions; nobody else's row changes."""
    home, others = settings().home_dir, rows_of_others(ann)
    assert len(traces(home)) > 20
    states = {table.name: storage.recorded(table) for table in TABLES}
    assert erase.main(WHO, None) == 0
    counts = dict(line.rsplit(maxsplit=1) for line in capsys.readouterr().out.splitlines()[1:])
    assert {place.strip(): int(count.replace(",", "")) for place, count in counts.items()} == {
        "table bronze_events": 12,
        "table silver_events": 4,
        "table users": 1,
        "table user_histories": 3,
        "table training_lists": 3,
        "table exposures": 1,
        "table attributions": 1,
        "table recommendations": 1,
        "table quarantine": 8,  # six not fit to use, two without a time
        "exposures": 3,  # a line that has landed, one that was for bob too, a torn one
        "reports": 4,
        "trained models": 1,
    }
    assert traces(home) == set()
    assert rows_of_others(ann) == others
    assert {table.name: storage.recorded(table) for table in TABLES} == states
    assert [row["user_id_hash"] for row in ann.rows(ERASED)] == [pseudonym(WHO, KEY)]
    check = json.loads((home / "reports" / "check.json").read_text())
    assert check == {"rows": 9, "active_users": {"3": ["bob"]}, "problems": [{"kind": "returned", "example": ""}]}
    assert json.loads((home / "summary.json").read_text())["dataset"] == "tiny"
    assert (home / "reports" / "gates" / "raw.json").exists()
    versions = {table.name: storage.state(table) for table in TABLES}
    assert erase.main(WHO, None) == 0
    assert {table.name: storage.state(table) for table in TABLES} == versions, "a second run has nothing to do"


@pytest.mark.slow
def test_a_gateway_that_hangs_stops_an_erasure(ann: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until it has left its log, what it writes there is lost or left; the next run ends what this one began."""
    with TemporaryDirectory(prefix="g") as short, socket.socket(socket.AF_UNIX) as hanging:
        monkeypatch.setattr(exposures, "admin_socket", lambda: Path(short) / "admin.sock")
        hanging.bind(f"{short}/admin.sock")
        hanging.listen()
        with pytest.raises(InputError, match="has left its log"):
            erase.main(WHO, None)
    assert erase.main(WHO, None) == 0
    assert traces(settings().home_dir) == set()


@pytest.mark.slow
def test_features_after_an_erasure_do_not_count_the_user(ann: Any) -> None:
    """The intervals in which ann took part are computed again, as if she had never been there, and then nothing is left."""
    assert erase.main(WHO, None) == 0
    assert pending.clean() == [UNTIMED, 1, 2, 3]
    assert (ann.clean(), ann.features()) == (0, 0)
    assert ann.values(ITEM_INTERVALS, "interval", "item_id", "events") == [(1, "bread", 1.0), (2, "apple", 1.0)]
    assert {row[0] for row in ann.values(USER_HISTORIES, "user_id")} == {"bob"}
    assert pending.attribute() == [3] or not storage.files(SILVER_EVENTS).get(3)
    assert pending.clean() == []
    assert not pending.features().any()
    assert traces(settings().home_dir) == set()


@pytest.mark.slow
def test_rows_of_an_erased_user_are_left_out(spark: Any, ann: Any) -> None:
    """`without_erased` is what keeps the user from coming back: her rows go, rows of others and of nobody stay."""
    from spark_jobs.pseudonyms import without_erased

    frame = spark.createDataFrame([(WHO,), ("bob",), (None,), (WHO + "x",)], "user_id string")
    assert without_erased(frame) is frame, "nobody is erased yet"
    erase.remember(erase.person_of(ann.dataset, f" {WHO} ", None))
    assert [row["user_id"] for row in without_erased(frame).collect()] == ["bob", None, WHO + "x"]


@pytest.mark.slow
def test_an_erased_user_does_not_come_back(ann: Any) -> None:
    """Landing everything again, from files that still hold ann, brings back everybody else and not her."""
    assert erase.main(WHO, None) == 0
    assert ann.land(through=3, from_interval=1) == 0
    assert [row["user_id"] for row in ann.rows(BRONZE_EVENTS)].count("bob") == 2
    assert len(ann.rows(BRONZE_EVENTS)) == 3, "bob twice, and the row without a user"
    with (ann.folder / "users.csv").open("a", encoding="utf-8") as file:
        file.write("cleo,40,Ulm\n")
    assert ann.land() == 0
    assert ann.values(USERS, "user_id") == [("bob",), ("cleo",)]
    assert traces(settings().home_dir) == set()


@pytest.mark.slow
@pytest.mark.parametrize(
    "step", ["delete_records", "drop_former_versions", "_redact_commit", "erase_exposures", "erase_reports"]
)
def test_a_killed_erasure_is_finished_by_the_next(ann: Any, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """Whichever step the first run dies in, the user is written down already, and the second run ends it."""
    others = rows_of_others(ann)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(erase, step, die)
        with pytest.raises(KeyboardInterrupt):
            erase.main(WHO, None)
    assert len(ann.rows(ERASED)) == 1
    assert traces(settings().home_dir)
    assert erase.main(WHO, None) == 0
    assert traces(settings().home_dir) == set()
    assert rows_of_others(ann) == others
    assert len(ann.rows(ERASED)) == 1


@pytest.fixture
def personal(open_shop: Callable[[Path], Any], tmp_path: Path) -> Any:
    """A shop whose user ids are personal, with two histories and two rows set aside; no Spark."""
    shop = open_shop(tmp_path / "shop")
    text = (shop.folder / "shop.toml").read_text(encoding="utf-8")
    shop.write(shop__toml=text.replace("[interval]", "personal_user_id = true\n[interval]", 1))
    pseudonyms = {name: pseudonym(f"{name}@example.org", KEY) for name in ("ann", "bob")}
    numbers = [("interval", pa.int32()), ("bucket", pa.int32())]
    schema = pa.schema([("user_id", pa.string()), ("item_ids", pa.list_(pa.string())), *numbers])
    histories = pa.Table.from_pylist(
        [{"user_id": each, "item_ids": ["x"], "interval": 1, "bucket": 0} for each in pseudonyms.values()], schema
    )
    deltalake.write_deltalake(USER_HISTORIES.uri, histories, partition_by=["interval"])
    aside = [
        {"interval": 0, "event_id": "e1", "row": json.dumps({"who": pseudonyms["ann"]})},
        {"interval": 1, "event_id": "e2", "row": json.dumps({"user_id": pseudonyms["bob"], "x": pseudonyms["ann"]})},
        {"interval": 1, "event_id": "e3", "row": json.dumps({"user_id": None})},
    ]
    deltalake.write_deltalake(QUARANTINE.uri, pa.Table.from_pylist(aside), partition_by=["interval"])
    one = {"interval": 1, "items": ["bread"]}
    shop.log_exposures(
        one | {"request_id": "r1", "user_id": "ann@example.org"},  # a caller who did not know better
        one | {"request_id": "r2", "user_id": pseudonyms["ann"]},
        one | {"request_id": "r3", "user_id": pseudonyms["bob"]},
    )
    return shop


@pytest.mark.parametrize("by_pseudonym", [True, False])
def test_personal_ids(personal: Any, by_pseudonym: bool) -> None:
    """Where ids are personal, the id and the pseudonym name the same user, as stored and as a caller wrote it."""
    ann, bob = (pseudonym(f"{name}@example.org", KEY) for name in ("ann", "bob"))
    removed = erase.erase(
        erase.person_of(personal.dataset, *((None, ann) if by_pseudonym else ("ann@example.org", None))),
        personal.dataset,
    )
    assert {place: count for place, count in removed.items() if count} == {
        "table user_histories": 1,
        "table quarantine": 1,
        "exposures": 2,
    }
    assert personal.values(USER_HISTORIES, "user_id") == [(bob,)]
    assert sorted(row["event_id"] for row in deltalake.DeltaTable(QUARANTINE.uri).to_pyarrow_table().to_pylist()) == [
        "e2",
        "e3",
    ]
    assert [row["user_id_hash"] for row in personal.rows(ERASED)] == [pseudonym(ann, KEY)]


def test_what_is_refused(personal: Any, open_shop: Callable[[Path], Any], tmp_path: Path) -> None:
    """No user, two users, or a pseudonym where ids are stored as they are: one line each, and nothing is touched."""
    for user_id, stored_id in ((None, None), ("  ", None), ("ann", "0" * 32)):
        with pytest.raises(InputError, match="give either"):
            erase.person_of(personal.dataset, user_id, stored_id)
    plain = open_shop(tmp_path / "plain")
    with pytest.raises(InputError, match="stored as they are"):
        erase.person_of(plain.dataset, None, "0" * 32)
    assert not exists(ERASED)


def test_an_unknown_user_is_written_down(open_shop: Callable[[Path], Any], tmp_path: Path, capsys: Any) -> None:
    """Erasing somebody of whom there is nothing says so, and keeps them from being taken in later."""
    shop = open_shop(tmp_path / "shop")
    assert erase.main("nobody", None) == 0
    assert "Nothing of this user is there" in capsys.readouterr().out
    (row,) = shop.rows(ERASED)
    assert (row["user_id_hash"], row["erased_at"] <= datetime.now(UTC)) == (pseudonym("nobody", KEY), True)
    assert not exists(ITEMS)
