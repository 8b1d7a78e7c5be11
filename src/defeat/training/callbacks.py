"""Lightning callbacks that the configs name."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn

from defeat.evaluation import Detections, write_detections
from defeat.training.module import DetectionModule
from defeat.types import Batch, Prediction


class BestCheckpoint(ModelCheckpoint):
    """Lightning's, but for a resumed run, which has a folder of its own: the best so far stays the best.

    Lightning forgets the score where the folder has changed, and takes the next validation for the best.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the score and the file of the run that is resumed; that file stays where it is."""
        for name in (
            "best_model_score",
            "best_model_path",
            "best_k_models",
            "kth_best_model_path",
            "kth_value",
        ):
            setattr(self, name, state_dict[name])


class LastCheckpoint(Checkpoint):
    """Save the state of training after every validation and at the end, for resuming.

    Lightning's ``save_last`` keeps the last checkpoint that was among the best, which may be an old one.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._saved_at: int | None = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save, unless this validation is a sanity check or stands alone."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the steps since the last validation."""
        self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        if self._saved_at != trainer.global_step:
            trainer.save_checkpoint(self.path)
            self._saved_at = trainer.global_step


class ImagesPerSecond(Callback):
    """Log ``train/images_per_s`` over all processes, measured over the steps between two log entries.

    Validation and checkpointing are outside the measured time.
    """

    def __init__(self) -> None:
        self._images = 0
        self._seconds = 0.0
        self._since = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock: waiting for the first batch counts."""
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
        if trainer.global_step % every == 0 and self._seconds > 0:
            speed = self._images / self._seconds
            pl_module.log("train/images_per_s", speed, prog_bar=True, batch_size=1)
            self._images, self._seconds = 0, 0.0

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take validation out of the measured time."""
        self._since = time.perf_counter()


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
        fitting = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        if fitting and trainer.is_global_zero and isinstance(pl_module, DetectionModule):
            found = pl_module.metrics.computed
            write_detections(self.path, Detections(found, pl_module.classes, trainer.global_step))
