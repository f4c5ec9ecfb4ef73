"""The file for LiteRT answers as the served model does, and knows nobody."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests.training.tiny import CONFIG, make_ranker
from training import edge
from training.data import Shop
from training.export import export


@pytest.fixture(scope="module")
def served(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "saved_model"
    export(make_ranker(), shop, CONFIG, folder)
    return folder


@pytest.mark.slow
def test_its_lists_are_those_of_the_served_model(shop: Shop, served: Path, tmp_path: Path) -> None:
    """Of every user's history; the report says so, and what it takes."""
    users = np.array([f"somebody {number}" for number in range(3)], dtype=object)
    report = edge.export(served, make_ranker(), dataclasses.replace(shop, user_ids=users), CONFIG, tmp_path)
    assert (report["num_lists"], report["parity"]) == (3, 1.0)
    assert report["max_score_difference"] < 1e-5
    assert report["mib"] == (tmp_path / edge.MODEL).stat().st_size / 2**20
    assert report["p50_ms"] > 0 < report["saved_model_p50_ms"]
    assert json.loads((tmp_path / edge.REPORT).read_text()) == report
    assert (tmp_path / edge.ITEMS).read_text().split("\n") == [*shop.item_ids, ""]
    assert b"somebody" not in (tmp_path / edge.MODEL).read_bytes()


def test_another_model_is_noticed(shop: Shop, served: Path, tmp_path: Path) -> None:
    """One whose bias of an item differs gives other lists, and says for how many."""
    other = make_ranker()
    other.item_bias.assign([5.0, 0.0, 0.0, 0.0, 0.0])
    report = edge.export(served, other, shop, CONFIG, tmp_path)
    assert report["parity"] < edge.MIN_PARITY


def test_the_order_of_a_history_and_its_padding_do_not_matter(shop: Shop) -> None:
    """Entries may come in any order, and -1 fills up; a stranger gets what sells best."""
    runner = tf.lite.Interpreter(model_content=edge.convert(make_ranker(), shop, CONFIG)).get_signature_runner(
        "history"
    )

    def items(rows: list[int], ages: list[float]) -> list[str]:
        return [*shop.item_ids[runner(item=np.array(rows, np.int32), age_days=np.array(ages, np.float32))["item"]]]

    assert items([0, 1, 2], [9.0, 2.0, 4.0]) == items([1, -1, 0, 2], [2.0, 1.0, 9.0, 4.0])
    assert items([], []) == items([-1], [3.0])
    assert items([0, 1, 2], [9.0, 2.0, 4.0]) != items([], [])
