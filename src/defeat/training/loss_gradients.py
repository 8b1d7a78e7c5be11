"""Measure every loss of a distilled run before the training begins, by its gradient at the student.

Weights say little by themselves: losses differ in scale by orders of magnitude. What moves the student is the
gradient that reaches its feature maps, and that can be measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import NamedTuple, cast

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import Trainer
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from defeat.detectors import inspect_detector
from defeat.detectors.capture import Captured
from defeat.distill import DistillBatch, Distiller
from defeat.distill.terms import GradientSite, Maps
from defeat.training.module import DetectionModule
from defeat.types import Batch

DETECTION = "detection"
"""Name of the sum of the student's own losses."""

SCALE = 2.0**12
"""Losses are this much larger while gradients are taken: half precision would lose small ones. Exact in all
others, being a power of two."""


Precision = Callable[[], AbstractContextManager[None]]
"""Makes the context of a forward."""


def precision_of(trainer: Trainer) -> Precision:
    """Context of a forward outside of the training, as the training has it.

    Reduced precisions other than the mixed ones convert the detector itself, which happens when it begins.
    """
    plugin = trainer.precision_plugin
    return plugin.train_step_context if isinstance(plugin, MixedPrecision) else nullcontext


class Map(NamedTuple):
    """One of the student's feature maps."""

    maps: Maps
    stride: int
    """Pixels of the resized image per cell."""
    name: str
    """The name that the detector gives it."""


class Reading(NamedTuple):
    """One loss on N batches; float64 on the CPU."""

    values: Tensor
    """(N, L) weighted, by level; L is 1 for a loss that has no levels."""
    squares: Tensor
    """(N, M) squared L2 norm of the gradient at every map; nan where the loss does not depend on the map."""

    @property
    def value(self) -> float:
        """The loss, mean over the batches."""
        return float(self.values.sum(1).mean())


class Measurement(NamedTuple):
    """All losses of a run, the student's own first, then their sum, then the distiller's."""

    maps: tuple[Map, ...]
    """M maps, neck first, finest first."""
    start: dict[str, Reading]
    """All losses at the start of the training."""
    fitted: dict[str, Reading]
    """With adapters that have learned to translate between the student and the teacher as they are."""
    batches: int
    images: int
    """In all batches together."""

    def norm(self, reading: Reading, maps: Maps, strides: Sequence[int] | None = None) -> float:
        """L2 norm of a loss's gradient at some maps jointly, mean over the batches.

        Args:
            reading: one of ``start`` or ``fitted``.
            maps: neck or stages.
            strides: of the levels; None means all.

        Returns:
            nan if the loss depends on none of them.
        """
        chosen = [m.maps == maps and (strides is None or m.stride in strides) for m in self.maps]
        squares = reading.squares[:, chosen]
        if squares.isnan().all():
            return torch.nan
        return float(squares.nansum(1).sqrt().mean())


def measure(
    module: DetectionModule,
    batches: Sequence[Batch],
    *,
    adapter_steps: int,
    adapter_rate: float,
    device: torch.device,
    precision: Precision = nullcontext,
    sites_alone: bool = False,
) -> Measurement:
    """Measure value and gradient of every loss at every neck and stage map of the student.

    Gradients are measured twice: with the adapters as they are, and after these alone have been fitted to the
    teacher on these batches, the student held still. Adapters begin close to zero, and what they pass on to
    the student is as small, so that the first figures say nothing about the training to come.

    Nothing is changed but the device of the teacher: student and distiller are copied, and random numbers are
    drawn apart.

    Args:
        module: with a distiller and in training mode.
        batches: as the training gives them.
        adapter_steps: steps of Adam, for all adapters together.
        adapter_rate: its learning rate, which falls linearly to 0.
        device: where to compute.
        precision: context of every forward, for instance autocast.
        sites_alone: measure the distiller's losses alone, each at the maps that it acts through, which takes
            no backward through the backbone; nothing is told of the other maps.
    """
    with isolate_rng():
        probe = _Probe(module, device, precision)
        # Every batch is seen twice with the same random numbers: masks may draw some.
        seeds = [int(seed) for seed in torch.randint(2**62, (len(batches),))]
        moved = [move_data_to_device(batch, device) for batch in batches]
        # Beside the graph of one batch, a GPU has no room for the maps of all others: these wait elsewhere.
        first = [probe.measure(*args, sites_alone) for args in zip(moved, seeds, strict=True)]
        start, distilled = _stack([readings for readings, _ in first]), [kept for _, kept in first]
        fitted = dict(start)
        if probe.adapted and adapter_steps:
            probe.fit([_moved(kept, device) for kept in distilled], adapter_steps, adapter_rate)
            again = [probe.measure_adapted(*args) for args in zip(moved, seeds, distilled, strict=True)]
            fitted |= _stack(again)
    images = sum(len(batch.images) for batch in batches)
    return Measurement(probe.maps, start, fitted, len(batches), images)


