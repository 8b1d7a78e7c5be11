"""A run makes its teacher cheap at its start, and trains the same student with it."""

from __future__ import annotations

import csv
import hashlib
import logging
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

import defeat
from defeat.config import build_factory, compose_config
from defeat.data import DetectionDataModule
from defeat.data.images import read_image
from defeat.detectors import Detector, read_weights, teacher_precision
from defeat.detectors.builders import faster_rcnn
from defeat.detectors.frozen_teacher import Arithmetic
from defeat.detectors.teacher_precision import Float32
from defeat.errors import ConfigError, DataError
from defeat.report.report import make_report
from defeat.run.evaluate import evaluate
from defeat.run.prepare_teacher import prepare_teacher
from defeat.run.train import Outcome, train
from tests.helpers.narrow import NARROW
from tests.helpers.tiny import tiny, tiny_teacher


def run(folder: Path, scenes: Path, teacher: Path, *more: str) -> dict[str, list[float]]:
    """Distil for two steps; the losses of each step by name."""
    words = ["+experiment=scenes", *tiny(folder, scenes, *tiny_teacher(teacher), *more)]
    train(compose_config("train", words))
    (table,) = folder.rglob("metrics.csv")
    rows = [row for row in csv.DictReader(table.read_text().splitlines()) if row["train/loss"]]
    names = [
        name for name in rows[0] if name.startswith(("train/", "distill/")) and "images_per_s" not in name
    ]
    return {name: [float(row[name]) for row in rows] for name in names}


def test_losses_are_those_of_the_teacher_as_it_was_built(tmp_path: Path, scenes: Path, teacher: Path) -> None:
    # On the student's proposals: the teacher's are others as soon as two scores change places.
    lean = "distiller.terms.head.proposals=student"
    plain = run(tmp_path / "a", scenes, teacher, "teacher.precision=as_built", lean)
    for precision, tolerance in (("float32", 1e-4), ("bfloat16", 3e-2)):
        found = run(tmp_path / precision, scenes, teacher, f"teacher.precision={precision}", lean)
        assert found.keys() == plain.keys()
        assert {"distill/neck_object", "distill/head_background", "distill/backbone_object"} <= found.keys()
        for name, values in plain.items():
            # Of the first step: the weights are the same.
            assert found[name][0] == pytest.approx(values[0], rel=tolerance, abs=1e-6), name
        assert found != plain


