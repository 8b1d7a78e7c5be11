"""A teacher, a student and a batch, and the single steps of a distillation on them: what benchmarks time.

The weights are random. The statistics of frozen normalisation layers are those of the batch, as a trained
network's are those of its data: without them the activations of a ResNet would grow from block to block until
every box is clipped to the image, and there would be no proposals to work on. What a residual block adds is
scaled down, for random blocks pass rounding on much more than trained ones do: in bfloat16 a random ResNet-50
then errs by about as much as one trained on ImageNet, and so has to stay in float32 about as far.

Every step draws its random numbers from the same seed and moves no weight (the learning rate is 0), so that
all steps of all variants do the same work on the same numbers.
"""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from typing import Any, Literal, cast

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import Callback, Trainer
from omegaconf import DictConfig
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign

from defeat.config import build, compose_config
from defeat.detectors import FrozenTeacher, capture
from defeat.detectors.adapted.parallel_roi_align import ParallelRoIAlign
from defeat.detectors.inference import to_unit_range
from defeat.detectors.teacher_precision import Precision, PrecisionReport, optimize_for_inference
from defeat.distill import DistillBatch, Distiller, FeatureTerm
from defeat.distill.normalizers import global_normalizer
from defeat.run.hardware import keep_freed_memory, lay_channels_last, set_hardware
from defeat.seeds import Stream, derive_seed, seed_all
from defeat.training.module import DetectionModule
from defeat.types import Batch, Target

CLASSES = tuple(f"class {i}" for i in range(1, 81))

Kind = Literal["features", "lean", "full", "plain"]
"""What is distilled: neck and backbone maps; these and the head's scores on the student's proposals; or on
the teacher's. ``plain``: the mean squared error of P2 to P5, no mask, no adapter."""

KINDS: dict[Kind, tuple[str, ...]] = {
    "features": ("distiller=defeat", "~distiller.terms.head"),
    "lean": ("distiller=defeat_lean",),
    "full": ("distiller=defeat",),
    "plain": (
        "distiller=all_neck",
        "distiller.terms.neck.strides=[4,8,16,32]",
        "distiller.terms.neck.adapter._target_=defeat.distill.matching",
    ),
}

TINY = tuple(
    f"{role}.model.{word}"
    for role in ("student", "teacher")
    for word in (
        "backbone=resnet10",
        "fpn_channels=8",
        "box_head_channels=16",
        "box_batch_size_per_image=16",
        "rpn_batch_size_per_image=32",
    )
)
"""Overrides for detectors whose step takes milliseconds."""

RESIDUAL = 0.2
"""Scale of what a residual block adds."""

Step = Callable[[], object]


