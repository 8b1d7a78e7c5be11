"""What masks and losses cost beside the whole distillation step, timed in the same alternating run.

    python benchmarks/losses.py
    python benchmarks/losses.py --size 128 192 --boxes 5 --rounds 2

Adapted maps, teacher maps and class scores are given, and no layer is computed: what is left is the
arithmetic of masks and losses, forward and backward.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast, get_args

import torch
from case import Case, Floor, Step, distilled, random_batch
from lightning.fabric.utilities import move_data_to_device
from measure import Timed, alternate, heading, ratio, table, verdict
from torch import Tensor, nn

from defeat.detectors.heads import label_proposals
from defeat.detectors.teacher_precision import Precision
from defeat.distill import AdaptedMaps, DistillBatch, FeatureTerm, Grids, HeadTerm, decoupled_kl
from defeat.warning_filters import filter_warnings

GOAL = 0.03
"""Share of the step that masks and losses may take."""

STEP = "step"


def main(words: Sequence[str] | None = None) -> None:
    options = _options(words)
    filter_warnings()
    case = Case(
        tuple(options.size), options.batch, options.boxes, device=options.device, overrides=options.overrides
    )
    heading(
        f"Masks and losses: {options.size[0]}x{options.size[1]} pixels, {options.batch} images of "
        f"{options.boxes} boxes, teacher {options.teacher}",
        device=case.device,
    )
    arithmetic = Arithmetic(case, options.teacher)
    steps = {**arithmetic.parts(), STEP: distilled(case, "full", options.teacher)}
    print(_report(alternate(steps, options.rounds, device=case.device)))


def _options(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", nargs=2, type=int, default=[800, 1333], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--batch", type=int, default=2, help="images")
    parser.add_argument("--boxes", type=int, default=100, help="of an image")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--teacher", choices=get_args(Precision), default="auto", help="its arithmetic")
    parser.add_argument("--overrides", nargs="+", default=[], help="of the configuration")
    return parser.parse_args(words)


def _report(timed: Mapping[str, Timed]) -> str:
    step = timed[STEP]
    parts = [own for name, own in timed.items() if name != STEP]
    rows = []
    for name, own in timed.items():
        share, _ = ratio([own], [step])
        rows.append([name, f"{own.median * 1e3:.4g}", f"{own.spread:.1%}", f"{share:.2%}", ""])
    share, spread = ratio(parts, [step])
    milliseconds = sum(own.median for own in parts) * 1e3
    rows.append(
        ["all but the step", f"{milliseconds:.4g}", f"{spread:.1%}", f"{share:.2%}", verdict(share, GOAL)]
    )
    return table(["part", "median ms", "spread", "share of the step", "goal"], rows)


class Given(nn.Module):
    """Maps that are there already, in the place of the adapters that make them."""

    def __init__(self, adapters: AdaptedMaps, pair: DistillBatch) -> None:
        super().__init__()
        self.levels, self.student_maps = adapters.levels, adapters.student_maps
        with torch.no_grad():
            made = list(adapters(pair))
        self.maps = [(ours.detach().requires_grad_(), theirs) for ours, theirs in made]

    def forward(self, pair: DistillBatch) -> Iterator[tuple[Tensor, Tensor]]:
        """Adapted student map and teacher map of each level, finest first."""
        return iter(self.maps)


class Arithmetic:
    """The masks and losses of ``distiller=defeat`` on one batch, with what they compare computed before."""

    def __init__(self, case: Case, precision: Precision = "as_built") -> None:
        self.case = case
        self.seen = Floor(case).seen
        distiller, teacher = case.distiller("full"), case.teacher_in(precision)
        with case.autocast():
            self.pair = distiller.make_batch(case.student, teacher, self.seen)
            terms = dict(distiller.terms.items())
            self.neck, self.stages = (self._given(terms[name]) for name in ("neck", "backbone"))
            self.head = cast(HeadTerm, terms["head"])
            self.is_object = label_proposals(case.student, self.seen.proposals, self.seen.targets).labels > 0
            assert self.seen.class_logits is not None
            self.logits = self.seen.class_logits.detach().requires_grad_()
            self.taught = teacher.box_head_logits(
                self.pair.teacher_captures.neck, self.seen.proposals, self.seen.image_sizes
            )

    def with_boxes(self, boxes: int) -> Arithmetic:
        """The same maps and class scores, and images of so many boxes for the masks."""
        own = copy.copy(self)
        batch = random_batch(self.case.size, len(self.seen.targets), boxes)
        targets = move_data_to_device(batch.targets, self.case.device)
        own.pair = self.pair._replace(student_captures=replace(self.seen, targets=targets))
        return own

    def parts(self) -> dict[str, Step]:
        """Each a step of its own; together they are all that the distiller computes beside layers."""
        return {
            "mask, neck": partial(self._mask, self.neck),
            "mask, stages": partial(self._mask, self.stages),
            "feature losses, neck": self._without_mask(self.neck),
            "feature losses, stages": self._without_mask(self.stages),
            "KL, head": self._compare_scores,
        }

    def whole(self) -> None:
        """All of them in one."""
        losses = [*self.neck(self.pair).values(), *self.stages(self.pair).values()]
        _backward(losses, [*_leaves(self.neck), *_leaves(self.stages)])
        self._compare_scores()

    def _given(self, term: nn.Module) -> FeatureTerm:
        assert isinstance(term, FeatureTerm)
        own = copy.copy(term)
        own._modules = {"adapters": Given(term.adapters, self.pair)}
        return own

    def _mask(self, term: FeatureTerm) -> list[Tensor]:
        return term.mask(term.grids(self.pair))

    def _without_mask(self, term: FeatureTerm) -> Step:
        """The term with its masks drawn beforehand."""
        own, masks = copy.copy(term), self._mask(term)

        def drawn(grids: Grids) -> list[Tensor]:
            return masks

        own.mask = drawn
        return lambda: _backward(list(own(self.pair).values()), _leaves(own))

    def _compare_scores(self) -> None:
        loss = decoupled_kl(
            self.logits,
            self.taught,
            self.is_object,
            object_temperature=self.head.object_temperature,
            background_temperature=self.head.background_temperature,
            normalizer=self.pair.normalizer,
        )
        _backward(list(loss), [self.logits])


def _leaves(term: FeatureTerm) -> list[Tensor]:
    return [ours for ours, _ in cast(Any, term.adapters).maps]


def _backward(losses: Sequence[Tensor], inputs: Sequence[Tensor]) -> None:
    torch.autograd.grad(torch.stack([loss.sum() for loss in losses]).sum(), inputs)


if __name__ == "__main__":
    main()
