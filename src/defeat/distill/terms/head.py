"""DeFeat's imitation of the box head's class scores on proposals."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from defeat.detectors.capture import DetectorSpec
from defeat.detectors.heads import Proposals, box_head_logits, label_proposals
from defeat.distill.losses import decoupled_kl, marginal_logits
from defeat.distill.terms.base import OBJECT_AND_BACKGROUND, DistillBatch, LossDict, Term, check_temperatures
from defeat.errors import ConfigError
from defeat.timing import phase


class HeadTerm(Term):
    """Imitation of the box head's class scores on shared proposals (Eq. 6-9); two-stage detectors only.

    Where the teacher knows some of the classes alone, both distributions are those of these classes and of
    anything else, and proposals on objects of other classes do not count.

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
        pooled: divide by the number of all proposals, see :func:`~defeat.distill.losses.decoupled_kl`: the
            paper's "all-cls" row.

    Raises:
        ConfigError: one of the two is a one-stage detector, a temperature is not positive, a weight is
            negative, or both are 0.
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
        proposals: Literal["teacher", "student"] = "teacher",
        pooled: bool = False,
    ) -> None:
        for role, spec in (("student", student), ("teacher", teacher)):
            if spec.head != "proposals":
                raise ConfigError(
                    f"the classification head term needs proposals, and the {role} is a one-stage detector: "
                    "remove it (~distiller.terms.head) or use Faster R-CNN for both"
                )
        super().__init__({"object": object_weight, "background": background_weight})
        check_temperatures(object_temperature, background_temperature)
        if proposals not in ("teacher", "student"):
            raise ConfigError(f"proposals must be teacher or student, got {proposals!r}")
        self.object_temperature = object_temperature
        self.background_temperature = background_temperature
        self.proposals = proposals
        self.pooled = pooled

    def forward(self, batch: DistillBatch) -> LossDict:
        """Compute the weighted object and background losses of one batch, two scalars."""
        shared, student_logits = self._scored_by_student(batch)
        with phase("teacher"):
            teacher_logits = batch.teacher.box_head_logits(
                batch.teacher_captures.neck, shared.boxes, batch.student_captures.image_sizes
            )
        is_object, known = shared.labels > 0, batch.teacher.known_labels  # (sum N_i,)
        is_background = ~is_object
        if known is not None:
            is_object = torch.isin(shared.labels, known)
            student_logits, teacher_logits = (
                marginal_logits(logits, known) for logits in (student_logits, teacher_logits)
            )
        loss = decoupled_kl(
            student_logits,  # (sum N_i, K + 1), or of the classes that the teacher knows
            teacher_logits,
            is_object,
            is_background,
            object_temperature=self.object_temperature,
            background_temperature=self.background_temperature,
            pooled=self.pooled,
            normalizer=batch.normalizer,
        )
        return self.weighted(loss._asdict())

    def _scored_by_student(self, batch: DistillBatch) -> tuple[Proposals, Tensor]:
        """Return the proposals with the student's class logits on them, (sum N_i, K + 1)."""
        captured = batch.student_captures
        if self.proposals == "teacher":
            with phase("teacher"):
                shared = batch.teacher.sample_proposals(batch.teacher_captures.neck, captured)
            with phase("student"):
                logits = box_head_logits(batch.student, captured.neck, shared.boxes, captured.image_sizes)
            return shared, logits
        assert captured.class_logits is not None
        shared = label_proposals(batch.student, captured.proposals, captured.targets)
        return shared, captured.class_logits
