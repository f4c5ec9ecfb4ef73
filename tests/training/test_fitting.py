"""Fitting: learning of something simple, and the same weights however it is distributed or interrupted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from contracts.ports import free_ports
from contracts.settings import REPOSITORY
from training import fitting
from training.config import RankerConfig
from training.examples import Batch, Examples, Shard, batches, moments, write_shard
from training.features import feature_names
from training.fitting import fit
from training.ranker import Ranker

NUM_FEATURES = len(feature_names(RankerConfig()))
NUM_ITEMS = 10
SIZES = (60, 51, 40, 42)
"""Lists of each shard: two workers have a step more and a step less."""


def examples(num_lists: int, seed: int) -> Examples:
    """Lists of ten items, of which the one with the greatest feature 7 is taken."""
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(num_lists * NUM_ITEMS, NUM_FEATURES)).astype(np.float16)
    labels = np.zeros((num_lists, NUM_ITEMS), np.uint8)
    labels[np.arange(num_lists), features[:, 7].reshape(num_lists, NUM_ITEMS).argmax(axis=1)] = 1
    items = np.tile(np.arange(NUM_ITEMS, dtype=np.int32), num_lists)
    return Examples(features, items, labels.ravel(), np.zeros(len(items), np.float32), np.full(num_lists, NUM_ITEMS))


def shard(folder: Path, num_lists: int, seed: int) -> Shard:
    return write_shard(folder / f"{seed}.tfrecord", [examples(num_lists, seed)], num_lists, NUM_FEATURES)


@pytest.fixture
def shards(tmp_path: Path) -> list[Shard]:
    """Four of unequal length."""
    return [shard(tmp_path / "examples", num_lists, seed) for seed, num_lists in enumerate(SIZES)]


def into(losses: list[float]) -> fitting.Progress:
    """Keeps the loss of each epoch."""
    return lambda _, loss: losses.append(loss)


def weights(ranker: Ranker) -> list[np.ndarray]:
    return [variable.numpy() for variable in ranker.trainable_variables]


def assert_same(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray], tolerance: float = 0.0) -> None:
    for own, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(own, other, rtol=tolerance, atol=tolerance)


@pytest.mark.slow
def test_learns_what_decides(shards: list[Shard]) -> None:
    """Where one feature alone decides what is taken, the trained ranker mostly puts the taken item of unseen lists first."""
    losses = []
    config = RankerConfig(epochs=15, lists_a_batch=8)
    ranker = fit(shards, config, NUM_ITEMS, into(losses))
    unseen = examples(100, seed=99)
    scores = ranker(tf.constant(unseen.features.astype(np.float32)), tf.constant(unseen.items.astype(np.int64)))
    best = scores.numpy().reshape(-1, NUM_ITEMS).argmax(axis=1)
    assert len(losses) == 15
    assert losses[-1] < losses[0] / 2
    assert (unseen.labels.reshape(-1, NUM_ITEMS)[np.arange(100), best] == 1).mean() > 0.5


def test_an_epoch_has_each_list_once_in_an_order_of_its_own(shards: list[Shard]) -> None:
    """Whole lists, none twice, none left out; what follows is empty; a batch that is skipped is the only one missing."""

    def lists(seed: tuple[int, ...], skip: int = 0) -> list[list[float]]:
        every = []
        for batch in batches(shards, NUM_FEATURES, 8, 40, seed, skip=skip):
            for number in np.unique(batch.list_ids):
                rows = batch.list_ids.numpy() == number
                assert batch.items.numpy()[rows].tolist() == list(range(NUM_ITEMS))
                assert batch.labels.numpy()[rows].sum() == 1
                every.append(batch.features.numpy()[rows][:, 0].tolist())
        return every

    first, other = lists((0, 0)), lists((0, 1))
    expected = np.concatenate([examples(n, seed).features[:, 0] for seed, n in enumerate(SIZES)])
    assert sorted(first) == sorted(expected.astype(np.float32).reshape(-1, NUM_ITEMS).tolist())
    assert first != other
    assert sorted(first) == sorted(other)
    assert lists((0, 0), skip=3) == first[24:]


def test_moments_are_those_of_all_rows(shards: list[Shard]) -> None:
    """Mean and deviation by the shards' sums."""
    rows = np.concatenate([examples(n, seed).features for seed, n in enumerate(SIZES)]).astype(np.float64)
    mean, deviation = moments(shards)
    np.testing.assert_allclose(mean, rows.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(deviation, rows.std(axis=0), atol=1e-6)


@pytest.mark.slow
def test_killed_at_any_step_it_ends_as_if_it_had_not_been(
    shards: list[Shard], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first checkpoint, between two, at the end of an epoch, before the last step."""
    monkeypatch.setattr(fitting, "STEPS_A_CHECKPOINT", 5)
    config = RankerConfig(epochs=2, lists_a_batch=16)
    losses: list[float] = []
    undisturbed = weights(fit(shards, config, NUM_ITEMS, into(losses)))
    num_steps = 13  # an epoch of 193 lists
    for killed_at in (3, 7, num_steps, 20, 2 * num_steps - 1):
        again: list[float] = []
        checkpoints = tmp_path / f"killed-at-{killed_at}"
        with monkeypatch.context() as patch:
            patch.setattr(fitting, "_compiled_step", dying(fitting._compiled_step, killed_at))
            with pytest.raises(KeyboardInterrupt):
                fit(shards, config, NUM_ITEMS, lambda *_: None, checkpoints=checkpoints)
        ended = fit(shards, config, NUM_ITEMS, into(again), checkpoints=checkpoints)
        assert_same(weights(ended), undisturbed)
        assert again == losses[2 - len(again) :]


def dying(compiled: object, after: int) -> object:
    """The compiled step that dies once it has been taken `after` times."""

    def make(*arguments: object) -> object:
        step, times = compiled(*arguments), iter(range(after))

        def one(*batch: object) -> object:
            if next(times, None) is None:
                raise KeyboardInterrupt
            return step(*batch)

        return one

    return make


WORKER = """
import json, sys
import numpy as np
import tensorflow as tf
from training.distribution import choose_strategy

about, result, num_devices = json.load(open(sys.argv[1])), sys.argv[2], int(sys.argv[3])
if num_devices > 1:
    [device] = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(device, [tf.config.LogicalDeviceConfiguration()] * num_devices)
    strategy = tf.distribute.MirroredStrategy([f"CPU:{number}" for number in range(num_devices)])
else:
    strategy = choose_strategy()
from training.config import RankerConfig
from training.examples import Shard
from training.fitting import fit

losses = []
ranker = fit(
    [Shard(**each) for each in about["shards"]], RankerConfig(**about["config"]), about["num_items"],
    lambda _, loss: losses.append(loss), strategy=strategy,
)
variables = {str(place): variable.numpy() for place, variable in enumerate(ranker.trainable_variables)}
np.savez(result, losses=losses, num_replicas=strategy.num_replicas_in_sync, **variables)
"""


CONFIG = {"epochs": 2, "lists_a_batch": 8}


def write_task(shards: list[Shard], folder: Path) -> Path:
    """What WORKER trains on."""
    path = folder / "about.json"
    path.write_text(json.dumps({"shards": [asdict(each) for each in shards], "config": CONFIG, "num_items": NUM_ITEMS}))
    return path


@pytest.mark.slow
def test_two_devices_of_a_process_are_as_one(shards: list[Shard], tmp_path: Path) -> None:
    """Two mirrored devices with half of each batch end with the losses and weights of one that has the whole of it."""
    command = [sys.executable, "-c", WORKER, str(write_task(shards, tmp_path)), str(tmp_path / "mirrored.npz"), "2"]
    subprocess.run(command, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, cwd=tmp_path, check=True)
    mirrored = dict(np.load(tmp_path / "mirrored.npz"))
    losses: list[float] = []
    alone = fit(shards, RankerConfig(**CONFIG), NUM_ITEMS, into(losses))
    assert mirrored.pop("num_replicas") == 2
    np.testing.assert_allclose(mirrored.pop("losses"), losses, rtol=1e-5)
    assert_same([mirrored[str(place)] for place in range(len(mirrored))], weights(alone), tolerance=1e-5)


@pytest.mark.slow
def test_two_workers_are_as_one(shards: list[Shard], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes with half of each batch have the same losses and weights, those of one that has the whole of it."""
    task_file = write_task(shards, tmp_path)
    addresses = [f"127.0.0.1:{port}" for port in free_ports(2)]
    processes = []
    for number in range(2):
        task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": number}}
        command = [sys.executable, "-c", WORKER, str(task_file), str(tmp_path / f"{number}.npz"), "1"]
        environment = os.environ | {"TF_CONFIG": json.dumps(task), "PYTHONPATH": str(REPOSITORY)}
        processes.append(subprocess.Popen(command, env=environment, cwd=tmp_path))
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    first, second = (dict(np.load(tmp_path / f"{number}.npz")) for number in range(2))
    assert first["num_replicas"] == 2
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])

    def both(
        shards: Sequence[Shard], num_features: int, lists_a_batch: int, num_batches: int, seed: Any, **_: Any
    ) -> Any:
        halves = [
            batches(shards[number::2], num_features, lists_a_batch // 2, num_batches, (*seed[:2], number))
            for number in range(2)
        ]
        return tf.data.Dataset.zip(*halves).map(lambda one, two: merged(one, two, lists_a_batch // 2))

    losses: list[float] = []
    with monkeypatch.context() as patch:
        patch.setattr(fitting, "batches", both)
        alone = fit(shards, RankerConfig(**CONFIG), NUM_ITEMS, into(losses))
    np.testing.assert_allclose(first.pop("losses"), losses, rtol=1e-5)
    assert_same([first[str(place)] for place in range(len(first) - 1)], weights(alone), tolerance=1e-5)


def merged(one: Batch, two: Batch, num_lists: int) -> Batch:
    """Both batches as one."""
    return Batch(
        *(tf.concat(pair, 0) for pair in zip(one, two._replace(list_ids=two.list_ids + num_lists), strict=True))
    )
