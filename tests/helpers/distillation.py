"""A distillation on one picture, and everything that a training of it would build."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from omegaconf import DictConfig
from PIL import Image

from defeat.config import build, build_factory, compose_config, to_plain
from defeat.data import DetectionDataModule
from defeat.detectors import Detector

SHRUNK = (
    "backbone=resnet10",
    "fpn_channels=8",
    "box_head_channels=8",
    "returned_layers=[1]",
    "anchor_sizes=null",
)


@cache
def distiller_config(name: str, *overrides: str) -> DictConfig:
    """The distiller that ``distiller=NAME`` on the command line makes. Not to be changed."""
    config: DictConfig = compose_config("train", [f"distiller={name}", "run_dir=x", *overrides]).distiller
    return config


def distillation(root: Path) -> list[str]:
    """Words of a distillation on one picture, which is put into ``root``."""
    Image.new("RGB", (60, 40)).save(root / "a.jpg")
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 60, "height": 40}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9]}],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (root / "a.json").write_text(json.dumps(content))
    splits = [
        f"data.{split}.{key}"
        for split in ("train", "val")
        for key in ("annotation_file=a.json", "image_root=.")
    ]
    return [
        "detector@student=scenes_student",
        "detector@teacher=scenes_student",
        "distiller=neck_cls",
        "optim=adamw",
        f"data.root={root}",
        "data.num_workers=0",
        f"run_dir={root / 'run'}",
        *splits,
        *(f"{role}.model.{word}" for role in ("student", "teacher") for word in SHRUNK),
    ]


def build_all(config: DictConfig) -> None:
    """Everything that a training builds before its first step, by the functions it is built with."""
    to_plain(config)
    data: DetectionDataModule = build(config.data)
    data.setup("fit")
    student: Detector = build(config.student, classes=list(data.classes))
    if config.distiller is not None and config.teacher is not None:
        teacher: Detector = build(config.teacher, classes=list(data.classes))
        build(config.distiller, student=student.model, teacher=teacher.model)
    optimizer = build_factory(config.optim.optimizer)(student.model.parameters())
    build_factory(config.optim.lr_schedule)(optimizer, total_steps=100, steps_per_epoch=10)
    nodes: list[Any] = [*(config.logger or {}).values(), *(config.callbacks or {}).values()]
    built = [build(node) for node in nodes if node]
    callbacks = [part for part in built if isinstance(part, Callback)]
    build(config.trainer, logger=False, callbacks=callbacks)
    torch.manual_seed(0)
