"""Stop the training, or leave a step out, when a loss is NaN or infinite.

A run that stops leaves the batch behind, in ``<run folder>/nonfinite_step<N>.pt``. To see its losses again::

    saved = torch.load("nonfinite_step120.pt", weights_only=True)
    student.train()  # with the weights of last.ckpt, say; see defeat.detectors.load_detector_weights
    torch.manual_seed(saved["seed"])
    with capture(student) as captured:
        losses = student(to_unit_range(saved["images"]), saved["targets"])
    losses |= distiller(student, teacher, captured, saved["progress"])  # of a distilled run
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from defeat.errors import ConfigError, DefeatError
from defeat.training.device_flag import DeviceFlag
from defeat.training.module import DetectionModule
from defeat.training.step_record import StepRecord
from defeat.types import Batch

log = logging.getLogger(__name__)

Action = Literal["stop", "skip"]


class NonFiniteError(DefeatError):
    """A loss, a gradient or a weight is NaN or infinite, and the training cannot go on."""


class NonFinite(Callback):
    """Watch the losses of every training step, and the weights of every checkpoint.

    Several processes always decide alike: what one of them finds stops, or is left out by, all.

    ``stop`` costs next to nothing. The losses of a step are looked at when the next one begins, or before
    anything is made of the weights, a validation or a checkpoint. By then a GPU has long done the step's
    forward, and nothing later is waited for. The batch is held in memory until then.

    ``skip`` has to know before the optimiser steps: it waits for the GPU in every step, looks at the gradient
    as well, and copies the buffers of student and distiller, the statistics of BatchNorm, to put them back.
    What is left out is the whole optimiser step, with all the batches that are accumulated for it. Weights,
    buffers and the optimiser's state stay as they were; the step counts all the same for the learning rate
    and for the length of the training.

    Under ``16-mixed`` an infinite gradient is the gradient scaler's business, and neither stops nor counts.

    Args:
        folder: the batch with which a training stops is filed here.
        action: ``stop`` or ``skip``.
        limit: with ``skip``, steps that may be left out over the whole run, resumed parts of it included; the
            next one stops it.

    Raises:
        ConfigError: an argument makes no sense.
        NonFiniteError: from the training.
    """

    def __init__(self, folder: str, *, action: Action, limit: int) -> None:
        if action not in get_args(Action):
            raise ConfigError(f"callbacks.nonfinite.action={action} is neither stop nor skip")
        if limit < 1:
            raise ConfigError(f"callbacks.nonfinite.limit must be at least 1, got {limit}")
        self.folder = Path(folder)
        self.action = action
        self.limit = limit
        self.skipped = 0
        """Steps left out so far."""
        self._batch: Batch | None = None
        self._watched: list[tuple[StepRecord, DeviceFlag]] = []
        self._buffers: list[Tensor] = []
        self._from_start: set[str] = set()

    def state_dict(self) -> dict[str, Any]:
        """The number of steps left out."""
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Count on from there."""
        self.skipped = state_dict["skipped"]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave alone what the weight files brought: a half-precision file may hold infinite variances."""
        # Of processes that torchrun starts the first alone has a run folder.
        self.folder = Path(trainer.strategy.broadcast(str(self.folder)))
        state = pl_module.state_dict()
        self._from_start = {name for name, value in state.items() if not _finite([value])}

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Look at the losses of the step before; or keep what a step that is left out would spoil."""
        module = _detection(pl_module)
        if self.action == "stop":
            self._look(module)
        elif not self._watched:
            self._buffers = [buffer.detach().clone() for buffer in _buffers(module)]
        self._batch = batch

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Take note of a batch's losses; nothing is waited for."""
        assert self._batch is not None
        record = StepRecord.of(_detection(pl_module), self._batch)
        self._watched.append((record, DeviceFlag(~record.values.isfinite().all(), trainer)))

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Leave the step out if a loss or the gradient is not finite: gradients that are gone change nothing.

        Returning None from ``training_step`` would not do: Lightning refuses it with several processes, steps
        with what was accumulated before, and under ``16-mixed`` drops the step without a word.
        """
        if self.action == "stop":
            return
        module = _detection(pl_module)
        watched, self._watched = self._watched, []
        bad = next((record for record, flag in watched if flag.read()), None)
        cause = bad.cause() if bad else None
        # Processes have averaged their gradients: they find the same here.
        if bad is None and not _has_scaler(trainer) and not _finite(_gradients(optimizer)):
            bad, cause = watched[-1][0], "the gradient is not finite although the loss is"
        if bad is not None:
            if self.skipped == self.limit:
                self._stop(module, bad, cause)
            self._leave_out(module, bad, cause, optimizer)
        module.log("train/skipped_steps", float(self.skipped), batch_size=1)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the last losses, and at the weights, before a validation is spent on what came of them."""
        module = _detection(pl_module)
        if self.action == "stop":
            self._look(module)
        if trainer.checkpoint_callbacks and not trainer.sanity_checking:
            # Checkpoints of weights alone, which may follow, ask no callback.
            self._check_weights(module, module.state_dict())

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the last losses."""
        if self.action == "stop":
            self._look(_detection(pl_module))

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Refuse weights that a loss or a gradient has spoilt; all processes come here together.

        Raises:
            NonFiniteError: names the first weight that is not finite.
        """
        module = _detection(pl_module)
        if self.action == "stop":
            self._look(module)
        self._check_weights(module, checkpoint["state_dict"])

    def _check_weights(self, module: DetectionModule, state: Mapping[str, Tensor]) -> None:
        trained = {name: value for name, value in state.items() if not name.startswith("teacher.")}
        trained = {name: value for name, value in trained.items() if name not in self._from_start}
        spoilt = torch.tensor(not _finite(trained.values()), device=module.device)
        if not DeviceFlag(spoilt, module.trainer).read():
            return
        bad = (name for name, value in trained.items() if not _finite([value]))
        raise NonFiniteError(
            f"after {module.global_step} steps, epoch {module.current_epoch}: "
            f"{next(bad, 'a buffer of another process')} is not finite, though the losses were: a gradient "
            "was NaN or infinite; no checkpoint is written, and the last good one stays. "
            f"{_advice(module, ())}"
        )

    def _look(self, module: DetectionModule) -> None:
        watched, self._watched = self._watched, []
        for record, flag in watched:
            if flag.read():
                self._stop(module, record, record.cause())

    def _stop(self, module: DetectionModule, record: StepRecord, cause: str | None) -> NoReturn:
        """Stop all processes with the words of the first of them that has a cause; each saves its batch."""
        text = None
        if cause is not None:
            so_far = f"; steps left out before: {self.skipped}" if self.action == "skip" else ""
            saved = record.save(module.trainer, self.folder)
            advice = _advice(module, record.not_finite())
            text = f"{record.describe(module.trainer, cause)}{so_far}; {saved}. {advice}"
        raise NonFiniteError(_first(text, module.trainer))

    def _leave_out(
        self, module: DetectionModule, record: StepRecord, cause: str | None, optimizer: Optimizer
    ) -> None:
        trainer = module.trainer
        if _has_scaler(trainer) and getattr(optimizer, "_step_supports_amp_scaling", False):
            # A fused one: the scaler looks for what is not finite in the step alone, and must find something.
            for gradient in _gradients(optimizer):
                gradient.fill_(math.nan)
        else:
            optimizer.zero_grad(set_to_none=True)
        for buffer, before in zip(_buffers(module), self._buffers, strict=True):
            buffer.copy_(before)
        self.skipped += 1
        text = _first(record.describe(trainer, cause) if cause else None, trainer)
        if trainer.is_global_zero:
            log.warning("%s; the step is left out, %d of at most %d", text, self.skipped, self.limit)