class _Probe:
    """A copy of student and distiller, on which is measured."""

    def __init__(self, module: DetectionModule, device: torch.device, precision: Precision) -> None:
        if module.distiller is None or module.teacher is None:
            raise ValueError("without a distiller there is nothing to measure")
        self.module = module.copy_but_teacher().to(device)
        self.distiller = cast(Distiller, self.module.distiller)
        self.teacher = module.teacher
        self.precision = precision
        _leave_other_processes(self.module.student)
        spec = inspect_detector(self.module.student)
        self.maps = (
            *(Map("neck", level.stride, level.name) for level in spec.neck),
            *(Map("stages", level.stride, level.name) for level in spec.stages),
        )
        terms = self.distiller.terms.items()
        self.adapted = {name for name, term in terms if any(p.requires_grad for p in term.parameters())}
        """Terms that learn."""

    def measure(self, batch: Batch, seed: int, sites_alone: bool) -> tuple[dict[str, Reading], DistillBatch]:
        """Measure all losses on a batch; its captures come back on the CPU, without their graph."""
        torch.manual_seed(seed)
        with self.precision():
            detection, captures = self.module.detection_losses(batch)
            distilled = self.distiller.make_batch(self.module.student, self.teacher, captures)
            total = torch.stack(list(detection.values())).sum()
            losses = self.distiller.term_losses(distilled)
        sites = self.distiller.gradient_sites if sites_alone else {}
        if not sites_alone:
            losses = {**detection, DETECTION: total, **losses}
        readings = {name: self._read(loss, captures, sites.get(name)) for name, loss in losses.items()}
        kept = distilled._replace(student_captures=_detached(captures))
        return readings, _moved(kept, torch.device("cpu"))

    def measure_adapted(self, batch: Batch, seed: int, before: DistillBatch) -> dict[str, Reading]:
        """Measure the losses of the terms that learn; all others are what they were."""
        torch.manual_seed(seed)
        with self.precision():
            _, captures = self.module.detection_losses(batch)
            taught = move_data_to_device(before.teacher_captures, captures.images.device)
            distilled = before._replace(student_captures=captures, teacher_captures=taught)
            losses = self.distiller.term_losses(distilled, self.adapted)
        return {name: self._read(loss, captures) for name, loss in losses.items()}

    def _read(self, loss: Tensor, captures: Captured, site: GradientSite | None = None) -> Reading:
        inputs = [getattr(captures, m.maps)[m.name] for m in self.maps]
        wanted = [site is None or (m.maps == site.maps and m.stride in site.strides) for m in self.maps]
        trained = [i for i, x in enumerate(inputs) if wanted[i] and x.requires_grad]  # stages may be frozen
        norms: dict[int, Tensor] = {}
        if trained and loss.requires_grad:
            gradients = torch.autograd.grad(
                SCALE * loss.sum(), [inputs[i] for i in trained], retain_graph=True, allow_unused=True
            )
            for i, gradient in zip(trained, gradients, strict=True):
                if gradient is not None:
                    norms[i] = torch.linalg.vector_norm(gradient, dtype=torch.float32)
        squares = torch.full((1, len(inputs)), torch.nan, dtype=torch.float64)  # (1, M)
        if norms:
            values = torch.stack(list(norms.values())).cpu().double()
            squares[0, list(norms)] = (values / SCALE).square()
        return Reading(loss.detach().float().cpu().double().reshape(1, -1), squares)

    def fit(self, batches: Sequence[DistillBatch], steps: int, rate: float) -> None:
        """Fit the adapters alone, all losses of theirs counting alike whatever their weights are."""
        weights = self.distiller.weights
        optimizer = torch.optim.Adam((p for p in self.distiller.parameters() if p.requires_grad), lr=rate)
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
            with self.precision():
                losses = self.distiller.term_losses(batches[step % len(batches)], self.adapted)
            optimizer.zero_grad()
            alike = torch.stack([loss.sum() / weights[name] for name, loss in losses.items()])
            (SCALE * alike.sum()).backward()
            optimizer.step()


def _leave_other_processes(model: nn.Module) -> None:
    """Let BatchNorm layers that gather statistics from all processes take those of this one alone."""
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.SyncBatchNorm):
                alone = nn.BatchNorm2d(layer.num_features, layer.eps, layer.momentum).train(layer.training)
                alone._parameters, alone._buffers = layer._parameters, layer._buffers
                setattr(parent, name, alone)


def _detached(captures: Captured) -> Captured:
    return replace(
        captures,
        stages={name: x.detach() for name, x in captures.stages.items()},
        neck={name: x.detach() for name, x in captures.neck.items()},
        class_logits=None if captures.class_logits is None else captures.class_logits.detach(),
        anchor_logits=None if captures.anchor_logits is None else captures.anchor_logits.detach(),
    )


def _moved(batch: DistillBatch, device: torch.device) -> DistillBatch:
    """A batch whose tensors are on a device; those that are there already are not copied."""
    return batch._replace(
        student_captures=move_data_to_device(batch.student_captures, device),
        teacher_captures=move_data_to_device(batch.teacher_captures, device),
    )


def _stack(batches: Sequence[Mapping[str, Reading]]) -> dict[str, Reading]:
    return {
        name: Reading(
            torch.cat([batch[name].values for batch in batches]),
            torch.cat([batch[name].squares for batch in batches]),
        )
        for name in batches[0]
    }
