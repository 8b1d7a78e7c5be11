"""Pictures on which exported files are compared with the student."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from defeat.data.dataset import DetectionDataset
from defeat.data.scenes.scene import render_scene
from defeat.detectors.inference import detect
from defeat.errors import DefeatError
from defeat.evaluation import DEFAULT_MAX_DETS, DetectionMetrics
from defeat.export.student import TrainedStudent
from defeat.io.text import one_line
from defeat.run.evaluate import evaluation_data
from defeat.types import Target

log = logging.getLogger(__name__)


class Sample(NamedTuple):
    """Some pictures of a validation split with their boxes."""

    images: list[Tensor]
    """(3, H, W) uint8 each."""
    targets: list[Target]
    source: str
    """The file or folder of the annotations."""
    whole: int
    """Number of pictures in the split."""


def read_sample(config: DictConfig, student: TrainedStudent) -> Sample | None:
    """Read pictures from the validation split, evenly spread over it.

    Args:
        config: of the export (conf/export.yaml).
        student: of the checkpoint, which names the data set that is taken unless the configuration does.

    Returns:
        None where none are wanted, or the data set of the training is no longer where it was.

    Raises:
        DefeatError: the data set that the configuration names cannot be read.
    """
    if config.images == 0 or student.file is None:
        return None
    named = config.data is not None and ("_target_" in config.data or config.data.get("root") is not None)
    try:
        if not named and not _is_there(student):
            raise FileNotFoundError("it is not where it was")
        data = evaluation_data(config, student.file)
        annotations = data.read("val")
        dataset = DetectionDataset(annotations)
        count = min(config.images, len(dataset))
        chosen = [dataset[i * len(dataset) // count] for i in range(count)]
    except (DefeatError, FileNotFoundError) as error:
        if named:
            raise
        log.info(
            "the data set of the training is not used (%s); data.root=<folder> names it", one_line(str(error))
        )
        return None
    images, targets = map(list, zip(*chosen, strict=True))
    return Sample(images, targets, annotations.source, len(dataset))


def _is_there(student: TrainedStudent) -> bool:
    """Whether the folder of the training's data still exists; generated data would be made anew otherwise."""
    data: Any = (student.config or {}).get("data") or {}
    return isinstance(data.get("root"), str) and Path(data["root"]).is_dir()


def generated_images(count: int, side: int) -> list[Tensor]:
    """Draw scenes of shapes on textures, (3, H, W) uint8, square, portrait and landscape in turn.

    Args:
        count: number of images.
        side: of the longer sides, pixels.
    """
    images = []
    for i in range(count):
        pixels = torch.from_numpy(render_scene(0, "export", i, max(side, 64)).image).permute(2, 0, 1)
        short = max(side, 64) * 2 // 3
        cut = (slice(None), slice(None)), (slice(None), slice(short)), (slice(short), slice(None))
        rows, columns = cut[i % 3]
        images.append(pixels[:, rows, columns].contiguous())
    return images


def average_precision(detector: nn.Module, sample: Sample, student: TrainedStudent) -> float:
    """COCO's AP of a detector on the pictures of a sample, each computed by itself; nan without an object.

    Args:
        detector: takes and returns what torchvision's detectors do.
        sample: pictures and boxes.
        student: whose classes, and number of detections that count, are those of the figure.
    """
    evaluation = (student.config or {}).get("evaluation") or {}
    metrics = DetectionMetrics(student.classes, max_dets=evaluation.get("max_dets") or DEFAULT_MAX_DETS)
    with torch.inference_mode():
        for image, target in zip(sample.images, sample.targets, strict=True):
            metrics.update(detect(detector, [image]), [target])
    return metrics.compute().coco["AP"]
