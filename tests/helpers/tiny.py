"""Overrides that make a run of seconds out of the generated-scenes experiments."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from omegaconf import DictConfig

from defeat.config import compose_config
from tests.helpers.narrow import NARROW

DETECTOR = [
    f"model.backbone={NARROW}",
    "model.fpn_channels=8",
    "model.min_size=64",
    "model.max_size=64",
    "model.box_head_channels=16",
    "model.box_batch_size_per_image=16",
    "model.rpn_batch_size_per_image=32",
]


def tiny(
    run_dir: Path,
    scenes: Path,
    *more: str,
    steps: int = 2,
    measured: bool = False,
    pictured: bool = False,
) -> list[str]:
    """Overrides for +experiment=scenes_* : 64 px, 8 training and 4 validation images, 2 steps."""
    few = ["callbacks.measure.batches=2", "callbacks.measure.adapter_steps=5"]
    return [
        f"run_dir={run_dir}",
        f"data.root={scenes}",
        "data.train.images=8",
        "data.val.images=4",
        "data.train.size=64",
        "data.val.size=64",
        "data.batch_size=4",
        *(f"student.{word}" for word in DETECTOR),
        f"trainer.max_steps={steps}",
        "trainer.val_check_interval=2",
        "trainer.log_every_n_steps=1",
        "callbacks.progress=null",
        "preflight=off",
        *(few if measured else ["callbacks.measure=null"]),
        *([] if pictured else ["callbacks.charts=null", "callbacks.pictures=null"]),
        *more,
    ]


def tiny_teacher(weights: Path) -> list[str]:
    """Overrides that give such a run a teacher of its own size, with twice the channels."""
    sized = [word.replace("fpn_channels=8", "fpn_channels=16") for word in DETECTOR]
    return [*(f"teacher.{word}" for word in sized), f"teacher.weights={weights}"]


PATHS = ("run_dir", "ckpt_path")
"""Keys that are others in nearly every run."""


def tiny_config(experiment: str, words: Sequence[str]) -> DictConfig:
    """Compose an experiment with the words of :func:`tiny`; Hydra once for all that differ in paths alone."""
    paths = {key: value for key, _, value in (word.partition("=") for word in words) if key in PATHS}
    config = copy.deepcopy(_composed(experiment, tuple(w for w in words if w.partition("=")[0] not in PATHS)))
    config.update(paths)
    return config


@cache
def _composed(experiment: str, words: tuple[str, ...]) -> DictConfig:
    return compose_config("train", [f"+experiment={experiment}", "run_dir=x", *words])
