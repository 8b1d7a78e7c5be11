"""A teacher's arithmetic is made cheaper once, at the start of a run, since nobody trains it.

Its normalisation is folded into the convolutions before it, its weights are laid out channels last, and as
much as keeps its outputs exact is computed in half precision, which is measured on images.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor, nn

from defeat.detectors.capture import head_of
from defeat.detectors.fold import fold_normalisation
from defeat.detectors.frozen_teacher import Arithmetic, FrozenTeacher

Precision = Literal["auto", "bfloat16", "float16", "float32", "as_built"]

PRECISIONS: tuple[Precision, ...] = get_args(Precision)

TOLERANCE = 1e-2
"""The largest relative error of its outputs that ``auto`` accepts of a teacher."""


class PrecisionReport(NamedTuple):
    """The arithmetic that a teacher was given."""

    half: torch.dtype | None
    """See :class:`~defeat.detectors.frozen_teacher.Arithmetic`."""
    float32: tuple[str, ...]
    """The first parts of the backbone, which stay in float32; empty where ``half`` is None."""
    folded: int
    """How many normalisation layers were folded away."""
    errors: dict[str, float]
    """Relative error by output, see :func:`relative_errors`."""

    @property
    def worst(self) -> tuple[str, float]:
        """The output with the largest error, and that error."""
        return max(self.errors.items(), key=lambda item: math.inf if math.isnan(item[1]) else item[1])

    def __str__(self) -> str:
        """One line for the log."""
        name, error = self.worst
        kept = f" after {self.float32[-1]}, float32 up to there" if self.float32 else ""
        kind = f"{str(self.half).removeprefix('torch.')}{kept}" if self.half else "float32"
        return (
            f"{kind}, channels last, {self.folded} normalisations folded; "
            f"largest relative error {error:.2g} ({name})"
        )


class Float32(nn.Module):
    """A part of a detector that computes in float32, whatever is around it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        """Run the part on the same numbers in float32."""
        with torch.autocast(x.device.type, enabled=False):
            return cast(Tensor, self.module(x.float()))


def optimize_for_inference(
    teacher: FrozenTeacher, images: Tensor, precision: Precision = "auto"
) -> PrecisionReport | None:
    """Make a teacher cheaper, in place; its outputs stay the same up to rounding.

    With ``auto`` the backbone's first parts stay in float32, as few as keep the error of every output on
    ``images`` below :data:`TOLERANCE`; rounding at the start weighs most, since all that follows passes it
    on. Where no half precision is fast on the device, or none is exact enough, it is float32 throughout.

    Args:
        teacher: on the device that it is to run on, with its final weights.
        images: (B, 3, H, W) as the backbone gets them: normalised, of the size that is to come.
        precision: ``bfloat16`` or ``float16`` for all of it, whatever the error; ``float32``; ``as_built``
            leaves the teacher as it is.

    Returns:
        A report of what was done; None for ``as_built``.
    """
    if precision == "as_built":
        return None
    reference = outputs(teacher, images)
    folded = fold_normalisation(teacher.detector.get_submodule("backbone"))
    teacher.to(memory_format=torch.channels_last)
    plan = _Plan(teacher, images, reference)
    wanted = _fast_halves(images.device) if precision == "auto" else _HALVES[precision]
    for half in wanted:
        kept = plan.fewest_float32(half) if precision == "auto" else 0
        if kept is not None:
            done = PrecisionReport(half, plan.parts[:kept], folded, plan.set(half, kept))
            for module in _in_half(teacher.detector):
                module.to(half)  # as autocast would in every forward
            return done
    return PrecisionReport(None, (), folded, plan.set(None, 0))


def _in_half(module: nn.Module) -> Iterator[nn.Module]:
    """The layers whose weights autocast converts, but for those that :class:`Float32` holds."""
    for child in module.children():
        if isinstance(child, nn.Conv2d | nn.Linear):
            yield child
        elif not isinstance(child, Float32):
            yield from _in_half(child)


def _parts(body: nn.Module | None) -> Iterator[tuple[str, tuple[nn.Module, str]]]:
    """The parts of a backbone's body in the order of their computation: where each is, by name.

    torchvision's bodies compute their children one after the other; a child that does so too, such as a stage
    of a ResNet, is taken apart into its blocks.
    """
    if not isinstance(body, nn.ModuleDict):
        return
    for name, child in body.items():
        if type(child) is nn.Sequential:
            yield from ((f"{name}.{own}", (child, own)) for own in child._modules)
        else:
            yield name, (body, name)


