"""The data that modules hand to each other, with shapes, dtypes and units.

Boxes are always ``xyxy`` in pixels of the image they come with: ``x2`` and ``y2`` are exclusive, so a
box's width is ``x2 - x1``. Labels are 1..K in the order of the data set's class names; 0 is background.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


class Record(NamedTuple):
    """One image and its boxes as an annotation file gives them, checked and clipped, not yet decoded."""

    image_id: int | str
    """The annotation file's own id: COCO's integer, or VOC's file stem. Results carry it."""
    path: Path
    width: int
    """Pixels; 0 where the annotation does not know it (VOC files with a 0x0 size)."""
    height: int
    boxes: NDArray[np.float32]
    """(N, 4) xyxy pixels."""
    labels: NDArray[np.int64]
    """(N,) 1..K."""
    ignore: NDArray[np.bool_]
    """(N,) COCO ``iscrowd`` and ``ignore``, VOC ``difficult``: no positive, no hit and no miss."""
    area: NDArray[np.float32]
    """(N,) square pixels; COCO's own ``area`` where given (it decides small/medium/large), else w * h."""


class Problem(NamedTuple):
    """One thing that is wrong, or probably so."""

    cause: str
    remedy: str
    severe: bool = True
    """True if the run is refused; otherwise it is a warning."""
    of_boxes: bool = False
    """True if the boxes as a whole are probably wrong; then nothing more is said of their sizes."""


class ExifRule(NamedTuple):
    """Decides whether a picture is turned as the orientation in its EXIF data says."""

    apply: bool = False
    """Whether pictures are turned whose annotated size does not tell: 180 degrees, mirrored, square."""
    by_size: bool = True
    """Whether the annotated size decides where it can, as only one of both ways has it."""


class Annotations(NamedTuple):
    """A data set as its annotation files give it: what every reader returns and every data set is made of."""

    records: Sequence[Record]
    classes: tuple[str, ...]
    """K names; label i stands for ``classes[i - 1]``."""
    class_ids: tuple[int, ...]
    """K ids to write into results: COCO's category ids, which may have gaps; 1..K for other formats."""
    source: str
    """The file or folder that it was read from, for messages."""
    counts: dict[str, int]
    """How many boxes and images were changed or left out, by reason such as ``boxes clipped``."""
    exif: ExifRule | None = None
    """How the pictures are to be read; None until :func:`~defeat.data.exif.decide_exif` has decided."""
    problems: tuple[Problem, ...] = ()
    """What the reader took for probably wrong, see :mod:`defeat.data.checks`."""


class Target(TypedDict):
    """The boxes of one image, in pixels of the image tensor they come with."""

    boxes: Tensor
    """(N, 4) float32 xyxy."""
    labels: Tensor
    """(N,) int64, 1..K."""
    ignore: Tensor
    """(N,) bool, see :class:`Record`."""
    area: Tensor
    """(N,) float32, square pixels of the same image."""
    index: Tensor
    """() int64, position in the data set; leads back to its image id."""


class Batch(NamedTuple):
    """Images of different sizes with their targets."""

    images: list[Tensor]
    """Each (3, H, W) uint8 RGB."""
    targets: list[Target]


class Prediction(TypedDict):
    """Detections of one image, best first, in pixels of the original image."""

    boxes: Tensor
    """(N, 4) float32 xyxy."""
    scores: Tensor
    """(N,) float32 in [0, 1]."""
    labels: Tensor
    """(N,) int64, 1..K."""
