"""The progress bar: loss terms, speed, and the time that the whole run still takes."""

from __future__ import annotations

import time
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar

from defeat.training.module import DetectionModule


class ProgressBar(RichProgressBar):
    """Lightning's rich bar, which counts one epoch, with the losses and the time left in all.

    On a GPU the losses are those of the last logged step: to read others it would have to be waited for.

    Args:
        settings: those of ``RichProgressBar``.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._read: dict[str, float] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note where and when this process began, which is not step 0 after a resume."""
        super().on_train_start(trainer, pl_module)
        self._started = time.perf_counter()
        self._first_step = trainer.global_step

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Name to value, as shown."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        reading = trainer.training and _free_to_read(trainer, pl_module.device)
        if reading and isinstance(pl_module, DetectionModule):
            logged = trainer.callback_metrics
            distilled = pl_module.distiller.weights if pl_module.distiller else ()
            names = ("loss", "loss_detection", *distilled, "images_per_s")
            self._read = {name: float(logged[f"train/{name}"]) for name in names if f"train/{name}" in logged}
        shown = {**self._read, **metrics}
        if left := self._time_left(trainer):
            shown["left"] = left
        return shown

    def _time_left(self, trainer: Trainer) -> str | None:
        done = trainer.global_step - self._first_step
        total = trainer.estimated_stepping_batches
        if not done or total == float("inf"):
            return None
        each = (time.perf_counter() - self._started) / done
        seconds = round(each * max(0, int(total) - trainer.global_step))
        return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def _free_to_read(trainer: Trainer, device: torch.device) -> bool:
    """Tell whether numbers can be read without making a device wait: a CPU's, or those logged anyhow."""
    every: int = cast(Any, trainer).log_every_n_steps  # set by a connector, so untyped
    return device.type == "cpu" or (every > 0 and trainer.global_step % every == 0)