class Case:
    """Two detectors and one batch on a device.

    Args:
        size: (height, width) of the images in pixels; the detectors resize to the same.
        images: in the batch.
        boxes: of each image.
        device: where everything lies.
        half: computes all forwards under autocast to this dtype; None for float32.
        overrides: of the configuration of ``+experiment=frcnn_r152_r50``, whose detectors, distillers and
            optimiser these are.
    """

    def __init__(
        self,
        size: tuple[int, int] = (400, 600),
        images: int = 2,
        boxes: int = 10,
        *,
        device: str | torch.device = "cpu",
        half: torch.dtype | None = None,
        overrides: Sequence[str] = (),
    ) -> None:
        self.size = size
        self.device = torch.device(device)
        self.half = half
        self.overrides = tuple(overrides)
        self.config = self._compose(())
        set_hardware(self.config)
        if self.config.keep_freed_memory:
            keep_freed_memory()
        seed_all(0)
        self.batch: Batch = move_data_to_device(random_batch(size, images, boxes), self.device)
        self.student = self._detector("student").train()
        self._lay(self.student)
        self.teacher = self._detector("teacher").eval().requires_grad_(False)
        """As it is built, in float32."""
        pixels = self.transformed()[0].tensors
        for detector in (self.student, self.teacher):
            fit_statistics(detector, pixels)
        self.precision_reports: dict[Precision, PrecisionReport | None] = {}
        """The arithmetic of the teachers of :meth:`teacher_in`, by precision."""
        self._teachers: dict[Precision, FrozenTeacher] = {"as_built": FrozenTeacher(self.teacher)}
        self._distillers: dict[Kind, Distiller] = {}

    @cached_property
    def trainer(self) -> Trainer:
        """What a module asks for its place in the training; it never runs."""
        # barebones is what lets a module log without a loop that would collect it.
        warnings.filterwarnings("ignore", message=".*barebones=True.*")
        return Trainer(barebones=True, accelerator="cpu", devices=1)

    def autocast(self) -> AbstractContextManager[object]:
        """The context of every forward."""
        return torch.autocast(self.device.type, self.half) if self.half else nullcontext()

    def transformed(self) -> tuple[ImageList, list[Target]]:
        """The batch as the student's backbone sees it, and its targets."""
        images = to_unit_range(self.batch.images)
        return cast(Any, self.student).transform(images, list(self.batch.targets))

    def teacher_in(self, precision: Precision) -> FrozenTeacher:
        """The teacher in an arithmetic of its own, a copy that is made once."""
        if precision not in self._teachers:
            teacher = FrozenTeacher(copy.deepcopy(self.teacher))
            images = self.transformed()[0].tensors
            self.precision_reports[precision] = optimize_for_inference(teacher, images, precision)
            self._teachers[precision] = teacher
        return self._teachers[precision]

    def distiller(self, kind: Kind) -> Distiller:
        """One of each kind, whose adapters start from the same numbers."""
        if kind not in self._distillers:
            seed_all(1)
            node = self._compose(KINDS[kind]).distiller
            made = build(node, student=self.student, teacher=self.teacher).to(self.device)
            self._lay(made)
            self._distillers[kind] = made
        return self._distillers[kind]

    def optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        """The configured optimiser of what learns in a module, with a learning rate of 0."""
        return build(self.config.optim.optimizer)(p for p in module.parameters() if p.requires_grad)

    def _lay(self, module: nn.Module) -> None:
        if self.config.channels_last:
            lay_channels_last(module)

    def _compose(self, overrides: Sequence[str]) -> DictConfig:
        height, width = self.size
        sizes = [f"model.min_size={min(height, width)}", f"model.max_size={max(height, width)}"]
        untrained = [*sizes, "weights=null", "backbone_weights=null"]
        return compose_config(
            "train",
            [
                "+experiment=frcnn_r152_r50",
                f"run_dir={tempfile.gettempdir()}",
                "optim.optimizer.lr=0",
                *(f"{role}.{word}" for role in ("student", "teacher") for word in untrained),
                *self.overrides,
                *overrides,
            ],
        )

    def _detector(self, role: Literal["student", "teacher"]) -> nn.Module:
        return build(self.config[role], classes=list(CLASSES)).model.to(self.device)


def random_batch(size: tuple[int, int], images: int, boxes: int) -> Batch:
    """Noise with boxes of 4 % to 60 % of the shorter side, from torch's random numbers."""
    height, width = size
    targets: list[Target] = []
    for index in range(images):
        sides = min(size) * 0.04 * (0.6 / 0.04) ** torch.rand(boxes, 2)
        corners = torch.rand(boxes, 2) * (torch.tensor([width, height]) - sides)
        targets.append(
            Target(
                boxes=torch.cat([corners, corners + sides], dim=1),
                labels=torch.randint(1, len(CLASSES) + 1, (boxes,)),
                ignore=torch.zeros(boxes, dtype=torch.bool),
                area=sides.prod(1),
                index=torch.tensor(index),
            )
        )
    pixels = torch.randint(0, 256, (images, 3, height, width), dtype=torch.uint8)
    return Batch(list(pixels), targets)


