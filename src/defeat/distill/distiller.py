"""The distiller: a student's forward in, named losses out."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, cast

from torch import Tensor, nn

from defeat.detectors.capture import Captured, DetectorSpec, Level, inspect_detector
from defeat.detectors.frozen_teacher import FrozenTeacher
from defeat.distill.normalizers import global_normalizer
from defeat.distill.schedules import Schedule, constant
from defeat.distill.terms import DistillBatch, GradientSite, LossDict, Term
from defeat.distill.weight_keys import WeightKey
from defeat.errors import ConfigError
from defeat.timing import phase

log = logging.getLogger(__name__)

TermFactory = Callable[[DetectorSpec, DetectorSpec], Term]


class _Source(NamedTuple):
    """The term that computes a loss, and the loss's name within the term."""

    term: str
    loss: str


class Distiller(nn.Module):
    """Sum of terms that pull a student towards a frozen teacher (Eq. 3: L_fea + L_cls(distilled)).

    Its parameters, the terms' adapters, train along with the student and are not part of it.

    Args:
        student: a detector built like torchvision's.
        teacher: another one; it is only read.
        terms: builders of :class:`~defeat.distill.Term` by name; a loss is called after the term and its name
            within the term, such as ``neck_object``. None entries are left out, so that a config can switch
            one off.
        schedule: factor on all terms as a function of training progress.
        balance: None for the weights that the terms have. ``gradient`` asks the training to set them once at
            its start, see :mod:`defeat.training.balance`; the distiller itself only keeps the wish.
            ``balanced`` is what a run that did so has in its records: the weights are those it found.
        balanced: the configuration's keys of the weights that were found so. The distiller does not need
            them: reports do, since runs that differ only there are the same experiment.
        share: what each loss is then to have: the norm of its gradient at the maps it acts through, as a
            share of that of the student's own detection loss.
        shares: others than ``share``, by the loss's name.

    Raises:
        ConfigError: no terms, terms that break the contract of :class:`~defeat.distill.Term` or do not fit
            these detectors, detectors that normalise pixels differently (one of them would see another
            image), or a ``balance`` or share that makes no sense.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        terms: Mapping[str, TermFactory | None],
        schedule: Schedule = constant,
        balance: Literal["gradient", "balanced"] | None = None,
        balanced: Sequence[str] | None = None,
        share: float = 1.0,
        shares: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        _check_normalisation(student, teacher)
        student_spec, teacher_spec = inspect_detector(student), inspect_detector(teacher)
        self.terms = nn.ModuleDict(
            {
                name: _checked(name, factory(student_spec, teacher_spec))
                for name, factory in terms.items()
                if factory
            }
        )
        if not self.terms:
            raise ConfigError("the distiller has no terms: choose one, such as distiller=defeat")
        self.schedule = schedule
        self._sources = {
            _loss_name(name, loss): _Source(name, loss)
            for name, term in self.named_terms()
            for loss, weight in term.weights.items()
            if weight > 0
        }
        self.gradient_sites = {
            name: _gradient_site(self._term(source.term), student_spec)
            for name, source in self._sources.items()
        }
        self._latest: tuple[dict[str, Tensor], float] = {}, 1.0
        self.balance = balance
        self.shares = dict.fromkeys(self._sources, share) | dict(shares or {})
        _check_balance(balance, self.shares, list(self._sources))
        _report_levels(student_spec.neck, teacher_spec.neck)

    def named_terms(self) -> Iterator[tuple[str, Term]]:
        """Yield the terms with their names, in the order of the configuration."""
        yield from ((name, self._term(name)) for name in self.terms)

    def _term(self, name: str) -> Term:
        return cast(Term, self.terms[name])

    @property
    def weights(self) -> dict[str, float]:
        """The weight of every loss by the loss's name; a weight of 0 is no loss."""
        return {name: self._term(source.term).weights[source.loss] for name, source in self._sources.items()}

    def set_weights(self, weights: Mapping[str, float]) -> None:
        """Change the weights of losses, given by name."""
        for name, weight in weights.items():
            source = self._sources[name]
            self._term(source.term).weights[source.loss] = weight

    @property
    def with_levels(self) -> list[str]:
        """Names of the losses that compare several levels of maps."""
        return [name for name, source in self._sources.items() if len(self._term(source.term).levels) > 1]

    def key(self, name: str) -> str:
        """Return the configuration's key of a loss's weight, from ``distiller`` on."""
        source = self._sources[name]
        return str(WeightKey(source.term, self._term(source.term).weight_keys[source.loss]))

    @property
    def needs_teacher_head(self) -> bool:
        """Whether a term compares class scores, for which the teacher's classification head must be
        trained."""
        return any(term.needs_teacher_head for _, term in self.named_terms())

    def forward(
        self, student: nn.Module, teacher: FrozenTeacher, captured: Captured, progress: float
    ) -> dict[str, Tensor]:
        """Compute the weighted losses of one batch, which all processes of a training do together.

        Each process gives its own images. The mean of its losses over the processes is the loss of all their
        images, see :mod:`defeat.distill.normalizers`; a single loss is not that of the images it was given.

        Args:
            student: the detector that ``captured`` was captured from, in training mode.
            teacher: the frozen one.
            captured: the student's training forward; the teacher looks at the same tensors.
            progress: share of the training that is done, in [0, 1].

        Returns:
            Scalars by name, ready to be added to the detection losses.
        """
        batch = self.make_batch(student, teacher, captured)
        losses = self.term_losses(batch._replace(normalizer=global_normalizer))
        factor = self.schedule(progress)
        self._latest = {name: loss.detach() for name, loss in losses.items()}, factor
        return {name: factor * loss.sum() for name, loss in losses.items()}

    def latest_levels(self) -> dict[str, Tensor]:
        """Return the losses of the latest forward by level, which are scalars by name and stride.

        They are this process's part of the losses that the forward returned, such as
        ``neck_object_stride_4``. Losses that compare something behind the maps have no levels.
        """
        losses, factor = self._latest
        return {
            f"{name}_stride_{stride}": factor * value
            for name in self.with_levels
            if losses[name].ndim
            for stride, value in zip(self.gradient_sites[name].strides, losses[name], strict=True)
        }

    def level_losses(
        self, student: nn.Module, teacher: FrozenTeacher, captured: Captured
    ) -> dict[str, Tensor]:
        """Compute the weighted losses of one batch without the schedule's factor, level by level.

        They are of these images alone, and any process may compute them alone. Arguments are those of
        :meth:`forward`.

        Returns:
            Scalars or (L,) vectors by name; the loss is their sum.
        """
        return self.term_losses(self.make_batch(student, teacher, captured))

    def make_batch(self, student: nn.Module, teacher: FrozenTeacher, captured: Captured) -> DistillBatch:
        """Let the teacher look at what the student saw. Arguments are those of :meth:`forward`.

        The teacher computes only what the terms read: not its pyramid where all of them compare backbone
        stages. Of its stages those are kept that a term compares.
        """
        reads_neck = any(term.maps == "neck" for _, term in self.named_terms())
        with phase("teacher"):
            teacher_captures = teacher.features(captured.images, neck=reads_neck)
        kept = self._compared_stages()
        teacher_captures.stages = {
            name: x for name, x in teacher_captures.stages.items() if kept is None or name in kept
        }
        return DistillBatch(student, teacher, captured, teacher_captures)

    def _compared_stages(self) -> set[str] | None:
        """Return the names of the teacher's stages that terms compare; None if a term does not say which."""
        terms = [term for _, term in self.named_terms() if term.maps == "stages"]
        if not all(term.levels for term in terms):
            return None
        return {level.teacher.name for term in terms for level in term.levels}

    def term_losses(self, batch: DistillBatch, terms: Container[str] | None = None) -> dict[str, Tensor]:
        """Compute the losses of :meth:`level_losses` from a batch of :meth:`make_batch`.

        Terms that compare no maps, those of the head, are computed first: what they need for a while is gone
        before the differences of the maps are there, which the backward keeps.

        Args:
            batch: what both detectors computed.
            terms: names of the terms to compute; None means all.
        """
        chosen = [name for name in self.terms if terms is None or name in terms]
        by_term = {
            name: self._checked_losses(name, batch)
            for name in sorted(chosen, key=lambda name: bool(self._term(name).levels))
        }
        return {_loss_name(name, loss): x for name in chosen for loss, x in by_term[name].items()}

    def _checked_losses(self, name: str, batch: DistillBatch) -> LossDict:
        term = self._term(name)
        losses: LossDict = term(batch)
        wanted = {loss for loss, weight in term.weights.items() if weight > 0}
        if losses.keys() != wanted:
            raise ConfigError(
                f"distiller.terms.{name}: {type(term).__name__} computed the losses {sorted(losses)}, and "
                f"has weights of {sorted(wanted)}"
            )
        return losses


