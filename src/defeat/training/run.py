"""A run whose parts are built and whose training has not begun."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Trainer

from defeat.data import DetectionDataModule
from defeat.detectors import Detector, FrozenTeacher
from defeat.distill import Distiller
from defeat.training.loss_gradients import Precision, precision_of
from defeat.training.module import DetectionModule


class Distillation(NamedTuple):
    """The parts that a distilled run has beside its student."""

    teacher: Detector
    frozen_teacher: FrozenTeacher
    """The teacher as the module holds it."""
    distiller: Distiller


class Run(NamedTuple):
    """The parts of a run, as :func:`defeat.run.build.build_run` builds them."""

    config: Mapping[str, Any]
    """The run's configuration in plain containers."""
    data: DetectionDataModule
    student: Detector
    teacher: Detector | None
    module: DetectionModule
    """Student, frozen teacher and distiller in one; knows the provenance, too."""
    trainer: Trainer
    checkpoint: Path | None = None
    """The checkpoint that the training goes on from."""

    @property
    def run_dir(self) -> Path:
        """The folder in which everything is filed."""
        return Path(self.config["run_dir"])

    @property
    def distillation(self) -> Distillation | None:
        """Teacher and distiller; None for a plain run."""
        if self.teacher is None or self.module.teacher is None or self.module.distiller is None:
            return None
        return Distillation(self.teacher, self.module.teacher, self.module.distiller)

    @property
    def device(self) -> torch.device:
        """The device on which the training of the first process will compute."""
        return self.trainer.strategy.root_device

    @property
    def precision(self) -> Precision:
        """Context of a forward, as the training will have it."""
        return precision_of(self.trainer)
