"""Everything that the checks say about a data set, collected instead of stopping at the first thing."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

from rich.progress import Progress
from torch import nn

from defeat.config import build, to_plain
from defeat.data import DetectionDataModule
from defeat.data.datamodule import Split
from defeat.data.pictures import Pictures, look_at, spread, undecodable_problems
from defeat.data.split_checks import nearly_same_problems, split_problems
from defeat.detectors import Detector
from defeat.errors import DataError
from defeat.io.text import counted
from defeat.preflight.object_sizes import ObjectSizes, object_sizes, size_problems
from defeat.run.checkpoint_detector import described_by_weights
from defeat.types import Annotations, Problem


class SplitReport(NamedTuple):
    """A split that can be read, perhaps without the records that cannot be used."""

    annotations: Annotations
    sizes: ObjectSizes
    pictures: Pictures


class Located(NamedTuple):
    """A problem and where it is."""

    split: str
    """The name of a split; of two, both."""
    problem: Problem


class DataReport(NamedTuple):
    """The result of :func:`inspect_data`."""

    splits: dict[str, SplitReport]
    problems: list[Located]

    @property
    def fails(self) -> bool:
        """Whether a training would fail."""
        return any(located.problem.severe for located in self.problems)


def inspect_data(config: Any, *, decoded: int | None = None) -> DataReport:
    """Read and decode a data set as a training would, and collect what is wrong with it.

    Args:
        config: composed from conf/data_check.yaml.
        decoded: pictures of each split that are decoded; None decodes all.

    Raises:
        ConfigError: a setting makes no sense. What is wrong with the data is part of the result.
    """
    plain = to_plain(config)
    data: DetectionDataModule = build(plain["data"])
    with _quiet():
        read, problems = _read(data, plain["data"])
        detector = _detector(plain, next(iter(read.values())).classes) if read else None
        splits = _look(read, detector, decoded)
    skip = plain["data"].get("on_error") == "skip"
    for name, split in splits.items():
        of_split = [
            *split.annotations.problems,
            *(size_problems(name, split.annotations, split.sizes) if name == "train" else ()),
            *undecodable_problems(split.pictures, name, skip=skip),
        ]
        problems += [Located(name, _as_of(name, problem)) for problem in of_split]
    for other in ("val", "test"):
        if "train" in splits and other in splits:
            problems += [Located(f"train and {other}", p) for p in _between(splits["train"], splits[other])]
    return DataReport(splits, list(dict.fromkeys(problems)))


def _read(data: DetectionDataModule, config: dict[str, Any]) -> tuple[dict[str, Annotations], list[Located]]:
    """Read each split; where that fails, note why, and read it without the records that cannot be used."""
    read: dict[str, Annotations] = {}
    problems: list[Located] = []
    lenient: DetectionDataModule | None = None
    for split in data.splits:
        try:
            read[split] = data.whole(split)
        except DataError as error:
            lenient = lenient or build({**config, "on_error": "skip"})
            rest, also = _read_rest(lenient, split)
            problem = Problem(str(error), _extent(rest, also), severe=split != "test")
            if rest is not None:
                # without any object since none can be read: that is told as the problem
                told = tuple(
                    p for p in rest.problems if not (p.severe and rest.counts.get("annotations skipped"))
                )
                read[split] = rest._replace(problems=told)
            if all(problem.cause != located.problem.cause for located in problems):
                problems.append(Located(split, problem))
            continue
        if not read[split].records:
            problems.append(
                Located(split, Problem(f"{read[split].source}: it holds no image", "see the path"))
            )
            del read[split]
    return read, problems


def _read_rest(lenient: DetectionDataModule, split: Split) -> tuple[Annotations | None, str]:
    try:
        annotations = lenient.whole(split)
    except DataError as error:
        return None, str(error)
    return (annotations, "") if annotations.records else (None, "no image is left without such records")


def _extent(rest: Annotations | None, error: str) -> str:
    if rest is None:
        return f"correct the annotations or the paths; reading on: {error}"
    skipped = [counted(count, reason) for reason, count in rest.counts.items() if "skipped" in reason]
    in_all = (
        f"{' and '.join(skipped)} in all, {counted(len(rest.records), 'images')} left: " if skipped else ""
    )
    return f"{in_all}correct them"


def _detector(config: dict[str, Any], classes: Sequence[str]) -> nn.Module:
    """Build the student for its resize and levels alone, without weights."""
    node = described_by_weights(config["student"])
    student = {key: value for key, value in node.items() if key not in _WEIGHTS}
    detector: Detector = build({**student, **dict.fromkeys(_WEIGHTS)}, classes=list(classes))
    return detector.model


_WEIGHTS = ("weights", "backbone_weights")


def _look(
    read: dict[str, Annotations], detector: nn.Module | None, decoded: int | None
) -> dict[str, SplitReport]:
    splits = {}
    with Progress(transient=True) as progress:
        for name, annotations in read.items():
            images = len(annotations.records)
            positions = spread(images, images if decoded is None else decoded)
            task = progress.add_task(f"{name}: decode", total=len(positions))
            pictures = look_at(annotations, positions, partial(progress.advance, task))
            assert detector is not None  # there is one wherever a split was read
            splits[name] = SplitReport(annotations, object_sizes(annotations, detector), pictures)
    return splits


def _between(train: SplitReport, other: SplitReport) -> Iterator[Problem]:
    yield from split_problems(train.annotations, other.annotations, most_files=None)
    yield from nearly_same_problems(train.annotations, other.annotations, train.pictures, other.pictures)


def _as_of(split: str, problem: Problem) -> Problem:
    """A training does not read the test split, and so does not fail by it."""
    return problem._replace(severe=problem.severe and split != "test")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the readers from logging what the report says."""
    logger = logging.getLogger("defeat.data")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
