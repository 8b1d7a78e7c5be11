"""Any usual folder of pictures and annotations as a data set, by its layout."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from defeat.data.datamodule import DetectionDataModule
from defeat.data.division import PARTS, Division, Lists, check_fractions, divide
from defeat.data.layouts import recognise
from defeat.data.layouts.layout import Part, Reader
from defeat.errors import ConfigError, DataError
from defeat.io.text import counted, one_line
from defeat.types import Annotations

_log = logging.getLogger(__name__)


def folder_data(
    root: str,
    layout: str | None = None,
    split: str | None = "auto",
    split_fractions: Sequence[float] = (0.8, 0.2),
    split_seed: int = 0,
    boxes_from_segmentation: bool = False,
    **settings: Any,
) -> DetectionDataModule:
    """Build the data module of a folder in one of the usual layouts.

    Args:
        root: the folder.
        layout: ``coco``, ``voc`` or ``yolo``; None recognises it.
        split: how to divide a folder that has a part for training alone: ``auto`` by the lists in its
            ``splits``, if there are some, and otherwise by itself; a folder of lists, relative to the root;
            or None, not at all.
        split_fractions: shares of training, validation and, with three, test.
        split_seed: decides which images go where; runs of other seeds are validated on the same images.
        boxes_from_segmentation: make boxes of COCO annotations that have only an outline.
        **settings: see :class:`~defeat.data.datamodule.DetectionDataModule`.

    Raises:
        DataError: no layout or several are recognised, or there is nothing to validate on.
        ConfigError: an argument makes no sense.
    """
    if given := {"train", "val", "test"} & settings.keys():
        raise ConfigError(
            f"data=folder finds the parts of a folder itself and has no data.{min(given)}: an experiment "
            "that sets it is for another data set"
        )
    found = recognise(Path(root), layout, boxes_from_segmentation)
    readers: dict[Part, Reader] = {
        part: Told(f"{root}: {found.name}, {part} ({found.places[part]})", reader)
        for part, reader in found.readers.items()
    }
    division = None
    if "train" in readers and "val" not in readers:
        if split is None:
            raise DataError(f"{root} has no part to validate on ({found.name}): data.split=auto makes one")
        division = Division(readers["train"], Path(root), split, split_fractions, split_seed)
        readers |= {part: division.reader(part) for part in division.parts}
    return DetectionDataModule(
        train=readers.get("train"),
        val=readers.get("val"),
        test=readers.get("test"),
        root=root,
        division=division,
        **settings,
    )


def divide_folder(config: DictConfig) -> tuple[Annotations, Lists]:
    """Divide the folder of a configuration (conf/data_split.yaml) that has a part for training alone.

    Returns:
        All of its images, and those of each part.

    Raises:
        DataError: it has further parts already, or cannot be read.
        ConfigError: the configuration makes no sense.
    """
    root, fractions = Path(config.data.root), [*config.fractions]
    check_fractions(fractions)
    found = recognise(root, config.data.layout, config.data.boxes_from_segmentation)
    there = [part for part in PARTS[: len(fractions)] if part in found.readers]
    if there != ["train"]:
        parts = ", ".join(f"{part} ({found.places[part]})" for part in found.readers)
        raise DataError(f"{root} ({found.name}) is divided already: {parts}; data=folder goes by that")
    whole = found.readers["train"](root=config.data.root, on_error=config.data.on_error)
    return whole, divide(whole, root, fractions, config.seed)


class Told:
    """A reader that says what it has read."""

    def __init__(self, place: str, reader: Reader) -> None:
        self._place = place
        self._reader = reader

    def __call__(self, **arguments: Any) -> Annotations:
        """Read, and tell how many images, boxes and classes there are."""
        annotations = self._reader(**arguments)
        boxes = sum(len(record.boxes) for record in annotations.records)
        numbers = {"images": len(annotations.records), "boxes": boxes, "classes": len(annotations.classes)}
        counts = ", ".join(counted(number, what) for what, number in numbers.items())
        _log.info("%s", one_line(f"{self._place}: {counts}"))
        return annotations
