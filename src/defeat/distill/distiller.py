"""The distiller: a student's forward in, named losses out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from defeat.detectors.capture import Anatomy, Captured, Level, capture, examine
from defeat.distill.schedules import Schedule, constant
from defeat.distill.terms import Pair, Parts
from defeat.errors import ConfigError

log = logging.getLogger(__name__)

TermFactory = Callable[[Anatomy, Anatomy], nn.Module]


class Distiller(nn.Module):
    """Sum of terms that pull a student towards a frozen teacher (Eq. 3: L_fea + L_cls(distilled)).

    Its parameters, the terms' adapters, train along with the student and are not part of it.

    Args:
        student: a detector built like torchvision's.
        teacher: another one; it is only read.
        terms: builders by name, see :mod:`defeat.distill.terms`; the losses are called after term and part,
            such as ``neck_object``. None entries are left out, so that a config can switch one off.
        schedule: factor on all terms as a function of training progress.

    Raises:
        ConfigError: no terms, terms that do not fit these detectors, or detectors that normalise pixels
            differently (one of them would see another image).
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        terms: Mapping[str, TermFactory | None],
        schedule: Schedule = constant,
    ) -> None:
        super().__init__()
        _check_normalisation(student, teacher)
        ours, theirs = examine(student), examine(teacher)
        self.terms = nn.ModuleDict({name: term(ours, theirs) for name, term in terms.items() if term})
        if not self.terms:
            raise ConfigError("the distiller has no terms: choose one, such as distiller=defeat")
        self.schedule = schedule
        _report_levels(ours.neck, theirs.neck)

    def forward(
        self, student: nn.Module, teacher: nn.Module, seen: Captured, progress: float
    ) -> dict[str, Tensor]:
        """Compute the weighted losses of one batch.

        Args:
            student: the detector that ``seen`` was captured from, in training mode.
            teacher: frozen, in eval mode.
            seen: the student's training forward; the teacher looks at the same tensors.
            progress: share of the training that is done, in [0, 1].

        Returns:
            Scalars by name, ready to be added to the detection losses.
        """
        parts = self.parts(student, teacher, seen)
        factor = self.schedule(progress)
        return {name: factor * value.sum() for name, value in parts.items()}

    def parts(self, student: nn.Module, teacher: nn.Module, seen: Captured) -> dict[str, Tensor]:
        """Compute the weighted losses of one batch without the schedule's factor, level by level.

        Arguments as for :meth:`forward`.

        Returns:
            Scalars or (L,) vectors by name; the loss is their sum.
        """
        # no_grad rather than inference_mode: the student's backward must save the teacher's tensors.
        with torch.no_grad(), capture(teacher) as taught:
            cast(Any, teacher).backbone(seen.images)
        pair = Pair(student, teacher, seen, taught)
        losses: dict[str, Tensor] = {}
        for name, term in self.terms.items():
            for part, value in cast(Parts, term(pair)).items():
                losses[f"{name}_{part}" if part else name] = value
        return losses


def _check_normalisation(student: nn.Module, teacher: nn.Module) -> None:
    ours, theirs = cast(Any, student).transform, cast(Any, teacher).transform
    for name in ("image_mean", "image_std"):
        a, b = list(getattr(ours, name)), list(getattr(theirs, name))
        if a != b:
            raise ConfigError(
                f"student and teacher normalise pixels differently ({name} {a} and {b}): "
                "the teacher would see another image than it was trained on"
            )


def _report_levels(student: tuple[Level, ...], teacher: tuple[Level, ...]) -> None:
    ours, theirs = ({level.stride for level in levels} for levels in (student, teacher))
    if ours != theirs:
        log.warning(
            "pyramid levels without a partner are not distilled: student strides %s, teacher strides %s",
            sorted(ours - theirs),
            sorted(theirs - ours),
        )
