"""The progress bar, and what it may read of a GPU."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from defeat.config import compose_config
from defeat.run.train import train
from defeat.training.callbacks.progress import ProgressBar, _free_to_read
from tests.helpers.tiny import tiny


@pytest.mark.parametrize(
    ("device", "step", "every", "free"),
    [("cuda", 10, 10, True), ("cuda", 11, 10, False), ("cuda", 10, 0, False), ("cpu", 11, 10, True)],
)
def test_the_bar_reads_a_gpus_losses_where_they_are_logged(
    device: str, step: int, every: int, free: bool
) -> None:
    trainer = cast(Trainer, SimpleNamespace(global_step=step, log_every_n_steps=every))
    assert _free_to_read(trainer, torch.device(device)) == free


class Shown(ProgressBar):
    """Keeps what it shows."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[dict[str, Any]] = []

    def get_metrics(self, trainer: Any, pl_module: Any) -> dict[str, Any]:
        self.shown.append(super().get_metrics(trainer, pl_module))
        return self.shown[-1]


def test_the_bar_shows_the_losses_the_speed_and_the_last_ap(scenes: Path, tmp_path: Path) -> None:
    bar = Shown()
    words = tiny(tmp_path, scenes, "~logger", steps=3)
    outcome = train(compose_config("train", ["+experiment=scenes_plain", *words]), [bar])
    last = bar.shown[-1]
    assert {"loss", "loss_detection", "images_per_s", "val/AP", "left"} <= set(last)
    assert last["loss"] == outcome.metrics["train/loss"]
    assert last["images_per_s"] == outcome.metrics["train/images_per_s"]
    assert not any(isinstance(value, Tensor) for value in last.values())
