"""``defeat-import``, and what it wrote as a teacher: distilled from, resumed with, evaluated, exported."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors import safe_open

from defeat.data.scenes.shapes import CLASSES as SCENES
from tests.helpers.console import Run, logged, only
from tests.helpers.foreign import build, foreign, randomise
from tests.helpers.tiny import tiny

CLASSES = list(SCENES)

RESNET = "student.model.backbone=resnet10"
"""A backbone that torchvision has, for the export."""


@pytest.fixture
def pkl() -> str:
    """A made-up file of detectron2's layout in the working folder: random weights, its classes unnamed."""
    torch.manual_seed(0)
    detector = randomise(
        build("faster_rcnn", "resnet50", len(CLASSES), fpn_channels=16, box_head_channels=16)
    )
    tensors = foreign(detector, "faster_rcnn", "resnet50", "detectron2")
    content = {"model": {name: x.numpy() for name, x in tensors.items()}, "__author__": "someone"}
    Path("model_final.pkl").write_bytes(pickle.dumps(content, protocol=2))
    Path("names.txt").write_text("\n".join(reversed(CLASSES)))
    return "source=model_final.pkl"


@pytest.mark.slow
def test_an_imported_teacher_does_all_that_a_teacher_does(pkl: str, scenes: Path, script: Run) -> None:
    assert "classes=FILE" in script("defeat-import", pkl, "output=t.safetensors").line
    done = script("defeat-import", pkl, "output=t.safetensors", "classes=names.txt")
    assert done.status == 0, done.err
    for step in ("mapped", "folded", "permuted", "set", "not checked"):
        assert step in done.out
    assert sorted(path.name for path in Path().iterdir()) == ["model_final.pkl", "names.txt", "t.safetensors"]
    assert "exists already" in script("defeat-import", pkl, "output=t.safetensors").line
    with safe_open("t.safetensors", "pt") as file:
        about = file.metadata()
    assert json.loads(about["classes"]) == CLASSES[::-1]
    assert (about["source"], about["license"], len(about["source_sha256"])) == (
        "detectron2",
        "cc-by-sa-3.0",
        64,
    )

    imported = ["+experiment=scenes", "detector@teacher=imported", "teacher.weights=t.safetensors"]
    sizes = ["teacher.model.min_size=64", "teacher.model.max_size=64"]
    words = [*imported, *sizes, *tiny(Path("run"), scenes, RESNET)]
    assert script("defeat-train", *words).status == 0
    model = OmegaConf.load("run/config.yaml").teacher.model
    assert (model.backbone, model.stride_in_1x1, model.anchors) == ("resnet50", True, "float")
    assert (model.roi_align, model.strides, model.min_size) == ("aligned", "fixed", 64)
    whole = logged(Path("run"), "train/loss")
    assert "distill/neck_object" in "".join(Path("run/csv/metrics.csv").read_text().splitlines()[0])

    last = "run/checkpoints/last.ckpt"
    resumed = script(
        "defeat-train", *imported, *sizes, *tiny(Path("on"), scenes, RESNET, f"ckpt_path={last}", steps=3)
    )
    assert resumed.status == 0, resumed.err
    assert list(logged(Path("on"), "train/loss")) == [0, 1, 2]
    assert {step: logged(Path("on"), "train/loss")[step] for step in whole} == whole

    data = [word for word in tiny(Path(), scenes) if word.startswith("data.")]
    of_teacher = script("defeat-eval", "checkpoint=t.safetensors", "data=scenes", *data, "name=teacher")
    assert of_teacher.status == 0, of_teacher.err
    assert (
        json.loads((only(Path("runs", "teacher")) / "evaluation.json").read_text())["coco"]["AP"] is not None
    )
    assert script("defeat-eval", "checkpoint=on/checkpoints/last.ckpt", "name=student").status == 0
    keys = ["format=state_dict", "output=out", "images=1"]
    assert script("defeat-export", "checkpoint=on/checkpoints/last.ckpt", *keys).status == 0
