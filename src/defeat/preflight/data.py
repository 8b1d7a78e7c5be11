"""Check the data against its annotations: all records, and a sample of decoded images."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import torch

from defeat.data.split_checks import split_problems
from defeat.io.text import few
from defeat.preflight.finding import Finding, Problem
from defeat.preflight.object_sizes import object_sizes, size_problems
from defeat.preflight.samples import Sample, chunks, spread, timed_samples, until
from defeat.training.run import Run
from defeat.types import Annotations, Batch


class Drawn(NamedTuple):
    """The first batches of the training."""

    batches: list[Batch]
    image_seconds: float
    """To decode and augment one image, in one process."""


class Split(NamedTuple):
    """Counts over a sample of a split."""

    images: int
    boxes: int
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
    sizes = {name: object_sizes(read, run.module.student) for name, read in annotations.items()}
    splits = {}
    for name, (loader, order) in orders.items():
        samples = timed_samples(loader, islice(order, images))
        splits[name] = _look(annotations[name], (s for s, _ in samples), seconds / 2)
    problems = [
        *(p for name, split in splits.items() for p in _sample_problems(name, split)),
        *(p for name in splits for p in size_problems(name, annotations[name], sizes[name])),
        *(p for read in annotations.values() for p in read.problems),
        *split_problems(annotations["train"], annotations["val"]),
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
        for field, value in (
            ("images", split.images),
            ("boxes", split.boxes),
            ("tiny", sizes[name].tiny),
        )
    }
    return Finding("data", f"{summary}; {looked} decoded", problems, figures)


def _look(annotations: Annotations, samples: Iterator[Sample], seconds: float) -> Split:
    over = until(seconds)
    images = boxes = 0
    wrong: list[object] = []
    for image, target in samples:
        height, width = image.shape[-2:]
        own, labels = target["boxes"], target["labels"]
        edges = torch.tensor([width, height, width, height])
        inside = ((own >= 0) & (own <= edges)).all()
        known = ((labels >= 1) & (labels <= len(annotations.classes))).all()
        if not (inside and known):
            wrong.append(annotations.records[int(target["index"])].image_id)
        images, boxes = images + 1, boxes + len(own)
        if over():
            break
    return Split(images, boxes, wrong)


def _sample_problems(name: str, split: Split) -> Iterator[Problem]:
    if split.wrong:
        yield Problem(
            f"{len(split.wrong)} of {split.images} {name} images have a box outside of the image or a label "
            f"that is no class: image id {few(split.wrong)}",
            "correct these annotations, or the transforms that moved the boxes",
        )
