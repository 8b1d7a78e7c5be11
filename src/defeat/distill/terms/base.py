"""The contract of a term: what the distiller, the balance of weights, resuming and reports ask of one."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, NamedTuple

from torch import Tensor, nn

from defeat.detectors.capture import Captured, Level
from defeat.detectors.frozen_teacher import FrozenTeacher
from defeat.distill.normalizers import Normalizer, local_normalizer
from defeat.errors import ConfigError

Maps = Literal["neck", "stages"]
"""The pyramid, or the backbone's stages."""

LossDict = dict[str, Tensor]
"""Weighted losses by name: scalars, or (L,) vectors with a value for each level that the term compares."""

OBJECT_AND_BACKGROUND: Mapping[str, str] = {"object": "object_weight", "background": "background_weight"}
"""The :attr:`Term.weight_keys` of decoupled losses."""


class DistillBatch(NamedTuple):
    """One batch as student and teacher saw it, and the two detectors."""

    student: nn.Module
    teacher: FrozenTeacher
    student_captures: Captured
    """The student's training forward."""
    teacher_captures: Captured
    """The teacher's features on ``student_captures.images``."""
    normalizer: Normalizer = local_normalizer
    """Turns counts of this batch into divisors of sums over it; while training, over all processes
    together."""


class LevelPair(NamedTuple):
    """A map of the student and the teacher's map of the same stride, which are compared."""

    student: Level
    teacher: Level


class ComparedMaps(NamedTuple):
    """The maps of one level as a term compares them, B images."""

    stride: int
    student: Tensor
    """(B, C, H, W), adapted to the teacher's channels."""
    teacher: Tensor
    """(B, C, H, W)."""
    mask: Tensor | None
    """(B, H, W) in [0, 1], 1 in the object regions; None where the term has no regions."""


class GradientSite(NamedTuple):
    """The maps of the student through which a loss acts on it."""

    maps: Maps
    strides: tuple[int, ...]
    """Strides of the levels that the loss compares; all levels where it compares something behind the
    maps."""


class Term(nn.Module):
    """Base class of the parts that a distiller is made of.

    The configuration's ``distiller.terms.<name>._target_`` names a subclass, which is built from the
    :class:`~defeat.detectors.DetectorSpec` of the student and that of the teacher, and from the keywords
    beside ``_target_``. A subclass has three things: the class attribute :attr:`weight_keys`, a constructor
    that calls this one, and a ``forward``.

    Every loss must grow in proportion to its weight: weights are set by a measurement that relies on it.

    Args:
        weights: the weight of each loss, by the names in :attr:`weight_keys`. A weight of 0 leaves a loss
            out.
        maps: the maps of the student through which all losses act on it: ``neck`` or ``stages``. A term that
            compares something behind the maps, such as class scores, acts through the ``neck``.
        levels: the pairs of maps that the term compares, finest first; none where it compares something
            behind them. Terms without levels are computed first.

    Raises:
        ConfigError: the subclass breaks this contract, a weight is negative, or all of them are 0.
    """

    weight_keys: ClassVar[Mapping[str, str]] = {}
    """The keyword of the constructor, and so the configuration's key, that is the weight of each loss. The
    loss ``x`` of the term ``neck`` is logged as ``neck_x``; the name of an only loss is ``""``, logged as
    ``neck``."""

    needs_teacher_head: ClassVar[bool] = False
    """Whether the term compares class scores, for which the teacher's classification head must be trained."""

    def __init__(
        self, weights: Mapping[str, float], *, maps: Maps = "neck", levels: Sequence[LevelPair] = ()
    ) -> None:
        super().__init__()
        _check_contract(type(self), weights)
        _check_weights({self.weight_keys[loss]: weight for loss, weight in weights.items()})
        check_maps(maps)
        self.weights = dict(weights)
        self.maps: Maps = maps
        self.levels = tuple(levels)

    def forward(self, batch: DistillBatch) -> LossDict:
        """Compute the weighted losses of one batch, those of weight 0 left out.

        What the teacher computes must not need a gradient, and sums over a count are divided by
        ``batch.normalizer(counts)``: one call a term, with all its counts stacked.
        """
        raise NotImplementedError

    def compared_maps(self, batch: DistillBatch) -> list[ComparedMaps]:
        """Return what the term compares, for pictures: finest first, nothing for a term without levels."""
        return []

    def weighted(self, losses: Mapping[str, Tensor]) -> LossDict:
        """Multiply losses, given by name, by their weights, and leave out those of weight 0."""
        return {name: weight * losses[name] for name, weight in self.weights.items() if weight > 0}


def check_maps(maps: str) -> None:
    """Refuse a name of maps that detectors do not have.

    Raises:
        ConfigError: it is neither ``neck`` nor ``stages``.
    """
    if maps not in ("neck", "stages"):
        raise ConfigError(f"maps must be neck or stages, got {maps!r}")


def _check_contract(term: type[Term], weights: Mapping[str, float]) -> None:
    name, keys = term.__name__, term.weight_keys
    if not keys:
        raise ConfigError(
            f"{name} does not say which losses it has: set weight_keys, for one loss to {{'': 'weight'}}"
        )
    if weights.keys() != keys.keys():
        raise ConfigError(
            f"{name} gives weights for the losses {list(weights)}, but its weight_keys are of {list(keys)}"
        )
    parameters = inspect.signature(term).parameters
    lacking = [key for key in keys.values() if key not in parameters]
    if lacking and not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        raise ConfigError(f"{name} has weight_keys {lacking} that its constructor does not take")
    if term.forward is Term.forward:
        raise ConfigError(f"{name} has no forward(batch), which computes its losses")


def _check_weights(weights: Mapping[str, float]) -> None:
    for key, weight in weights.items():
        if weight < 0:
            raise ConfigError(f"{key}={weight} must not be negative")
    if not any(weights.values()):
        given = " and ".join(f"{key}={weight}" for key, weight in weights.items())
        raise ConfigError(f"a term of {given} has no loss: leave the term out instead")


def check_temperatures(*temperatures: float) -> None:
    """Refuse temperatures of class scores that are not positive.

    Raises:
        ConfigError: one of them is 0 or negative.
    """
    if min(temperatures) <= 0:
        raise ConfigError("temperatures must be positive")
