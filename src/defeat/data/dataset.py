"""Images with their boxes, decoded when asked for."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from defeat.data.batch_transfer import PackedBatch
from defeat.data.boxes import MIN_SIDE
from defeat.data.checks import log_problems
from defeat.data.error_policy import ErrorPolicy
from defeat.data.exif import decide_exif
from defeat.data.images import AS_STORED, read_image
from defeat.data.sampler import SeededIndex
from defeat.errors import ConfigError, DataError
from defeat.seeds import seed_cpu
from defeat.types import Annotations, Batch, Record, Target

Transforms = Callable[[tv_tensors.Image, dict[str, Any]], tuple[Tensor, dict[str, Any]]]

ROUNDING = 1e-3
"""Relative change of a box's area up to which its size is taken for unchanged, as under a flip."""

_PER_BOX = ("labels", "ignore", "area")


class DetectionDataset(Dataset[tuple[Tensor, Target]]):
    """Map-style data set of ``(image, target)``: (3, H, W) uint8 RGB and a :class:`~defeat.types.Target`.

    ``target["index"]`` is the position in ``annotations.records``, which leads to the image id.

    Args:
        annotations: what a reader returned.
        transforms: any ``torchvision.transforms.v2`` callable. It is given a ``tv_tensors.Image`` and a
            dictionary with ``tv_tensors.BoundingBoxes`` under ``boxes``, and labels, ignore, area and index
            beside it. Boxes that it leaves without width or height are removed afterwards with all their
            fields, so it needs no ``SanitizeBoundingBoxes`` of its own; and the area of each object grows and
            shrinks with its box, unless it was changed. The image must stay uint8, for detectors normalise
            themselves.
        drop_ignored: leave out boxes marked ``ignore``. This is the one place where training parts from
            evaluation: a crowd or a difficult object must not become a positive, and torchvision's detectors
            know no third kind, so that what lies there counts as background, as in torchvision's references.

    Raises:
        DataError: from ``[]``, naming the file and the image id, where an image cannot be decoded.
        ConfigError: from ``[]``, where the transforms return something else than described.
    """

    def __init__(
        self,
        annotations: Annotations,
        transforms: Transforms | None = None,
        *,
        drop_ignored: bool = False,
    ) -> None:
        if annotations.exif is None:
            told = len(annotations.problems)
            annotations = decide_exif(annotations)
            log_problems(annotations.source, annotations.problems[told:])
        self.annotations = annotations
        self.transforms = transforms
        self.drop_ignored = drop_ignored

    def __len__(self) -> int:
        return len(self.annotations.records)

    def __getitem__(self, index: int | SeededIndex) -> tuple[Tensor, Target]:
        """Read an image. A :class:`~defeat.data.sampler.SeededIndex` seeds the transforms too."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int | SeededIndex]) -> list[tuple[Tensor, Target]]:
        """Read the images of a batch, as torch's loaders ask for them."""
        # Transforms draw from the generators that the detectors' samplers draw from too: decoding in the main
        # process, a distilled run would see other crops and flips than its baseline, and a resumed run others
        # than one that was never stopped. NumPy's takes half as long to put back as a small image to decode,
        # so once for all images, and not in a worker process, where nothing else draws.
        seeded = self.transforms is not None and any(isinstance(index, SeededIndex) for index in indices)
        with isolate_rng(include_cuda=False) if seeded and get_worker_info() is None else nullcontext():
            return [self._read(*i) if isinstance(i, SeededIndex) else self._read(i) for i in indices]

    def _read(self, index: int, seed: int | None = None) -> tuple[Tensor, Target]:
        record = self.annotations.records[index]
        image = decode(record, self.annotations)
        target = _target(record, index % len(self), drop_ignored=self.drop_ignored)
        if self.transforms is None:
            return image, target
        if seed is not None:
            seed_cpu(seed)
        return _transformed(image, target, self.transforms)


def collate(samples: Sequence[tuple[Tensor, Target]]) -> Batch | PackedBatch:
    """Put images of different sizes side by side, for ``DataLoader(collate_fn=collate)``.

    In a worker process the batch is packed for the way; the loader gives out a :class:`~defeat.types.Batch`
    all the same.
    """
    batch = Batch([image for image, _ in samples], [target for _, target in samples])
    return batch if get_worker_info() is None else PackedBatch(batch)


def drop_undecodable(annotations: Annotations) -> Annotations:
    """Decode every image once and leave out those that cannot be, counted as ``images undecodable``.

    One warning says how many and names the first. Costs a pass over the data set, on all cores.
    """
    policy = ErrorPolicy(annotations.source, "skip")
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        errors = list(pool.map(lambda record: _decoding_error(record, annotations), annotations.records))
    if not any(errors):
        return annotations
    for error in filter(None, errors):
        policy.reject("images undecodable", error)
    policy.stop({})
    kept = [record for record, error in zip(annotations.records, errors, strict=True) if error is None]
    return annotations._replace(records=kept, counts=annotations.counts | policy.report())


