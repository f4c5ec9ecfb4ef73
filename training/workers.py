"""The processes that train together. They know each other by TF_CONFIG, whoever set it: a Spark barrier stage
(`training.launch`) or a Kubernetes Job.

Source: https://www.tensorflow.org/guide/distributed_training#setting_up_the_tf_config_environment_variable
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Workers:
    """One process among those of a training. Number 0 is the chief, who evaluates and writes what comes out."""

    number: int = 0
    count: int = 1

    @property
    def is_chief(self) -> bool:
        return self.number == 0

    def share(self, everything: Sequence[T], number: int | None = None) -> Sequence[T]:
        """What one worker (None: this one) does of it."""
        return everything[self.number if number is None else number :: self.count]


def workers() -> Workers:
    """This process among the workers that TF_CONFIG names; alone without it."""
    config = json.loads(os.environ.get("TF_CONFIG") or "{}")
    addresses = config.get("cluster", {}).get("worker", [])
    return Workers(int(config["task"]["index"]), len(addresses)) if addresses else Workers()


def wait_for(ask: Callable[[], T | None]) -> T:
    """The first answer; asked again and again while another worker makes it."""
    while (answer := ask()) is None:
        time.sleep(0.5)
    return answer
