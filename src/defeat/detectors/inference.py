"""Pictures to detections, as a detector in eval mode gives them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from defeat.types import Prediction


def detect(detector: nn.Module, images: Sequence[Tensor]) -> list[Prediction]:
    """Detect objects in (3, H, W) uint8 images with a detector in eval mode."""
    predictions: list[Prediction] = detector(to_unit_range(images))
    # torchvision's one-stage detectors have an output for background too, and may return it as a detection.
    return [_without_background(prediction) for prediction in predictions]


def _without_background(prediction: Prediction) -> Prediction:
    kept = prediction["labels"] > 0
    return cast(Prediction, {name: cast(Tensor, value)[kept] for name, value in prediction.items()})


def to_unit_range(images: Sequence[Tensor]) -> list[Tensor]:
    """uint8 images to [0, 1]: done on the device, a quarter of the bytes having travelled.

    In torch's default dtype, which Lightning sets where it converts the detector to another one.
    """
    return [image / 255 for image in images]  # converts and divides in one pass
