"""A detector with the names of its classes, which takes pictures and gives boxes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from os import PathLike
from typing import Any, Self

import numpy as np
import torch
from lightning.fabric import Fabric
from PIL import Image, ImageOps
from torch import Tensor, nn

from defeat.data import read_image, to_rgb_tensor
from defeat.detectors.inference import detect
from defeat.errors import ConfigError
from defeat.predict.extra import supervision
from defeat.types import ExifRule, Prediction

Picture = str | PathLike[str] | Image.Image | Tensor
"""The path of an image file, an image of Pillow, or a (3, H, W) uint8 RGB tensor."""

_WANTED = "a picture must be a path, an image of Pillow or a (3, H, W) uint8 RGB tensor"


class Predictor:
    """A detector that is ready to find objects.

    Args:
        detector: a torchvision-like detector; it is put into eval mode.
        classes: K class names, label 1 first.
        device: ``auto`` for a GPU where there is one, or any name of a device of torch, such as ``cuda:1``.
        precision: any precision of Lightning, such as ``32-true`` or ``bf16-mixed``.
        upright: turn pictures as their EXIF orientation says, as viewers do; False takes them as stored.
    """

    def __init__(
        self,
        detector: nn.Module,
        classes: Sequence[str],
        *,
        device: str | torch.device = "auto",
        precision: str = "32-true",
        upright: bool = True,
    ) -> None:
        self.detector = detector.eval()
        """The plain detector, for all that can be done with a torchvision model."""
        self.classes = tuple(classes)
        self.upright = upright
        """Whether pictures are turned as their EXIF orientation says."""
        self._precision = precision
        self.to(device)

    @property
    def device(self) -> torch.device:
        """The device that computes."""
        return self._fabric.device

    def to(self, device: str | torch.device) -> Self:
        """Move the detector to a device, see the constructor, and return this object.

        Raises:
            ConfigError: there is no such device, or it does not have the precision.
        """
        try:
            self._fabric = _fabric(device, self._precision)
            self._forward = self._fabric.setup_module(self.detector)
        except Exception as error:
            raise ConfigError(f"device={device}, precision={self._precision}: {error}") from error
        return self

    def predict(
        self,
        pictures: Picture | Iterable[Picture],
        *,
        score_threshold: float = 0.5,
        classes: Sequence[str] | None = None,
        batch_size: int = 1,
        tile: int | None = None,
        tile_overlap: int = 100,
    ) -> list[Prediction]:
        """Find the objects in pictures.

        Args:
            pictures: one or several.
            score_threshold: detections with lower scores are left out. The detector has a threshold of its
                own, ``box_score_thresh``, 0.05 by default, below which it finds nothing.
            classes: names of the classes to find; None means all.
            batch_size: pictures that are computed together. They are padded to one size, which changes
                figures at the borders slightly; with 1 a picture has the same result in any company.
            tile: side in pixels of the square tiles that each picture is cut into, for small objects in large
                pictures; needs the extra ``predict``. None takes each picture whole.
            tile_overlap: pixels by which tiles overlap.

        Returns:
            For each picture ``boxes`` (N, 4) float32 xyxy in pixels of the picture, ``scores`` (N,) float32
            and ``labels`` (N,) int64 in 1..K, best first, on the CPU.

        Raises:
            ConfigError: a class is unknown, or a number makes no sense.
            DataError: an image file cannot be decoded.
        """
        several = [pictures] if isinstance(pictures, str | PathLike | Image.Image | Tensor) else pictures
        predictions = self.stream(
            (to_image(picture, upright=self.upright) for picture in several),
            score_threshold=score_threshold,
            classes=classes,
            batch_size=batch_size,
            tile=tile,
            tile_overlap=tile_overlap,
        )
        return list(predictions)

    def stream(
        self,
        images: Iterable[Tensor],
        *,
        score_threshold: float,
        classes: Sequence[str] | None,
        batch_size: int,
        tile: int | None,
        tile_overlap: int,
    ) -> Iterator[Prediction]:
        """Find the objects in (3, H, W) uint8 images one after the other, see :meth:`predict`."""
        _check_numbers(score_threshold, batch_size, tile, tile_overlap)
        labels = torch.tensor(self._labels(classes))
        images = iter(images)
        while batch := list(islice(images, batch_size)):
            if tile is None:
                predictions = self._detect(batch)
            else:
                predictions = [
                    self._detect_in_tiles(image, tile, tile_overlap, batch_size) for image in batch
                ]
            for prediction in predictions:
                wanted = torch.isin(prediction["labels"], labels)
                yield _select(prediction, wanted & (prediction["scores"] >= score_threshold))

    def _labels(self, classes: Sequence[str] | None) -> list[int]:
        names = [classes] if isinstance(classes, str) else classes
        if names is not None and not isinstance(names, Sequence):
            raise ConfigError(f"classes={names} must be the name of a class, or a list of names")
        unknown = [name for name in names or () if name not in self.classes]
        if unknown:
            raise ConfigError(f"there is no class {unknown[0]!r}, only {', '.join(self.classes)}")
        return [i for i, name in enumerate(self.classes, start=1) if names is None or name in names]

    @torch.inference_mode()
    def _detect(self, images: Sequence[Tensor]) -> list[Prediction]:
        predictions = detect(self._forward, [image.to(self.device) for image in images])
        return [
            Prediction(
                boxes=prediction["boxes"].float().cpu(),
                scores=prediction["scores"].float().cpu(),
                labels=prediction["labels"].cpu(),
            )
            for prediction in predictions
        ]

    def _detect_in_tiles(self, image: Tensor, tile: int, overlap: int, batch_size: int) -> Prediction:
        sv = supervision("tile")

        def detections(tiles: Any) -> Any:
            cut = [tiles] if batch_size == 1 else tiles
            each = [
                sv.Detections(
                    xyxy=prediction["boxes"].numpy(),
                    confidence=prediction["scores"].numpy(),
                    class_id=prediction["labels"].numpy(),
                )
                for prediction in self._detect([from_hwc(array) for array in cut])
            ]
            return each[0] if batch_size == 1 else each

        slicer = sv.InferenceSlicer(
            detections, slice_wh=tile, overlap_wh=overlap, batch_size=batch_size
        )  # merges by NMS of each class, at an IoU of 0.5
        merged = slicer(image.permute(1, 2, 0).numpy())
        order = np.argsort(-merged.confidence, kind="stable")
        return Prediction(
            boxes=torch.from_numpy(merged.xyxy[order]).float().reshape(-1, 4),
            scores=torch.from_numpy(merged.confidence[order]).float(),
            labels=torch.from_numpy(merged.class_id[order]).long(),
        )


def to_image(picture: Picture, *, upright: bool = True) -> Tensor:
    """Read a picture as a (3, H, W) uint8 RGB tensor.

    Args:
        picture: a path, an image of Pillow, or such a tensor, which is returned.
        upright: turn files and images of Pillow as their EXIF orientation says.

    Raises:
        ConfigError: it is a tensor of another shape or type, or no picture at all.
        DataError: the file cannot be decoded.
    """
    if isinstance(picture, str | PathLike):
        return read_image(picture, exif=ExifRule(apply=upright, by_size=False))
    if isinstance(picture, Image.Image):
        return to_rgb_tensor(ImageOps.exif_transpose(picture) if upright else picture)
    if not isinstance(picture, Tensor):
        raise ConfigError(f"{_WANTED}, got {type(picture).__name__}")
    if picture.ndim != 3 or len(picture) != 3 or picture.dtype != torch.uint8:
        raise ConfigError(
            f"{_WANTED}, got {tuple(picture.shape)} {picture.dtype}; for values in 0..1: "
            "(255 * image).round().to(torch.uint8)"
        )
    return picture


def from_hwc(array: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 array to a (3, H, W) tensor."""
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))