@torch.no_grad()
def fit_statistics(detector: nn.Module, images: Tensor) -> None:
    """Set mean and variance of frozen normalisation layers to those of their input on some images.

    And the scale of those at the end of residual blocks to :data:`RESIDUAL`.
    """

    def measure(norm: nn.Module, args: tuple[Tensor]) -> None:
        variance, mean = torch.var_mean(args[0], (0, 2, 3), correction=0)
        cast(Any, norm).running_mean.copy_(mean)
        cast(Any, norm).running_var.copy_(variance)

    for block in detector.modules():
        if isinstance(block, Bottleneck | BasicBlock):
            (block.bn3 if isinstance(block, Bottleneck) else block.bn2).weight.fill_(RESIDUAL)
    norms = [module for module in detector.modules() if isinstance(module, FrozenBatchNorm2d)]
    handles = [norm.register_forward_pre_hook(measure) for norm in norms]
    cast(Any, detector).backbone(images)
    for handle in handles:
        handle.remove()


def seed_step() -> None:
    """Seed as :class:`DetectionModule` seeds the first batch of a training with ``seed=0``."""
    seed_all(derive_seed(Stream.STEP, 0, 0, 0, 0))


@contextmanager
def torchvisions_pooling() -> Iterator[None]:
    """Inside, or in a function that this decorates, RoIAlign is torchvision's own, on one core of a CPU."""
    ours = ParallelRoIAlign.forward
    ParallelRoIAlign.forward = MultiScaleRoIAlign.forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        ParallelRoIAlign.forward = ours  # type: ignore[method-assign]


class Floor:
    """The arithmetic that a distillation step cannot do without, in bare parts, as torchvision computes them.

    Each method is one part. What a part is given (pixels, maps, proposals) is computed here, once.
    """

    def __init__(self, case: Case) -> None:
        self.case = case
        self.optimizer = case.optimizer(case.student)
        self.pixels = case.transformed()[0]
        seed_step()
        with torch.no_grad(), case.autocast(), capture(case.student) as self.seen:
            case.student(to_unit_range(case.batch.images), list(case.batch.targets))
        with torch.no_grad(), case.autocast():
            self.taught = cast(Any, case.teacher).backbone(self.pixels.tensors)
            self.proposals = self._propose()

    @torchvisions_pooling()
    def student_step(self) -> Tensor:
        """Forward, losses, backward and optimiser step of the student alone."""
        seed_step()
        images = to_unit_range(self.case.batch.images)
        with self.case.autocast():
            losses = self.case.student(images, list(self.case.batch.targets))
            loss = torch.stack(list(losses.values())).sum()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    @torch.no_grad()
    def teacher_maps(self) -> None:
        """Backbone and pyramid of the teacher."""
        with self.case.autocast():
            cast(Any, self.case.teacher).backbone(self.pixels.tensors)

    @cached_property
    def _adapted(self) -> list[tuple[nn.Module, Tensor]]:
        """The layers between student and teacher maps, and what goes into each."""
        pairs = []
        for term in self.case.distiller("features").terms.values():
            assert isinstance(term, FeatureTerm)
            maps: dict[str, Tensor] = getattr(self.seen, term.maps)
            for level, _ in term.adapters.levels:
                pairs.append((term.adapters.layers[str(level.stride)], maps[level.name].detach()))
        return [(layer, x.requires_grad_()) for layer, x in pairs]

    def adapters(self) -> None:
        """The convolutions from the student's channels to the teacher's, forward and backward."""
        with self.case.autocast():
            adapted = [layer(x) for layer, x in self._adapted]
        for layer, x in self._adapted:
            layer.zero_grad()
            x.grad = None
        torch.autograd.backward(adapted, [torch.ones_like(y) for y in adapted])

    @cached_property
    def _adapters_optimizer(self) -> torch.optim.Optimizer:
        return self.case.optimizer(self.case.distiller("features"))

    def adapters_update(self) -> None:
        """The optimiser's step over the adapters; not counted to the floor."""
        self._adapters_optimizer.step()

    @torchvisions_pooling()
    @torch.no_grad()
    def teacher_head(self) -> None:
        """The teacher's box head on the student's proposals."""
        with self.case.autocast():
            self._score(self.case.teacher, self.taught, self.seen.proposals)

    @torch.no_grad()
    def teacher_proposals(self) -> None:
        """The teacher's RPN and its training sampler."""
        with self.case.autocast():
            self._propose()

    @torchvisions_pooling()
    def second_pass(self) -> None:
        """The student's box head on the teacher's proposals, forward and backward."""
        with self.case.autocast():
            maps = {name: x.detach().requires_grad_() for name, x in self.seen.neck.items()}
            logits = self._score(self.case.student, maps, self.proposals)
        cast(Any, self.case.student).roi_heads.zero_grad()
        logits.backward(torch.ones_like(logits))

    def _propose(self) -> list[Tensor]:
        seed_step()
        model = cast(Any, self.case.teacher)
        boxes, _ = model.rpn(self.pixels, self.taught)
        return list(model.roi_heads.select_training_samples(boxes, self.seen.targets)[0])

    def _score(self, detector: nn.Module, maps: dict[str, Tensor], boxes: list[Tensor]) -> Tensor:
        heads = cast(Any, detector).roi_heads
        pooled = heads.box_roi_pool(maps, boxes, self.pixels.image_sizes)
        return cast(Tensor, heads.box_predictor(heads.box_head(pooled))[0])


