"""The progress bar: loss terms, speed, and the time that the whole run still takes."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar


class ProgressBar(RichProgressBar):
    """Lightning's rich bar, which counts one epoch, with short names and the time left in all."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note where and when this process began, which is not step 0 after a resume."""
        super().on_train_start(trainer, pl_module)
        self._started = time.perf_counter()
        self._first_step = trainer.global_step

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Name to value, as shown."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        shown: dict[str, Any] = {name.removeprefix("train/"): value for name, value in metrics.items()}
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