def _detection(module: LightningModule) -> DetectionModule:
    assert isinstance(module, DetectionModule)
    return module


def _finite(tensors: Iterable[Tensor]) -> bool:
    """Tell whether all numbers are finite, by one reduction over everything; wait for the device."""
    floats = [tensor for tensor in tensors if tensor.is_floating_point() and tensor.numel()]
    return not floats or bool(get_total_norm(floats, math.inf).isfinite())


def _gradients(optimizer: Optimizer) -> list[Tensor]:
    parameters = chain.from_iterable(group["params"] for group in optimizer.param_groups)
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def _buffers(module: DetectionModule) -> Iterator[Tensor]:
    yield from module.student.buffers()
    if module.distiller is not None:
        yield from module.distiller.buffers()


def _has_scaler(trainer: Trainer) -> bool:
    return getattr(trainer.precision_plugin, "scaler", None) is not None


def _first(text: str | None, trainer: Trainer) -> str:
    """The words of the first process that has any."""
    texts: list[str | None] = [text]
    if trainer.world_size > 1:
        texts = [None] * trainer.world_size
        dist.all_gather_object(texts, text)
    return next(text for text in texts if text is not None)


def _advice(module: DetectionModule, names: Sequence[str]) -> str:
    """Say what to try for the losses that are not finite."""
    trainer, distiller = module.trainer, module.distiller
    tries = ["a lower optim.optimizer.lr"]
    if not trainer.gradient_clip_val:
        tries.append("trainer.gradient_clip_val=5")
    if trainer.precision != "32-true":
        tries.append("trainer.precision=32-true")
    if distiller is not None:
        tries += [f"a lower {distiller.key(name)}" for name in names if name in distiller.weights]
    return f"Try {', '.join(tries[:-1])} or {tries[-1]}" if len(tries) > 1 else f"Try {tries[0]}"
