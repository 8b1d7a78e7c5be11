"""The one LightningModule: a student detector, and for distillation a frozen teacher and a distiller."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple, Self, cast

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchvision.ops import FrozenBatchNorm2d

from defeat.detectors import FrozenTeacher, allow_detections, capture, detect, to_unit_range
from defeat.detectors.capture import Captured
from defeat.distill import Distiller
from defeat.evaluation import DEFAULT_BACKEND, DEFAULT_MAX_DETS, DetectionMetrics, Evaluation
from defeat.seeds import Stream, derive_seed, seed_all
from defeat.timing import phase
from defeat.training.metric_names import class_metric, distilled_loss
from defeat.types import Batch, Prediction

OptimizerFactory = Callable[[Iterable[Any]], Optimizer]
LRScheduleFactory = Callable[..., LRScheduler]


class Losses(NamedTuple):
    """The losses of one batch by name: scalars, weighted, with their graph."""

    detection: dict[str, Tensor]
    """The losses that the student computes by itself."""
    distilled: dict[str, Tensor]
    """The losses of the distiller; empty without one."""

    @property
    def detection_sum(self) -> Tensor:
        """Sum of the student's own losses."""
        return torch.stack(list(self.detection.values())).sum()

    @property
    def total(self) -> Tensor:
        """The loss that the training minimises."""
        return self.detection_sum + sum(self.distilled.values())


