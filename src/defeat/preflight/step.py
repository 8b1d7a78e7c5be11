"""Real training steps on copies, and what they do to parameters, gradients, memory and time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle, islice
from typing import NamedTuple

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import nn
from torch.optim import Optimizer

from defeat.memory import free_memory, held_memory, largest_batch, peak_memory
from defeat.training.loss_gradients import SCALE, Precision
from defeat.training.module import DetectionModule
from defeat.training.run import Run
from defeat.types import Batch

VAL_IMAGES = 8
"""The most images in the timed part of a validation."""


class Gradients(NamedTuple):
    """Names of the parameters that learn, by what reached them."""

    learning: list[str]
    """All of them."""
    missing: list[str]
    """No gradient in any step."""
    zero: list[str]
    """A gradient of 0 everywhere, in all steps."""
    infinite: list[str]
    """A gradient with a value that is not finite."""
    outside: list[str]
    """Not in the optimiser."""


class Teacher(NamedTuple):
    """Parts of the teacher that took part in the training, which none should."""

    in_training_mode: list[str]
    """Modules in training mode."""
    learning: list[str]
    """Parameters that require a gradient."""
    changed: list[str]
    """Tensors of its state that are not what they were."""


class Steps(NamedTuple):
    """Observations over some training steps."""

    losses: dict[str, float]
    """Losses of the first step, weighted, without the schedule's factor."""
    gradients: Gradients
    teacher: Teacher
    seconds: list[float]
    """Seconds of each step, without decoding; the first warms up."""
    val_seconds: float
    """Seconds for one image of a validation, without decoding."""
    largest_batch: int | None
    """Images that fit into the memory, see :func:`~defeat.memory.largest_batch`."""
    peak: float
    """Bytes, see :func:`~defeat.memory.peak_memory`; nan where it is not known."""


def take_steps(run: Run, batches: Sequence[Batch], steps: int, over: Callable[[], bool]) -> Steps:
    """Train copies of student and distiller on the run's device for some steps, and look what happens.

    The learning rate is 0: untested steps must not spoil each other. The teacher is left as it was.

    Args:
        batches: of the training; used in turn.
        steps: at most.
        over: whether the time is up; one step is taken, whatever it takes.
    """
    probe = run.module.copy_but_teacher().to(run.device)
    before, free = held_memory(run.device), free_memory(run.device)
    if run.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(run.device)
    detector = probe.teacher.detector if probe.teacher else None
    with _state_restored(detector) as changes:
        probe.train()
        in_training_mode = _put_in_eval_mode(detector)
        optimizer = _optimizer_at_rate_0(probe)
        record = _GradientRecord(probe)
        losses: dict[str, float] = {}
        seconds: list[float] = []
        for batch in islice(cycle(batches), steps):
            started = time.perf_counter()
            values = _step(probe, optimizer, move_data_to_device(batch, run.device), run.precision)
            _wait(run.device)
            seconds.append(time.perf_counter() - started)
            losses = losses or values
            record.note()
            if over() or record.infinite:
                break
        gradients = record.names(optimizer)
        teacher = Teacher(in_training_mode, _requiring_gradients(detector), changes())
    peak = peak_memory(run.device)
    if run.device.type == "cuda":  # a process's own memory does not shrink again
        optimizer.zero_grad()
        before, free = held_memory(run.device), free_memory(run.device)
    most = largest_batch(len(batches[0].images), peak - before, free)
    return Steps(losses, gradients, teacher, seconds, _validate(run, probe, batches[0]), most, peak)


def _optimizer_at_rate_0(probe: DetectionModule) -> Optimizer:
    optimizer = probe.build_optimizer()
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    return optimizer


def _step(
    probe: DetectionModule, optimizer: Optimizer, batch: Batch, precision: Precision
) -> dict[str, float]:
    optimizer.zero_grad()
    with precision():
        losses, captures = probe.detection_losses(batch)
        if probe.distiller is not None and probe.teacher is not None:
            levels = probe.distiller.level_losses(probe.student, probe.teacher, captures)
            losses = {**losses, **{name: values.sum() for name, values in levels.items()}}
    # Larger, for half precision would lose small gradients; a power of two is exact elsewhere.
    (SCALE * torch.stack(list(losses.values())).sum()).backward()
    optimizer.step()
    return {name: float(value.detach()) for name, value in losses.items()}


class _GradientRecord:
    """Follows over the steps which parameters of student and distiller get a gradient."""

    def __init__(self, probe: DetectionModule) -> None:
        self.parameters = {
            name: parameter
            for name, parameter in probe.named_parameters()
            if parameter.requires_grad and not name.startswith("teacher.")
        }
        self.any: set[str] = set()
        self.nonzero: set[str] = set()
        self.infinite: set[str] = set()

    def note(self) -> None:
        """Note the gradients of a step."""
        for name, parameter in self.parameters.items():
            if parameter.grad is not None:
                self.any.add(name)
                if not parameter.grad.isfinite().all():
                    self.infinite.add(name)
                elif parameter.grad.any():
                    self.nonzero.add(name)

    def names(self, optimizer: Optimizer) -> Gradients:
        """Sort the parameters by what was noted."""
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        every = list(self.parameters)
        return Gradients(
            every,
            missing=[name for name in every if name not in self.any],
            zero=[name for name in every if name in self.any - self.nonzero - self.infinite],
            infinite=[name for name in every if name in self.infinite],
            outside=[name for name in every if id(self.parameters[name]) not in held],
        )


@contextmanager
def _state_restored(teacher: nn.Module | None) -> Iterator[Callable[[], list[str]]]:
    """Put the teacher's state back at the end.

    Yields:
        A function that names the tensors of its state that have changed until its call.
    """
    if teacher is None:
        yield list
        return
    state = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}

    def changed() -> list[str]:
        return [name for name, tensor in teacher.state_dict().items() if not torch.equal(tensor, state[name])]

    try:
        yield changed
    finally:
        if changed():
            teacher.load_state_dict(state)


def _put_in_eval_mode(teacher: nn.Module | None) -> list[str]:
    """Name the modules in training mode, and leave none: its RPN would ask for targets then."""
    if teacher is None:
        return []
    in_training_mode = [name or "all of it" for name, module in teacher.named_modules() if module.training]
    teacher.eval()
    return in_training_mode


def _requiring_gradients(teacher: nn.Module | None) -> list[str]:
    return [] if teacher is None else [name for name, p in teacher.named_parameters() if p.requires_grad]


@torch.no_grad()
def _validate(run: Run, probe: DetectionModule, batch: Batch) -> float:
    """Seconds that the student takes to find objects in one image."""
    probe.eval()
    images = [image.to(run.device) for image in batch.images[:VAL_IMAGES]]
    started = time.perf_counter()
    with run.precision():
        probe(images)
    _wait(run.device)
    return (time.perf_counter() - started) / len(images)


def _wait(device: torch.device) -> None:
    """Wait for what was sent to an accelerator."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