class Training:
    """A module in training, whose steps are those of Lightning's automatic optimisation."""

    def __init__(self, case: Case, module: DetectionModule) -> None:
        module.trainer = case.trainer
        self.case = case
        self.module = module.to(case.device).train()
        self.optimizer = case.optimizer(module)
        self._nonfinite: Callback = build(case.config.callbacks.nonfinite)

    def __call__(self) -> Tensor:
        """One step; the loss without its graph."""
        batch, module = self.case.batch, self.module
        module.on_train_batch_start(batch, 0)
        self._nonfinite.on_train_batch_start(self.case.trainer, module, batch, 0)
        with self.case.autocast():
            loss = module.training_step(batch, 0)
        self._nonfinite.on_before_backward(self.case.trainer, module, loss)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()  # as DetectionModule.optimizer_step
        return loss.detach()


def student_alone(case: Case) -> Training:
    """The student's training without a teacher."""
    return Training(case, DetectionModule(case.student, CLASSES))


def distilled(case: Case, kind: Kind, precision: Precision = "as_built") -> Training:
    """The student's training with teacher and distiller: this project as it is."""
    module = DetectionModule(
        case.student,
        CLASSES,
        teacher=case.teacher_in(precision),
        distiller=case.distiller(kind),
    )
    return Training(case, module)


def usual(case: Case, kind: Kind) -> Callable[[], Tensor]:
    """The design that most implementations have: the teacher is a whole detector that finds objects.

    It resizes the images itself, proposes, suppresses and scores, and hooks keep the maps on the way.
    Adapters, masks and losses are those of :func:`distilled`; RoIAlign is torchvision's.
    """
    distiller = case.distiller(kind)
    optimizer = case.optimizer(nn.ModuleList([case.student, distiller]))

    @torchvisions_pooling()
    def step() -> Tensor:
        seed_step()
        images = to_unit_range(case.batch.images)
        with case.autocast():
            with capture(case.student) as seen:
                detection = case.student(images, list(case.batch.targets))
            teacher = case.teacher_in("as_built")
            with capture(teacher.detector) as taught:
                teacher(images)
            parts = distiller.term_losses(
                DistillBatch(case.student, teacher, seen, taught, global_normalizer)
            )
            loss = torch.stack(list(detection.values())).sum() + sum(part.sum() for part in parts.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step
