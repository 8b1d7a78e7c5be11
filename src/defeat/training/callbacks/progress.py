"""The progress of a training: one line on a terminal, lines in the log elsewhere."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch import callbacks as lightning_callbacks
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from defeat.training.metric_names import distilled_loss
from defeat.training.module import DetectionModule

log = logging.getLogger(__name__)


class ProgressBar(lightning_callbacks.ProgressBar):
    """Epoch, step, loss, last AP, images per second and time left, in 80 columns, on a terminal.

    Where the output is no terminal, such as under nohup or a batch system, a line goes to the log after the
    first step and then every so many seconds. The figures of each validation are logged in both cases.

    On a GPU the losses are those of the last logged step: to read others it would have to be waited for.

    Args:
        seconds: the time between two lines of the log; 0 for a line after each step.
    """

    def __init__(self, seconds: float = 60.0) -> None:
        super().__init__()
        self.seconds = seconds
        self._enabled = True
        self._bar: Progress | None = None
        self._read: dict[str, float] = {}
        self._ap = math.nan

    def disable(self) -> None:
        """Show nothing, in the processes that Lightning calls this in: all but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Show progress again."""
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note where and when this process began, which is not step 0 after a resume."""
        super().on_train_start(trainer, pl_module)
        self._started = time.perf_counter()
        self._logged = -math.inf
        self._first_step = trainer.global_step
        steps = trainer.estimated_stepping_batches
        self._steps = None if math.isinf(steps) else int(steps)
        self._start(self._steps, trainer.global_step)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the batches of a validation that is no part of a training."""
        super().on_validation_start(trainer, pl_module)
        if trainer.state.fn == "validate":
            self._start(int(trainer.num_val_batches[0]))

    def _start(self, total: int | None, done: int = 0) -> None:
        console = Console()
        if self._enabled and console.is_terminal:
            columns = (BarColumn(bar_width=8), TextColumn("{task.description}", markup=False))
            self._bar = Progress(*columns, console=console, transient=True, refresh_per_second=4)
            self._task = self._bar.add_task("begins", total=total, completed=done)
            self._bar.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Show or log the step, where it is time."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if not self._enabled:
            return
        if _free_to_read(trainer, pl_module.device):
            self._read = _read(trainer.callback_metrics, pl_module)
        if self._bar:
            line = self._line(trainer, ("loss", "images_per_s"))
            self._bar.update(self._task, completed=trainer.global_step, description=line)
        elif time.perf_counter() - self._logged >= self.seconds:
            log.info("%s", self._line(trainer, self._read))
            self._logged = time.perf_counter()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count the batches of a validation in place of the steps."""
        super().on_validation_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
        if self._bar:
            batches = trainer.num_val_batches[dataloader_idx]
            done = batch_idx + 1 if trainer.state.fn == "validate" else None
            description = f"validation: batch {batch_idx + 1}/{batches}"
            self._bar.update(self._task, completed=done, description=description)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the figures of a validation."""
        super().on_validation_end(trainer, pl_module)
        if trainer.state.fn == "validate":
            self._stop()
        if not self._enabled or trainer.sanity_checking or trainer.state.fn != "fit":
            return
        figures = {name: float(x) for name, x in trainer.callback_metrics.items() if name.startswith("val/")}
        self._ap = figures.get("val/AP", math.nan)
        shown = [
            f"{name} {figures[f'val/{name}']:.3f}"
            for name in ("AP", "AP50", "AP75", "AP_raw")
            if f"val/{name}" in figures
        ]
        if self._bar:
            self._bar.stop()  # the log writes to the same terminal
        log.info("%s: validation: %s", self._place(trainer), ", ".join(shown))
        if self._bar:
            self._bar.start()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the line away."""
        super().on_train_end(trainer, pl_module)
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Take the line away: what is printed next is the error."""
        self._stop()

    def _stop(self) -> None:
        if self._bar:
            self._bar.stop()
            self._bar = None

    def _place(self, trainer: Trainer) -> str:
        """Epoch, counted from 1, and step, each of how many."""
        epoch, step = f"epoch {trainer.current_epoch + 1}", f"step {trainer.global_step}"
        if self._steps is None:
            return f"{epoch} {step}"
        per_epoch = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
        return f"{epoch}/{math.ceil(self._steps / per_epoch)} {step}/{self._steps}"

    def _line(self, trainer: Trainer, names: Mapping[str, float] | tuple[str, ...]) -> str:
        parts = [self._place(trainer)]
        parts += [
            f"{name} {self._read[name]:.4g}"
            for name in names
            if name in self._read and name != "images_per_s"
        ]
        if not math.isnan(self._ap):
            parts.append(f"AP {self._ap:.3f}")
        if "images_per_s" in self._read:
            parts.append(f"{self._read['images_per_s']:.3g} img/s")
        if left := self._time_left(trainer):
            parts.append(f"{left} left")
        return " ".join(parts) if self._bar else ", ".join(parts)

    def _time_left(self, trainer: Trainer) -> str | None:
        done = trainer.global_step - self._first_step
        if not done or self._steps is None:
            return None
        each = (time.perf_counter() - self._started) / done
        seconds = round(each * max(0, self._steps - trainer.global_step))
        return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def _read(logged: Mapping[str, Any], module: LightningModule) -> dict[str, float]:
    """Losses, the terms of a distillation among them, and the speed, by name."""
    distilled = module.distiller.weights if isinstance(module, DetectionModule) and module.distiller else ()
    tags = {name: f"train/{name}" for name in ("loss", "loss_detection")}
    tags |= {name: distilled_loss(name) for name in distilled} | {"images_per_s": "train/images_per_s"}
    return {name: float(logged[tag]) for name, tag in tags.items() if tag in logged}


def _free_to_read(trainer: Trainer, device: torch.device) -> bool:
    """Tell whether numbers can be read without making a device wait: a CPU's, or those logged anyhow."""
    every: int = cast(Any, trainer).log_every_n_steps  # set by a connector, so untyped
    return device.type == "cpu" or (every > 0 and trainer.global_step % every == 0)
