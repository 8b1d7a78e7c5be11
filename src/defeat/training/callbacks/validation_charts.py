"""Precision over recall, and the confusion of classes, after each validation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from defeat.errors import ConfigError
from defeat.evaluation import DetectionMetrics
from defeat.evaluation.confusion import IOU, MISSED, SCORE, confusion_matrix, confusion_rows, rule
from defeat.evaluation.precision_recall import PrecisionRecall, precision_recall
from defeat.io.atomic_write import write_text
from defeat.io.text import printable
from defeat.render import Table
from defeat.training.callbacks.last_checkpoint import is_of_training
from defeat.training.loggers import trackers
from defeat.training.module import DetectionModule
from defeat.visual.confusion import draw_confusion


class ValidationCharts(Callback):
    """Show curves of precision over recall and a confusion matrix; file the matrix, too.

    Curves are of each class and of the mean at an IoU of 0.5, and of the mean at 0.75.

    Args:
        folder: the run's; ``confusion.csv`` of the latest validation goes here.
        score: the least score of a detection that counts in the matrix.
        iou: the least overlap of a detection and its object there.

    Raises:
        ConfigError: a number is outside of [0, 1].
    """

    def __init__(self, folder: str, *, score: float = SCORE, iou: float = IOU) -> None:
        for name, value in {"score": score, "iou": iou}.items():
            if not 0 <= value <= 1:
                raise ConfigError(f"callbacks.charts.{name}={value} must be from 0 to 1")
        self.folder = Path(folder)
        self.score = score
        self.iou = iou

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write, unless this validation is a sanity check or stands alone."""
        if not (
            is_of_training(trainer) and trainer.is_global_zero and isinstance(pl_module, DetectionModule)
        ):
            return
        classes = pl_module.classes
        matrix = confusion_matrix(
            list(pl_module.metrics.computed.values()), len(classes), score=self.score, iou=self.iou
        )
        table = Table(["class", *classes, MISSED], list(confusion_rows(matrix, classes)))
        write_text(self.folder / "confusion.csv", table.as_csv())
        step = trainer.global_step
        for tracker in trackers(trainer):
            panels = [(f"step {step}", matrix)]
            tracker.show_figure(
                "confusion", draw_confusion(panels, classes, rule(self.score, self.iou)), step
            )
            tracker.show_curves(dict(_curves(pl_module.metrics)), step)


def _curves(metrics: DetectionMetrics) -> Iterator[tuple[str, PrecisionRecall]]:
    if metrics.curves is None:
        return
    chosen: list[tuple[str, float, int | None]] = [
        (f"PR_all_classes/mean, IoU {iou:.2f}", iou, None) for iou in (0.5, 0.75)
    ]
    chosen += [
        (f"PR_each_class/{printable(name)}, IoU 0.50", 0.5, label)
        for label, name in enumerate(metrics.classes, start=1)
    ]
    for tag, iou, label in chosen:
        if curve := precision_recall(metrics.curves, iou, label):
            yield tag, curve
