"""Training a logged model again, and telling whether it is the same one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from training.refresh import read_weights

MADE_OF = ("commit", "lock_sha256", "dataset_sha256", "table_versions")
"""Names in an evaluation of what a model is made of, beside its parameters."""
MAX_METRIC_DIFFERENCE = 0.001
"""Of a mean: other processors, and other numbers of workers, add in another order."""


@dataclass(frozen=True)
class Comparison:
    made_of_other: tuple[str, ...]
    """What of `MADE_OF` is not the same now."""
    max_weight_difference: float | None
    """None where they are not of the same shape, or of other items."""
    max_metric_difference: float
    """Of the means over all lists, of the model and every baseline."""

    @property
    def is_reproduced(self) -> bool:
        return (
            not self.made_of_other
            and self.max_weight_difference is not None
            and self.max_metric_difference <= MAX_METRIC_DIFFERENCE
        )

    def described(self) -> str:
        """In lines that a person reads."""
        difference = self.max_weight_difference
        weights = (
            "of another shape"
            if difference is None
            else f"differ by up to {difference:.2g}"
            if difference
            else "the same, bit by bit"
        )
        return "\n".join(
            [
                f"made of      {'the same' if not self.made_of_other else 'another ' + ', '.join(self.made_of_other)}",
                f"weights      {weights}",
                f"metrics      differ by up to {self.max_metric_difference:.2g}",
                f"reproduced   {'yes' if self.is_reproduced else 'NO'}",
            ]
        )


def compare(
    original: Mapping[str, Any], original_model: Path, again: Mapping[str, Any], model_again: Path
) -> Comparison:
    """Compare two trainings by their evaluations and SavedModels."""
    before, after = read_weights(original_model), read_weights(model_again)
    arrays = [{**each.arrays, "item_bias": np.array([*each.item_bias.values()])} for each in (before, after)]
    shapes = [{name: array.shape for name, array in each.items()} for each in arrays]
    difference = (
        max(float(np.abs(array - arrays[1][name]).max(initial=0.0)) for name, array in arrays[0].items())
        if shapes[0] == shapes[1] and before.item_bias.keys() == after.item_bias.keys()
        else None
    )
    shared_means = [
        (mean, again["means"][who][metric])
        for who, by_metric in original["means"].items()
        if who in again["means"]
        for metric, mean in by_metric.items()
    ]
    return Comparison(
        made_of_other=tuple(name for name in MADE_OF if original.get(name) != again.get(name)),
        max_weight_difference=difference,
        max_metric_difference=max((abs(a - b) for a, b in shared_means), default=float("inf")),
    )
