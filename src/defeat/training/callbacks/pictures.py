"""Pictures of a few validation images while a training runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from PIL import Image
from torch import Tensor, nn

from defeat.data import DetectionDataset
from defeat.data.pictures import spread
from defeat.detectors import FrozenTeacher, capture
from defeat.detectors.inference import detect, to_unit_range
from defeat.distill import Distiller
from defeat.distill.terms import ComparedMaps
from defeat.errors import ConfigError
from defeat.evaluation.image_result import ImageResult
from defeat.training.callbacks.last_checkpoint import is_of_training
from defeat.training.loggers import trackers
from defeat.training.module import DetectionModule
from defeat.types import Prediction, Target
from defeat.visual import side_by_side
from defeat.visual.figures import rendered
from defeat.visual.region_maps import LevelMap, draw_region_maps


class _Sample(NamedTuple):
    """A validation image that is drawn again and again."""

    position: int
    """In the validation split."""
    image: Tensor
    """(3, H, W) uint8."""
    target: Target
    teacher_prediction: Prediction | None
    """None without a teacher."""


class DrawPictures(Callback):
    """Draw ground truth, teacher and student side by side, and where student and teacher differ.

    The same validation images are drawn each time. Detections of the student are those that the validation
    counted; those of the teacher are computed once. The other pictures have for each term of the distiller
    that compares maps a column for each level: the object mask, and the mean over the channels of
    \\|teacher - adapted student\\| in the object region and in the background. Colours of a level end at the
    99th percentile of the teacher's own magnitude, so that they never change.

    The first process draws, for the loggers that show pictures. Nothing of the training is touched, nor any
    random number.

    Args:
        every: validations from one drawing to the next, the first of them drawn.
        images: how many, spread over the images with objects.
        score: the least score of a detection that is drawn.

    Raises:
        ConfigError: a number makes no sense.
    """

    def __init__(self, *, every: int = 1, images: int = 2, score: float = 0.5) -> None:
        if every < 1 or images < 1 or not 0 <= score <= 1:
            raise ConfigError(
                "callbacks.pictures: every and images must be at least 1 and score from 0 to 1, got "
                f"{every}, {images} and {score}"
            )
        self.every = every
        self.images = images
        self.score = score
        self._validations = 0
        self._samples: list[_Sample] | None = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw, unless this validation is a sanity check or stands alone."""
        if not is_of_training(trainer):
            return
        self._validations += 1
        shown_by = trackers(trainer)
        if not shown_by or (self._validations - 1) % self.every:
            return
        module = cast(DetectionModule, pl_module)
        # A compiled teacher has no graph for a picture alone, and would make one.
        eager = torch.compiler.set_stance("force_eager")
        with eager, isolate_rng(), torch.no_grad(), trainer.precision_plugin.val_step_context():
            if self._samples is None:
                self._samples = list(_samples(trainer, module, self.images))
            for number, sample in enumerate(self._samples, start=1):
                for name, picture in self._pictures(module, sample):
                    for tracker in shown_by:
                        tracker.show_picture(f"{name}/{number}", picture, trainer.global_step)

    def _pictures(self, module: DetectionModule, sample: _Sample) -> Iterator[tuple[str, Image.Image]]:
        result = module.metrics.computed.get(sample.position)
        if result is not None:  # a validation on a part of the images may lack one
            yield "detections", _side_by_side(sample, result, module, self.score)
        if module.distiller is None or module.teacher is None:
            return
        for name, levels in _compared(module.student, module.teacher, module.distiller, sample):
            image = sample.image
            yield f"differences_{name}", draw_region_maps(image, [_level_map(level) for level in levels])


def _samples(trainer: Trainer, module: DetectionModule, images: int) -> Iterator[_Sample]:
    annotations = cast(Any, trainer).datamodule.read("val")  # set by a connector, so untyped
    with_objects = [i for i, record in enumerate(annotations.records) if not record.ignore.all()]
    data = DetectionDataset(annotations)
    for index in (with_objects[place] for place in spread(len(with_objects), images)):
        image, target = data[index]
        prediction = None
        if module.teacher is not None:
            (detected,) = detect(module.teacher, [image.to(module.device)])
            on_cpu = {name: cast(Tensor, value).cpu() for name, value in detected.items()}
            prediction = cast(Prediction, on_cpu)
        yield _Sample(index, image, target, prediction)


def _side_by_side(sample: _Sample, result: ImageResult, module: DetectionModule, score: float) -> Image.Image:
    student = Prediction(boxes=result.boxes, scores=result.scores, labels=result.labels)
    panels = {"ground truth": sample.target, "teacher": sample.teacher_prediction, "student": student}
    shown = {title: panel for title, panel in panels.items() if panel is not None}
    rows = [(sample.image, list(shown.values()))]
    return rendered(side_by_side(rows, list(shown), module.classes, threshold=score))


def _compared(
    student: nn.Module, teacher: FrozenTeacher, distiller: Distiller, sample: _Sample
) -> Iterator[tuple[str, list[ComparedMaps]]]:
    """Yield the name of each term that compares maps, and its maps of one image."""
    parts = cast(Any, student)
    device = next(student.parameters()).device
    trained = ~sample.target["ignore"]  # a training has no boxes to ignore
    target = {name: sample.target[name][trained].to(device) for name in ("boxes", "labels")}
    with _in_eval_mode(student), _in_eval_mode(distiller), capture(student) as captured:
        images, _ = parts.transform(to_unit_range([sample.image.to(device)]), [target])
        parts.backbone(images.tensors)
        batch = distiller.make_batch(student, teacher, captured)
        for name, term in distiller.named_terms():
            if levels := term.compared_maps(batch):
                height, width = captured.image_sizes[0]
                yield name, [_unpadded(level, height, width) for level in levels]


def _unpadded(level: ComparedMaps, height: int, width: int) -> ComparedMaps:
    """Leave the cells of the padding out of the maps of one image."""
    rows, columns = -(-height // level.stride), -(-width // level.stride)
    mask = level.mask if level.mask is None else level.mask[:, :rows, :columns]
    maps = level.student[..., :rows, :columns], level.teacher[..., :rows, :columns]
    return ComparedMaps(level.stride, *maps, mask)


def _level_map(level: ComparedMaps) -> LevelMap:
    teacher = level.teacher[0].float()  # (C, H, W)
    difference = (teacher - level.student[0].float()).abs().mean(0)  # (H, W)
    top = teacher.abs().mean(0).flatten().quantile(0.99)
    mask = None if level.mask is None else level.mask[0].float().cpu()
    return LevelMap(f"stride {level.stride}", difference.cpu(), mask, float(top))


@contextmanager
def _in_eval_mode(module: nn.Module) -> Iterator[None]:
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training