def _loss_name(term: str, loss: str) -> str:
    return f"{term}_{loss}" if loss else term


def _checked(name: str, term: nn.Module) -> Term:
    if not isinstance(term, Term):
        raise ConfigError(
            f"distiller.terms.{name}: {type(term).__name__} is not derived from defeat.distill.Term, which "
            "says what losses and weights it has"
        )
    return term


def _gradient_site(term: Term, student: DetectorSpec) -> GradientSite:
    compared = [level.student for level in term.levels]
    return GradientSite(term.maps, tuple(level.stride for level in compared or getattr(student, term.maps)))


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
    transforms = cast(Any, student).transform, cast(Any, teacher).transform
    for name in ("image_mean", "image_std"):
        student_values, teacher_values = (list(getattr(transform, name)) for transform in transforms)
        if student_values != teacher_values:
            raise ConfigError(
                f"student and teacher normalise pixels differently ({name} {student_values} and "
                f"{teacher_values}): the teacher would see another image than it was trained on"
            )


def _report_levels(student: tuple[Level, ...], teacher: tuple[Level, ...]) -> None:
    student_strides, teacher_strides = ({level.stride for level in levels} for levels in (student, teacher))
    if student_strides != teacher_strides:
        log.warning(
            "pyramid levels without a partner are not distilled: student strides %s, teacher strides %s",
            sorted(student_strides - teacher_strides),
            sorted(teacher_strides - student_strides),
        )
