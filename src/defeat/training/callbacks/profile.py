"""Measure how the time of a run's own training steps is spent; print, log and file the result."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.profilers import Profiler
from rich.console import Console
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from defeat.detectors.compiled_backbone import CompiledModule
from defeat.errors import ConfigError
from defeat.io.atomic_write import write_text
from defeat.memory import describe_memory, peak_memory
from defeat.render import Table
from defeat.timing import PHASES, CudaClock, HostClock, Phase, Recorder, phase
from defeat.training.loggers import trackers
from defeat.types import Batch

log = logging.getLogger(__name__)

WARM_UP = 5
"""Steps before the first that is timed: libraries choose algorithms and memory pools grow."""

_PARTS_OF_ACTIONS: dict[str, Phase] = {
    "train_dataloader_next": "data",
    "batch_to_device": "data",
    "training_step": "other",  # but for what it names itself
    "backward": "backward",
    "optimizer_step": "optimizer",  # around training_step and backward, which Lightning calls from within
    "optimizer_zero_grad": "optimizer",
    "lr_scheduler_step": "optimizer",
}
"""The phase of a step to which each of Lightning's actions belongs, by Lightning's names."""


class Profile(NamedTuple):
    """Time, memory and arithmetic of some steps of one process."""

    steps: list[dict[Phase, float]]
    """Seconds by part, see :meth:`defeat.timing.Recorder.steps`; at least one step."""
    images: int
    """Number of images of all processes in all these steps."""
    peak: float
    """Bytes, see :func:`defeat.memory.peak_memory`."""
    device: torch.device
    flops: int | None
    """Operations of one batch of one process, see :class:`CountFlops`; None if they were not counted."""

    @property
    def totals(self) -> list[float]:
        """Seconds of each step."""
        return [sum(step.values()) for step in self.steps]

    @property
    def images_per_second(self) -> float:
        """Over all processes."""
        return self.images / sum(self.totals)

    @property
    def teraflops(self) -> float | None:
        """TFLOP/s of one process."""
        return None if self.flops is None else self.flops / mean(self.totals) / 1e12

    def of(self, name: Phase) -> list[float]:
        """Seconds of a part in each step, 0 where a step did not come by it."""
        return [step.get(name, 0.0) for step in self.steps]

    def table(self) -> Table:
        """Arrange the phases, and the step that they add up to, as a table."""
        whole = mean(self.totals)
        parts = [(name, self.of(name)) for name in PHASES if any(name in step for step in self.steps)]
        rows = [
            [name, f"{1e3 * mean(t):.2f}", f"{1e3 * median(t):.2f}", f"{100 * mean(t) / whole:.1f} %"]
            for name, t in (*parts, ("step", self.totals))
        ]
        title = f"Training step, {len(self.steps)} timed after {WARM_UP} others"
        return Table(["part", "mean ms", "median ms", "share"], rows, title)

    def words(self) -> str:
        """Speed, memory and arithmetic in one line."""
        said = [f"{self.images_per_second:.4g} images/s", describe_memory(self.peak, self.device)]
        if self.flops is not None:
            said.append(f"{self.flops / 1e12:.3g} TFLOP a batch ({self.teraflops:.3g} TFLOP/s)")
        return "; ".join(said)

    def scalars(self) -> dict[str, float]:
        """For a dashboard; means."""
        found = {f"profile/{name}_ms": 1e3 * mean(self.of(name)) for name in PHASES}
        found["profile/step_ms"] = 1e3 * mean(self.totals)
        found["profile/images_per_s"] = self.images_per_second
        if self.teraflops is not None:
            found["profile/tflop_per_s"] = self.teraflops
        return found


class ProfileSteps(Callback):
    """Time the parts of some training steps of the first process, and report them once.

    A step is one batch; where gradients are accumulated, the optimiser's time falls on every so many of them.
    Steps that come straight after a validation are left out. The training is not touched: neither its numbers
    nor, on a GPU, its asynchrony.

    Args:
        steps: to be timed, after :data:`WARM_UP` others.
        folder: where ``profile.md`` goes; all loggers of the trainer are told too.

    Raises:
        ConfigError: ``steps`` is no positive whole number.
    """

    def __init__(self, steps: int, folder: str) -> None:
        if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
            raise ConfigError(
                f"callbacks.profile.steps must be the number of steps to time, at least 1, got {steps!r}"
            )
        self.wanted = steps
        self.folder = Path(folder)
        self._recorder: Recorder[Any] | None = None
        self._seen = 0
        self._images = 0
        self._timed = 0
        self._counter: CountFlops | None = None
        self._flops: int | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on steps count; of other processes than the first none do."""
        if trainer.is_global_zero:
            cuda = trainer.strategy.root_device.type == "cuda"
            self._recorder = Recorder(CudaClock()) if cuda else Recorder(HostClock())

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Count the operations of the very first step, which is not timed."""
        if self._recorder is not None and self._seen == 0 and not _is_compiled(pl_module):
            self._counter = CountFlops()
            self._counter.__enter__()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """End a step, and begin the next."""
        if self._recorder is None:
            return
        self._seen += 1
        self._end_counting()
        if self._recorder.running:
            self._recorder.end_step()
            self._timed += 1
            self._images += len(batch.images) * trainer.world_size
        elif self._seen >= WARM_UP:
            self._begin(trainer)
        if self._timed == self.wanted:
            self._report(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the step that a validation falls into: images have been decoded ahead meanwhile."""
        if self._recorder is not None:
            self._recorder.stop()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report what there is if the training was too short."""
        if self._recorder is None:
            return
        log.warning(
            "callbacks.profile.steps=%d: the training ended after %d steps; %d of them are timed, for the "
            "first %d warm up and those after a validation do not count",
            self.wanted,
            self._seen,
            self._timed,
            WARM_UP,
        )
        if self._timed:
            self._report(trainer)
        else:
            self._end(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave nothing behind in the process."""
        self._end_counting()
        self._end(trainer)

    def _begin(self, trainer: Trainer) -> None:
        assert self._recorder is not None
        untyped: Any = trainer  # a function of Lightning's sets the profiler
        if not isinstance(untyped.profiler, _Parts):
            untyped.profiler = _Parts(untyped.profiler)
            if trainer.strategy.root_device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(trainer.strategy.root_device)
        self._recorder.start()

    def _end(self, trainer: Trainer) -> None:
        if self._recorder is not None:
            self._recorder.stop()
            self._recorder = None
        untyped: Any = trainer
        if isinstance(untyped.profiler, _Parts):
            untyped.profiler = untyped.profiler.inner

    def _end_counting(self) -> None:
        if self._counter is not None:
            self._counter.__exit__(None, None, None)
            self._flops = self._counter.flops
            self._counter = None

    def _report(self, trainer: Trainer) -> None:
        assert self._recorder is not None
        recorder = self._recorder
        self._end(trainer)
        device = trainer.strategy.root_device
        profile = Profile(recorder.steps(), self._images, peak_memory(device), device, self._flops)
        table, words = profile.table(), profile.words()
        console = Console()
        console.print(table.as_rich(), highlight=False)
        console.print(words, highlight=False, soft_wrap=True)
        text = f"**{table.title}**\n\n{table.as_markdown()}\n{words}\n"
        write_text(self.folder / "profile.md", text)
        step = trainer.fit_loop.epoch_loop._batches_that_stepped  # what Lightning counts logged steps by
        for logger in trainer.loggers:
            logger.log_metrics(profile.scalars(), step=step)
        for tracker in trackers(trainer):
            tracker.show_text("profile", text, step)


