"""Which devices train together: chosen by what is there."""

from __future__ import annotations

import os

import tensorflow as tf

from training.workers import workers


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
