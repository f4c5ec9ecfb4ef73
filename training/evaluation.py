"""Evaluation on rolling intervals: what was recommended as of an interval against what was taken in it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from contracts.metrics import METRICS, Floats, list_metrics, paired_difference
from training.data import (
    Ints,
    Lists,
    Part,
    Shop,
    attainable,
    history_lengths,
    may_be_candidate,
    only_targets,
    statistic,
)

MODEL = "model"
"""Name of the ranker in an evaluation, beside the champion and the baselines."""
POPULAR_ITEMS, TAIL_ITEMS = "popular_items", "tail_items"


@dataclass(frozen=True)
class Scores:
    """Metrics of lists."""

    users: Ints
    """`[num_lists]`, whose list it is: a number of the user's own in all folds."""
    history_lengths: Ints
    """`[num_lists]`, entries of that user before the interval."""
    metrics: Mapping[str, Mapping[str, Floats]]
    """`[num_lists]` of each metric, by the name of what recommended."""

    def of(self, chosen: npt.NDArray[np.bool_]) -> Scores:
        """Those of some lists, `[num_lists]`."""
        metrics = {who: {name: each[chosen] for name, each in by_name.items()} for who, by_name in self.metrics.items()}
        return Scores(self.users[chosen], self.history_lengths[chosen], metrics)


@dataclass(frozen=True)
class Fold:
    """One evaluation interval."""

    as_of: int
    lists: Scores
    by_items: Mapping[str, Scores]
    """The same lists held against some of their targets only: the popular items, and the rest."""


def joined(parts: Sequence[Scores]) -> Scores:
    """All lists, by what has recommended in each of the parts."""
    names = [who for who in parts[0].metrics if all(who in part.metrics for part in parts)]
    return Scores(
        np.concatenate([part.users for part in parts]),
        np.concatenate([part.history_lengths for part in parts]),
        {who: {name: np.concatenate([part.metrics[who][name] for part in parts]) for name in METRICS} for who in names},
    )


def pooled(
    parts: Iterable[Part], as_ofs: Collection[int], show: Callable[[Shop, Lists], Mapping[str, Ints]]
) -> dict[int, Scores]:
    """The scores of what `show` recommends, by interval: over the attainable lists of all parts, each read once.

    Args:
        show: gives for lists of a part what each recommends, `[num_lists, k]` item rows, best first.
    """
    of_parts: dict[int, list[Scores]] = {as_of: [] for as_of in as_ofs}
    num_users = 0
    for part in parts:
        shop = part()
        for as_of in as_ofs:
            if as_of in shop.lists and len(lists := attainable(shop, shop.lists[as_of])):
                of_parts[as_of].append(scores(shop, lists, show(shop, lists), first_user=num_users))
        num_users += len(shop.user_ids)
    return {as_of: joined(each) for as_of, each in of_parts.items()}


def score(recommended: Ints, lists: Lists, num_items: int) -> dict[str, Floats]:
    """Metrics of each list.

    Args:
        recommended: `[num_lists, k]` item rows, best first.

    Returns:
        For each name in `contracts.metrics.METRICS`, `[num_lists]`.
    """
    taken = np.repeat(np.arange(len(lists)), lists.num_targets) * num_items + lists.targets
    shown = np.arange(len(lists))[:, None] * num_items + recommended
    return list_metrics(np.isin(shown, taken), lists.num_targets)


def scores(shop: Shop, lists: Lists, recommended: Mapping[str, Ints], *, first_user: int) -> Scores:
    """Metrics of what each has recommended, `[num_lists, k]` item rows, best first.

    Args:
        first_user: number of the shop's first user, where those of another part have other numbers.
    """
    num_items = len(shop.item_ids)
    metrics = {who: score(rows, lists, num_items) for who, rows in recommended.items()}
    return Scores(lists.users + first_user, history_lengths(shop, lists.users, lists.as_of), metrics)