class _Parts(Profiler):
    """Hears what Lightning does, counts it to the parts of the step, and passes it on to another profiler.

    Only ever in use between two steps' ends, so set-up and report remain the other's.
    """

    def __init__(self, inner: Profiler) -> None:
        super().__init__()
        self.inner = inner
        self._open: list[AbstractContextManager[None]] = []

    def start(self, action_name: str) -> None:
        """Begin an action."""
        name = _part_of(action_name)
        if name is not None:
            self._open.append(phase(name))
            self._open[-1].__enter__()
        self.inner.start(action_name)

    def stop(self, action_name: str) -> None:
        """End the action that began last."""
        self.inner.stop(action_name)
        if _part_of(action_name) is not None:
            self._open.pop().__exit__(None, None, None)


def _part_of(action: str) -> Phase | None:
    """The part that an action of Lightning's is; None leaves it to the part around it."""
    if action.startswith("[Callback]"):
        return "other"
    return _PARTS_OF_ACTIONS.get(action.rpartition(".")[2])


class CountFlops(TorchDispatchMode):
    """Adds up the operations of convolutions and matrix products, 2 for each multiply-add.

    By torch's own formulas. Unlike its ``FlopCounterMode`` this hooks into no module and runs every operator
    just as it is, so that the step it looks at stays the same to the bit.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator and count it."""
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        formula: Any = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=found)
        return found


def _is_compiled(module: nn.Module) -> bool:
    """Tell whether ``torch.compile`` was applied to a part, which would run uncompiled while it counts."""
    return any(
        isinstance(child, CompiledModule) or child._compiled_call_impl is not None
        for child in module.modules()
    )
