"""Add to a checkpoint what an exact resume needs: the position of the loop, and the curves so far.

Everything else that a step depends on is in Lightning's checkpoint (weights, optimiser, schedule, callbacks),
or a function of the place: the order of the images and the random numbers.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.optim import Optimizer

from defeat.errors import ConfigError
from defeat.training.curves import Curves
from defeat.training.loggers import trackers
from defeat.training.metric_names import class_metric, distilled_loss
from defeat.training.module import DetectionModule

log = logging.getLogger(__name__)


class LoopPosition(NamedTuple):
    """Position of a training between two steps."""

    epoch: int
    """Epochs that are done."""
    batches: int
    """Batches of the current epoch that are done in each process."""
    steps: int
    """Batches done that ended an optimiser step: what Lightning counts logged steps by."""
    validation_due: bool
    """The next thing to do is a validation rather than a step."""


class ExactResume(Callback):
    """Write the place of the training and its curves into every checkpoint, and go on from there.

    A checkpoint may be written at the start of a step, at either end of a validation, and at the end of the
    training, but not while gradients are being accumulated. Lightning's own account of where it is differs
    among these moments, some of which it resumes a step or a validation off; so it is replaced by the one
    account of :class:`LoopPosition`.

    The trainer's loggers, if it has any, are told the curves of the run that is resumed, except those that go
    on in a run of their service which has them. The ids of such runs are in the checkpoint.

    Args:
        new_settings: go on with the settings of the optimiser as it is configured now (learning rate, weight
            decay ...) rather than with those of the checkpoint.
    """

    def __init__(self, *, new_settings: bool = False) -> None:
        self.new_settings = new_settings
        self.recorder = CurveRecorder()
        self._validation_due = False
        self._resumed: LoopPosition | None = None
        self._max_steps: int | None = None
        self._steps_done = 0
        self._settings: list[dict[str, Any]] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Listen to what the loggers are told."""
        if trainer.loggers and self.recorder not in trainer.loggers:
            trainer.loggers = [*trainer.loggers, self.recorder]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let Lightning into a training whose steps are all done, if its last validation is not."""
        self._settings = _settings(trainer)  # the checkpoint goes over them after this
        loop = trainer.fit_loop.epoch_loop
        due = self._resumed is not None and self._resumed.validation_due and trainer.enable_validation
        if due and 0 < loop.max_steps <= self._steps_done:
            self._max_steps, loop.max_steps = loop.max_steps, loop.max_steps + 1

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on a checkpoint says that the validation is to be done."""
        if self._max_steps is not None:
            trainer.fit_loop.epoch_loop.max_steps, self._max_steps = self._max_steps, None
        self._validation_due = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """It is done; callbacks that write checkpoints come after this one."""
        self._validation_due = False

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add place and curves, and put Lightning's loops into the one state that they resume well from."""
        place = self._place(trainer)
        checkpoint["place"] = place._asdict()
        # The step that begins has logged its learning rate already, and will do so again.
        checkpoint["curves"] = self.recorder.curves.before(place.steps).to_plain()
        if runs := dict(filter(None, (tracker.service_run() for tracker in trackers(trainer)))):
            checkpoint["service_runs"] = runs
        _set_loops(checkpoint["loops"]["fit_loop"], place, int(trainer.num_training_batches))

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Let the data begin at the place; Lightning makes the loader next."""
        self._resumed = loop_position(checkpoint)
        self._steps_done = checkpoint["global_step"]
        distiller = cast(DetectionModule, pl_module).distiller
        renamed = partial(_current_name, losses=list(distiller.weights) if distiller else [])
        self.recorder.curves = Curves.from_plain(checkpoint["curves"], renamed)
        trainer.datamodule.begin_at(self._resumed.epoch, self._resumed.batches)  # type: ignore[attr-defined]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell the loggers the curves up to here."""
        if self._resumed is not None:
            told = [self.recorder, *(tracker for tracker in trackers(trainer) if tracker.continued)]
            for logger in trainer.loggers:
                if logger not in told:
                    self.recorder.curves.replay(logger)
            if self.new_settings:
                _set_settings(trainer, self._settings)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Put right the number of logged steps, which Lightning raises or not on its way here."""
        if self._resumed is not None:
            trainer.fit_loop.epoch_loop._batches_that_stepped = self._resumed.steps
            self._resumed = None

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say so where there was nothing to do."""
        if self._resumed is not None and not self._resumed.validation_due:
            log.warning(
                "%s is of a training that is over (%d steps); to go on raise trainer.max_steps or "
                "trainer.max_epochs",
                trainer.ckpt_path,
                trainer.global_step,
            )

    def _place(self, trainer: Trainer) -> LoopPosition:
        loop = trainer.fit_loop.epoch_loop
        epoch = trainer.fit_loop.epoch_progress.current.started - 1  # type: ignore[attr-defined]
        batches = loop.batch_progress.current.processed  # type: ignore[attr-defined]
        # Lightning counts the step after the validation that follows it.
        steps = loop._batches_that_stepped + (trainer.validating and not loop._should_accumulate())
        if batches == trainer.num_training_batches and not self._validation_due:
            epoch, batches = epoch + 1, 0
        return LoopPosition(epoch, batches, steps, self._validation_due)


