"""How long a run is and what it takes, against what Lightning then does."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest

from defeat.memory import largest_batch
from defeat.preflight.cost import check_cost, duration, plan
from defeat.preflight.step import Gradients, Steps, Teacher
from defeat.run.build import build_run
from defeat.run.train import train
from defeat.training.run import Run
from tests.helpers.built_runs import built_run
from tests.helpers.tiny import tiny, tiny_config


class Count(pl.Callback):
    """Counts what a training really does."""

    def __init__(self) -> None:
        self.validations = self.batches = self.val_images = 0

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self.validations += 1
        self.val_images = 0

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, *_: Any
    ) -> None:
        self.val_images += len(batch.images)

    def on_train_batch_end(self, *_: Any) -> None:
        self.batches += 1


@pytest.mark.parametrize(
    "settings",
    [
        ["trainer.max_steps=3", "trainer.val_check_interval=2"],
        ["trainer.max_steps=-1", "trainer.max_epochs=2", "trainer.val_check_interval=1"],
        [
            *("trainer.max_steps=5", "trainer.max_epochs=3", "trainer.val_check_interval=null"),
            *("trainer.check_val_every_n_epoch=2", "trainer.accumulate_grad_batches=2", "data.batch_size=2"),
        ],
        [
            *("trainer.max_steps=-1", "trainer.max_epochs=2", "trainer.val_check_interval=0.5"),
            *("trainer.check_val_every_n_epoch=1", "data.batch_size=2", "trainer.limit_val_batches=1"),
            *("+trainer.limit_train_batches=3", "data.val_batch_size=3"),
        ],
    ],
)
def test_the_plan_is_what_the_trainer_does(settings: list[str], tmp_path: Path, scenes: Path) -> None:
    words = tiny(tmp_path / "a", scenes, "~logger", *settings)
    count = Count()
    outcome = train(tiny_config("scenes_plain", words), [count])
    words[0] = f"run_dir={tmp_path / 'b'}"
    planned = plan(build_run(tiny_config("scenes_plain", words)))
    assert planned.steps == outcome.steps
    assert planned.batches == count.batches
    assert planned.validations == count.validations
    assert planned.val_images == count.val_images


def steps(*seconds: float, val: float = 0.5, peak: float = 2.0**30) -> Steps:
    return Steps({}, Gradients([], [], [], [], []), Teacher([], [], []), list(seconds), val, 7, peak)


def test_the_estimate_adds_up(healthy: Run) -> None:
    # 400 steps of 4 images, validations of 40 images after every 100
    found = check_cost(healthy, steps(9.0, 2.0, 4.0, 2.0), image_seconds=0.25, batch_images=4)
    assert found.figures["compute_seconds"] == 2.0, "the first step warms up"
    assert found.figures["batch_seconds"] == 3.0, "decoding in the same process comes on top"
    assert found.figures["images_per_second"] == pytest.approx(4 / 3)
    assert found.figures["validation_seconds"] == pytest.approx(40 * 0.75)
    assert found.figures["whole_seconds"] == pytest.approx(400 * 3 + 4 * 30)
    assert "1.00 GiB resident memory of the process" in found.summary
    assert "data.batch_size=7" in found.summary
    assert "400 steps in about 22 min 0 s" in found.summary
    assert found.result == "ok"


def test_slow_workers_are_a_warning(tmp_path: Path, pictures: Path) -> None:
    run = built_run(tmp_path, pictures, "data.num_workers=2")
    found = check_cost(run, steps(1.0), image_seconds=1.0, batch_images=4)
    assert found.figures["batch_seconds"] == 2.0, "two workers decode at a time"
    assert found.problems[0].remedy == "raise data.num_workers"
    assert check_cost(run, steps(3.0), image_seconds=1.0, batch_images=4).result == "ok"


def test_a_run_without_end_and_a_platform_without_figures(tmp_path: Path, pictures: Path) -> None:
    endless = built_run(
        tmp_path, pictures, "trainer.max_steps=-1", "trainer.max_epochs=-1", "optim.lr_schedule=null"
    )
    found = check_cost(endless, steps(1.0, peak=math.nan), image_seconds=0.0, batch_images=4)
    assert "no end is set" in found.summary
    assert "memory not known" in found.summary
    assert found.figures["whole_seconds"] is found.figures["peak_bytes"] is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (3599.9, "1 h 0 min"),
        (12_000, "3 h 20 min"),
        (172_800, "2 d 0 h"),
    ],
)
def test_durations_have_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_largest_batch_is_in_proportion_to_the_free_memory() -> None:
    gib = 2.0**30
    # 4 images took 2 GiB; of 20 GiB nine tenths are 18, for 36 images
    assert largest_batch(4, 2 * gib, 20 * gib) == 36
    assert largest_batch(4, 2 * gib, 0.1 * gib) == 1
    assert largest_batch(4, math.nan, gib) is largest_batch(4, gib, math.nan) is None
    assert largest_batch(4, 0.0, gib) is None, "an earlier peak hid it"
