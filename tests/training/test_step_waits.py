"""Between two log entries the training asks for no number, for which a GPU would have to finish its work."""

from __future__ import annotations

import traceback
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch.utils._python_dispatch import TorchDispatchMode

import defeat
from defeat.run.train import train
from tests.helpers.gpu import gpu_waits
from tests.helpers.tiny import tiny, tiny_config, tiny_teacher

PACKAGE = str(Path(defeat.__file__).parent)
OURS = (PACKAGE, "lightning/pytorch/trainer/", "lightning/pytorch/callbacks/")
HELPERS = ("/torch/", "lightning/fabric/utilities/", "lightning_utilities/", Path(__file__).name)
AWAITED = ("device_flag.py", "loader.py")
"""The one reads whether losses are finite where the forward that made them is over; torch's loader, under the
other, draws a seed on the CPU at the start of an epoch."""


class Reads(TorchDispatchMode):
    """Notes the files of the project, and of what surrounds its training, that make numbers of tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.files: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            frames = reversed(traceback.extract_stack())
            file = next(f.filename for f in frames if not any(helper in f.filename for helper in HELPERS))
            if any(place in file for place in OURS) and Path(file).name not in AWAITED:
                self.files.append(file)
        return func(*args, **(kwargs or {}))


class Watch(Callback):
    """Enters a context for the steps from one to another, both included."""

    def __init__(self, context: Any, first: int, last: int) -> None:
        self.context, self.first, self.last = context, first, last
        self.stack = ExitStack()
        self.found: Any = None

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.first:
            self.found = self.stack.enter_context(self.context)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.last + 1:
            self.stack.close()


def run(watch: Watch, every: int, folder: Path, scenes: Path, teacher: Path, *more: str) -> None:
    """Six steps of DeFeat, of which every so many are logged."""
    lengths = [f"trainer.log_every_n_steps={every}", "trainer.val_check_interval=6"]
    words = tiny(folder, scenes, *tiny_teacher(teacher), *lengths, *more, steps=6)
    with watch.stack:
        train(tiny_config("scenes", words), [watch])


@pytest.mark.parametrize(("every", "reads"), [(3, False), (1, True)])
def test_a_step_that_is_not_logged_reads_no_number(
    every: int, reads: bool, scenes: Path, teacher: Path, tmp_path: Path
) -> None:
    watch = Watch(Reads(), 3, 4)  # the fourth and the fifth
    run(watch, every, tmp_path, scenes, teacher)
    assert bool(watch.found.files) == reads, watch.found.files


@pytest.mark.gpu
def test_a_step_waits_for_the_gpu_in_libraries_alone(scenes: Path, teacher: Path, tmp_path: Path) -> None:
    watch = Watch(gpu_waits(), 4, 4)
    run(watch, 3, tmp_path, scenes, teacher, "trainer.accelerator=gpu")
    assert watch.found, "torchvision's matchers and samplers wait"
    assert [file for file in watch.found if file.startswith(PACKAGE)] == []
