"""An exponential moving average (EMA) of the student's weights."""

from __future__ import annotations

import copy
import logging
from typing import Any, cast

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from defeat.detectors.inference import detect
from defeat.errors import ConfigError
from defeat.evaluation import DetectionMetrics
from defeat.training.module import DetectionModule
from defeat.types import Batch

log = logging.getLogger(__name__)

RAW = "val/AP_raw"
"""Name under which the AP of the raw weights is logged; ``val/AP`` and all others are of the average."""

PREFIX = "student."


class StudentEMA(Callback):
    """Average the student over the steps, validate the average, and save it with the raw weights.

    After step t the average a and the raw weights w follow ``a = d a + (1 - d) w`` with
    ``d = min(decay, (1 + t) / (10 + t))``, so that the first weights are soon forgotten. Statistics
    of BatchNorm are averaged likewise; whole numbers are copied. Lightning's own callback would average the
    frozen teacher and the adapters, too.

    Validations are of the average: ``val/AP``, the best checkpoint, and what reports compare. In checkpoints
    the average is under ``state_dict`` and the raw student under ``current_model_state``, as Lightning does.

    Args:
        decay: d once the training has run for a while, from 0 to below 1.
        validate_raw: validate the raw weights as well, which takes as long again, and log ``val/AP_raw``.

    Raises:
        ConfigError: ``decay`` is outside of its range.
    """

    def __init__(self, *, decay: float = 0.999, validate_raw: bool = True) -> None:
        if not 0 <= decay < 1:
            raise ConfigError(f"callbacks.ema.decay must be at least 0 and below 1, got {decay}")
        self.decay = decay
        self.validate_raw = validate_raw
        self._average: nn.Module | None = None
        self._raw: nn.Module | None = None
        """The raw student, while the average stands in its place."""
        self._metrics: DetectionMetrics | None = None
        self._loaded: dict[str, Tensor] | None = None
        self._step = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with a copy of the student, or with the average of the run that is resumed."""
        module = cast(DetectionModule, pl_module)
        self._average = copy.deepcopy(module.student).requires_grad_(False).eval()
        if self._loaded is not None:
            self._average.load_state_dict(self._loaded)
            self._loaded = None
        if self.validate_raw:
            metrics = DetectionMetrics(module.classes, module.metrics.backend, module.metrics.max_dets)
            self._metrics = metrics.to(module.device)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note where the training stands, and say which AP is which."""
        self._step = trainer.global_step
        raw = f", {RAW} of the raw weights" if self.validate_raw else ""
        log.info("val/AP, the best checkpoint and reports are of the averaged student (EMA)%s", raw)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Average, if the batch ended an optimiser step."""
        if trainer.global_step != self._step and self._average is not None:
            self._step = trainer.global_step
            decay = min(self.decay, (1 + self._step) / (10 + self._step))
            update_average(self._average, cast(DetectionModule, pl_module).student, decay)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the average in the place of the student."""
        module = cast(DetectionModule, pl_module)
        if self._average is not None and self._raw is None:
            self._raw, module.student = module.student, self._average
            if trainer.world_size > 1:  # as DDP does with the student that is a part of the module
                for buffer in self._raw.buffers():
                    dist.broadcast(buffer, 0)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count the detections of the raw weights."""
        if self._metrics is not None and self._raw is not None:
            with trainer.precision_plugin.val_step_context():
                predictions = detect(self._raw, batch.images)
            self._metrics.update(predictions, batch.targets)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the student back, and log the AP of its raw weights."""
        if self._raw is None:
            return
        cast(DetectionModule, pl_module).student, self._raw = self._raw, None
        if self._metrics is not None:
            evaluation = self._metrics.compute()
            self._metrics.reset()
            if not trainer.sanity_checking:
                pl_module.log(RAW, evaluation.coco["AP"])

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Put the student back where a validation is left."""
        if self._raw is not None:
            cast(DetectionModule, pl_module).student, self._raw = self._raw, None

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the average as the model's weights, and the raw ones beside it."""
        if self._average is not None:
            state = checkpoint["state_dict"]
            checkpoint["current_model_state"] = {k: v for k, v in state.items() if k.startswith(PREFIX)}
            average = {f"{PREFIX}{name}": value for name, value in self._average.state_dict().items()}
            checkpoint["state_dict"] = {**state, **average}

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take the average from where the module has laid it; the student has its raw weights."""
        average = checkpoint.get("average", {}).items()
        self._loaded = {k.removeprefix(PREFIX): v.clone() for k, v in average if k.startswith(PREFIX)} or None


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Move an average towards a model, in place: floating-point tensors by 1 - decay, others are copied."""
    now = model.state_dict()
    pairs = [(value, now[name]) for name, value in average.state_dict().items()]
    floats = [pair for pair in pairs if pair[0].is_floating_point()]
    get_ema_multi_avg_fn(decay)([a for a, _ in floats], [m for _, m in floats], None)
    for value, new in pairs:
        if not value.is_floating_point():
            value.copy_(new)
