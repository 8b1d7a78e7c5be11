"""The speed of the training."""

from __future__ import annotations

import time
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer

from defeat.types import Batch


class ImagesPerSecond(Callback):
    """Log ``train/images_per_s`` over all processes, measured over the steps between two log entries.

    Validation and checkpointing are outside the measured time.
    """

    def __init__(self) -> None:
        self._images = 0
        self._seconds = 0.0
        self._since = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock: a resumed training may begin in the middle of an epoch."""
        self._since = time.perf_counter()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock again: waiting for the first batch counts."""
        self._since = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Count the batch; report and start again at every logged step."""
        now = time.perf_counter()
        self._seconds += now - self._since
        self._since = now
        self._images += len(batch.images) * trainer.world_size
        every: int = cast(Any, trainer).log_every_n_steps  # set by a connector, so untyped
        if every and trainer.global_step % every == 0 and self._seconds > 0:
            speed = self._images / self._seconds
            pl_module.log("train/images_per_s", speed, batch_size=1)
            self._images, self._seconds = 0, 0.0

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take validation out of the measured time."""
        self._since = time.perf_counter()
