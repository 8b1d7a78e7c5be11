"""A frozen detector's arithmetic: written anew once, since nobody trains it, and used in one place.

A teacher is only read, so that what training needs can go: its normalisation is folded into the convolutions
before it, its weights lie channels last, and what bears it is computed in half precision. How much it bears
is measured on images, at the start of a run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor, nn

from defeat.detectors.adapted import adapt
from defeat.detectors.capture import capture
from defeat.detectors.fold import fold_normalisation
from defeat.detectors.heads import anchor_logits, box_head_logits
from defeat.timing import phase

Precision = Literal["auto", "bfloat16", "float16", "float32", "as_built"]

PRECISIONS: tuple[Precision, ...] = get_args(Precision)

TOLERANCE = 1e-2
"""Relative error of its features, at most, that ``auto`` accepts of a rewritten detector."""


class Arithmetic(NamedTuple):
    """What a rewritten detector computes in."""

    half: torch.dtype | None
    """Of everything but the first parts of the backbone, which :class:`Float32` holds; None for float32."""


class Rewritten(NamedTuple):
    """What became of a detector's arithmetic."""

    half: torch.dtype | None
    """See :class:`Arithmetic`."""
    float32: tuple[str, ...]
    """The first parts of the backbone, which stay in float32; empty where ``half`` is None."""
    folded: int
    """Normalisation layers that are gone."""
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


@contextmanager
def frozen(detector: nn.Module) -> Iterator[None]:
    """Compute with a frozen detector: without gradients, in its own arithmetic, on its own account of time.

    A detector that was not rewritten computes as whatever is around it does. One that was may have weights in
    half precision, and can be used in no other way.
    """
    arithmetic: Arithmetic | None = getattr(detector, "arithmetic", None)
    with ExitStack() as stack:
        stack.enter_context(phase("teacher"))
        # no_grad rather than inference_mode: a student's backward must save the teacher's tensors.
        stack.enter_context(torch.no_grad())
        if arithmetic is not None:
            device = next(detector.parameters()).device.type
            stack.enter_context(
                torch.autocast(
                    device, arithmetic.half, enabled=arithmetic.half is not None, cache_enabled=False
                )
            )
        yield


def rewrite(detector: nn.Module, images: Tensor, precision: Precision = "auto") -> Rewritten | None:
    """Make a frozen detector cheaper, in place; its outputs stay the same up to rounding.

    With ``auto`` the backbone's first parts stay in float32, as few as keep the error of every output on
    ``images`` below :data:`TOLERANCE`; rounding at the start weighs most, since all that follows passes it
    on. Where no half precision is fast on the device, or none is exact enough, it is float32 throughout.

    Args:
        detector: in eval mode and frozen, on the device that it is to run on, with its final weights.
        images: (B, 3, H, W) as its backbone sees them, normalised, of the size that is to come.
        precision: ``bfloat16`` or ``float16`` for all of it, whatever the error; ``float32``; ``as_built``
            leaves the detector as it is.

    Returns:
        What was done; None for ``as_built``.
    """
    if precision == "as_built":
        return None
    adapt(detector)
    reference = outputs(detector, images)
    folded = fold_normalisation(detector.get_submodule("backbone"))
    detector.to(memory_format=torch.channels_last)
    plan = _Plan(detector, images, reference)
    wanted = _fast_halves(images.device) if precision == "auto" else _HALVES[precision]
    for half in wanted:
        kept = plan.fewest_float32(half) if precision == "auto" else 0
        if kept is not None:
            done = Rewritten(half, plan.parts[:kept], folded, plan.set(half, kept))
            for module in _in_half(detector):
                module.to(half)  # as autocast would in every forward
            return done
    return Rewritten(None, (), folded, plan.set(None, 0))


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

    def __init__(self, detector: nn.Module, images: Tensor, reference: dict[str, Tensor]) -> None:
        self.detector = detector
        self.images = images
        self.reference = reference
        self.places = dict(_parts(getattr(detector.get_submodule("backbone"), "body", None)))
        self.parts = tuple(self.places)

    def set(self, half: torch.dtype | None, kept: int) -> dict[str, float]:
        """Compute in ``half`` after the first ``kept`` parts, and return the errors."""
        for i, (parent, name) in enumerate(self.places.values()):
            own = getattr(parent, name)
            bare = own.module if isinstance(own, Float32) else own
            setattr(parent, name, Float32(bare) if half is not None and i < kept else bare)
        cast(Any, self.detector).arithmetic = Arithmetic(half)
        return relative_errors(outputs(self.detector, self.images), self.reference)

    def fewest_float32(self, half: torch.dtype) -> int | None:
        """The fewest first parts in float32 with which the errors are small enough; None if all are too few.

        By bisection: more of them never make it worse by more than rounding.
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
        return exact(self.set(half, kept))


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


def outputs(detector: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """What a distillation may read of a detector on some images, by name, in float32.

    Backbone stages, pyramid, and the class scores of the head: a two-stage detector's RPN scores all its
    anchors, and its box head the whole image and its quarters.
    """
    model = cast(Any, detector)
    with frozen(detector), capture(detector) as seen:
        model.backbone(images)
        found = {f"stage {name}": x for name, x in seen.stages.items()}
        found |= {f"neck {name}": x for name, x in seen.neck.items()}
        if hasattr(detector, "roi_heads"):
            objectness, _ = model.rpn.head(list(seen.neck.values()))
            found["objectness"] = torch.cat([x.flatten() for x in objectness])
            height, width = images.shape[-2:]
            boxes = [_whole_and_quarters(height, width).to(images)] * len(images)
            found["class scores"] = box_head_logits(
                detector, seen.neck, boxes, [(height, width)] * len(images)
            )
        else:
            found["class scores"] = anchor_logits(detector, seen.neck)
    return {name: x.float() for name, x in found.items()}


def _whole_and_quarters(height: int, width: int) -> Tensor:
    shares = [(0, 0, 1, 1), (0, 0, 0.5, 0.5), (0.5, 0, 1, 0.5), (0, 0.5, 0.5, 1), (0.5, 0.5, 1, 1)]
    return torch.tensor(shares) * torch.tensor([width, height, width, height])


def exact(errors: dict[str, float]) -> bool:
    """Whether all errors are small enough; one that is not a number is not."""
    return all(error < TOLERANCE for error in errors.values())


def relative_errors(found: dict[str, Tensor], reference: dict[str, Tensor]) -> dict[str, float]:
    """Norm of the difference over the norm of the reference, by output."""
    return {
        name: float((found[name] - x).norm() / x.norm().clamp(min=torch.finfo(x.dtype).tiny))
        for name, x in reference.items()
    }
