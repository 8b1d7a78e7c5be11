"""Imitation of RetinaNet's class scores on its anchors."""

from __future__ import annotations

import torch
from torch import Tensor

from defeat.detectors.capture import DetectorSpec
from defeat.detectors.heads import assign_anchors
from defeat.distill.losses import decoupled_binary_kl
from defeat.distill.terms.base import OBJECT_AND_BACKGROUND, DistillBatch, LossDict, Term, check_temperatures
from defeat.errors import ConfigError
from defeat.timing import phase


class AnchorTerm(Term):
    """Imitation of RetinaNet's class scores on positive and on negative anchors; an extension of the paper.

    The paper distils the classification of two-stage detectors alone. This carries Eq. 6-9 over to sigmoid
    scores, see :func:`~defeat.distill.losses.decoupled_binary_kl`: both detectors score the same anchors, and
    the student's matching decides which are positive and which negative. Nearly all negatives are easy, so
    their mean is small. Where the teacher knows some of the classes alone, the scores of these are compared,
    and anchors on objects of other classes do not count.

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

    weight_keys = OBJECT_AND_BACKGROUND
    needs_teacher_head = True

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
        for role, spec in (("student", student), ("teacher", teacher)):
            if spec.head != "anchors":
                raise ConfigError(
                    f"the anchor term compares two RetinaNets, and the {role} classifies {spec.head}: "
                    "remove the term"
                )
        if _anchors(student) != _anchors(teacher):
            raise ConfigError(
                "the anchor term needs the same anchors on both sides, and student and teacher differ in "
                "them: give both the same anchor_sizes, aspect_ratios, anchors and returned_layers"
            )
        if student.fixed_strides != teacher.fixed_strides and not student.whole_strides:
            raise ConfigError(
                "the anchor term needs the same anchors on both sides, and one side derives their strides "
                "from the size of the batch: give both the same strides (fixed or derived), or a "
                f"student.model.size_divisible of {max(level.stride for level in student.neck)}"
            )
        super().__init__({"object": object_weight, "background": background_weight})
        check_temperatures(object_temperature, background_temperature)
        self.object_temperature = object_temperature
        self.background_temperature = background_temperature

    def forward(self, batch: DistillBatch) -> LossDict:
        """Compute the weighted losses of positive and negative anchors of one batch, two scalars."""
        captured = batch.student_captures
        assert captured.anchor_logits is not None
        with phase("teacher"):
            teacher_logits = batch.teacher.anchor_logits(batch.teacher_captures.neck)  # (B, A, K + 1)
        assigned = assign_anchors(batch.student, captured.anchors, captured.targets)  # (B, A) each
        known, positive = batch.teacher.known_labels, assigned.positive
        # Column 0 is torchvision's output for background, which no anchor is ever trained to.
        columns: slice | Tensor = slice(1, None)
        if known is not None:
            columns, positive = known, torch.isin(assigned.labels, known)
        loss = decoupled_binary_kl(
            captured.anchor_logits[..., columns].flatten(0, 1),  # (B A, K), of the classes that are known
            teacher_logits[..., columns].flatten(0, 1),
            positive.flatten(),
            assigned.negative.flatten(),
            object_temperature=self.object_temperature,
            background_temperature=self.background_temperature,
            normalizer=batch.normalizer,
        )
        return self.weighted(loss._asdict())


def _anchors(spec: DetectorSpec) -> list[tuple[int, tuple[tuple[float, float, float, float], ...]]]:
    return [(level.stride, level.anchors) for level in spec.neck]
