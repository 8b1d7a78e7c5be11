"""The teacher of a distillation: a detector that is only read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple, Self, cast

import torch
from torch import Tensor, nn

from defeat.detectors import heads
from defeat.detectors.capture import Captured, DetectorSpec, capture, inspect_detector
from defeat.detectors.compiled_backbone import CompileMode, compile_backbone


class Arithmetic(NamedTuple):
    """The precision that a teacher computes in, whatever is around it."""

    half: torch.dtype | None
    """Dtype of autocast, which parts of the backbone may be kept out of; None for float32 throughout."""


class FrozenTeacher(nn.Module):
    """A detector in eval mode that never learns and computes in an arithmetic of its own, without gradients.

    Training mode does not reach it. See :mod:`defeat.detectors.teacher_precision` for its arithmetic.

    Args:
        detector: with its final weights; it is frozen and set to eval mode here.
        known_labels: labels, from 1 on, of the classes that it knows; None for all of them.
    """

    known_labels: Tensor | None
    """(K',) int64, on the teacher's device; None where it knows all classes."""

    def __init__(self, detector: nn.Module, known_labels: Sequence[int] | None = None) -> None:
        super().__init__()
        known = None if known_labels is None else torch.tensor(known_labels)
        self.register_buffer("known_labels", known, persistent=False)
        self.detector = detector.requires_grad_(False)
        self.arithmetic: Arithmetic | None = None
        """None to compute in the precision of whatever is around it, such as the training's autocast."""
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode, where normalisation has the statistics that the teacher was trained to."""
        return super().train(False)

    @contextmanager
    def inference(self) -> Iterator[None]:
        """Within the ``with`` block, compute without gradients and in the teacher's own arithmetic.

        A teacher with an arithmetic may have weights in half precision, and computes in no other way.
        """
        # no_grad rather than inference_mode: a student's backward must save the teacher's tensors.
        with torch.no_grad(), self._autocast():
            yield

    def _autocast(self) -> Any:
        if self.arithmetic is None:
            return nullcontext()
        half = self.arithmetic.half
        device = next(self.detector.parameters()).device.type
        return torch.autocast(device, half, enabled=half is not None, cache_enabled=False)

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        """Detect objects in (3, H, W) images of values in [0, 1]."""
        with self.inference():
            return cast(list[dict[str, Tensor]], self.detector(images))

    def inspect(self) -> DetectorSpec:
        """Find the teacher's feature maps, see :func:`~defeat.detectors.capture.inspect_detector`."""
        with self.inference():
            return inspect_detector(self.detector)

    def features(self, images: Tensor, *, neck: bool = True) -> Captured:
        """Compute stages and pyramid of (B, 3, H, W) normalised images, or the stages alone."""
        backbone = cast(Any, self.detector).backbone
        with self.inference(), capture(self.detector) as captured:
            (backbone if neck else backbone.body)(images)
        return captured

    def sample_proposals(self, neck: Mapping[str, Tensor], student: Captured) -> heads.Proposals:
        """See :func:`defeat.detectors.heads.sample_proposals`."""
        with self.inference():
            return heads.sample_proposals(self.detector, neck, student)

    def box_head_logits(
        self, neck: Mapping[str, Tensor], boxes: list[Tensor], image_sizes: list[tuple[int, int]]
    ) -> Tensor:
        """See :func:`defeat.detectors.heads.box_head_logits`."""
        with self.inference():
            return heads.box_head_logits(self.detector, neck, boxes, image_sizes)

    def anchor_logits(self, neck: Mapping[str, Tensor]) -> Tensor:
        """See :func:`defeat.detectors.heads.anchor_logits`."""
        with self.inference():
            return heads.anchor_logits(self.detector, neck)

    def compile_backbone(self, mode: CompileMode, *, backend: str | Callable[..., Any] = "inductor") -> None:
        """See :func:`defeat.detectors.compiled_backbone.compile_backbone`."""
        compile_backbone(self.detector, mode, backend=backend)
        self.eval()  # the modules around body and pyramid are new
