"""Keep or file the detections of the latest validation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from defeat.evaluation import Detections, write_detections
from defeat.training.callbacks.last_checkpoint import is_of_training
from defeat.training.module import DetectionModule
from defeat.types import Batch, Prediction


class KeepPredictions(Callback):
    """Keep the detections of the latest validation, by position in the data set."""

    def __init__(self) -> None:
        self.predictions: dict[int, Prediction] = {}

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Move a batch's detections to the CPU and keep them."""
        for prediction, target in zip(outputs["predictions"], batch.targets, strict=True):
            kept = Prediction(
                boxes=prediction["boxes"].cpu(),
                scores=prediction["scores"].cpu(),
                labels=prediction["labels"].cpu(),
            )
            self.predictions[int(target["index"])] = kept


class SaveDetections(Callback):
    """Write what the latest validation of a training found, of all processes, into one file for reports."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write, unless this validation is a sanity check or stands alone."""
        if is_of_training(trainer) and trainer.is_global_zero and isinstance(pl_module, DetectionModule):
            metrics = pl_module.metrics
            write_detections(
                self.path,
                Detections(metrics.computed, pl_module.classes, trainer.global_step, metrics.max_dets),
            )
