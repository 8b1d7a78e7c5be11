"""The terms a distiller is made of: what is compared, on which mask, with which weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from defeat.detectors.capture import Anatomy, Captured, Level
from defeat.detectors.parts import match, propose, score
from defeat.distill.adapters import conv3x3
from defeat.distill.losses import Decoupled, decoupled_feature_loss, decoupled_kl
from defeat.distill.masks import Mask, object_mask
from defeat.errors import ConfigError


class Pair(NamedTuple):
    """One batch as student and teacher saw it, and the two detectors."""

    student: nn.Module
    teacher: nn.Module
    seen: Captured
    """The student's training forward."""
    taught: Captured
    """The teacher's features on ``seen.images``."""


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
        ConfigError: no level in common, or a stride in ``strides`` that one of them lacks.
    """

    def __init__(
        self,
        student: Anatomy,
        teacher: Anatomy,
        *,
        maps: Literal["neck", "stages"] = "neck",
        object_weight: float,
        background_weight: float,
        mask: Mask = object_mask,
        adapter: Callable[[int, int], nn.Module] = conv3x3,
        strides: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.maps = maps
        self.object_weight = object_weight
        self.background_weight = background_weight
        self.mask = mask
        self.levels = _common_levels(getattr(student, maps), getattr(teacher, maps), strides, maps)
        self.adapters = nn.ModuleDict(
            {str(s.stride): adapter(s.channels, t.channels) for s, t in self.levels}
        )

    def forward(self, pair: Pair) -> Decoupled:
        """Weighted object and background losses of one batch, two scalars."""
        ours: Mapping[str, Tensor] = getattr(pair.seen, self.maps)
        theirs: Mapping[str, Tensor] = getattr(pair.taught, self.maps)
        boxes = [target["boxes"] for target in pair.seen.targets]
        shapes = [_shape(ours[s.name]) for s, _ in self.levels]
        masks = self.mask(boxes, shapes, [s.stride for s, _ in self.levels])
        losses = [
            decoupled_feature_loss(self.adapters[str(s.stride)](ours[s.name]), theirs[t.name], mask)
            for (s, t), mask in zip(self.levels, masks, strict=True)
        ]
        return Decoupled(
            self.object_weight * torch.stack([loss.object for loss in losses]).mean(),
            self.background_weight * torch.stack([loss.background for loss in losses]).mean(),
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

    Raises:
        ConfigError: one of the two is a one-stage detector, or a temperature is not positive.
    """

    def __init__(
        self,
        student: Anatomy,
        teacher: Anatomy,
        *,
        object_weight: float,
        background_weight: float,
        object_temperature: float = 1.0,
        background_temperature: float = 1.0,
        proposals: Literal["teacher", "student"] = "teacher",
    ) -> None:
        super().__init__()
        for role, anatomy in (("student", student), ("teacher", teacher)):
            if not anatomy.two_stage:
                raise ConfigError(
                    f"the classification head term needs proposals, and the {role} is a one-stage detector: "
                    "remove it (~distiller.terms.head) or use Faster R-CNN for both"
                )
        if min(object_temperature, background_temperature) <= 0:
            raise ConfigError("temperatures of the head term must be positive")
        if proposals not in ("teacher", "student"):
            raise ConfigError(f"proposals must be teacher or student, got {proposals!r}")
        self.object_weight = object_weight
        self.background_weight = background_weight
        self.object_temperature = object_temperature
        self.background_temperature = background_temperature
        self.proposals = proposals

    def forward(self, pair: Pair) -> Decoupled:
        """Weighted object and background losses of one batch, two scalars."""
        sizes = pair.seen.image_sizes
        if self.proposals == "teacher":
            with torch.no_grad():
                shared = propose(pair.teacher, pair.taught.neck, pair.seen)
            logits = score(pair.student, pair.seen.neck, shared.boxes, sizes)
        else:
            assert pair.seen.class_logits is not None
            shared = match(pair.student, pair.seen.proposals, pair.seen.targets)
            logits = pair.seen.class_logits
        with torch.no_grad():
            taught = score(pair.teacher, pair.taught.neck, shared.boxes, sizes)
        loss = decoupled_kl(
            logits,
            taught,
            shared.labels > 0,
            object_temperature=self.object_temperature,
            background_temperature=self.background_temperature,
        )
        return Decoupled(self.object_weight * loss.object, self.background_weight * loss.background)


def _common_levels(
    student: Sequence[Level], teacher: Sequence[Level], strides: Sequence[int] | None, maps: str
) -> list[tuple[Level, Level]]:
    theirs = {level.stride: level for level in teacher}
    common = [(level, theirs[level.stride]) for level in student if level.stride in theirs]
    found = [s.stride for s, _ in common]
    if strides is not None:
        lacking = sorted(set(strides) - set(found))
        if lacking:
            raise ConfigError(f"{maps} of strides {lacking} asked for, but student and teacher share {found}")
        return [pair for pair in common if pair[0].stride in set(strides)]
    if not common:
        raise ConfigError(
            f"{maps} of student (strides {[x.stride for x in student]}) and teacher (strides {list(theirs)}) "
            "have no stride in common"
        )
    return common


def _shape(x: Tensor) -> tuple[int, int]:
    return x.shape[-2], x.shape[-1]
