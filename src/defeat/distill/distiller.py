"""The distiller: a student's forward in, named losses out."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Container, Mapping
from typing import Any, Literal, NamedTuple, cast

from torch import Tensor, nn

from defeat.detectors.capture import Captured, DetectorSpec, Level, capture, inspect_detector
from defeat.detectors.teacher_precision import frozen
from defeat.distill.normalizers import global_normalizer
from defeat.distill.schedules import Schedule, constant
from defeat.distill.terms import AdaptedMaps, DistillBatch, LossDict, Maps
from defeat.errors import ConfigError

log = logging.getLogger(__name__)

TermFactory = Callable[[DetectorSpec, DetectorSpec], nn.Module]


class GradientSite(NamedTuple):
    """Through which of the student's maps a loss acts."""

    maps: Maps
    strides: tuple[int, ...]
    """Of the levels that it compares; all levels where it compares something behind the maps."""


class _Source(NamedTuple):
    """Where a loss comes from."""

    term: str
    weight: str
    """Attribute of the term."""


class Distiller(nn.Module):
    """Sum of terms that pull a student towards a frozen teacher (Eq. 3: L_fea + L_cls(distilled)).

    Its parameters, the terms' adapters, train along with the student and are not part of it.

    Args:
        student: a detector built like torchvision's.
        teacher: another one; it is only read.
        terms: builders by name, see :mod:`defeat.distill.terms`; the losses are called after term and part,
            such as ``neck_object``. None entries are left out, so that a config can switch one off.
        schedule: factor on all terms as a function of training progress.
        balance: None for the weights that the terms have. ``gradient`` asks the training to set them once at
            its start, see :mod:`defeat.training.balance`; the distiller itself only keeps the wish.
            ``balanced`` is what a run that did so has in its records: the weights are those it found.
        share: what each loss is then to have: the norm of its gradient at the maps it acts through, as a
            share of that of the student's own detection loss.
        shares: others than ``share``, by the loss's name.

    Raises:
        ConfigError: no terms, terms that do not fit these detectors, detectors that normalise pixels
            differently (one of them would see another image), or a ``balance`` or share that makes no sense.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        terms: Mapping[str, TermFactory | None],
        schedule: Schedule = constant,
        balance: Literal["gradient", "balanced"] | None = None,
        share: float = 1.0,
        shares: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        _check_normalisation(student, teacher)
        ours, theirs = inspect_detector(student), inspect_detector(teacher)
        self.terms = nn.ModuleDict({name: term(ours, theirs) for name, term in terms.items() if term})
        if not self.terms:
            raise ConfigError("the distiller has no terms: choose one, such as distiller=defeat")
        self.schedule = schedule
        self._sources = {
            _loss_name(name, weight.removesuffix("weight").removesuffix("_")): _Source(name, weight)
            for name, term in self.terms.items()
            for weight in _weights(term)
        }
        self.gradient_sites = {
            name: _gradient_site(self.terms[source.term], ours) for name, source in self._sources.items()
        }
        self.balance = balance
        self.shares = dict.fromkeys(self._sources, share) | dict(shares or {})
        _check_balance(balance, self.shares, list(self._sources))
        _report_levels(ours.neck, theirs.neck)

    @property
    def weights(self) -> dict[str, float]:
        """The weight of every loss by the loss's name; a weight of 0 is no loss."""
        return {
            name: getattr(self.terms[source.term], source.weight) for name, source in self._sources.items()
        }

    def set_weights(self, weights: Mapping[str, float]) -> None:
        """Change the weights of losses, given by name."""
        for name, value in weights.items():
            source = self._sources[name]
            setattr(self.terms[source.term], source.weight, value)

    def key(self, name: str) -> str:
        """The configuration's key of a loss's weight, from ``distiller`` on."""
        source = self._sources[name]
        return f"distiller.terms.{source.term}.{source.weight}"

    def forward(
        self, student: nn.Module, teacher: nn.Module, captured: Captured, progress: float
    ) -> dict[str, Tensor]:
        """Compute the weighted losses of one batch, which all processes of a training do together.

        Each process gives its own images. The mean of its losses over the processes is the loss of all their
        images, see :mod:`defeat.distill.normalizers`; a single loss is not that of the images it was given.

        Args:
            student: the detector that ``captured`` was captured from, in training mode.
            teacher: frozen, in eval mode.
            captured: the student's training forward; the teacher looks at the same tensors.
            progress: share of the training that is done, in [0, 1].

        Returns:
            Scalars by name, ready to be added to the detection losses.
        """
        batch = self.make_batch(student, teacher, captured)
        parts = self.term_losses(batch._replace(normalizer=global_normalizer))
        factor = self.schedule(progress)
        return {name: factor * value.sum() for name, value in parts.items()}

    def level_losses(self, student: nn.Module, teacher: nn.Module, captured: Captured) -> dict[str, Tensor]:
        """Compute the weighted losses of one batch without the schedule's factor, level by level.

        Of these images alone, and any process may do so alone. Arguments as for :meth:`forward`.

        Returns:
            Scalars or (L,) vectors by name; the loss is their sum.
        """
        return self.term_losses(self.make_batch(student, teacher, captured))

    def make_batch(self, student: nn.Module, teacher: nn.Module, captured: Captured) -> DistillBatch:
        """Let the teacher look at what the student saw. Arguments as for :meth:`forward`.

        Only as far as the terms read it: without its pyramid where all of them compare backbone stages, and
        of the stages those are kept that a term compares.
        """
        backbone = cast(Any, teacher).backbone
        with frozen(teacher), capture(teacher) as teacher_captures:
            (backbone if self._reads_neck() else backbone.body)(captured.images)
        kept = self._stages()
        teacher_captures.stages = {
            name: x for name, x in teacher_captures.stages.items() if kept is None or name in kept
        }
        return DistillBatch(student, teacher, captured, teacher_captures)

    def _reads_neck(self) -> bool:
        return any(getattr(term, "maps", "neck") != "stages" for term in self.terms.values())

    def _stages(self) -> set[str] | None:
        """Names of the teacher's stages that the terms compare; None where one does not say which."""
        names: set[str] = set()
        for term in self.terms.values():
            compared = [m for m in term.modules() if isinstance(m, AdaptedMaps) and m.maps == "stages"]
            if getattr(term, "maps", "neck") == "stages" and not compared:
                return None
            names.update(theirs.name for maps in compared for _, theirs in maps.levels)
        return names

    def term_losses(self, batch: DistillBatch, terms: Container[str] | None = None) -> dict[str, Tensor]:
        """Compute the losses of :meth:`level_losses` from a batch of :meth:`make_batch`.

        Terms of the head come first: what they need for a while is gone before the differences of the maps
        are there, which the backward keeps.
        """
        wanted = [name for name in self.terms if terms is None or name in terms]
        found = {
            name: cast(LossDict, self.terms[name](batch)) for name in sorted(wanted, key=self._compares_maps)
        }
        return {_loss_name(name, part): value for name in wanted for part, value in found[name].items()}

    def _compares_maps(self, name: str) -> bool:
        return any(isinstance(module, AdaptedMaps) for module in self.terms[name].modules())


