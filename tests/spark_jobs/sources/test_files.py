"""Files that lie in an object store, or are packed by zstd."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from contracts.dataset import Events
from contracts.errors import InputError
from contracts.settings import settings
from spark_jobs.sources import Batch
from spark_jobs.sources.files import Options, Reader

LINE = '{{"who": "{}", "what": "apple", "when": "2024-01-01"}}\n'


@pytest.fixture(autouse=True)
def _home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("CARTWHEEL_HOME", str(tmp_path / "home"))
    settings.cache_clear()
    yield
    settings.cache_clear()


def reader(path: str, folder: Path) -> Reader:
    declared = Events.model_validate(
        {
            "path": path,
            "format": "jsonl",
            "settle_s": 0,
            "columns": {"user_id": "who", "item_id": "what", "occurred_at": "when"},
        }
    )
    return Reader("shop", declared, Options(), folder)


def run(spark: Any, source: Reader, position: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """Who is in the rows read, and the position after them."""
    names: list[str] = []

    def land(batch: Batch) -> None:
        nonlocal position
        names.extend(row["who"] for row in batch.rows.collect())
        position = json.loads(json.dumps(position | batch.position))

    source.run(spark, position, land)
    return sorted(names), position


@pytest.mark.slow
def test_an_object_store(spark: Any, bucket: Any, tmp_path: Path) -> None:
    """Objects are found by listing, packed or not, each read once; one that has changed is read again; copies are gone."""
    bucket.put_object(Key="in/a.jsonl", Body=LINE.format("ann").encode())
    bucket.put_object(Key="in/b.jsonl.zst", Body=pa.compress(LINE.format("bob").encode(), "zstd", asbytes=True))
    bucket.put_object(Key="other/c.jsonl", Body=LINE.format("cem").encode())
    source = reader(f"s3://{bucket.name}/in/", tmp_path)
    names, position = run(spark, source, {})
    assert names == ["ann", "bob"]
    assert sorted(position) == [f"s3://{bucket.name}/in/a.jsonl", f"s3://{bucket.name}/in/b.jsonl.zst"]
    assert not source.news(position)
    bucket.put_object(Key="in/d.jsonl", Body=LINE.format("dan").encode())
    bucket.put_object(Key="in/a.jsonl", Body=(LINE.format("ann") + LINE.format("ann2")).encode())
    assert run(spark, source, position)[0] == ["ann", "ann2", "dan"]
    assert run(spark, reader(f"s3://{bucket.name}/*/c.*", tmp_path), {})[0] == ["cem"]
    assert run(spark, reader(f"s3://{bucket.name}/other/c*.jsonl", tmp_path), {})[0] == ["cem"]


def test_a_store_that_does_not_answer(bucket: Any, tmp_path: Path) -> None:
    """A bucket that is not there is one line that names it."""
    with pytest.raises(InputError, match=r"cannot list: .*s3://nobody/in"):
        reader("s3://nobody/in", tmp_path).news({})


def test_zstd_here(spark: Any, tmp_path: Path) -> None:
    """Files packed by zstd are read like any other; a damaged one is named."""
    (tmp_path / "a.jsonl.zst").write_bytes(pa.compress(LINE.format("ann").encode(), "zstd", asbytes=True))
    (tmp_path / "b.jsonl").write_text(LINE.format("bob"))
    assert run(spark, reader("*.jsonl*", tmp_path), {})[0] == ["ann", "bob"]
    (tmp_path / "c.jsonl.zst").write_bytes(b"no zstd")
    with pytest.raises(InputError, match=r"cannot read the file: .*c\.jsonl\.zst"):
        run(spark, reader("*.jsonl*", tmp_path), {})


def test_folders_named_like_columns(spark: Any, tmp_path: Path) -> None:
    """`day=1/` below a declared folder is a column, whichever of its files are new."""
    for day in (1, 2):
        (tmp_path / "in" / f"day={day}").mkdir(parents=True)
        (tmp_path / "in" / f"day={day}" / "a.jsonl").write_text(LINE.format(f"ann{day}"))
    pairs: list[tuple[str, int]] = []
    reader("in", tmp_path).run(
        spark, {}, lambda batch: pairs.extend((row["who"], int(row["day"])) for row in batch.rows.collect())
    )
    assert sorted(pairs) == [("ann1", 1), ("ann2", 2)]