def decode(record: Record, annotations: Annotations) -> Tensor:
    """Decode the picture of a record to (3, H, W) uint8 RGB.

    Raises:
        DataError: it cannot be decoded; the message names data set, image id and file.
    """
    expected = (record.width, record.height) if record.width and record.height else None
    try:
        return read_image(record.path, expected, annotations.exif or AS_STORED)
    except DataError as error:
        raise DataError(f"{annotations.source}: image id {record.image_id!r}: {error}") from error


def _decoding_error(record: Record, annotations: Annotations) -> str | None:
    try:
        decode(record, annotations)
    except DataError as error:
        return str(error)
    return None


def _target(record: Record, index: int, *, drop_ignored: bool) -> Target:
    kept = ~record.ignore if drop_ignored and record.ignore.any() else slice(None)
    # copies: records share one array for all images, and what leaves here may be changed in place
    return Target(
        boxes=torch.from_numpy(np.array(record.boxes[kept], dtype=np.float32)).reshape(-1, 4),
        labels=torch.from_numpy(np.array(record.labels[kept], dtype=np.int64)),
        ignore=torch.from_numpy(np.array(record.ignore[kept], dtype=np.bool_)),
        area=torch.from_numpy(np.array(record.area[kept], dtype=np.float32)),
        index=torch.tensor(index),
    )


def _select(target: Target, mask: Tensor) -> Target:
    return Target(
        boxes=target["boxes"][mask],
        labels=target["labels"][mask],
        ignore=target["ignore"][mask],
        area=target["area"][mask],
        index=target["index"],
    )


def _transformed(image: Tensor, target: Target, transforms: Transforms) -> tuple[Tensor, Target]:
    size = (image.shape[-2], image.shape[-1])
    boxes = tv_tensors.BoundingBoxes(
        target["boxes"], format=tv_tensors.BoundingBoxFormat.XYXY, canvas_size=size
    )
    changed, fields = transforms(tv_tensors.Image(image), {**target, "boxes": boxes})
    # a plain tensor: each look at a tv_tensor's properties takes longer than the check
    plain = changed.as_subclass(Tensor) if isinstance(changed, Tensor) else None
    if plain is None or plain.dtype != torch.uint8 or plain.ndim != 3 or plain.shape[0] != 3:
        raise ConfigError(f"transforms must return a (3, H, W) uint8 image, got {_describe(changed)}")
    corners = _clamped(fields["boxes"])
    lengths = {name: len(fields[name]) for name in _PER_BOX}
    if set(lengths.values()) != {len(corners)}:
        raise ConfigError(
            f"transforms left {len(corners)} boxes but {lengths}; drop SanitizeBoundingBoxes (the "
            "data set removes degenerate boxes itself) or have its labels_getter give labels, ignore and area"
        )
    result = Target(
        boxes=torch.from_numpy(corners),
        labels=fields["labels"],
        ignore=fields["ignore"],
        area=fields["area"],
        index=target["index"],
    )
    if len(corners) == len(target["area"]) and fields["area"].equal(target["area"]):
        result["area"] = target["area"] * _growth(target["boxes"].numpy(), corners)
    kept = (corners[:, 2:] - corners[:, :2] >= MIN_SIDE).all(axis=1)
    return plain.contiguous(), result if kept.all() else _select(result, torch.from_numpy(kept))


def _growth(before: NDArray[np.float32], after: NDArray[np.float32]) -> Tensor:
    """Return (N,) float32, the areas of boxes divided by what they were; 1 but for rounding is 1."""
    old, new = ((b[:, 2:] - b[:, :2]).astype(np.float64).prod(axis=1) for b in (before, after))
    growth = np.divide(new, old, out=np.ones_like(new), where=old > 0)
    growth[np.abs(growth - 1) < ROUNDING] = 1
    return torch.from_numpy(growth.astype(np.float32))


def _clamped(boxes: tv_tensors.BoundingBoxes) -> NDArray[np.float32]:
    """Return (N, 4) float32 xyxy boxes inside the image, from whatever format the transforms left."""
    if not isinstance(boxes, tv_tensors.BoundingBoxes):
        raise ConfigError(f"transforms must keep boxes a tv_tensors.BoundingBoxes, got {_describe(boxes)}")
    height, width = boxes.canvas_size
    if boxes.format != tv_tensors.BoundingBoxFormat.XYXY:
        boxes = F.convert_bounding_box_format(boxes, new_format=tv_tensors.BoundingBoxFormat.XYXY)
    corners = boxes.as_subclass(Tensor).to(torch.float32).clamp(min=0).numpy()
    limits = np.array([width, height, width, height], dtype=np.float32)
    clamped: NDArray[np.float32] = np.minimum(corners, limits)
    return clamped


def _describe(value: object) -> str:
    return f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
