"""Check, after real steps, that the teacher is frozen and all that learns gets gradients and is optimised."""

from __future__ import annotations

from defeat.io.text import few
from defeat.preflight.finding import Finding, Problem
from defeat.preflight.step import Steps


def check_frozen(steps: Steps) -> Finding:
    """The teacher is in eval mode, requires no gradient, and is bit for bit the same after the steps."""
    teacher = steps.teacher
    faults = (
        (teacher.in_training_mode, "modules of the teacher train with the student", "keep it in eval mode"),
        (
            teacher.learning,
            "parameters of the teacher require a gradient",
            "call requires_grad_(False) on it",
        ),
        (
            teacher.changed,
            "tensors of the teacher changed within a few steps",
            "keep it in eval mode, frozen",
        ),
    )
    problems = [
        Problem(f"{len(names)} {what}: {few(names)}", remedy) for names, what, remedy in faults if names
    ]
    return Finding("frozen", f"eval mode, unchanged by {len(steps.seconds)} steps", problems)


def check_gradients(steps: Steps, *, half: bool) -> Finding:
    """Every parameter that learns gets a finite gradient; DDP stops at one that gets none.

    Args:
        half: float16 is computed with, where a gradient that is too large is skipped and scaled down later.
    """
    gradients = steps.gradients
    problems = []
    if gradients.missing:
        problems.append(
            Problem(
                f"{len(gradients.missing)} parameters get no gradient: {few(gradients.missing)}",
                "freeze what no loss reaches, or leave the part out that it belongs to; DDP would stop at it",
            )
        )
    if gradients.infinite:
        problems.append(
            Problem(
                f"{len(gradients.infinite)} parameters get a gradient that is not finite: "
                f"{few(gradients.infinite)}",
                "see the losses; lower the weights of those that are large, or set trainer.precision=32-true",
                severe=not half,
            )
        )
    if gradients.zero:
        problems.append(
            Problem(
                f"{len(gradients.zero)} parameters get a gradient of 0: {few(gradients.zero)}",
                "see that the first images have objects; a dead layer never learns",
                severe=False,
            )
        )
    return Finding(
        "gradients", f"{len(gradients.learning)} parameters, {len(steps.seconds)} real steps", problems
    )


def check_optimizer(steps: Steps) -> Finding:
    """Every parameter that learns, adapters too, is in the optimiser."""
    outside, every = steps.gradients.outside, steps.gradients.learning
    adapters = sum(name.startswith("distiller.") for name in every)
    problem = Problem(
        f"{len(outside)} of {len(every)} parameters are not in the optimiser: {few(outside)}",
        "have optim.optimizer take all the parameters that it is given",
    )
    summary = f"{len(every)} parameters, {adapters} of them the distiller's"
    return Finding("optimizer", summary, [problem] if outside else [])
