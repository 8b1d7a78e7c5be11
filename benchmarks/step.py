"""A distillation step beside its floor, the usual design and torchdistill, all in one alternating run.

    python benchmarks/step.py
    python benchmarks/step.py --rounds 2 --size 128 192 --variants student backbone adapters features

The floor is the arithmetic that the method prescribes, in bare parts: the student's own training step, the
teacher's backbone and pyramid without gradients, the adapters' convolutions; with the head term also the
teacher's box head, and on the teacher's proposals its RPN and the student's second pass.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from case import TINY, Case, Floor, Step, distilled, student_alone, usual
from lightning.pytorch import Trainer
from measure import Timed, alternate, heading, ratio, table, verdict
from torch.utils.flop_counter import FlopCounterMode
from torchdistill_step import torchdistill

from defeat.config import build
from defeat.training.module import DetectionModule
from defeat.types import Batch
from defeat.warning_filters import filter_warnings

FLOOR: dict[str, tuple[str, Callable[[Floor], object]]] = {
    "student": ("a student's step", Floor.student_step),
    "backbone": ("b teacher's backbone and pyramid", Floor.teacher_maps),
    "adapters": ("c adapters, forward and backward", Floor.adapters),
    "head": ("d teacher's box head", Floor.teacher_head),
    "rpn": ("e teacher's RPN and sampler", Floor.teacher_proposals),
    "second": ("f student's second pass", Floor.second_pass),
    "update": ("(optimiser over the adapters, not in the floor)", Floor.adapters_update),
}

WHOLE: dict[str, tuple[str, Callable[[Case], Step]]] = {
    "own": ("a student's step as it is trained here", student_alone),
    "features": ("neck + backbone, teacher as built", partial(distilled, kind="features")),
    "lean": ("+ head on the student's proposals", partial(distilled, kind="lean")),
    "full": ("+ head on the teacher's proposals", partial(distilled, kind="full")),
    "features-auto": (
        "neck + backbone, cheaper teacher",
        partial(distilled, kind="features", precision="auto"),
    ),
    "lean-auto": ("+ head on the student's proposals", partial(distilled, kind="lean", precision="auto")),
    "full-auto": ("+ head on the teacher's proposals", partial(distilled, kind="full", precision="auto")),
    "usual": ("usual design: neck + backbone", partial(usual, kind="features")),
    "plain": ("squared error of P2 to P5, teacher as built", partial(distilled, kind="plain")),
    "plain-auto": ("the same, cheaper teacher", partial(distilled, kind="plain", precision="auto")),
    "torchdistill": ("the same by torchdistill", torchdistill),
}

VARIANTS = (*FLOOR, *WHOLE)

FEATURES = ("student", "backbone", "adapters")
LEAN = (*FEATURES, "head")
FULL = (*LEAN, "rpn", "second")


class Goal(NamedTuple):
    """A ratio of sums of variants, and what is asked of it; without ``limit`` it is only shown."""

    name: str
    over: Sequence[str]
    under: Sequence[str]
    limit: float | None = None
    at_least: bool = False


GOALS = (
    Goal("features / (a + b + c)", ["features"], FEATURES, 1.05),
    Goal("lean / (a + b + c + d)", ["lean"], LEAN, 1.05),
    Goal("full / (a + b + c + d + e + f)", ["full"], FULL, 1.10),
    Goal("features, cheaper teacher / (a + b + c)", ["features-auto"], FEATURES, 0.90),
    Goal("lean, cheaper teacher / (a + b + c + d)", ["lean-auto"], LEAN, 0.90),
    Goal("full, cheaper teacher / (a + b + c + d + e + f)", ["full-auto"], FULL, 0.90),
    Goal("a student's step as it is trained here / a", ["own"], ["student"]),
    Goal("features / (that step + b + c)", ["features"], ["own", "backbone", "adapters"], 1.05),
    Goal("optimiser over the adapters / (a + b + c)", ["update"], FEATURES),
    Goal("usual design / features", ["usual"], ["features"], 1.06, at_least=True),
    Goal("usual design / features, cheaper teacher", ["usual"], ["features-auto"], 1.06, at_least=True),
    Goal("torchdistill / plain", ["torchdistill"], ["plain"]),
    Goal("torchdistill / plain, cheaper teacher", ["torchdistill"], ["plain-auto"]),
)
GPU_USUAL = 1.15
"""The goal for the usual design on a GPU."""


def main(words: Sequence[str] | None = None) -> None:
    options = _options(words)
    filter_warnings()
    half = {"32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[options.precision]
    case = Case(
        tuple(options.size),
        options.batch,
        options.boxes,
        device=options.device,
        half=half,
        overrides=options.overrides,
    )
    heading(
        f"A distillation step: {options.size[0]}x{options.size[1]} pixels, {options.batch} images of "
        f"{options.boxes} boxes, precision {options.precision}",
        device=case.device,
        packages=["lightning"],
    )
    floor = Floor(case)
    _describe(floor)
    steps = _steps(case, floor, options.variants)
    flops = {name: count_flops(step) / options.batch for name, step in steps.items()}
    for precision, report in case.precision_reports.items():
        print(f"Teacher {precision}: {report}.")
    timed = alternate(steps, options.rounds, device=case.device)
    print(f"\n{_seconds(timed, flops, options.batch)}\n\n{_ratios(timed, case.device.type)}\n")
    if options.lightning:
        added = lightning_adds(options.lightning)
        print(f"Lightning adds {added.median * 1e3:.2f} ms a step to these (spread {added.spread:.0%}).")


def _options(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", nargs=2, type=int, default=[400, 600], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--batch", type=int, default=2, help="images")
    parser.add_argument("--boxes", type=int, default=10, help="of an image")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--precision", choices=["32", "bf16", "fp16"], default="32", help="autocast of all forwards"
    )
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="VARIANT")
    parser.add_argument(
        "--lightning", type=int, default=50, help="steps for what Lightning adds; 0 leaves it out"
    )
    parser.add_argument("--overrides", nargs="+", default=[], help="of the configuration")
    return parser.parse_args(words)


def _describe(floor: Floor) -> None:
    own, taught = ([len(boxes) for boxes in each] for each in (floor.seen.proposals, floor.proposals))
    height, width = floor.pixels.tensors.shape[-2:]
    print(f"Padded to {height}x{width}. Sampled proposals by image: student's {own}, teacher's {taught}.")


def _steps(case: Case, floor: Floor, names: Sequence[str]) -> dict[str, Step]:
    """What is timed, by name; without torchdistill where it is not installed."""
    steps: dict[str, Step] = {name: partial(FLOOR[name][1], floor) for name in names if name in FLOOR}
    for name in names:
        if name in WHOLE:
            try:
                steps[name] = WHOLE[name][1](case)
            except ImportError as error:
                print(f"{name} is left out: {error}.")
    return steps


def count_flops(step: Step) -> int:
    """2 for each multiply-add of convolutions and matrix products of one step, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops())


