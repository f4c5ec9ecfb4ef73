"""The benchmark's segments and records, on the tiny shop."""

from __future__ import annotations

from tests.benchmarks import model
from training.data import Shop


def test_records_by_hand(shop: Shop) -> None:
    """ann took cheese, new to her; cat, without a history, dates. All four items are shown to both: all is found."""
    records = list(model.measured(shop, [3], ["popularity", "personal_frequency"]))
    assert all(record["recall_at_10"] == 1.0 for record in records)
    sizes = {record["segment"]: record["num_lists"] for record in records if record["method"] == "popularity"}
    assert sizes == {"all": 2, "new users": 1, "light users": 1, "new targets": 2, "popular targets": 2}
    ndcg = {(record["method"], record["segment"]): record["ndcg_at_10"] for record in records}
    # dates are first for everyone; cheese is last of four: 1 / log2(5).
    assert ndcg["popularity", "new users"] == 1.0
    assert ndcg["popularity", "light users"] == ndcg["personal_frequency", "light users"] == 0.4307
    assert ndcg["popularity", "all"] == 0.7153
    assert all(record["peak_mib"] > 1 and record["cpu_seconds"] >= 0 for record in records)
