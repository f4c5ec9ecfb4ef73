"""What a ranker is made of: one frozen record, logged with every run."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from pydantic import ConfigDict, TypeAdapter, ValidationError

from contracts.errors import InputError
from contracts.settings import settings


@dataclass(frozen=True)
class RankerConfig:
    """Configuration of candidates, features, network and optimiser."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    decay_days: tuple[float, ...] = (0.05, 0.25, 1.0, 3.0, 7.0, 14.0, 28.0, 56.0, 112.0, 224.0)
    """Time constants of the exponentially decayed counts."""
    basket_decays: tuple[float, ...] = (0.5, 0.8, 0.9, 0.97)
    """Decay for each later basket."""
    window_days: tuple[float, ...] = (0.0, 0.05, 0.25, 1.0, 3.0, 7.0, 14.0, 21.0, 28.0, 56.0, 119.0)
    """Edges of the counting windows by age."""
    num_popular: int = 300
    """Best sellers of the last 4 intervals that join a user's own items as candidates."""
    max_history: int = 4000
    """Newest entries of a user's history that are looked at."""

    hidden_units: tuple[int, ...] = (128, 64)
    item_bias_l2: float = 1e-3

    negatives_a_list: int = 60
    """About how many of a list's candidates that were not taken are negatives; often-taken ones come up to four times as
    often as others."""
    lists_a_batch: int = 64
    learning_rate: float = 2e-3
    warmup_steps: int = 60
    weight_decay: float = 1e-4
    clip_norm: float = 1.0

    training_intervals: int = 12
    fold_offsets: tuple[int, ...] = (1, 7, 13)
    epochs: int = 4
    top_k: int = 10
    seed: int = 0


def from_settings() -> RankerConfig:
    """The configuration that the settings ask for.

    Raises:
        InputError: CARTWHEEL_RANKER names what is no part of it, or a value that is none.
    """
    chosen = settings()
    config = RankerConfig(
        training_intervals=chosen.training_intervals,
        fold_offsets=chosen.fold_offsets,
        epochs=chosen.training_epochs,
        top_k=chosen.top_k,
        seed=chosen.seed,
    )
    try:
        return TypeAdapter(RankerConfig).validate_python(asdict(config) | chosen.ranker)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(
            f"{'.'.join(map(str, first['loc']))}: {first['msg']}",
            where="CARTWHEEL_RANKER",
            cure="give parts of RankerConfig in training/config.py, as JSON",
        ) from None
