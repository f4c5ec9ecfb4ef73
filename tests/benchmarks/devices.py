"""`make bench-devices`: training on each device that there is.

Reads the feature tables of the installation at CARTWHEEL_HOME, which `make run` has filled. Writes
`docs/benchmarks/devices.json`: records of device, replicas, lists_a_batch, examples_seconds, input_ms, step_ms,
lists_per_second, utilisation, device_peak_mib, loss, ndcg_at_10, each of a model for the last interval that can be
judged. Each device has a process of its own.

`input_ms` is what a batch takes to be read where nothing is trained (the second time), `step_ms` what a step takes, its
input included (the median epoch but the first, which compiles): where the second is much the greater, the input is not
waited for. `utilisation` is the share of the time in which the GPU did anything, as its driver says. Two replicas on
one device share it: they show that it works, not that it pays.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from itertools import chain, pairwise
from pathlib import Path

from contracts import dataset as datasets
from contracts.files import write_json
from contracts.metrics import NDCG, K
from contracts.settings import REPOSITORY, settings

RESULT = REPOSITORY / "docs" / "benchmarks" / "devices.json"
CPU, GPU = "CPU", "GPU"
_HALF_OF_A_GPU_MIB = 8192


class Utilisation:
    """Mean share of the time in which the first GPU did anything; None without one."""

    def __init__(self) -> None:
        self._shares: list[float] = []
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        command = ["nvidia-smi", "--id=0", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
        while not self._stopped.wait(0.2):
            self._shares.append(float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) / 100)

    def __enter__(self) -> Utilisation:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    @property
    def mean(self) -> float | None:
        return round(statistics.mean(self._shares), 2) if self._shares else None


def measure(device: str, num_replicas: int, batch_sizes: list[int]) -> None:
    """Train on this device; prints a record for each size of batch."""
    import tensorflow as tf

    if device == CPU:
        tf.config.set_visible_devices([], "GPU")
    strategy = None
    if num_replicas > 1:
        [physical] = tf.config.list_physical_devices(device)
        limit = {"memory_limit": _HALF_OF_A_GPU_MIB} if device == GPU else {}
        parts_of_it = [tf.config.LogicalDeviceConfiguration(**limit)] * num_replicas
        tf.config.set_logical_device_configuration(physical, parts_of_it)
        strategy = tf.distribute.MirroredStrategy(
            [f"{device}:{number}" for number in range(num_replicas)],
            # NCCL wants a GPU of its own for each.
            cross_device_ops=tf.distribute.HierarchicalCopyAllReduce(),
        )

    from training import evaluation, trainer
    from training.config import RankerConfig
    from training.data import attainable, load_items, with_users
    from training.examples import batches
    from training.fitting import fit

    config = RankerConfig()
    shop = with_users(load_items(datasets.load(settings().dataset_path), {}, trainer.num_intervals(config)))
    fold = trainer.possible_folds(shop, config)[-1]
    retrieve, lists = trainer.Retrieval(shop, config), attainable(shop, shop.lists[fold])
    with tempfile.TemporaryDirectory(dir=settings().home_dir) as folder:
        started = time.monotonic()
        shards_of = trainer.write_examples(
            [lambda: shop], trainer.learning_intervals(shop, fold, config), config, retrieve, Path(folder),
            say=lambda line: None,
        )  # fmt: skip
        examples_s = time.monotonic() - started
        shards = [*chain.from_iterable(shards_of.values())]
        num_lists = sum(shard.num_lists for shard in shards)
        for lists_a_batch in batch_sizes:
            chosen = RankerConfig(lists_a_batch=lists_a_batch)
            num_steps = -(-num_lists // lists_a_batch)
            for _ in range(2):
                started = time.monotonic()
                for _ in batches(shards, len(shards[0].sums), lists_a_batch, num_steps, (0, 0)):
                    pass
                input_ms = 1000 * (time.monotonic() - started) / num_steps
            ends, losses = [], []

            def progress(_: int, loss: float, ends: list[float] = ends, losses: list[float] = losses) -> None:
                ends.append(time.monotonic())
                losses.append(loss)

            if device == GPU:
                tf.config.experimental.reset_memory_stats("GPU:0")
                with Utilisation() as utilisation:
                    ranker = fit(shards, chosen, len(shop.item_ids), progress, strategy=strategy)
                share, memory = utilisation.mean, tf.config.experimental.get_memory_info("GPU:0")["peak"] // 2**20
            else:
                ranker, share, memory = fit(shards, chosen, len(shop.item_ids), progress, strategy=strategy), None, None
            epoch_s = statistics.median(end - start for start, end in pairwise(ends))
            shown = trainer.recommend(shop, lists, ranker, config, retrieve, num_places=K)
            record = {
                "device": _name(device),
                "replicas": num_replicas,
                "lists_a_batch": lists_a_batch,
                "examples_seconds": round(examples_s, 1),
                "input_ms": round(input_ms, 2),
                "step_ms": round(1000 * epoch_s / num_steps, 2),
                "lists_per_second": round(num_lists / epoch_s),
                "utilisation": share,
                "device_peak_mib": memory,
                "loss": round(losses[-1], 4),
                NDCG: round(evaluation.means(evaluation.score(shown, lists, len(shop.item_ids)))[NDCG], 4),
            }
            print(json.dumps(record), flush=True)


def _name(device: str) -> str:
    if device == CPU:
        return f"CPU, {len(os.sched_getaffinity(0))} cores"
    command = ["nvidia-smi", "--id=0", "--query-gpu=name", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def has_gpu() -> bool:
    """Whether TensorFlow sees a GPU: asked in another process, so that this one holds nothing of it."""
    question = "import sys, tensorflow as tf; sys.exit(not tf.config.list_physical_devices('GPU'))"
    return subprocess.run([sys.executable, "-c", question], stderr=subprocess.DEVNULL).returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--write", type=Path, default=RESULT, help="where the records go")
    parser.add_argument("--measure", choices=[CPU, GPU], help="train on this device and print the records")
    parser.add_argument("--replicas", type=int, default=1)
    chosen = parser.parse_args()
    if chosen.measure:
        measure(chosen.measure, chosen.replicas, chosen.batch_sizes)
        return
    sizes, smallest = [str(size) for size in chosen.batch_sizes], str(chosen.batch_sizes[0])
    cases = [[CPU, "--batch-sizes", *sizes], [CPU, "--replicas", "2", "--batch-sizes", smallest]]
    if has_gpu():
        cases += [
            [GPU, "--batch-sizes", *sizes],
            [GPU, "--replicas", "2", "--batch-sizes", smallest],
        ]
    records = []
    for case in cases:
        command = [sys.executable, "-m", "tests.benchmarks.devices", "--measure", *case]
        with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout
            for line in process.stdout:
                print(line, end="", flush=True)
                records.append(json.loads(line))
        if process.returncode:
            sys.exit(f"{' '.join(command)} ended with {process.returncode}")
    write_json(chosen.write, records)


if __name__ == "__main__":
    main()
