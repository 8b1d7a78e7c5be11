"""The terms a distiller is made of: what is compared, on which mask, with which weights.

A term is built from the specs of student and teacher and turns a :class:`DistillBatch` into weighted
losses by part. A vector holds a value per level, and its sum counts; so a report can tell the levels apart.
The weight of part ``x`` is the term's attribute ``x_weight``, that of a loss without parts (``""``) is
``weight``, and every part grows in proportion to its weight. ``maps`` says through which maps of the student
the term reaches it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from defeat.detectors.capture import Captured, DetectorSpec, Level
from defeat.detectors.heads import (
    anchor_logits,
    assign_anchors,
    box_head_logits,
    label_proposals,
    sample_proposals,
)
from defeat.detectors.teacher_precision import frozen
from defeat.distill.adapters import conv3x3
from defeat.distill.losses import Decoupled, decoupled_binary_kl, decoupled_feature_sums, decoupled_kl
from defeat.distill.masks import Grids, Mask, object_mask
from defeat.distill.normalizers import Normalizer, local_normalizer
from defeat.errors import ConfigError
from defeat.timing import phase

Maps = Literal["neck", "stages"]
"""The pyramid, or the backbone's stages."""

LossDict = dict[str, Tensor]
"""Weighted losses by the name of the part, ``""`` for a term of one part; parts of weight 0 are left out."""


class DistillBatch(NamedTuple):
    """One batch as student and teacher saw it, and the two detectors."""

    student: nn.Module
    teacher: nn.Module
    student_captures: Captured
    """The student's training forward."""
    teacher_captures: Captured
    """The teacher's features on ``student_captures.images``."""
    normalizer: Normalizer = local_normalizer
    """What counts of this batch make of sums over it; while training, over all processes together."""


class AdaptedMaps(nn.Module):
    """The levels that student and teacher share, by stride, and the layers between their channels.

    Args:
        student: what the student offers.
        teacher: what the teacher offers.
        maps: which maps of the two.
        adapter: builds the layer from student to teacher channels of one level.
        strides: only these levels; None means all that both have.

    Raises:
        ConfigError: no level in common, or a stride in ``strides`` that one of them lacks.
    """

    def __init__(
        self,
        student: DetectorSpec,
        teacher: DetectorSpec,
        maps: Maps,
        adapter: Callable[[int, int], nn.Module],
        strides: Sequence[int] | None,
    ) -> None:
        super().__init__()
        if maps not in ("neck", "stages"):
            raise ConfigError(f"maps must be neck or stages, got {maps!r}")
        self.maps = maps
        self.levels = _common_levels(getattr(student, maps), getattr(teacher, maps), strides, maps)
        self.layers = nn.ModuleDict({str(s.stride): adapter(s.channels, t.channels) for s, t in self.levels})

    def student_maps(self, batch: DistillBatch) -> list[Tensor]:
        """The student's maps as they are, finest first, (B, C, H, W) each."""
        found: Mapping[str, Tensor] = getattr(batch.student_captures, self.maps)
        return [found[s.name] for s, _ in self.levels]

    def forward(self, batch: DistillBatch) -> Iterator[tuple[Tensor, Tensor]]:
        """Adapted student map and teacher map of each level, finest first."""
        theirs: Mapping[str, Tensor] = getattr(batch.teacher_captures, self.maps)
        for (s, t), own in zip(self.levels, self.student_maps(batch), strict=True):
            yield self.layers[str(s.stride)](own), theirs[t.name]


