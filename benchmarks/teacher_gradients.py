"""How far the rounding of a cheaper teacher turns a student's gradient, beside what another draw does.

    python benchmarks/teacher_gradients.py +experiment=scenes trainer.max_steps=400

A step draws anchors and proposals at random. What the teacher's arithmetic changes of a gradient is shown
beside what other random numbers change of it, at the student as it is after some steps of a training with the
teacher as built.
"""

from __future__ import annotations

import copy
import sys
import tempfile
from collections.abc import Sequence
from itertools import islice
from statistics import mean
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from measure import heading, table
from torch import Tensor, nn

from defeat.config import build, compose_config
from defeat.data import DetectionDataModule
from defeat.detectors import Detector, FrozenTeacher, capture
from defeat.detectors.inference import to_unit_range
from defeat.distill import Distiller
from defeat.run.prepare_teacher import prepare_teacher
from defeat.run.train import train
from defeat.seeds import seed_all
from defeat.training.loss_gradients import DETECTION
from defeat.training.module import DetectionModule
from defeat.types import Batch
from defeat.warning_filters import filter_warnings

STEPS = (20, 100, 400)
BATCHES = 4
WHOLE = "all together"


class Turned(Callback):
    """Compare gradients at some steps: relative differences by step and loss, of every batch."""

    def __init__(self, cheap: FrozenTeacher, batches: Sequence[Batch]) -> None:
        self.cheap = cheap
        self.batches = batches
        self.by_rounding: dict[int, dict[str, list[float]]] = {}
        self.by_chance: dict[int, dict[str, list[float]]] = {}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Compare on the same batches at every step, with copies: statistics of BatchNorm would move."""
        step = trainer.global_step
        if step not in STEPS:
            return
        assert isinstance(pl_module, DetectionModule)
        assert pl_module.teacher is not None
        assert pl_module.distiller is not None
        student, distiller = copy.deepcopy(pl_module.student), pl_module.distiller
        rounding = self.by_rounding.setdefault(step, {})
        chance = self.by_chance.setdefault(step, {})
        for seed, one in enumerate(self.batches):
            exact = gradients(student, pl_module.teacher, distiller, one, seed)
            _collect(rounding, gradients(student, self.cheap, distiller, one, seed), exact)
            other = gradients(student, pl_module.teacher, distiller, one, seed + len(self.batches))
            _collect(chance, other, exact)


def gradients(
    student: nn.Module, teacher: FrozenTeacher, distiller: Distiller, batch: Batch, seed: int
) -> dict[str, Tensor]:
    """(P,) gradient of every loss, and of all together, at the student's P trained weights."""
    weights = [p for p in student.parameters() if p.requires_grad]
    with isolate_rng():
        seed_all(seed)
        with capture(student) as seen:
            own = student(to_unit_range(batch.images), list(batch.targets))
        losses = {DETECTION: sum(own.values()), **distiller(student, teacher, seen, 0.0)}
    losses[WHOLE] = sum(losses.values())
    return {name: _gradient(loss, weights) for name, loss in losses.items()}


def _gradient(loss: Tensor, weights: Sequence[nn.Parameter]) -> Tensor:
    found = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True, materialize_grads=True)
    return torch.cat([own.flatten() for own in found])


def _collect(into: dict[str, list[float]], found: dict[str, Tensor], exact: dict[str, Tensor]) -> None:
    for name, own in exact.items():
        into.setdefault(name, []).append(float((found[name] - own).norm() / own.norm()))


def main() -> None:
    filter_warnings()
    with tempfile.TemporaryDirectory() as folder:
        fixed = [
            "~logger",
            "~callbacks",
            "preflight=off",
            "callbacks.measure=null",
            "trainer.val_check_interval=null",
        ]
        fixed += ["+trainer.enable_progress_bar=false"]
        words = [*sys.argv[1:], f"run_dir={folder}", *fixed, "teacher.precision=as_built"]
        config = compose_config("train", words)
        if 0 <= config.trainer.max_steps < STEPS[0]:
            sys.exit(f"error: trainer.max_steps={config.trainer.max_steps} is less than {STEPS[0]}")
        heading("What the cheaper teacher changes of a gradient")
        data: DetectionDataModule = build(config.data)
        data.setup("fit")
        batches = list(islice(data.train_dataloader(), BATCHES))
        cheap: Detector = build(config.teacher, classes=list(data.classes), precision="auto")
        student: Detector = build(config.student, classes=list(data.classes))
        frozen = prepare_teacher(cheap, student.model, data, torch.device("cpu"))
        turned = Turned(frozen, batches)
        train(config, [turned])
    print(f"Relative difference of the gradient, mean of {BATCHES} batches:\n")
    print(_table(turned))


def _table(turned: Turned) -> str:
    steps = list(turned.by_rounding)
    names = list(turned.by_rounding[steps[0]])
    rows = [
        [
            name,
            *(f"{mean(turned.by_rounding[step][name]):.3f}" for step in steps),
            *(f"{mean(turned.by_chance[step][name]):.3f}" for step in steps),
        ]
        for name in names
    ]
    header = [f"cheaper teacher, {step} steps" for step in steps] + [
        f"another draw, {step}" for step in steps
    ]
    return table(["loss", *header], rows)


if __name__ == "__main__":
    main()