class CurveRecorder(Logger):
    """A logger that remembers, for the checkpoint, what the other loggers write."""

    def __init__(self) -> None:
        super().__init__()
        self.curves = Curves()

    @property
    def name(self) -> None:
        """It has no files."""

    @property
    def version(self) -> None:
        """It has no files."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Remember a row."""
        self.curves.add({name: float(value) for name, value in metrics.items()}, step or 0)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The configuration is in the checkpoint already."""


def loop_position(checkpoint: Mapping[str, Any]) -> LoopPosition:
    """Read the position of the training from a checkpoint.

    Raises:
        ConfigError: it does not say.
    """
    if "place" not in checkpoint:
        raise ConfigError(
            "ckpt_path: the checkpoint does not say where its training stood, so it cannot be resumed; "
            "its weights can start a new run: student.weights=<it>"
        )
    return LoopPosition(**checkpoint["place"])


def _current_name(name: str, losses: Sequence[str]) -> str:
    """Return what a curve of an older checkpoint is called now; ``losses`` are those of the distiller."""
    group, _, of = name.partition("/")
    if group == "train" and of in losses:
        return distilled_loss(of)
    return name.replace("val/AP_class/", class_metric(""), 1) if group == "val" else name


def _groups(trainer: Trainer) -> list[dict[str, Any]]:
    return [group for optimizer in trainer.optimizers for group in optimizer.param_groups]


def _settings(trainer: Trainer) -> list[dict[str, Any]]:
    """The settings of the optimisers' groups of parameters."""
    return [{name: value for name, value in group.items() if name != "params"} for group in _groups(trainer)]


def _set_settings(trainer: Trainer, settings: list[dict[str, Any]]) -> None:
    """Change them in the middle of a schedule, which keeps its place."""
    for group, new in zip(_groups(trainer), settings, strict=True):
        factor = group["lr"] / group["initial_lr"] if group.get("initial_lr") else None
        group |= new
        if factor is not None:
            group["lr"] = factor * new["initial_lr"]
    for optimizer in trainer.optimizers:
        move_step_counts(optimizer)
    for one in trainer.lr_scheduler_configs:
        one.scheduler.base_lrs = [group["initial_lr"] for group in one.scheduler.optimizer.param_groups]


def move_step_counts(optimizer: Optimizer) -> None:
    """Put the steps that an optimiser has counted where its settings want them.

    Fused kernels read them on the parameter's device, all others on the CPU; loading a state leaves them
    where the settings of that state wanted them.
    """
    for group in optimizer.param_groups:
        beside = group.get("fused") or group.get("capturable")
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            if isinstance(state.get("step"), Tensor):
                state["step"] = state["step"].to(parameter.device if beside else "cpu")


def _set_loops(state: dict[str, Any], place: LoopPosition, batches_per_epoch: int) -> None:
    """Write a place into the saved state of Lightning's fit loop."""
    epoch, batches = place.epoch, place.batches
    under_way = batches > 0
    _set(state["epoch_progress"], ["total", "current"], epoch, epoch + under_way)
    progress = state["epoch_loop.batch_progress"]
    total = progress["total"]["processed"]
    _set(progress, ["total"], total, total)
    _set(progress, ["current"], batches, batches)
    progress["is_last_batch"] = batches == batches_per_epoch
    # A validation that has begun and has no batch done is done in full.
    _set(state["epoch_loop.val_loop.batch_progress"], ["total", "current"], 0, int(place.validation_due))
    if not under_way:
        optimizer = state["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]
        for counter in (state["epoch_loop.scheduler_progress"], *optimizer.values()):
            counter["current"] = dict.fromkeys(counter["current"], 0)
    state["epoch_loop.state_dict"]["_batches_that_stepped"] = place.steps - place.validation_due


def _set(progress: dict[str, Any], parts: list[str], done: int, begun: int) -> None:
    for part in parts:
        progress[part] |= {"ready": begun, "started": begun, "processed": done, "completed": done}
