"""What the summary says of the model beside its baselines."""

from __future__ import annotations

from pathlib import Path

from contracts.dataset import Dataset
from contracts.metrics import NDCG, PERSONAL_FREQUENCY, POPULARITY
from contracts.settings import settings
from deploy.local import summary

MEANS = {"model": {NDCG: 0.30}, POPULARITY: {NDCG: 0.10}, PERSONAL_FREQUENCY: {NDCG: 0.25}}


def test_gains_have_their_interval() -> None:
    """.30 - .10 = .20, at least .18: half an interval of .02, by evaluation and by live bounds alike."""
    paired = {
        POPULARITY: {NDCG: {"mean": 0.2, "lower": 0.18}},
        PERSONAL_FREQUENCY: {NDCG: {"mean": 0.05, "lower": None}},
    }
    expected = {POPULARITY: "+0.200 ± 0.020", PERSONAL_FREQUENCY: "+0.050"}
    assert summary.gains_of_evaluation({"means": MEANS, "paired": paired}) == expected
    behind = {POPULARITY: -0.22, PERSONAL_FREQUENCY: None}
    assert summary.live_gains({"means": MEANS, "ndcg_behind": behind}) == expected


def test_the_line_to_try_it_asks_the_gateway_of_this_installation(home: Path) -> None:
    """With a token that it issues first, by the keys in this installation's folder."""
    columns = {"user_id": "who", "item_id": "what", "occurred_at": "when"}
    shop = Dataset.model_validate({"name": "tiny", "events": {"columns": columns, "path": "x.csv"}})
    built = summary.build(shop, [], [], [])
    address = f"{settings().gateway_url}/v1/models/recommender:predict"
    assert built["urls"]["endpoint"] == address
    assert address in built["curl"]
    assert f"CARTWHEEL_HOME={settings().home_dir} " in built["curl"]
