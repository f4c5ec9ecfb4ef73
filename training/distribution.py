"""Which devices and which workers train together: chosen by what is there.

Workers know each other by TF_CONFIG, as TensorFlow defines it, whoever set it: a Spark barrier stage (`training.launch`)
or a Kubernetes Job.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import tensorflow as tf

T = TypeVar("T")


@dataclass(frozen=True)
class Workers:
    """The processes of one training. Number 0 is the chief, who evaluates and writes what comes out."""

    number: int = 0
    count: int = 1

    @property
    def is_chief(self) -> bool:
        return self.number == 0

    def share(self, everything: Sequence[T], number: int | None = None) -> Sequence[T]:
        """What one worker (None: this one) does of it."""
        return everything[self.number if number is None else number :: self.count]


def workers() -> Workers:
    """This process among the workers that TF_CONFIG names; alone without it.

    Source: https://www.tensorflow.org/guide/distributed_training#setting_up_the_tf_config_environment_variable
    """
    config = json.loads(os.environ.get("TF_CONFIG") or "{}")
    addresses = config.get("cluster", {}).get("worker", [])
    return Workers(int(config["task"]["index"]), len(addresses)) if addresses else Workers()


def wait_for(ask: Callable[[], T | None]) -> T:
    """The first answer; asked again and again while another worker makes it."""
    while (answer := ask()) is None:
        time.sleep(0.5)
    return answer


def choose_strategy() -> tf.distribute.Strategy:
    """The strategy for the devices and workers that there are. Call it before anything else of TensorFlow.

    Several workers: MultiWorkerMirroredStrategy. A TPU (TPU_NAME is set): TPUStrategy. Several GPUs: MirroredStrategy.
    Else the one device that there is.
    """
    if workers().count > 1:
        return tf.distribute.MultiWorkerMirroredStrategy()
    if name := os.environ.get("TPU_NAME"):
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver.connect(name)
        return tf.distribute.TPUStrategy(resolver)
    if len(tf.config.list_physical_devices("GPU")) > 1:
        return tf.distribute.MirroredStrategy()
    return tf.distribute.get_strategy()
