"""Several workers, as a barrier stage of a real Spark, and killed in the middle."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from contracts.files import lock_holder, locked, read_json
from contracts.settings import REPOSITORY
from contracts.tables import ITEM_FEATURES, ITEMS, TRAINING_LISTS, USER_HISTORIES
from contracts.trainings import clear_abandoned
from tests.training.tables import write_shop, write_table
from tests.verbs import run_verb

NUM_USERS, NUM_ITEMS, LAST = 60, 12, 6
KEY = "as_of_7_v0_test"


@pytest.fixture
def tables(home: Path) -> Path:
    """Users who take one of two items of their own in each interval, most often the first one."""
    generator = random.Random(1)
    items = [f"i{number:02d}" for number in range(NUM_ITEMS)]
    text = {"name": "", "category": "x", "type": "", "recommendable": True, "seen": True}
    write_table(ITEMS, [text | {"item_id": item} for item in items])
    counts = {"events_all": 9, "events_4": 4, "target_events_4": 4, "mean_price": 1.0, "price_ratio": 1.0}
    write_table(
        ITEM_FEATURES,
        [{"as_of": as_of, "item_id": item} | counts for as_of in range(2, LAST + 2) for item in items],
    )
    histories, lists = [], []
    for number in range(NUM_USERS):
        own = generator.sample(items, 2)
        taken = [own[generator.random() < 0.2] for _ in range(LAST)]
        user = {"user_id": f"u{number}", "bucket": number % 4}
        histories += [
            user | {"interval": place + 1, "item_ids": [item], "at": [place + 0.5], "weights": [1.0]}
            for place, item in enumerate(taken)
        ]
        lists += [user | {"as_of": place + 1, "target_items": [item]} for place, item in enumerate(taken)]
    write_table(USER_HISTORIES, histories)
    write_table(TRAINING_LISTS, lists)
    write_shop(home)
    return home


class Training:
    """`python -m training train` on a copy of the tables."""

    def __init__(self, home: Path, tables: Path, mlflow_store: Path, num_workers: int) -> None:
        shutil.copytree(tables, home)
        shutil.copy(mlflow_store, home / "mlflow.db")
        self.folder = home / "training" / KEY
        self._environment = {
            "CARTWHEEL_HOME": str(home),
            "CARTWHEEL_DATASET": str(home / "shop.toml"),
            "CARTWHEEL_MLFLOW_TRACKING_URI": f"sqlite:///{home / 'mlflow.db'}",
            "CARTWHEEL_TRAINING_WORKERS": str(num_workers),
            "CARTWHEEL_TRAINING_EPOCHS": "3",
            "CARTWHEEL_TRAINING_INTERVALS": "3",
            "CARTWHEEL_FOLD_OFFSETS": "1",
            "CARTWHEEL_SPARK_MASTER": "local[2]",
        }
        self._home = home

    def start(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "training", "train", "--key", KEY]
        return subprocess.Popen(
            command, cwd=self._home, env=os.environ | self._environment | {"PYTHONPATH": str(REPOSITORY)}, text=True,
            start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def start_until(self, words: str) -> tuple[subprocess.Popen[str], list[psutil.Process]]:
        """Start, and wait until it says so; with all processes that it has started."""
        process = self.start()
        assert process.stdout is not None
        assert any(words in line for line in process.stdout)
        return process, psutil.Process(process.pid).children(recursive=True)

    def run(self) -> dict[str, Any]:
        process = self.start()
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0, output[-12000:]
        return self._evaluation()

    def run_here(self) -> dict[str, Any]:
        """In this process, which has imported TensorFlow already."""
        result = run_verb("training", "train", "--key", KEY, environment=self._environment)
        assert result.returncode == 0, result.stdout + result.stderr
        return self._evaluation()

    def _evaluation(self) -> dict[str, Any]:
        content: dict[str, Any] = read_json(self.folder / "evaluation.json")
        return content


def test_what_abandoned_trainings_have_left_is_cleared(home: Path) -> None:
    """But not what one that runs is at, nor our own."""
    for name in ("abandoned", "running", "ours"):
        (home / "training" / name / "work").mkdir(parents=True)
    with locked(home / "training" / "running" / ".lock"):
        clear_abandoned(but="ours")
    assert sorted(path.parent.name for path in (home / "training").glob("*/work")) == ["ours", "running"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_workers_killed_in_the_middle_end_as_undisturbed_ones(
    tables: Path, tmp_path_factory: pytest.TempPathFactory, mlflow_store: Path
) -> None:
    """They evaluate as one does, up to what their other batches change. Where one is killed the others end too; killed
    with their launcher, nobody is left; run again they go on.
    """
    parent = tmp_path_factory.mktemp("trainings")
    alone = Training(parent / "alone", tables, mlflow_store, 1).run_here()
    together = Training(parent / "together", tables, mlflow_store, 2).run()
    assert [fold["num_lists"] for fold in together["folds"]] == [fold["num_lists"] for fold in alone["folds"]] == [60]
    assert together["means"]["popularity"] == alone["means"]["popularity"]
    for metric, mean in together["means"]["model"].items():
        assert mean == pytest.approx(alone["means"]["model"][metric], abs=0.05)

    killed = Training(parent / "killed", tables, mlflow_store, 2)
    process, workers = killed.start_until("as of 6: epoch 1")
    trainers = [worker for worker in workers if worker.memory_info().rss > 400 * 2**20 and "java" not in worker.name()]
    assert len(trainers) == 2
    trainers[1].kill()
    assert process.wait(timeout=120) != 0  # nobody waits for the one that is gone
    psutil.wait_procs(workers, timeout=60)
    assert not any(worker.is_running() for worker in workers)

    process, workers = killed.start_until("as of 7: epoch 1")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    psutil.wait_procs(workers, timeout=60)
    assert not any(worker.is_running() for worker in workers)
    assert not (killed.folder / "evaluation.json").exists()
    assert lock_holder(killed.folder / ".lock") is None
    assert [*(killed.folder / "work" / "checkpoints").glob("*/*.index")]
    assert killed.run()["means"] == together["means"]
