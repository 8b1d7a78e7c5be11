"""Steps that the graphs of all detectors share, on batches of fixed numbers of boxes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FrozenBatchNorm2d


class Detections(NamedTuple):
    """Boxes of a batch, N for each image; those that are none have a score of 0."""

    boxes: Tensor
    """(B, N, 4) float32 xyxy in pixels of the resized image."""
    scores: Tensor
    """(B, N) float32 in [0, 1]."""
    labels: Tensor
    """(B, N) int64: 1..K, and 0 for background."""


class Features(nn.Module):
    """The normalisation of a detector with its backbone.

    Args:
        detector: a torchvision detector.
    """

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.backbone = detector.backbone
        transform = detector.transform
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(transform.image_mean).reshape(3, 1, 1))
        self.register_buffer("std", torch.tensor(transform.image_std).reshape(3, 1, 1))

    def forward(self, images: Tensor, sizes: Tensor) -> dict[str, Tensor]:
        """Compute the maps (B, C, h, w) of each level, finest first.

        Args:
            images: (B, 3, H, W) in [0, 1].
            sizes: (B, 2) height and width of each image without its padding.
        """
        # torchvision pads after it has normalised, so that the padding is 0 there.
        height, width = images.shape[-2:]
        rows = torch.arange(height, device=images.device)[:, None] < sizes[:, 0, None, None]  # (B, H, 1)
        columns = torch.arange(width, device=images.device) < sizes[:, 1, None, None]  # (B, 1, W)
        inside = (rows & columns)[:, None].to(images.dtype)  # (B, 1, H, W)
        features = self.backbone((images - self.mean) / self.std * inside)
        return {"0": features} if isinstance(features, Tensor) else dict(features)


class ScaleShift(nn.Module):
    """A frozen batch normalisation as the two numbers a channel that it comes to, which make a smaller graph.

    They are computed as torchvision computes them in every forward: the result is the same to the bit.

    Args:
        norm: its statistics and weights.
    """

    def __init__(self, norm: FrozenBatchNorm2d) -> None:
        super().__init__()
        self.scale: Tensor
        self.shift: Tensor
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        self.register_buffer("scale", scale.reshape(-1, 1, 1))
        self.register_buffer("shift", (norm.bias - norm.running_mean * scale).reshape(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, H, W) features."""
        return x * self.scale + self.shift


def with_constant_norms(detector: nn.Module) -> nn.Module:
    """Copy a detector with a :class:`ScaleShift` in the place of each frozen batch normalisation."""
    detector = copy.deepcopy(detector)
    for parent in list(detector.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, FrozenBatchNorm2d):
                setattr(parent, name, ScaleShift(child))
    return detector


def grid_anchors(generator: AnchorGenerator, images: Tensor, features: Sequence[Tensor]) -> list[Tensor]:
    """Lay the anchors (h * w * A, 4) of each level, as torchvision's generator does.

    The stride is the padded size divided by that of the map, which for the coarsest levels depends on it.
    """
    height, width = images.shape[-2:]
    grids = [(level.shape[-2], level.shape[-1]) for level in features]
    strides = [(height // rows, width // columns) for rows, columns in grids]
    anchors: list[Tensor] = generator.grid_anchors(grids, strides)
    return anchors


def top(scores: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Return the best of (B, n) scores and their positions, (B, min(most, n)) each."""
    values, positions = scores.topk(torch.sym_min(scores.shape[1], most), dim=1)
    return values, positions


def channels_last(maps: Tensor) -> Tensor:
    """(B, C, h, w) to (B, h, w, C): the order in which torchvision lays out anchors."""
    return maps.permute(0, 2, 3, 1)


def pick(values: Tensor, positions: Tensor) -> Tensor:
    """Take four values at each of (B, k) positions of (B, n * 4) values: (B, k, 4).

    A gather of numbers spares the exporter the division of a size that it knows as a formula.
    """
    first = positions[..., None] * 4 + torch.arange(4, device=positions.device)  # (B, k, 4)
    return values.gather(1, first.flatten(1)).reshape(first.shape)


def clip(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Clip (B, N, 4) boxes to their images of (B, 2) height and width."""
    bounds = sizes.flip(1).repeat(1, 2).to(boxes.dtype)  # (B, 4): width, height, width, height
    return torch.minimum(boxes.clamp(min=0), bounds[:, None])


def is_large(boxes: Tensor, least: float) -> Tensor:
    """Tell of (..., 4) boxes whether both sides have at least so many pixels."""
    sides = boxes[..., 2:] - boxes[..., :2]
    return (sides >= least).all(-1)


def best(kept: Detections, most: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Take the best boxes of each image, padded with zeros to a fixed number.

    Args:
        kept: all that suppression has left, the others with a score of 0.
        most: the number D of boxes.

    Returns:
        Boxes (B, D, 4), scores (B, D), labels (B, D), and (B,) the number of those that are no padding.
    """
    scores, positions = nn.functional.pad(kept.scores, (0, most)).topk(most, dim=1)
    labels = nn.functional.pad(kept.labels, (0, most)).gather(1, positions)
    # A label of 0 is background: torchvision lets it take a place, and it is left out afterwards.
    scores, order = torch.where(labels > 0, scores, 0).topk(most, dim=1)
    positions, labels = positions.gather(1, order), labels.gather(1, order)
    boxes = pick(nn.functional.pad(kept.boxes.flatten(1), (0, 4 * most)), positions)
    found = scores > 0
    return boxes * found[..., None], scores, labels * found, found.sum(1)
