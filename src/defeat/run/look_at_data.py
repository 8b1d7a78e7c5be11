"""A short look at the data before a training begins; ``defeat-data check`` looks at all of it."""

from __future__ import annotations

import logging

from defeat.data.checks import log_problems, refuse
from defeat.data.class_checks import count_boxes
from defeat.data.pictures import look_at, spread, undecodable_problems
from defeat.data.split_checks import split_problems
from defeat.io.text import counted, few, printable
from defeat.preflight.object_sizes import object_sizes, size_problems
from defeat.training.run import Run
from defeat.types import Annotations

DECODED = 500
"""Pictures of the validation that are decoded before the first step: all of a small split, else a sample."""

log = logging.getLogger(__name__)


def look_at_data(run: Run, *, strict: bool = True) -> None:
    """Log what there is to learn from, warn of what is probably wrong, and decode the validation pictures.

    Args:
        run: the run that is about to begin.
        strict: refuse a split without objects, from which nothing is learnt or told, rather than warn of it.

    Raises:
        DataError: a picture cannot be decoded, which would end the run at the first validation; or, if
            ``strict``, a split has no objects.
    """
    train, val = run.data.read("train"), run.data.read("val")
    if strict:
        refuse("train", train.problems)
        refuse("val", val.problems if run.trainer.limit_val_batches else ())
    sizes = object_sizes(train, run.module.student)
    log.info("train: %s", describe(train))
    log.info("val: %s", describe(val))
    log.info("train objects by pyramid level after the resize: %s", sizes)
    log_problems("train and val", split_problems(train, val))
    log_problems("train", size_problems("train", train, sizes))
    pictures = look_at(val, spread(len(val.records), DECODED), compared=False)
    refuse(val.source, undecodable_problems(pictures, "val"))


def describe(annotations: Annotations) -> str:
    """Count images, boxes and the boxes of the classes with most of them."""
    counts = count_boxes(annotations)
    empty = sum(bool(record.ignore.all()) for record in annotations.records)
    most = sorted(zip(counts.tolist(), annotations.classes, strict=True), key=lambda pair: -pair[0])
    named = few([f"{printable(name)} {count:,}" for count, name in most], 5)
    return (
        f"{counted(len(annotations.records), 'images')} ({empty:,} without objects), "
        f"{counted(int(counts.sum()), 'boxes')} of {counted(len(counts), 'classes')}: {named}"
    )
