"""Between two log entries the training asks for no number, for which a GPU would have to finish its work."""

from __future__ import annotations

import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from defeat.config import compose_config
from defeat.run.train import train
from defeat.training.callbacks.progress import ProgressBar, _free_to_read
from defeat.training.module import to_unit_range
from tests.helpers.tiny import tiny, tiny_teacher

OURS = ("defeat/training/", "lightning/pytorch/trainer/", "lightning/pytorch/callbacks/")
HELPERS = ("/torch/", "lightning/fabric/utilities/", "lightning_utilities/", "test_no_waiting_step.py")
AWAITED = "defeat/training/nonfinite.py"
"""It looks at losses where the forward that made them is over."""


class Numbers(TorchDispatchMode):
    """Notes the files of the training, and of what surrounds it, that make numbers of tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            files = (frame.filename for frame in reversed(traceback.extract_stack()))
            place = next(file for file in files if not any(helper in file for helper in HELPERS))
            if any(own in place for own in OURS) and AWAITED not in place:
                self.places.append(place)
        return func(*args, **(kwargs or {}))


class Watch(Callback):
    """Notes the numbers that are read in some steps."""

    def __init__(self, first: int, last: int) -> None:
        self.first, self.last = first, last
        self.numbers = Numbers()
        self.steps = 0

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.first:
            self.numbers.__enter__()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.steps += 1
        if self.steps == self.last + 1:
            self.numbers.__exit__(None, None, None)


@pytest.mark.parametrize(("every", "reads"), [(3, False), (1, True)])
def test_a_step_that_is_not_logged_reads_no_number(
    every: int, reads: bool, scenes: Path, teacher: Path, tmp_path: Path
) -> None:
    watch = Watch(first=3, last=4)  # the fourth and the fifth
    more = (f"trainer.log_every_n_steps={every}", "trainer.val_check_interval=6")
    words = tiny(tmp_path, scenes, *tiny_teacher(teacher), *more, steps=6)
    train(compose_config("train", ["+experiment=scenes", *words]), [watch])
    assert bool(watch.numbers.places) == reads, watch.numbers.places


def test_images_are_converted_to_the_same_numbers_in_one_pass() -> None:
    image = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16).expand(3, 16, 16)
    (ours,) = to_unit_range([image])
    assert torch.equal(ours, image.float() / 255)
    assert ours.dtype == torch.float32
    assert torch.equal(image[0].flatten(), torch.arange(256, dtype=torch.uint8))  # untouched


@pytest.mark.parametrize(
    ("device", "step", "every", "free"),
    [("cuda", 10, 10, True), ("cuda", 11, 10, False), ("cuda", 10, 0, False), ("cpu", 11, 10, True)],
)
def test_the_bar_reads_a_gpus_losses_where_they_are_logged(
    device: str, step: int, every: int, free: bool
) -> None:
    trainer = cast(Trainer, SimpleNamespace(global_step=step, log_every_n_steps=every))
    assert _free_to_read(trainer, torch.device(device)) == free


class Shown(ProgressBar):
    """Keeps what it shows."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[dict[str, Any]] = []

    def get_metrics(self, trainer: Any, pl_module: Any) -> dict[str, Any]:
        self.shown.append(super().get_metrics(trainer, pl_module))
        return self.shown[-1]


def test_the_bar_shows_the_losses_the_speed_and_the_last_ap(scenes: Path, tmp_path: Path) -> None:
    bar = Shown()
    words = tiny(tmp_path, scenes, "~logger", steps=3)
    outcome = train(compose_config("train", ["+experiment=scenes_plain", *words]), [bar])
    last = bar.shown[-1]
    assert {"loss", "loss_detection", "images_per_s", "val/AP", "left"} <= set(last)
    assert last["loss"] == outcome.metrics["train/loss"]
    assert last["images_per_s"] == outcome.metrics["train/images_per_s"]
    assert not any(isinstance(value, Tensor) for value in last.values())
