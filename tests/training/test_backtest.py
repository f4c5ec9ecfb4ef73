"""What retraining and newer data would have been worth, on a shop whose users change their minds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from contracts.errors import InputError
from contracts.metrics import NDCG, OFFLINE_BASELINES
from contracts.settings import settings
from contracts.tables import TRAINING_LISTS, USER_HISTORIES
from tests.training.tables import write_items, write_shop, write_table
from training import __main__ as verbs
from training.backtest import LEFT_ALONE, REFRESHED, retrained

NUM_INTERVALS, CHANGE = 7, 5


@pytest.fixture
def fickle(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twelve users take an item of their own in each interval, and from interval CHANGE on their neighbour's."""
    items = write_items(24, range(2, NUM_INTERVALS + 2))
    taken = {
        f"u{user:02d}": [items[user if n < CHANGE else (user + 1) % 12] for n in range(1, NUM_INTERVALS + 1)]
        for user in range(12)
    }
    write_table(
        USER_HISTORIES,
        [
            {"interval": n, "user_id": user, "item_ids": [item], "at": [n - 0.5], "weights": [1.0], "bucket": place % 2}
            for place, (user, own) in enumerate(taken.items())
            for n, item in enumerate(own, 1)
        ],
    )
    write_table(
        TRAINING_LISTS,
        [
            {"as_of": n, "user_id": user, "target_items": [own[n - 1]], "bucket": place % 2}
            for place, (user, own) in enumerate(taken.items())
            for n in range(1, NUM_INTERVALS + 1)
        ],
    )
    monkeypatch.setenv("CARTWHEEL_DATASET", str(write_shop(home)))
    monkeypatch.setenv("CARTWHEEL_TRAINING_INTERVALS", "2")
    settings.cache_clear()
    return home


@pytest.mark.slow
def test_newer_data_is_worth_something_where_users_change(fickle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All ways begin alike; the model that is left alone never learns what is taken since; one that is never trained again
    is the refreshed one; all of it is drawn.
    """
    verbs.backtest(CHANGE, NUM_INTERVALS, [1, 9])
    path = fickle / "reports" / "backtest" / f"{CHANGE}-{NUM_INTERVALS}.json"
    result = json.loads(path.read_text())
    curves = result["curves"][NDCG]
    assert (result["intervals"], result["num_lists"]) == ([5, 6, 7], [12, 12, 12])
    assert list(curves) == [retrained(1), retrained(9), REFRESHED, LEFT_ALONE, *OFFLINE_BASELINES]
    assert curves[retrained(1)][0] == curves[REFRESHED][0] == curves[LEFT_ALONE][0]
    assert curves[retrained(9)] == curves[REFRESHED]
    # The neighbour's item is nowhere in the history of then: it is found among best sellers at most.
    assert curves[REFRESHED][1] > curves[LEFT_ALONE][1]
    assert result["gain_of_refresh"]["lower"] > 0
    assert (result["gain_of_refresh"]["num_lists"], result["gain_of_refresh"]["num_users"]) == (24, 12)
    drawn = path.with_suffix(".svg").read_text()
    assert drawn.count("<svg") == 1
    assert "newer data alone: +" in capsys.readouterr().out


def test_intervals_without_anything_to_learn_from_are_refused(fickle: Path) -> None:
    """Before the third interval nothing is known, and nobody has taken anything in the coming one yet."""
    for first, last in ((1, 3), (6, 8)):
        with pytest.raises(InputError, match="there is nothing to recommend by in interval"):
            verbs.backtest(first, last, None)
    with pytest.raises(InputError, match="--to 4 is before --from 5"):
        verbs.backtest(5, 4, None)
