"""Pictures of an evaluation, for MLflow's page of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from contracts.metrics import NDCG

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def by_segment(evaluation: Mapping[str, Any]) -> Figure:
    """ndcg_at_10 of the model, the champion and the baselines: over all lists, in each fold, and in each segment."""
    from matplotlib.figure import Figure

    parts = {"all lists": evaluation}
    parts |= {f"interval {fold['as_of']}": fold for fold in evaluation["folds"]}
    parts |= {name.replace("_", " "): segment for name, segment in evaluation["segments"].items()}
    figure = Figure(figsize=(9, 0.6 + 0.75 * len(parts)), layout="constrained")
    axes = figure.subplots()
    who = [*dict.fromkeys(name for part in parts.values() for name in part["means"])]
    height = 0.8 / len(who)
    for place, name in enumerate(who):
        rows = [(row, part["means"][name][NDCG]) for row, part in enumerate(parts.values()) if name in part["means"]]
        bars = axes.barh(
            [row + place * height for row, _ in rows],
            [value for _, value in rows],
            height,
            label=name.replace("_", " "),
        )
        axes.bar_label(bars, fmt="%.3f", padding=2, fontsize=7)
    labels = [f"{name}\n{part['num_lists']:,} lists" for name, part in parts.items()]
    axes.set_yticks([row + 0.4 - height / 2 for row in range(len(parts))], labels)
    axes.invert_yaxis()
    axes.set_xlabel(NDCG)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    return figure