def _loss_name(term: str, part: str) -> str:
    return f"{term}_{part}" if part else term


def _weights(term: nn.Module) -> list[str]:
    """Names of the attributes that are weights of losses, see :mod:`defeat.distill.terms`."""
    named = (name for name in vars(term) if name == "weight" or name.endswith("_weight"))
    return [name for name in named if getattr(term, name) > 0]


def _gradient_site(term: nn.Module, student: DetectorSpec) -> GradientSite:
    maps: Maps = getattr(term, "maps", "neck")
    levels = [s for m in term.modules() if isinstance(m, AdaptedMaps) and m.maps == maps for s, _ in m.levels]
    return GradientSite(maps, tuple(level.stride for level in levels or getattr(student, maps)))


def _check_balance(balance: str | None, shares: Mapping[str, float], names: list[str]) -> None:
    if balance not in (None, "gradient", "balanced"):
        raise ConfigError(f"distiller.balance must be null or gradient, got {balance!r}")
    for name, share in shares.items():
        if name not in names:
            raise ConfigError(f"distiller.shares: there is no loss {name!r}, only {', '.join(names)}")
        if not 0 < share < math.inf:
            raise ConfigError(
                f"distiller: the share of {name} must be positive, got {share}; "
                "a loss is left out by a weight of 0"
            )


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
