"""Check that every loss has a value and a gradient, and that no level of it drowns the others."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from defeat.distill import Distiller
from defeat.io.text import few
from defeat.preflight.finding import Finding, Problem
from defeat.preflight.step import Steps
from defeat.training.gradient_tables import strong_losses
from defeat.training.loss_gradients import DETECTION, Measurement, measure
from defeat.training.run import Distillation, Run
from defeat.types import Batch


def check_losses(
    run: Run,
    distillation: Distillation | None,
    steps: Steps,
    batches: Sequence[Batch],
    *,
    level_factor: float,
    fitting: Mapping[str, Any] | None = None,
) -> Finding:
    """All losses are finite; a distiller's have a value and a gradient, and no level outweighs the others.

    Args:
        steps: real ones, of which the values are.
        batches: of the training, to measure gradients at the student's maps on.
        level_factor: how many times the median of a loss's other levels one of them may have.
        fitting: ``adapter_steps`` and ``adapter_rate``, as the training measures, to tell of losses that
            outweigh the student's own; None to leave that out.
    """
    infinite = [name for name, value in steps.losses.items() if not math.isfinite(value)]
    problems = []
    if infinite:
        problems.append(
            Problem(
                f"{few(infinite)} not finite in the first step",
                "see that teacher.weights and the student's weights are sound; set trainer.precision=32-true",
            )
        )
    detection = {name: value for name, value in steps.losses.items() if name.startswith("loss_")}
    distilled = {name: value for name, value in steps.losses.items() if name not in detection}
    shown = {DETECTION: sum(detection.values()), **distilled}
    summary = ", ".join(f"{name} {value:.3g}" for name, value in shown.items())
    if distillation is not None and not infinite:
        measured = measure(
            run.module,
            batches,
            adapter_steps=fitting["adapter_steps"] if fitting else 0,
            adapter_rate=fitting["adapter_rate"] if fitting else 1.0,
            device=run.device,
            precision=run.precision,
            sites_alone=fitting is None,
        )
        objects = sum(len(target["labels"]) for batch in batches for target in batch.targets)
        problems += _schedule(distillation.distiller)
        problems += _dead(distillation.distiller, measured, objects)
        problems += _uneven(distillation.distiller, measured, level_factor)
        if fitting and distillation.distiller.balance != "gradient":
            strong = strong_losses(measured, distillation.distiller)
            problems += [Problem(cause, remedy, severe=False) for cause, remedy in strong]
    return Finding("losses", summary, problems, steps.losses)


def _schedule(distiller: Distiller) -> Iterator[Problem]:
    factors = [distiller.schedule(step / 100) for step in range(101)]
    if not any(factors):
        yield Problem(
            "distiller.schedule is 0 from the start to the end", "choose another schedule, or no distiller"
        )


def _dead(distiller: Distiller, measured: Measurement, objects: int) -> Iterator[Problem]:
    for name in distiller.weights:
        reading = measured.start[name]
        maps, strides = distiller.gradient_sites[name]
        gradient = measured.norm(reading, maps, strides)
        if reading.value != 0 and 0 < gradient < math.inf:
            continue
        leave = f"or leave it out with {distiller.key(name)}=0"
        if not objects:
            yield Problem(
                f"{name} cannot be judged, for the first {measured.images} images have no objects",
                "raise preflight.batches",
                severe=False,
            )
        elif reading.value == 0:
            yield Problem(
                f"{name} is 0 on {measured.images} images with {objects} objects",
                f"see that its mask or its samples are not empty, {leave}",
            )
        else:
            yield Problem(
                f"{name} has a gradient of {gradient:g} at the student's {maps}: it teaches nothing",
                f"see that these are not frozen (student.model.trainable_layers), {leave}",
            )


def _uneven(distiller: Distiller, measured: Measurement, factor: float) -> Iterator[Problem]:
    for name in distiller.weights:
        maps, strides = distiller.gradient_sites[name]
        levels = measured.start[name].values.mean(0).tolist()
        if len(levels) != len(strides):
            continue
        for i, value in enumerate(levels):
            # An object term has nothing on levels that hold no objects.
            others = [other for j, other in enumerate(levels) if j != i and other > 0]
            if others and value > factor * median(others):
                yield Problem(
                    f"{name} at stride {strides[i]} of the {maps} is {value / median(others):.0f} times its "
                    f"median on the other levels ({value:.3g})",
                    "see that the weights of this level were loaded in student and teacher, or leave it out "
                    f"with {distiller.key(name).rpartition('.')[0]}.strides",
                )
