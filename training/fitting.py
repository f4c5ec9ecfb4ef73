"""Fit a ranker to shards of examples: on one device or many, in one process or several, and on from where it was killed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from training.config import RankerConfig
from training.examples import Batch, Shard, batches, moments
from training.ranker import Ranker, list_loss
from training.workers import Workers, workers

STEPS_A_CHECKPOINT = 200
"""The most that a kill costs."""

Progress = Callable[[int, float], None]
"""Is told the number of each epoch that has ended, and its mean loss."""


def fit(
    shards: Sequence[Shard],
    config: RankerConfig,
    num_items: int,
    progress: Progress,
    *,
    strategy: tf.distribute.Strategy | None = None,
    checkpoints: Path | None = None,
) -> Ranker:
    """Train a ranker on the devices of a strategy, with the workers that TF_CONFIG names.

    A step takes `config.lists_a_batch` lists, an equal share of them on each replica; each worker reads shards of its
    own. Losses and gradients are added up over all replicas, so that it makes no difference where a list is.

    Args:
        strategy: None: the one device.
        checkpoints: folder to go on from, and to save to, that all workers share. None: nothing is saved.
    """
    strategy, own = strategy or tf.distribute.get_strategy(), workers()
    num_replicas = strategy.num_replicas_in_sync
    lists_a_replica = _lists_a_replica(strategy, config)
    replicas_a_worker = num_replicas // own.count
    num_steps = _steps_an_epoch(shards, own, lists_a_replica * replicas_a_worker)
    mean, deviation = moments(shards)
    with strategy.scope():
        ranker = Ranker(config, mean, deviation, num_items)
        optimizer = _optimizer(ranker, config, config.epochs * num_steps)
    losses = tf.Variable(tf.zeros([num_steps]), trainable=False)  # of this epoch, by its steps
    manager = None
    if checkpoints is not None:
        state = tf.train.Checkpoint(ranker=ranker, optimizer=optimizer, losses=losses)
        if latest := tf.train.latest_checkpoint(str(checkpoints)):
            state.restore(latest).assert_existing_objects_matched()
        if own.is_chief:  # every worker has the same weights
            manager = tf.train.CheckpointManager(state, str(checkpoints), max_to_keep=2)

    def pipeline(context: tf.distribute.InputContext) -> tf.data.Dataset:
        return batches(
            own.share(shards), len(mean), lists_a_replica, num_steps * replicas_a_worker,
            (config.seed, epoch, own.number), skip=first * replicas_a_worker,
        )  # fmt: skip

    steps_done, step = int(optimizer.iterations.numpy()), None
    for epoch in range(steps_done // num_steps, config.epochs):
        first = max(0, steps_done - epoch * num_steps)
        epoch_batches = strategy.distribute_datasets_from_function(pipeline)
        step = step or _compiled_step(strategy, ranker, optimizer, config, epoch_batches.element_spec)
        for place, batch in enumerate(epoch_batches, first):
            number = epoch * num_steps + place
            loss = step(batch)
            losses.scatter_nd_update([[place]], [strategy.experimental_local_results(loss)[0]])
            if manager is not None and (number + 1) % STEPS_A_CHECKPOINT == 0:
                manager.save(number + 1)
        progress(epoch + 1, float(np.mean(losses.numpy())))
    if manager is not None:
        manager.save(config.epochs * num_steps)
    return ranker


def _lists_a_replica(strategy: tf.distribute.Strategy, config: RankerConfig) -> int:
    return math.ceil(config.lists_a_batch / strategy.num_replicas_in_sync)


def _steps_an_epoch(shards: Sequence[Shard], workers: Workers, lists_a_worker: int) -> int:
    """As many as the worker with the most lists needs; the others end with empty batches."""
    shares = [sum(shard.num_lists for shard in workers.share(shards, number)) for number in range(workers.count)]
    return max(1, math.ceil(max(shares) / lists_a_worker))


def _optimizer(ranker: Ranker, config: RankerConfig, num_steps: int) -> tf.keras.optimizers.Optimizer:
    warmup = min(config.warmup_steps, max(1, num_steps // 10))
    schedule = tf.keras.optimizers.schedules.CosineDecay(
        1e-6, max(1, num_steps - warmup), warmup_target=config.learning_rate, warmup_steps=warmup
    )
    optimizer = tf.keras.optimizers.AdamW(schedule, weight_decay=config.weight_decay)
    optimizer.exclude_from_weight_decay(var_list=[ranker.item_bias])
    optimizer.build(list(ranker.trainable_variables))
    return optimizer


def _compiled_step(
    strategy: tf.distribute.Strategy,
    ranker: Ranker,
    optimizer: tf.keras.optimizers.Optimizer,
    config: RankerConfig,
    batch_spec: object,
) -> Callable[[Batch], tf.Tensor]:
    """One step on all replicas; returns the mean loss over all of their lists."""
    variables = list(ranker.trainable_variables)
    lists_a_replica = _lists_a_replica(strategy, config)

    def on_replica(batch: Batch) -> tf.Tensor:
        replica = tf.distribute.get_replica_context()
        with tf.GradientTape() as tape:
            scores = ranker(tf.cast(batch.features, tf.float32), batch.items)
            total, num_lists = list_loss(scores, batch.labels, batch.log_chance, batch.list_ids, lists_a_replica)
            num_lists = tf.maximum(replica.all_reduce("SUM", num_lists), 1.0)
            bias = tf.gather(ranker.item_bias, batch.items)
            objective = total / num_lists + config.item_bias_l2 * tf.reduce_sum(tf.square(bias)) / config.lists_a_batch
        gradients = tape.gradient(objective, variables)
        gradients = replica.all_reduce("SUM", [tf.convert_to_tensor(gradient) for gradient in gradients])
        gradients, _ = tf.clip_by_global_norm(gradients, config.clip_norm)  # of the whole batch, unlike the optimizer's
        # The optimizer adds up over the replicas once more.
        shares = [gradient / strategy.num_replicas_in_sync for gradient in gradients]
        optimizer.apply_gradients(zip(shares, variables, strict=True))
        return replica.all_reduce("SUM", total / num_lists)

    @tf.function(autograph=False, input_signature=[batch_spec])
    def step(batch: Batch) -> tf.Tensor:
        return strategy.run(on_replica, args=(batch,))

    return step
