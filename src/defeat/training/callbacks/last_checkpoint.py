"""The checkpoint that a training is resumed from."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn

from defeat.errors import ConfigError
from defeat.training.stopping import StoppedError, StopRequest
from defeat.types import Batch


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
        saved = is_of_training(trainer) and not _accumulates(trainer)
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
        if is_of_training(trainer) and not _accumulates(trainer):
            self._save(trainer, validation_due=validation_due)

    def _save(self, trainer: Trainer, *, validation_due: bool = False) -> None:
        state = (trainer.global_step, validation_due)
        if self._saved != state:
            trainer.save_checkpoint(self.path)
            self._saved = state


def _accumulates(trainer: Trainer) -> bool:
    """Tell whether gradients wait for further batches: they are not saved, and a resume would lack them."""
    return trainer.fit_loop.epoch_loop._should_accumulate()


def is_of_training(trainer: Trainer) -> bool:
    """Tell a validation within a training from a sanity check and from one that stands alone."""
    return trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
