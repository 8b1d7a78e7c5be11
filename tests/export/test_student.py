"""The student that leaves is the one that its checkpoint holds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from defeat.errors import ConfigError, WeightsError
from defeat.export.student import read_student


def test_a_student_is_what_its_checkpoint_says(teacher: Path):
    content = torch.load(teacher, weights_only=True)
    student = read_student(teacher)
    assert list(student.classes) == content["defeat"]["classes"]
    assert list(student.class_ids) == content["defeat"]["class_ids"]
    assert student.record["global_step"] == 2
    assert not student.detector.training
    for name, value in student.detector.state_dict().items():
        assert value.dtype != torch.float16
        torch.testing.assert_close(value, content["state_dict"][f"student.{name}"], rtol=0, atol=0)


def test_averaged_weights_are_chosen_as_in_an_evaluation(teacher: Path, tmp_path: Path):
    content = torch.load(teacher, weights_only=True)
    raw = content["state_dict"]
    content["current_model_state"] = raw
    content["state_dict"] = {key: value * 2 if "weight" in key else value for key, value in raw.items()}
    torch.save(content, tmp_path / "ema.ckpt")
    key = "roi_heads.box_predictor.cls_score.weight"
    for ema, factor in ((None, 2), (True, 2), (False, 1)):
        weight = read_student(tmp_path / "ema.ckpt", ema=ema).detector.state_dict()[key]
        torch.testing.assert_close(weight, raw[f"student.{key}"] * factor, rtol=0, atol=0)


def test_what_is_no_student_is_refused_in_a_line(teacher: Path, tmp_path: Path):
    torch.save({"state_dict": {"w": torch.zeros(1)}, "hyper_parameters": {}}, tmp_path / "other.ckpt")
    for source in (tmp_path / "other.ckpt", "scenes_teacher"):
        with pytest.raises(ConfigError, match="no checkpoint of this project"):
            read_student(source)
    content = torch.load(teacher, weights_only=True)
    content["defeat"]["class_ids"] = [1, "2", 3]
    torch.save(content, tmp_path / "damaged.ckpt")
    with pytest.raises(WeightsError, match="category ids"):
        read_student(tmp_path / "damaged.ckpt")
