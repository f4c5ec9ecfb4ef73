"""Evaluation on rolling intervals: what was recommended as of an interval against what was taken in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from contracts.metrics import BASELINES, METRICS, Floats, list_metrics, paired_difference
from training.data import Ints, Lists

MODEL = "model"
"""Name of the ranker beside the baselines in an evaluation."""


@dataclass(frozen=True)
class Fold:
    """One evaluation interval: metrics of each list (`[num_lists]`) by the name of what recommended."""

    as_of: int
    metrics: Mapping[str, Mapping[str, Floats]]


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


def means(metrics: Mapping[str, Floats]) -> dict[str, float]:
    """The mean over lists of each metric."""
    return {name: float(np.mean(metrics[name])) for name in METRICS}


def report(folds: Sequence[Fold], confidence: float) -> dict[str, Any]:
    """The evaluation as JSON: means by fold and pooled over all lists, and the paired differences to each baseline."""
    pooled = {
        name: {metric: np.concatenate([fold.metrics[name][metric] for fold in folds]) for metric in METRICS}
        for name in (MODEL, *BASELINES)
        if folds
    }
    return {
        "folds": [
            {
                "as_of": fold.as_of,
                "num_lists": len(fold.metrics[MODEL][METRICS[0]]),
                "means": {name: means(metrics) for name, metrics in fold.metrics.items()},
            }
            for fold in folds
        ],
        "means": {name: means(metrics) for name, metrics in pooled.items()},
        "paired": {
            name: {
                metric: paired_difference(pooled[MODEL][metric], pooled[name][metric], confidence)._asdict()
                for metric in METRICS
            }
            for name in BASELINES
            if folds
        },
    }
