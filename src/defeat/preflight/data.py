"""Check the data against its annotations: all records, and a sample of decoded images."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

import torch

from defeat.detectors import inspect_detector
from defeat.io.text import few
from defeat.preflight.finding import Finding, Problem
from defeat.preflight.samples import Sample, chunks, spread, timed_samples, transform_of, until
from defeat.training.run import Run
from defeat.types import Annotations, Batch

TINY_SHARE = 0.25
"""With more boxes than this smaller than a cell of the finest level, much of the data cannot be seen."""


class Drawn(NamedTuple):
    """The first batches of the training."""

    batches: list[Batch]
    image_seconds: float
    """To decode and augment one image, in one process."""


class Split(NamedTuple):
    """Counts over a sample of a split."""

    images: int
    boxes: int
    tiny: int
    """Boxes with an area of less than one cell of the student's finest level."""
    wrong: list[object]
    """Ids of images with a box that reaches outside, or with a label that is no class."""


def draw(run: Run, batches: int) -> Drawn:
    """The first batches of the training of the first process.

    Raises:
        DataError: an image cannot be decoded.
    """
    loader = run.data.train_dataloader()
    size = loader.batch_size or 1
    taken = list(timed_samples(loader, islice(iter(loader.sampler), batches * size)))
    seconds = sum(seconds for _, seconds in taken) / len(taken)
    return Drawn(list(chunks((sample for sample, _ in taken), size)), seconds)


def check_data(run: Run, *, images: int, seconds: float) -> Finding:
    """Decode a sample of both splits as training and validation do, and count over all annotations.

    Args:
        images: of each split.
        seconds: for both splits together; one image of each is decoded at least.

    Raises:
        DataError: an image cannot be decoded.
    """
    data = run.data
    train, val = data.train_dataloader(), data.val_dataloader()
    annotations = {"train": data.read("train"), "val": data.read("val")}
    orders = {
        "train": (train, iter(train.sampler)),
        "val": (val, spread(len(annotations["val"].records))),
    }
    cell = inspect_detector(run.module.student).neck[0].stride
    splits = {}
    for name, (loader, order) in orders.items():
        samples = timed_samples(loader, islice(order, images))
        splits[name] = _look(run, annotations[name], (s for s, _ in samples), cell, seconds / 2)
    problems = [
        *(p for name, split in splits.items() for p in _split_problems(name, split, cell)),
        *_annotation_problems(annotations["train"], annotations["val"]),
    ]
    empty = {name: sum(r.ignore.all() for r in read.records) for name, read in annotations.items()}
    summary = "; ".join(
        f"{name} {len(read.records)} images ({empty[name]} without objects)"
        for name, read in annotations.items()
    )
    looked = " and ".join(str(split.images) for split in splits.values())
    figures = {
        f"{name}_{field}": float(value)
        for name, split in splits.items()
        for field, value in (("images", split.images), ("boxes", split.boxes), ("tiny", split.tiny))
    }
    return Finding("data", f"{summary}; {looked} decoded", problems, figures)


def _look(run: Run, annotations: Annotations, samples: Iterator[Sample], cell: int, seconds: float) -> Split:
    over = until(seconds)
    images = boxes = tiny = 0
    wrong: list[object] = []
    transform = transform_of(run.module.student)
    for image, target in samples:
        height, width = image.shape[-2:]
        own, labels = target["boxes"], target["labels"]
        edges = torch.tensor([width, height, width, height])
        inside = ((own >= 0) & (own <= edges)).all()
        known = ((labels >= 1) & (labels <= len(annotations.classes))).all()
        if not (inside and known):
            wrong.append(annotations.records[int(target["index"])].image_id)
        areas = (own[:, 2:] - own[:, :2]).prod(dim=1) * _scale(transform, height, width) ** 2
        images, boxes, tiny = images + 1, boxes + len(own), tiny + int((areas < cell**2).sum())
        if over():
            break
    return Split(images, boxes, tiny, wrong)


def _scale(transform: Any, height: int, width: int) -> float:
    """The factor by which a detector enlarges an image; the geometric mean if its sides differ."""
    if transform.fixed_size is not None:
        return math.sqrt(math.prod(transform.fixed_size) / (height * width))
    small, large = min(height, width), max(height, width)
    return float(min(transform.min_size[-1] / small, transform.max_size / large))


def _split_problems(name: str, split: Split, cell: int) -> Iterator[Problem]:
    if split.wrong:
        yield Problem(
            f"{len(split.wrong)} of {split.images} {name} images have a box outside of the image or a label "
            f"that is no class: image id {few(split.wrong)}",
            "correct these annotations, or the transforms that moved the boxes",
        )
    if not split.boxes:
        yield Problem(
            f"none of {split.images} {name} images has an object",
            "see that the annotation file is the one of these images; raise preflight.images",
            severe=False,
        )
    elif split.tiny > TINY_SHARE * split.boxes:
        yield Problem(
            f"{split.tiny} of {split.boxes} {name} objects are smaller than a cell of {cell} x {cell} pixels "
            "of the resized image, too small to be found",
            "raise student.model.min_size and max_size, and the teacher's with them",
            severe=False,
        )


def _annotation_problems(train: Annotations, val: Annotations) -> Iterator[Problem]:
    yield from (problem for read in (train, val) for problem in read.problems)
    shared = {record.path for record in train.records} & {record.path for record in val.records}
    if shared:
        yield Problem(
            f"{len(shared)} image files are in the training and in the validation split "
            f"({few([path.name for path in sorted(shared)], 1)}): figures of the validation are too good",
            "take them out of one of the two annotation files",
            severe=False,
        )