def test_auto_is_the_default_and_is_told(
    tmp_path: Path, scenes: Path, teacher: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = hashlib.sha256(teacher.read_bytes()).digest()
    with caplog.at_level(logging.INFO):
        run(tmp_path / "a", scenes, teacher)
    (told,) = [m for m in caplog.messages if m.startswith("teacher: ")]
    assert "channels last" in told
    assert "relative error" in told
    assert hashlib.sha256(teacher.read_bytes()).digest() == before
    kept = read_weights(tmp_path / "a" / "checkpoints" / "last.ckpt").tensors
    assert kept
    assert not any("teacher" in name or "module" in name.split(".") for name in kept)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (
            "teacher.precision=half",
            "a teacher's precision must be auto, bfloat16, float16, float32, as_built or null, got",
        ),
        ("student.precision=float32", "student.precision=float32 is for teachers alone"),
    ],
)
def test_a_precision_that_makes_no_sense_is_one_line(
    word: str, message: str, tmp_path: Path, scenes: Path, teacher: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(tmp_path / "a", scenes, teacher, word)


class Data(DetectionDataModule):
    """Records that stand for images, some of which cannot be decoded."""

    def __init__(self, broken: set[int]) -> None:
        self.broken = broken

    def read(self, split: str) -> Any:  # type: ignore[override]
        return split


def images(data: Data, count: int = 20) -> Any:
    class Dataset:
        def __init__(self, annotations: str) -> None:
            assert annotations == "train"

        def __len__(self) -> int:
            return count

        def __getitem__(self, index: int) -> tuple[torch.Tensor, None]:
            if index in data.broken:
                raise DataError("broken")
            return torch.full((3, 64, 64), index, dtype=torch.uint8), None

    return patch("defeat.run.prepare_teacher.DetectionDataset", Dataset)


def detector() -> nn.Module:
    return faster_rcnn(3, backbone=NARROW, fpn_channels=8, min_size=[32, 64], max_size=64)


def made(model: nn.Module, precision: Any = None) -> Detector:
    return Detector(model, None, True, None, precision=precision)


@pytest.mark.parametrize(("broken", "seen"), [(set(), [0, 1]), ({0, 2}, [1, 3]), (set(range(15)), [15])])
def test_the_first_images_that_decode_decide_as_the_student_sees_them(
    broken: set[int], seen: list[int]
) -> None:
    data, student = Data(broken), detector()
    with (
        images(data),
        patch("defeat.run.prepare_teacher.optimize_for_inference", return_value=None) as optimize,
    ):
        prepare_teacher(made(detector(), "float32"), student, data, torch.device("cpu"))
    model, tensors, precision = optimize.call_args.args
    assert precision == "float32"
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    mean, std = (
        torch.tensor(x)[:, None, None] for x in (student.transform.image_mean, student.transform.image_std)
    )
    expected = torch.stack([((torch.full((3, 64, 64), i / 255) - mean) / std) for i in seen])
    torch.testing.assert_close(tensors, expected)  # the last of the sizes, not a drawn one
    assert student.transform.training


def test_without_an_image_nothing_is_done() -> None:
    data, teacher = Data(set(range(20))), detector()
    with images(data):
        frozen = prepare_teacher(made(teacher), detector(), data, torch.device("cpu"))
    assert frozen.detector is teacher
    assert frozen.arithmetic is None


def test_more_error_than_auto_would_accept_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    data = Data(set())
    with images(data), patch.object(teacher_precision, "TOLERANCE", 1e-9):
        frozen = prepare_teacher(made(detector(), "bfloat16"), detector(), data, torch.device("cpu"))
    assert frozen.arithmetic == Arithmetic(torch.bfloat16)
    assert any("teacher.precision=bfloat16 errs by more than" in m for m in caplog.messages)
    caplog.clear()
    with images(data):
        prepare_teacher(made(other := detector(), "float32"), detector(), data, torch.device("cpu"))
    assert not any("errs" in m for m in caplog.messages)
    assert not any(isinstance(m, Float32) for m in other.modules())


def test_a_teacher_of_other_classes_serves_a_run_from_training_to_prediction(
    scenes: Path, teacher: Path, tmp_path: Path
) -> None:
    content = torch.load(teacher, weights_only=True)
    classes = content["defeat"]["classes"]  # disc, square, ..., crescent, arrow
    content["defeat"]["classes"] = ["coin", *classes[1:-1], "lorry"]
    torch.save(content, tmp_path / "teacher.ckpt")
    words = [*tiny_teacher(tmp_path / "teacher.ckpt"), "+teacher.class_map={disc: coin}"]

    def trained(name: str, *more: str, steps: int) -> Outcome:
        settings = tiny(tmp_path / name, scenes, *words, *more, steps=steps)
        return train(compose_config("train", ["+experiment=scenes", *settings]))

    first = trained("first", steps=2)
    checkpoint = tmp_path / "first" / "checkpoints" / "last.ckpt"
    resumed = trained("second", f"ckpt_path={checkpoint}", steps=4)
    assert (resumed.steps, resumed.metrics["distill/head_object"] > 0) == (4, True)

    config = compose_config("eval", [f"checkpoint={checkpoint}", f"run_dir={tmp_path}"])
    assert first.evaluation is not None
    assert repr(evaluate(config).evaluation) == repr(first.evaluation)  # nan is not equal to itself
    report = make_report([tmp_path / "first"], tmp_path / "report", resamples=2)
    assert [len(group.runs) for group in report.groups] == [1]

    # The teacher among all of its own classes, by torchvision's softmax; the best 100 of those known here.
    node = OmegaConf.create(content["defeat"]["config"]["student"]["model"])
    whole = build_factory(node)(num_classes=9, box_detections_per_img=9999).eval()
    whole.load_state_dict({k.removeprefix("student."): v for k, v in content["state_dict"].items()})
    picture = scenes / "val" / "000000.png"
    with torch.no_grad():
        expected = whole([read_image(picture) / 255])[0]
    known = (expected["labels"] < 8).nonzero().flatten()[:100]
    predictor = defeat.load(checkpoint, teacher=True, device="cpu")
    (prediction,) = predictor.predict([picture], score_threshold=0)
    assert predictor.classes == tuple(classes)
    assert len(known) == len(prediction["labels"]) > 0
    torch.testing.assert_close(prediction["scores"], expected["scores"][known])
    torch.testing.assert_close(prediction["boxes"], expected["boxes"][known])
    assert prediction["labels"].tolist() == expected["labels"][known].tolist()