class DetectionModule(LightningModule):
    """Train and validate a detector; with a teacher and a distiller, distil.

    Args:
        student: a torchvision-like detector; the only part that is validated and exported.
        classes: K class names, label 1 first.
        optimizer: builds the optimiser from the trainable parameters of student and distiller.
        lr_mult: factors of the optimiser's learning rate by the name of a parameter of this module; 1 for the
            others.
        lr_schedule: builds the learning-rate schedule, see :mod:`~defeat.training.lr_schedules`; None keeps
            the rate constant.
        seed: of the random numbers of every training step, which depend on nothing else but the step's place
            and the process.
        teacher: a trained detector, which is never saved.
        distiller: needs ``teacher``.
        provenance: plain containers (configuration, class ids, the teacher's file and digest) that are
            stored in checkpoints under ``defeat``.
        backend: engine of the COCO metrics, see :class:`defeat.evaluation.DetectionMetrics`.
        max_dets: detections that count for them, of an image and class; with more than COCO's 100 the student
            gives so many in validation.

    Raises:
        ValueError: a distiller without a teacher, or the reverse.
    """

    def __init__(
        self,
        student: nn.Module,
        classes: Sequence[str],
        *,
        optimizer: OptimizerFactory | None = None,
        lr_mult: Mapping[str, float] | None = None,
        lr_schedule: LRScheduleFactory | None = None,
        seed: int = 0,
        teacher: FrozenTeacher | None = None,
        distiller: Distiller | None = None,
        provenance: Mapping[str, Any] | None = None,
        backend: str = DEFAULT_BACKEND,
        max_dets: int = DEFAULT_MAX_DETS,
    ) -> None:
        super().__init__()
        if (teacher is None) != (distiller is None):
            raise ValueError("a teacher and a distiller come together or not at all")
        self.student = student
        self.teacher = teacher
        self.distiller = distiller
        self.classes = tuple(classes)
        self.metrics = DetectionMetrics(classes, backend, max_dets)
        if max_dets > DEFAULT_MAX_DETS:
            allow_detections(student, max_dets)
        self.evaluation: Evaluation | None = None
        self.last_losses: dict[str, Tensor] = {}
        """Losses of the latest training batch of this process, detached; the last, ``loss``, is their sum."""
        self._total_steps: float = 0
        self._optimizer = optimizer
        self._lr_mult = dict(lr_mult or {})
        self._lr_schedule = lr_schedule
        self._seed = seed
        self.provenance = dict(provenance or {})

    def copy_but_teacher(self) -> Self:
        """Copy everything, without the trainer, and share the teacher: it is large and never changes."""
        return copy.deepcopy(self, {id(self.teacher): self.teacher})

    def setup(self, stage: str) -> None:
        """Keep what never changes out of DDP, which sends all buffers to all processes before every forward.

        It would also have the teacher's tensors laid out alike in all processes, of which each decides by
        itself what its device bears in half precision.
        """
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self, list(self._constants()))

    def _constants(self) -> Iterator[str]:
        """Names of tensors that every process has from the same files and settings, and nobody changes."""
        for prefix, layer in self.named_modules():
            if prefix.startswith("teacher.") or isinstance(layer, FrozenBatchNorm2d):
                tensors = chain(layer.named_parameters(recurse=False), layer.named_buffers(recurse=False))
                yield from (f"{prefix}.{name}" for name, _ in tensors)
        state = self.state_dict()
        yield from (name for name, _ in self.named_buffers() if name not in state)

    def forward(self, images: Sequence[Tensor]) -> list[Prediction]:
        """Detect objects in (3, H, W) uint8 images with the student, which must be in eval mode."""
        return detect(self.student, images)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed the step: a resumed run draws what it would have, and a baseline what a distilled run does."""
        seed_all(derive_seed(Stream.STEP, self._seed, self.current_epoch, batch_idx, self.global_rank))

    def detection_losses(self, batch: Batch) -> tuple[dict[str, Tensor], Captured]:
        """Run the student's training forward: the one place where a student sees training images.

        Returns:
            The student's own losses, scalars by name, and what was captured for a distiller.
        """
        with phase("student"), capture(self.student) as captured:
            losses: dict[str, Tensor] = self.student(to_unit_range(batch.images), list(batch.targets))
        return losses, captured

    def losses(self, batch: Batch) -> Losses:
        """Compute all losses of a batch as the training does, which all processes do together."""
        detection, captured = self.detection_losses(batch)
        if self.distiller is None or self.teacher is None:
            return Losses(detection, {})
        with phase("losses"):
            return Losses(detection, self.distiller(self.student, self.teacher, captured, self.progress()))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Sum of the student's own detection losses and the distiller's, each logged by name."""
        losses = self.losses(batch)
        total = losses.total
        named = {**losses.detection, **losses.distilled, "loss": total}
        self.last_losses = {name: value.detach() for name, value in named.items()}
        self._log_losses(len(batch.images), losses, total)
        return total

    def on_train_start(self) -> None:
        """Note the planned number of optimiser steps, which Lightning works out anew at every look."""
        self._total_steps = self.trainer.estimated_stepping_batches

    def progress(self) -> float:
        """Share of the planned optimiser steps that are done, in [0, 1]."""
        return min(1.0, self.global_step / self._total_steps) if self._total_steps else 0.0

    def _log_losses(self, images: int, losses: Losses, total: Tensor) -> None:
        shown = {**losses.detection, "loss": total, "loss_detection": losses.detection_sum}
        values = {f"train/{name}": value for name, value in shown.items()}
        values |= {distilled_loss(name): value for name, value in losses.distilled.items()}
        every: int = cast(Any, self.trainer).log_every_n_steps  # set by a connector, so untyped
        if self.distiller and every and (self.global_step + 1) % every == 0:
            values |= {f"distill_level/{name}": x for name, x in self.distiller.latest_levels().items()}
        for name, value in self._over_processes(values).items():
            # Never with prog_bar: Lightning would wait for the device in every step, bar or no bar.
            self.log(name, value, batch_size=images)

    def _over_processes(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Means over all processes, which are the losses of the global batch; one reduction for all."""
        values = torch.stack([value.detach() for value in losses.values()])
        if self.trainer.world_size > 1:
            dist.all_reduce(values)  # the strategy's own reduction waits for all processes first
            values = values / self.trainer.world_size
        return dict(zip(losses, values, strict=True))

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, list[Prediction]]:
        """Count the student's detections; callbacks find them under ``predictions``."""
        predictions = self(batch.images)
        self.metrics.update(predictions, batch.targets)
        return {"predictions": predictions}

    def on_validation_epoch_end(self) -> None:
        """Compute the figures over the whole data set and log the COCO twelve as ``val/AP`` and so on."""
        self.evaluation = self.metrics.compute()
        self.metrics.reset()
        if self.trainer.sanity_checking:
            return
        figures = {f"val/{name}": value for name, value in self.evaluation.coco.items()}
        figures |= {f"val/voc_{name}": value for name, value in self.evaluation.voc.items()}
        figures |= {class_metric(name): value for name, value in self.evaluation.per_class.items()}
        # The metric has already gathered over ranks: every rank holds the same figures.
        self.log("val/AP", figures.pop("val/AP"), prog_bar=True)
        self.log_dict(figures)

    def build_optimizer(self) -> Optimizer:
        """Build the optimiser over student and adapters.

        Raises:
            ValueError: the module was built without one.
        """
        if self._optimizer is None:
            raise ValueError("this module was built without an optimizer: it can only evaluate")
        if not self._lr_mult:
            return self._optimizer(p for p in self.parameters() if p.requires_grad)
        groups: dict[float, list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                groups.setdefault(self._lr_mult.get(name, 1.0), []).append(parameter)
        optimizer = self._optimizer([{"params": group} for group in groups.values()])
        for group, factor in zip(optimizer.param_groups, groups, strict=True):
            group["lr"] *= factor  # a schedule multiplies what it finds
        return optimizer

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimiser and its schedule."""
        optimizer = self.build_optimizer()
        if self._lr_schedule is None:
            return optimizer
        # Bounded by steps alone, Lightning has not looked at the training data yet.
        self.trainer.fit_loop.setup_data()
        batches = int(self.trainer.num_training_batches)
        per_epoch = max(1, -(-batches // self.trainer.accumulate_grad_batches))
        total = int(self.trainer.estimated_stepping_batches)
        lr_schedule = self._lr_schedule(optimizer, total_steps=total, steps_per_epoch=per_epoch)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": lr_schedule, "interval": "step"}}

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Step, and free the gradients: Lightning keeps them through the next forward, where memory peaks."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        optimizer.zero_grad()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave the teacher's weights out and add the provenance: plain containers only."""
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {k: v for k, v in state.items() if not k.startswith("teacher.")}
        checkpoint["defeat"] = {**self.provenance, "classes": list(self.classes)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the teacher back, so that the load can stay strict on every other key.

        A student whose weights were averaged goes on from its raw ones; the average is for the callback.
        """
        if "current_model_state" in checkpoint:
            checkpoint["average"] = checkpoint["state_dict"]
            checkpoint["state_dict"] = {**checkpoint["state_dict"], **checkpoint["current_model_state"]}
        if self.teacher is not None:
            teacher = {f"teacher.{k}": v for k, v in self.teacher.state_dict().items()}
            checkpoint["state_dict"] = {**checkpoint["state_dict"], **teacher}
