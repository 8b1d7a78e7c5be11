"""Real training steps on copies: gradients, optimiser, the teacher's stillness, memory and time."""

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

from defeat.io.text import few
from defeat.memory import peak_memory
from defeat.preflight.finding import Finding, Problem
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

    awake: list[str]
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
    if run.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(run.device)
    detector = probe.teacher.detector if probe.teacher else None
    with _kept(detector) as changes:
        probe.train()
        awake = _sent_to_sleep(detector)
        optimizer = _still_optimizer(probe)
        reached = _Reached(probe)
        losses: dict[str, float] = {}
        seconds: list[float] = []
        for batch in islice(cycle(batches), steps):
            started = time.perf_counter()
            values = _step(probe, optimizer, move_data_to_device(batch, run.device), run.precision)
            _wait(run.device)
            seconds.append(time.perf_counter() - started)
            losses = losses or values
            reached.look()
            if over() or reached.infinite:
                break
        gradients = reached.names(optimizer)
        teacher = Teacher(awake, _learning(detector), changes())
    peak = peak_memory(run.device)
    return Steps(losses, gradients, teacher, seconds, _validate(run, probe, batches[0]), peak)


def _still_optimizer(probe: DetectionModule) -> Optimizer:
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


class _Reached:
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

    def look(self) -> None:
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
def _kept(teacher: nn.Module | None) -> Iterator[Callable[[], list[str]]]:
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


def _sent_to_sleep(teacher: nn.Module | None) -> list[str]:
    """Name the modules in training mode, and leave none: its RPN would ask for targets then."""
    if teacher is None:
        return []
    awake = [name or "all of it" for name, module in teacher.named_modules() if module.training]
    teacher.eval()
    return awake


def _learning(teacher: nn.Module | None) -> list[str]:
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


def check_frozen(steps: Steps) -> Finding:
    """The teacher is in eval mode, requires no gradient, and is bit for bit the same after the steps."""
    teacher = steps.teacher
    found = (
        (teacher.awake, "modules of the teacher train with the student", "keep it in eval mode"),
        (
            teacher.learning,
            "parameters of the teacher require a gradient",
            "call requires_grad_(False) on it",
        ),
        (
            teacher.changed,
            "tensors of the teacher changed within a few steps",
            "keep it in eval mode, frozen",
        ),
    )
    problems = [Problem(f"{len(names)} {what}: {few(names)}", mend) for names, what, mend in found if names]
    return Finding("frozen", f"eval mode, unchanged by {len(steps.seconds)} steps", problems)


def check_gradients(steps: Steps, *, half: bool) -> Finding:
    """Every parameter that learns gets a finite gradient; DDP stops at one that gets none.

    Args:
        half: float16 is computed with, where a gradient that is too large is skipped and scaled down later.
    """
    found = steps.gradients
    problems = []
    if found.missing:
        problems.append(
            Problem(
                f"{len(found.missing)} parameters get no gradient: {few(found.missing)}",
                "freeze what no loss reaches, or leave the part out that it belongs to; DDP would stop at it",
            )
        )
    if found.infinite:
        problems.append(
            Problem(
                f"{len(found.infinite)} parameters get a gradient that is not finite: {few(found.infinite)}",
                "see the losses; lower the weights of those that are large, or set trainer.precision=32-true",
                severe=not half,
            )
        )
    if found.zero:
        problems.append(
            Problem(
                f"{len(found.zero)} parameters get a gradient of 0: {few(found.zero)}",
                "see that the first images have objects; a dead layer never learns",
                severe=False,
            )
        )
    return Finding(
        "gradients", f"{len(found.learning)} parameters, {len(steps.seconds)} real steps", problems
    )


def check_optimizer(steps: Steps) -> Finding:
    """Every parameter that learns, adapters too, is in the optimiser."""
    outside, every = steps.gradients.outside, steps.gradients.learning
    adapters = sum(name.startswith("distiller.") for name in every)
    problem = Problem(
        f"{len(outside)} of {len(every)} parameters are not in the optimiser: {few(outside)}",
        "have optim.optimizer take all the parameters that it is given",
    )
    seen = f"{len(every)} parameters, {adapters} of them the distiller's"
    return Finding("optimizer", seen, [problem] if outside else [])