class FeatureTerm(nn.Module):
    """Feature imitation on masked maps (Eq. 4-5), averaged over the levels both detectors have.

    Args:
        student: what the student offers.
        teacher: what the teacher offers.
        maps: ``neck`` for the pyramid, ``stages`` for the backbone.
        object_weight: alpha_obj, in the units of :func:`decoupled_feature_loss`.
        background_weight: alpha_bg.
        mask: draws the object regions from the ground truth.
        adapter: builds the layer from student to teacher channels of one level.
        strides: use only these levels; None means all that both have.

    Raises:
        ConfigError: see :class:`AdaptedMaps`; a negative weight, or both 0.
    """

    def __init__(
        self,
        student: DetectorSpec,
        teacher: DetectorSpec,
        *,
        maps: Maps = "neck",
        object_weight: float,
        background_weight: float,
        mask: Mask = object_mask,
        adapter: Callable[[int, int], nn.Module] = conv3x3,
        strides: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        _check_weights(object_weight, background_weight)
        self.maps: Maps = maps
        self.object_weight = object_weight
        self.background_weight = background_weight
        self.mask = mask
        self.cells = student.min_object_cells
        self.adapters = AdaptedMaps(student, teacher, maps, adapter, strides)
        for s, _ in self.adapters.levels:
            # A buffer travels to the device once. Not a number of the checkpoint: the detector has it.
            anchors = torch.tensor(s.anchors, dtype=torch.float32).reshape(-1, 4)
            self.register_buffer(f"anchors_{s.stride}", anchors, persistent=False)

    def forward(self, batch: DistillBatch) -> LossDict:
        """Weighted object and background losses of one batch, (L,) each."""
        masks = self.mask(self.grids(batch))
        levels = [
            decoupled_feature_sums(ours, theirs, mask)
            for (ours, theirs), mask in zip(self.adapters(batch), masks, strict=True)
        ]
        sums, counts = zip(*levels, strict=True)
        normalizers = batch.normalizer(torch.stack(counts, dim=1))
        means = (
            torch.stack(half) / own for half, own in zip(zip(*sums, strict=True), normalizers, strict=True)
        )
        return _weighted(self, Decoupled(*(mean / len(levels) for mean in means)))

    def grids(self, batch: DistillBatch) -> Grids:
        """What the mask is drawn on for one batch."""
        strides = [s.stride for s, _ in self.adapters.levels]
        anchors = [self.get_buffer(f"anchors_{stride}") for stride in strides]
        return Grids(
            boxes=[target["boxes"] for target in batch.student_captures.targets],
            shapes=[(x.shape[-2], x.shape[-1]) for x in self.adapters.student_maps(batch)],
            strides=strides,
            cells=self.cells,
            anchors=anchors if all(map(len, anchors)) else (),
        )


class HeadTerm(nn.Module):
    """Imitation of the box head's class scores on shared proposals (Eq. 6-9); two-stage detectors only.

    Args:
        student: what the student offers.
        teacher: what the teacher offers.
        object_weight: beta_obj.
        background_weight: beta_bg.
        object_temperature: T_obj.
        background_temperature: T_bg.
        proposals: ``teacher`` as in the paper: its RPN and sampler propose, and the student's box head
            scores a second time. ``student``: those the student has just scored, which spares the teacher's
            RPN and the second scoring.
        pooled: divide by the number of all proposals, see :func:`decoupled_kl`: the paper's "all-cls" row.

    Raises:
        ConfigError: one of the two is a one-stage detector, a temperature is not positive, a weight is
            negative, or both are 0.
    """

    maps: Maps = "neck"

    def __init__(
        self,
        student: DetectorSpec,
        teacher: DetectorSpec,
        *,
        object_weight: float,
        background_weight: float,
        object_temperature: float = 1.0,
        background_temperature: float = 1.0,
        proposals: Literal["teacher", "student"] = "teacher",
        pooled: bool = False,
    ) -> None:
        super().__init__()
        for role, spec in (("student", student), ("teacher", teacher)):
            if spec.head != "proposals":
                raise ConfigError(
                    f"the classification head term needs proposals, and the {role} is a one-stage detector: "
                    "remove it (~distiller.terms.head) or use Faster R-CNN for both"
                )
        _check_weights(object_weight, background_weight)
        _check_temperatures(object_temperature, background_temperature)
        if proposals not in ("teacher", "student"):
            raise ConfigError(f"proposals must be teacher or student, got {proposals!r}")
        self.object_weight = object_weight
        self.background_weight = background_weight
        self.object_temperature = object_temperature
        self.background_temperature = background_temperature
        self.proposals = proposals
        self.pooled = pooled

    def forward(self, batch: DistillBatch) -> LossDict:
        """Weighted object and background losses of one batch, two scalars."""
        sizes = batch.student_captures.image_sizes
        if self.proposals == "teacher":
            with frozen(batch.teacher):
                shared = sample_proposals(batch.teacher, batch.teacher_captures.neck, batch.student_captures)
            with phase("student"):
                student_logits = box_head_logits(
                    batch.student, batch.student_captures.neck, shared.boxes, sizes
                )
        else:
            assert batch.student_captures.class_logits is not None
            shared = label_proposals(
                batch.student, batch.student_captures.proposals, batch.student_captures.targets
            )
            student_logits = batch.student_captures.class_logits
        with frozen(batch.teacher):
            teacher_logits = box_head_logits(batch.teacher, batch.teacher_captures.neck, shared.boxes, sizes)
        loss = decoupled_kl(
            student_logits,
            teacher_logits,
            shared.labels > 0,
            object_temperature=self.object_temperature,
            background_temperature=self.background_temperature,
            pooled=self.pooled,
            normalizer=batch.normalizer,
        )
        return _weighted(self, loss)


class AnchorTerm(nn.Module):
    """Imitation of RetinaNet's class scores on positive and on negative anchors; an extension of the paper.

    The paper distils the classification of two-stage detectors alone. This carries Eq. 6-9 over to sigmoid
    scores, see :func:`decoupled_binary_kl`: both detectors score the same anchors, and the student's matching
    decides which are positive and which negative. Nearly all negatives are easy, so their mean is small.

    Args:
        student: what the student offers.
        teacher: what the teacher offers.
        object_weight: of the positive anchors.
        background_weight: of the negative anchors.
        object_temperature: of the positive anchors.
        background_temperature: of the negative anchors.

    Raises:
        ConfigError: one of the two is no RetinaNet, their anchors differ, a temperature is not positive, a
            weight is negative, or both are 0.
    """

    maps: Maps = "neck"

    def __init__(
        self,
        student: DetectorSpec,
        teacher: DetectorSpec,
        *,
        object_weight: float,
        background_weight: float,
        object_temperature: float = 1.0,
        background_temperature: float = 1.0,
    ) -> None:
        super().__init__()
        for role, spec in (("student", student), ("teacher", teacher)):
            if spec.head != "anchors":
                raise ConfigError(
                    f"the anchor term compares two RetinaNets, and the {role} classifies {spec.head}: "
                    "remove the term"
                )
        ours, theirs = ([(x.stride, x.anchors) for x in spec.neck] for spec in (student, teacher))
        if ours != theirs:
            raise ConfigError(
                "the anchor term needs the same anchors on both sides, and student and teacher differ in "
                "them: give both the same anchor_sizes, aspect_ratios and returned_layers"
            )
        _check_weights(object_weight, background_weight)
        _check_temperatures(object_temperature, background_temperature)
        self.object_weight = object_weight
        self.background_weight = background_weight
        self.object_temperature = object_temperature
        self.background_temperature = background_temperature

    def forward(self, batch: DistillBatch) -> LossDict:
        """Weighted losses of positive and negative anchors of one batch, two scalars."""
        assert batch.student_captures.anchor_logits is not None
        with frozen(batch.teacher):
            teacher_logits = anchor_logits(batch.teacher, batch.teacher_captures.neck)
        assigned = assign_anchors(
            batch.student, batch.student_captures.anchors, batch.student_captures.targets
        )
        # Column 0 is torchvision's output for background, which no anchor is ever trained to.
        loss = decoupled_binary_kl(
            batch.student_captures.anchor_logits[..., 1:].flatten(0, 1),
            teacher_logits[..., 1:].flatten(0, 1),
            assigned.positive.flatten(),
            assigned.negative.flatten(),
            object_temperature=self.object_temperature,
            background_temperature=self.background_temperature,
            normalizer=batch.normalizer,
        )
        return _weighted(self, loss)


def _weighted(term: FeatureTerm | HeadTerm | AnchorTerm, loss: Decoupled) -> LossDict:
    weighted = {
        "object": (term.object_weight, loss.object),
        "background": (term.background_weight, loss.background),
    }
    return {part: weight * value for part, (weight, value) in weighted.items() if weight > 0}


def _check_weights(object_weight: float, background_weight: float) -> None:
    if min(object_weight, background_weight) < 0:
        raise ConfigError("object_weight and background_weight must not be negative")
    if object_weight == background_weight == 0:
        raise ConfigError("object_weight and background_weight are both 0: leave the term out instead")


def _check_temperatures(*temperatures: float) -> None:
    if min(temperatures) <= 0:
        raise ConfigError("temperatures must be positive")


def _common_levels(
    student: Sequence[Level], teacher: Sequence[Level], strides: Sequence[int] | None, maps: str
) -> list[tuple[Level, Level]]:
    # Of several maps of one stride the deepest counts.
    ours, theirs = ({level.stride: level for level in levels} for levels in (student, teacher))
    common = [(ours[stride], theirs[stride]) for stride in ours if stride in theirs]
    found = [s.stride for s, _ in common]
    if strides is not None:
        lacking = sorted(set(strides) - set(found))
        if lacking:
            raise ConfigError(f"{maps} of strides {lacking} asked for, but student and teacher share {found}")
        return [pair for pair in common if pair[0].stride in set(strides)]
    if not common:
        raise ConfigError(
            f"{maps} of student (strides {list(ours)}) and teacher (strides {list(theirs)}) "
            "have no stride in common"
        )
    return common