def _fabric(device: str | torch.device, precision: str) -> Fabric:
    if device == "auto":
        return Fabric(accelerator="auto", devices=1, precision=precision)  # type: ignore[arg-type]
    wanted = torch.device(device)
    if wanted.type == "cpu":
        return Fabric(accelerator="cpu", devices=1, precision=precision)  # type: ignore[arg-type]
    devices = [wanted.index or 0]
    return Fabric(accelerator=wanted.type, devices=devices, precision=precision)  # type: ignore[arg-type]


def _check_numbers(score_threshold: float, batch_size: int, tile: int | None, tile_overlap: int) -> None:
    if not 0 <= score_threshold <= 1:
        raise ConfigError(f"score_threshold={score_threshold} must be in [0, 1]")
    if batch_size < 1:
        raise ConfigError(f"batch_size={batch_size} must be at least 1")
    if tile is not None and not isinstance(tile, int):
        raise ConfigError(f"tile={tile} must be a whole number of pixels, or null")
    if tile is not None and not 0 <= tile_overlap < tile:
        raise ConfigError(f"tile_overlap={tile_overlap} must be at least 0 and below tile={tile}")


def _select(prediction: Prediction, kept: Tensor) -> Prediction:
    return Prediction(
        boxes=prediction["boxes"][kept], scores=prediction["scores"][kept], labels=prediction["labels"][kept]
    )