class _Plan:
    """Tries which of the backbone's parts bear half precision."""

    def __init__(self, teacher: FrozenTeacher, images: Tensor, reference: dict[str, Tensor]) -> None:
        self.teacher = teacher
        self.images = images
        self.reference = reference
        self.places = dict(_parts(getattr(teacher.detector.get_submodule("backbone"), "body", None)))
        self.parts = tuple(self.places)

    def set(self, half: torch.dtype | None, kept: int) -> dict[str, float]:
        """Let the teacher compute in ``half`` after the first ``kept`` parts, and return the errors."""
        for i, (parent, name) in enumerate(self.places.values()):
            present = getattr(parent, name)
            bare = present.module if isinstance(present, Float32) else present
            setattr(parent, name, Float32(bare) if half is not None and i < kept else bare)
        self.teacher.eval()  # new modules are in training mode
        self.teacher.arithmetic = Arithmetic(half)
        return relative_errors(outputs(self.teacher, self.images), self.reference)

    def fewest_float32(self, half: torch.dtype) -> int | None:
        """Find the fewest first parts in float32 with small enough errors; None if even all are too few.

        Bisection finds them, since more of them never make it worse by more than rounding.
        """
        if self._passes(half, 0):
            return 0
        if not self.parts or not self._passes(half, len(self.parts)):
            return None
        fails, passes = 0, len(self.parts)
        while passes - fails > 1:
            middle = (fails + passes) // 2
            if self._passes(half, middle):
                passes = middle
            else:
                fails = middle
        return passes

    def _passes(self, half: torch.dtype, kept: int) -> bool:
        return is_exact(self.set(half, kept))


_HALVES: dict[str, tuple[torch.dtype, ...]] = {
    "bfloat16": (torch.bfloat16,),
    "float16": (torch.float16,),
    "float32": (),
}


def _fast_halves(device: torch.device) -> tuple[torch.dtype, ...]:
    """Half precisions that the device computes faster than float32; the more exact one first."""
    if device.type == "cuda":
        # Older ones of NVIDIA's have bfloat16 too, in emulation.
        native = torch.version.hip is not None or torch.cuda.get_device_properties(device).major >= 8
        return (torch.float16, torch.bfloat16) if native else (torch.float16,)
    if device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return (torch.bfloat16,)
    return ()


def outputs(teacher: FrozenTeacher, images: Tensor) -> dict[str, Tensor]:
    """Everything that a distillation may read of a teacher on some images, by name, in float32.

    These are the backbone's stages, the pyramid, and the class scores of the head: a two-stage detector's RPN
    scores all its anchors, and its box head the whole image and its quarters.
    """
    captured = teacher.features(images)
    found = {f"stage {name}": x for name, x in captured.stages.items()}
    found |= {f"neck {name}": x for name, x in captured.neck.items()}
    if head_of(teacher.detector) == "proposals":
        with teacher.inference():
            objectness, _ = cast(Any, teacher.detector).rpn.head(list(captured.neck.values()))
        found["objectness"] = torch.cat([x.flatten() for x in objectness])
        height, width = images.shape[-2:]
        boxes = [_whole_and_quarters(height, width).to(images)] * len(images)
        found["class scores"] = teacher.box_head_logits(captured.neck, boxes, [(height, width)] * len(images))
    else:
        found["class scores"] = teacher.anchor_logits(captured.neck)
    return {name: x.float() for name, x in found.items()}


def _whole_and_quarters(height: int, width: int) -> Tensor:
    shares = [(0, 0, 1, 1), (0, 0, 0.5, 0.5), (0.5, 0, 1, 0.5), (0, 0.5, 0.5, 1), (0.5, 0.5, 1, 1)]
    return torch.tensor(shares) * torch.tensor([width, height, width, height])


def is_exact(errors: dict[str, float]) -> bool:
    """Tell whether all errors are small enough; one that is not a number is not."""
    return all(error < TOLERANCE for error in errors.values())


def relative_errors(values: dict[str, Tensor], reference: dict[str, Tensor]) -> dict[str, float]:
    """Divide the norm of the difference by the norm of the reference, output by output."""
    return {
        name: float((values[name] - x).norm() / x.norm().clamp(min=torch.finfo(x.dtype).tiny))
        for name, x in reference.items()
    }