def _seconds(timed: Mapping[str, Timed], flops: Mapping[str, float], images: int) -> str:
    rows = []
    for name, own in timed.items():
        words = FLOOR[name][0] if name in FLOOR else WHOLE[name][0]
        speed = flops[name] * images / own.median
        rows.append(
            [
                words,
                f"`{name}`",
                f"{own.median:.3g}",
                f"{own.spread:.1%}",
                f"{flops[name] / 1e9:.3g}",
                f"{speed / 1e9:.3g}",
            ]
        )
    return table(["part or step", "name", "median s", "spread", "GFLOP an image", "GFLOP/s"], rows)


def _ratios(timed: Mapping[str, Timed], device: str) -> str:
    rows = []
    for goal in GOALS:
        if not timed.keys() >= {*goal.over, *goal.under}:
            continue
        value, spread = ratio([timed[name] for name in goal.over], [timed[name] for name in goal.under])
        limit = GPU_USUAL if device == "cuda" and "usual" in goal.over else goal.limit
        judged = "" if limit is None else verdict(value, limit, at_least=goal.at_least)
        rows.append([goal.name, f"{value:.3f}", f"{spread:.1%}", judged])
    return table(["ratio", "median", "spread", "goal"], rows)


class Lent:
    """A loader that notes how long a batch was kept, round after round, and times a step in between."""

    def __init__(self, batch: Batch, step: Step, rounds: int) -> None:
        self.batch = batch
        self.step = step
        self.rounds = rounds
        self.kept: list[float] = []
        self.stepped: list[float] = []

    def __len__(self) -> int:
        return self.rounds + 1  # who gets the last batch does not come back

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(len(self)):
            started = time.perf_counter()
            self.step()
            lent = time.perf_counter()
            self.stepped.append(lent - started)
            yield self.batch
            self.kept.append(time.perf_counter() - lent)


def lightning_adds(rounds: int) -> Timed:
    """Seconds that a real fit takes for a step beyond what :func:`case.distilled` does.

    Measured with detectors so small that it shows: it does not depend on their size.
    """
    case = Case((64, 64), 2, 3, overrides=TINY)
    loader = Lent(case.batch, distilled(case, "full"), rounds)
    module = DetectionModule(
        case.student,
        [],
        optimizer=build(case.config.optim.optimizer),
        teacher=case.teacher_in("as_built"),
        distiller=case.distiller("full"),
    )
    trainer: Trainer = build(
        case.config.trainer,
        accelerator="cpu",
        logger=False,
        callbacks=[build(case.config.callbacks.nonfinite)],
        enable_progress_bar=False,
        enable_checkpointing=False,
        max_epochs=1,
        check_val_every_n_epoch=None,
    )
    warnings.filterwarnings("ignore", message=".*but have no `val_dataloader`.*")
    trainer.fit(module, train_dataloaders=loader)
    warm = min(3, rounds - 1)
    return Timed([kept - stepped for kept, stepped in zip(loader.kept, loader.stepped, strict=False)][warm:])


if __name__ == "__main__":
    main()