def scores_by_items(shop: Shop, lists: Lists, recommended: Mapping[str, Ints], whole: Scores) -> dict[str, Scores]:
    """The same held against some of the targets: the fewest best sellers that make half of what could be taken, and the rest.

    Args:
        whole: `scores` of these lists.
    """
    sold = statistic(shop, lists.as_of, "target_events_4").astype(np.float64) * may_be_candidate(shop, lists.as_of)
    best_first = np.argsort(-sold, kind="stable")
    is_popular = np.zeros(len(sold), bool)
    is_popular[best_first[np.cumsum(sold[best_first]) - sold[best_first] < sold.sum() / 2]] = True
    scores_by_name = {}
    for name, is_counted in ((POPULAR_ITEMS, is_popular), (TAIL_ITEMS, ~is_popular)):
        has_any, some = only_targets(lists, is_counted[lists.targets])
        metrics = {who: score(rows[has_any], some, len(sold)) for who, rows in recommended.items()}
        scores_by_name[name] = Scores(whole.users[has_any], whole.history_lengths[has_any], metrics)
    return scores_by_name


def by_users(lists: Scores) -> dict[str, Scores]:
    """New users, who have no history, and of the others the half with the shorter and that with the longer one."""
    lengths = lists.history_lengths
    middle = np.median(lengths[lengths > 0]) if (lengths > 0).any() else 0.0
    chosen = {
        "new_users": lengths == 0,
        "light_users": (lengths > 0) & (lengths <= middle),
        "heavy_users": lengths > middle,
    }
    return {name: lists.of(those) for name, those in chosen.items()}


def means(metrics: Mapping[str, Floats]) -> dict[str, float]:
    """The mean over lists of each metric."""
    return {name: float(np.mean(metrics[name])) for name in METRICS}


def report(folds: Sequence[Fold], confidence: float) -> dict[str, Any]:
    """The evaluation as JSON.

    Returns:
        `folds`, each with its `as_of`; `segments` by name; and for all lists together `means` by what recommended and
        `paired` differences of the model to each, with what the other has (`theirs`). The champion is in `paired` with the
        folds that it has not learned from, and in `means` where those are all.
    """
    whole = _described([fold.lists for fold in folds], confidence) if folds else {"means": {}, "paired": {}}
    by_segment: dict[str, list[Scores]] = {}
    for fold in folds:
        for name, of_segment in (by_users(fold.lists) | dict(fold.by_items)).items():
            if len(of_segment.users):
                by_segment.setdefault(name, []).append(of_segment)
    return whole | {
        "folds": [{"as_of": fold.as_of, **_described([fold.lists], confidence)} for fold in folds],
        "segments": {name: _described(parts, confidence) for name, parts in by_segment.items()},
    }


def _described(parts: Sequence[Scores], confidence: float) -> dict[str, Any]:
    of_who = {
        who: joined([part for part in parts if who in part.metrics])
        for who in dict.fromkeys(who for part in parts for who in part.metrics)
    }
    num_lists = len(of_who[MODEL].users)
    return {
        "num_lists": num_lists,
        # Of those who recommended in all of these lists: means over others would be compared all the same.
        "means": {who: means(those.metrics[who]) for who, those in of_who.items() if len(those.users) == num_lists},
        "paired": {
            who: {metric: _paired(those, who, metric, confidence) for metric in METRICS}
            for who, those in of_who.items()
            if who != MODEL
        },
    }


def _paired(scores: Scores, who: str, metric: str, confidence: float) -> dict[str, float | None]:
    """What the model has more than `who`, and what that has; a bound that there is none of is None."""
    ours, theirs = (scores.metrics[name][metric] for name in (MODEL, who))
    pair = paired_difference(ours, theirs, confidence, scores.users)._asdict() | {"theirs": float(theirs.mean())}
    return {name: value if np.isfinite(value) else None for name, value in pair.items()}
