"""All checks of a run that is about to begin, in order, within a bounded time."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.utilities.seed import isolate_rng
from rich.console import Console

from defeat.errors import ConfigError
from defeat.preflight.agreement import (
    check_levels,
    check_normalisation,
    check_padding,
    check_resize,
    check_weights,
)
from defeat.preflight.cost import check_cost
from defeat.preflight.data import Drawn, check_data, draw
from defeat.preflight.finding import CHECKS, Finding, PreflightError, Problem
from defeat.preflight.losses import check_losses
from defeat.preflight.parameters import check_frozen, check_gradients, check_optimizer
from defeat.preflight.report import show, write
from defeat.preflight.samples import until
from defeat.preflight.step import Steps, take_steps
from defeat.preflight.teacher import Expected, check_teacher
from defeat.training.run import Run

DATA, STEPS, TEACHER = 0.15, 0.35, 0.35
"""Shares of the time; the rest is left for the losses' gradients."""


class Preflight:
    """Look for what would spoil a run days later, print and file it, and refuse the run where it is severe.

    Nothing of the training is touched but the device of the teacher: steps are taken on copies, and random
    numbers are drawn apart.

    Args:
        folder: where ``preflight.json`` and ``preflight.md`` go.
        only: check and train nothing; runs without a teacher too.
        seconds: after which no further images and steps are taken. One batch of each kind is, whatever it
            takes.
        images: of each split that are decoded, and of the validation split that the teacher is evaluated on.
        batches: of the training that the losses are measured on.
        steps: real training steps, the first of which warms up.
        least_ap50: a teacher below it on that sample is refused.
        expected_ap: AP in [0, 1] that the teacher is known to have; null where it is not.
        tolerance: how far below that the sample may be.
        level_factor: how many times the median of a loss's other levels one level may have.
        tolerate: checks that only warn, by name, see :data:`~defeat.preflight.finding.CHECKS`.

    Raises:
        ConfigError: a number makes no sense, or there is no such check.
    """

    def __init__(
        self,
        folder: str,
        *,
        only: bool,
        seconds: float,
        images: int,
        batches: int,
        steps: int,
        least_ap50: float,
        expected_ap: float | None,
        tolerance: float,
        level_factor: float,
        tolerate: Sequence[str],
    ) -> None:
        if isinstance(tolerate, str):
            raise ConfigError(
                f"preflight.tolerate={tolerate} is no list: write preflight.tolerate=[{tolerate}]"
            )
        unknown = [name for name in tolerate if name not in CHECKS]
        if unknown:
            raise ConfigError(
                f"preflight.tolerate: there is no check {unknown[0]!r}, only {', '.join(CHECKS)}"
            )
        _check_numbers(
            seconds=seconds, images=images, batches=batches, steps=steps, level_factor=level_factor
        )
        _check_shares(least_ap50=least_ap50, expected_ap=expected_ap, tolerance=tolerance)
        self.folder = Path(folder)
        self.only = only
        self.seconds = seconds
        self.images = images
        self.batches = batches
        self.steps = steps
        self.expected = Expected(least_ap50, expected_ap, tolerance)
        self.level_factor = level_factor
        self.tolerate = tuple(tolerate)

    def __call__(self, run: Run) -> list[Finding]:
        """Run all checks that apply; those on the teacher need one.

        Raises:
            PreflightError: a check failed that is not tolerated.
            DataError: an image cannot be decoded.
        """
        started = time.perf_counter()
        with isolate_rng():
            findings = sorted(self._checks(run), key=lambda finding: CHECKS.index(finding.check))
        if run.device.type == "cuda":
            torch.cuda.empty_cache()  # the training begins with all of the memory
        findings = [finding._replace(tolerated=finding.check in self.tolerate) for finding in findings]
        seconds = time.perf_counter() - started
        show(findings, seconds, Console())
        write(findings, seconds, self.folder)
        _refuse(findings)
        return findings

    def _checks(self, run: Run) -> Iterator[Finding]:
        distillation = run.distillation
        yield check_weights(run.student, run.teacher)
        if distillation:
            yield check_normalisation(run, distillation)
            yield check_resize(run, distillation)
            yield check_padding(run, distillation)
            yield check_levels(run, distillation)
        yield check_data(run, images=self.images, seconds=DATA * self.seconds)
        drawn = draw(run, self.batches)
        try:
            steps = take_steps(run, drawn.batches, self.steps, until(STEPS * self.seconds))
            findings = list(self._checks_of_steps(run, drawn, steps))
        except torch.OutOfMemoryError:
            findings = [_too_large(drawn)]
        yield from findings
        if distillation:
            share = TEACHER * self.seconds
            yield from check_teacher(run, distillation, self.expected, images=self.images, seconds=share)

    def _checks_of_steps(self, run: Run, drawn: Drawn, steps: Steps) -> Iterator[Finding]:
        plugin = run.trainer.precision_plugin
        if run.distillation:
            yield check_frozen(steps)
        yield check_gradients(
            steps, half=isinstance(plugin, MixedPrecision) and plugin.precision == "16-mixed"
        )
        yield check_optimizer(steps)
        # A training that follows measures them itself.
        fitting = (run.config.get("callbacks") or {}).get("measure") if self.only else None
        yield check_losses(
            run,
            run.distillation,
            steps,
            drawn.batches,
            level_factor=self.level_factor,
            fitting=fitting,
        )
        yield check_cost(run, steps, drawn.image_seconds, len(drawn.batches[0].images))


def _too_large(drawn: Drawn) -> Finding:
    images = len(drawn.batches[0].images)
    problem = Problem(
        f"a training step on {images} images does not fit into the device's memory",
        "lower data.batch_size, and raise trainer.accumulate_grad_batches to keep the images of a step",
    )
    return Finding("cost", "out of memory", [problem])


def _refuse(findings: Sequence[Finding]) -> None:
    failed = [finding for finding in findings if finding.result == "failed"]
    if failed:
        told = [
            f"{finding.check}: {problem.cause}: {problem.remedy}"
            for finding in failed
            for problem in finding.problems
            if problem.severe
        ]
        names = ",".join(finding.check for finding in failed)
        raise PreflightError(
            f"pre-flight: {'; '.join(told)} (to train all the same: preflight.tolerate=[{names}])"
        )


def _check_numbers(**numbers: float) -> None:
    for name, number in numbers.items():
        if not number >= 1:
            raise ConfigError(f"preflight.{name} must be at least 1, got {number}")


def _check_shares(**shares: float | None) -> None:
    for name, share in shares.items():
        if share is not None and not 0 <= share <= 1:
            raise ConfigError(f"preflight.{name} must be in [0, 1], as all figures here are, got {share}")
