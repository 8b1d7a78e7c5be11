"""The pictures of a training: what they show, and that they leave everything as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from defeat.config import compose_config
from defeat.data import DetectionDataset
from defeat.detectors.inference import to_unit_range
from defeat.errors import ConfigError
from defeat.run.build import build_run
from defeat.training.callbacks import DrawPictures
from defeat.training.callbacks.pictures import _compared, _level_map, _Sample
from defeat.training.loggers import TensorBoard
from defeat.training.run import Run
from defeat.visual.region_maps import LevelMap, draw_region_maps
from tests.helpers.naive import object_mask
from tests.helpers.tiny import tiny, tiny_teacher


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, scenes: Path, teacher: Path) -> Run:
    folder = tmp_path_factory.mktemp("pictures")
    # 64 pixels to 80, which are padded to 96
    words = [*tiny_teacher(teacher), "student.model.min_size=80", "student.model.max_size=80", "~logger"]
    return build_run(compose_config("train", ["+experiment=scenes", *tiny(folder, scenes, *words)]))


def sample(built: Run) -> _Sample:
    image, target = DetectionDataset(built.data.read("val"))[1]
    target["ignore"][0] = True
    return _Sample(1, image, target, None)


def test_masks_and_differences_are_those_of_the_losses(built: Run) -> None:
    parts = built.distillation
    assert parts is not None
    student, of = built.module.student.train(), sample(built)
    before = {name: value.clone() for name, value in built.module.state_dict().items()}
    with torch.no_grad():
        drawn = dict(_compared(student, parts.frozen_teacher, parts.distiller, of))
    assert student.training
    assert all(torch.equal(value, before[name]) for name, value in built.module.state_dict().items())
    assert [level.stride for level in drawn["neck"]] == [4, 8, 16, 32]
    assert "head" not in drawn

    boxes = (of.target["boxes"][~of.target["ignore"]] * 80 / 64).tolist()
    assert len(boxes) >= 1
    shapes = [(24, 24), (12, 12), (6, 6), (3, 3)]  # of 96 pixels, with the padding
    masks = object_mask([boxes], shapes, [4, 8, 16, 32])
    student.eval()
    with torch.no_grad():
        images, _ = student.transform(to_unit_range([of.image]))  # type: ignore[operator]
        student_maps = student.backbone(images.tensors)  # type: ignore[operator]
        teacher_maps = parts.frozen_teacher.features(images.tensors).neck
        adapters = parts.distiller.terms["neck"].adapters.layers  # type: ignore[union-attr]
        for level, mask, (name, own) in zip(drawn["neck"], masks, student_maps.items(), strict=True):
            cells = -(-80 // level.stride)
            shown = _level_map(level)
            teacher_map = teacher_maps[name]
            difference = (teacher_map - adapters[str(level.stride)](own)).abs().mean(1)[0]  # type: ignore[index]
            assert shown.mask is not None
            assert shown.mask.tolist() == [row[:cells] for row in mask[0][:cells]]
            torch.testing.assert_close(shown.difference, difference[:cells, :cells])


def test_a_compiled_teacher_is_not_compiled_for_pictures(
    built: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs = []

    def backend(module: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        graphs.append(module)
        return module.forward

    teacher = copy.deepcopy(built.module.teacher)
    assert teacher is not None
    teacher.compile_backbone("default", backend=backend)
    monkeypatch.setitem(built.module._modules, "teacher", teacher)
    logger = TensorBoard(tmp_path)
    trainer = cast(Any, built.trainer)
    monkeypatch.setattr(trainer, "loggers", [logger])
    monkeypatch.setattr(trainer.state, "fn", TrainerFn.FITTING)
    monkeypatch.setattr(trainer, "datamodule", built.data, raising=False)
    DrawPictures(images=1).on_validation_end(trainer, built.module)
    logger.save()
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    assert "differences_neck/1" in events.Tags()["images"]
    assert not graphs
    teacher.features(torch.zeros(1, 3, 64, 64))
    assert graphs  # by the training


def test_the_range_of_the_colours_does_not_move_with_the_student(built: Run) -> None:
    parts = built.distillation
    assert parts is not None

    def levels() -> list[LevelMap]:
        with torch.no_grad():
            maps = dict(_compared(built.module.student, parts.frozen_teacher, parts.distiller, sample(built)))
        return [_level_map(level) for term in maps.values() for level in term]

    before = levels()
    with torch.no_grad():
        for parameter in built.module.student.parameters():
            parameter.mul_(1.5)
    after = levels()
    assert [level.top for level in before] == [level.top for level in after]
    assert not torch.equal(before[0].difference, after[0].difference)


def test_a_column_shows_mask_object_and_background() -> None:
    mask = torch.zeros(2, 2)
    mask[0, 0] = 1
    difference = torch.tensor([[2.0, 1.0], [0.0, 9.0]])
    picture = draw_region_maps(
        torch.full((3, 44, 44), 200, dtype=torch.uint8), [LevelMap("stride 4", difference, mask, 2.0)]
    )
    pixels = np.asarray(picture).astype(int)
    tops = [38 + row * (220 + 18 + 8) for row in range(3)]  # of the three panels, below two lines of text

    def colour(row: int, y: int, x: int) -> list[int]:
        return pixels[tops[row] + 110 * y + 55, 8 + 110 * x + 55].tolist()  # type: ignore[no-any-return]

    assert colour(0, 0, 0)[1] > colour(0, 0, 0)[0]  # tinted green
    assert colour(0, 1, 1) == [110] * 3  # darkened
    brightest, grey, black = [251, 252, 191], [200, 203, 207], [0, 0, 3]
    assert [colour(1, 0, 0), colour(1, 1, 1)] == [brightest, grey]
    assert [colour(2, 0, 0), colour(2, 1, 0), colour(2, 1, 1)] == [grey, black, brightest]


@pytest.mark.parametrize("wrong", [{"every": 0}, {"images": 0}, {"score": 1.5}])
def test_numbers_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"callbacks\.pictures: every and images must be at least 1"):
        DrawPictures(**wrong)  # type: ignore[arg-type]
