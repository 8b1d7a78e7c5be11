"""Lightning callbacks that the configs name."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only

from defeat.errors import ConfigError
from defeat.evaluation import Detections, write_detections
from defeat.files import replacing
from defeat.training.module import DetectionModule
from defeat.training.stopping import StoppedError, StopRequest
from defeat.types import Batch, Prediction

MIDWAY = ("every_n_train_steps", "train_time_interval", "save_on_exception")
"""Settings of Lightning's ``ModelCheckpoint`` that save between a step and its logs, or within a step."""


class BestCheckpoint(ModelCheckpoint):
    """Lightning's, but for a resumed run, which has a folder of its own: the best so far stays the best.

    Lightning forgets the score where the folder has changed, and takes the next validation for the best.

    Args:
        settings: those of ``ModelCheckpoint``, but for :data:`MIDWAY`.

    Raises:
        ConfigError: one of these is set.
    """

    def __init__(self, **settings: Any) -> None:
        for name in MIDWAY:
            if settings.get(name):
                raise ConfigError(
                    f"callbacks.checkpoint.{name} would save where a training cannot be resumed exactly: to "
                    "save by steps use callbacks.last.every_n_steps"
                )
        super().__init__(**settings)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the score and a copy of the file of the run that is resumed."""
        for name in (
            "best_model_score",
            "best_k_models",
            "current_score",
            "kth_best_model_path",
            "kth_value",
        ):
            setattr(self, name, state_dict[name])
        self.best_model_path = self._taken_over(state_dict["best_model_path"])
        if self.best_model_path != state_dict["best_model_path"]:
            self.kth_best_model_path = self.best_model_path
            self.best_k_models = {self.best_model_path: state_dict["best_model_score"]}

    @rank_zero_only
    def _copy(self, source: Path, target: Path) -> None:
        with replacing(target) as part:
            shutil.copyfile(source, part)

    def _taken_over(self, path: str) -> str:
        """Where the best checkpoint of the run that is resumed lies now: here, unless it is gone."""
        source = Path(path)
        if not path or not self.dirpath or not source.is_file():
            return path
        target = Path(self.dirpath) / source.name
        if not target.exists():
            self._copy(source, target)
        return str(target)


class LastCheckpoint(Checkpoint):
    """Save the state of training, for resuming: by steps, around every validation, at the end, on signals.

    Lightning's ``save_last`` keeps the last checkpoint that was among the best, which may be an old one.

    Args:
        path: the file; every save replaces it.
        every_n_steps: optimiser steps between two saves, beside those at validations.

    Raises:
        ConfigError: ``every_n_steps`` is not positive.
        StoppedError: from the training, when a signal has asked for it; the state is saved.
    """

    def __init__(self, path: str, *, every_n_steps: int) -> None:
        if every_n_steps < 1:
            raise ConfigError(f"callbacks.last.every_n_steps must be at least 1, got {every_n_steps}")
        self.path = path
        self.every_n_steps = every_n_steps
        self._saved: tuple[int, bool] | None = None
        self._request = StopRequest()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on a signal does not end the process at once."""
        self._request.listen()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Save if it is time, or if a signal asks for it: the step before is done and logged."""
        if batch_idx % trainer.accumulate_grad_batches:
            return
        signum = self._request.received(trainer, batch_idx)
        due = trainer.global_step > 0 and trainer.global_step % self.every_n_steps == 0
        if signum is not None or due:
            self._save(trainer)
        if signum is not None:
            raise StoppedError(signum, trainer.global_step, self.path)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save before a validation, which may take long, unless it is a sanity check or stands alone."""
        self._save_at_validation(trainer, validation_due=True)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Leave a validation that a signal interrupts: the resumed run does it from its start."""
        saved = _is_of_training(trainer) and not _accumulates(trainer)
        signum = self._request.received(trainer, batch_idx) if saved else None
        if signum is not None:
            raise StoppedError(signum, trainer.global_step, self.path)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what the validation has found."""
        self._save_at_validation(trainer, validation_due=False)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the steps since the last save."""
        if not _accumulates(trainer):
            self._save(trainer)

    def _save_at_validation(self, trainer: Trainer, *, validation_due: bool) -> None:
        if _is_of_training(trainer) and not _accumulates(trainer):
            self._save(trainer, validation_due=validation_due)

    def _save(self, trainer: Trainer, *, validation_due: bool = False) -> None:
        state = (trainer.global_step, validation_due)
        if self._saved != state:
            trainer.save_checkpoint(self.path)
            self._saved = state


def _accumulates(trainer: Trainer) -> bool:
    """Whether gradients wait for further batches: they are not saved, and nothing resumes without them."""
    return trainer.fit_loop.epoch_loop._should_accumulate()


def _is_of_training(trainer: Trainer) -> bool:
    """Whether a validation belongs to a training, rather than being a sanity check or standing alone."""
    return trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking


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
        if trainer.global_step % every == 0 and self._seconds > 0:
            speed = self._images / self._seconds
            pl_module.log("train/images_per_s", speed, batch_size=1)
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
        if _is_of_training(trainer) and trainer.is_global_zero and isinstance(pl_module, DetectionModule):
            found = pl_module.metrics.computed
            write_detections(self.path, Detections(found, pl_module.classes, trainer.global_step))
