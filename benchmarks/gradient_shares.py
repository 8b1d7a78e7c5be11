"""Shares of the detection loss's gradient that a distillation's losses have while it trains.

    python benchmarks/gradient_shares.py +experiment=scenes
    python benchmarks/gradient_shares.py +experiment=scenes distiller.balance=gradient distiller.share=0.5

The test of what is measured before the training (docs/loss-weights.md): the same four batches again after 20,
50 and 100 steps, with student and adapters as they are then.
"""

from __future__ import annotations

import sys
import tempfile
from itertools import islice
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from defeat.config import build, compose_config
from defeat.run.train import train
from defeat.training.loss_gradients import DETECTION, measure
from defeat.training.module import DetectionModule
from defeat.types import Batch
from defeat.warning_filters import filter_warnings

STEPS = (20, 50, 100)


class Shares(Callback):
    """Measure at some steps, and keep the shares by loss."""

    def __init__(self, batches: list[Batch]) -> None:
        self.batches = batches
        self.found: dict[str, list[float]] = {}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Measure with the adapters as they are: these have learned with the student."""
        if trainer.global_step not in STEPS:
            return
        assert isinstance(pl_module, DetectionModule)
        distiller = pl_module.distiller
        found = measure(
            pl_module,
            self.batches,
            adapter_steps=0,
            adapter_rate=1e-3,
            device=torch.device("cpu"),
        )
        for loss, (maps, strides) in distiller.gradient_sites.items():
            own, detection = (found.norm(found.start[name], maps, strides) for name in (loss, DETECTION))
            self.found.setdefault(loss, []).append(own / detection)


def main() -> None:
    filter_warnings()
    with tempfile.TemporaryDirectory() as folder:
        fixed = ["~logger", f"trainer.max_steps={STEPS[-1]}", "trainer.val_check_interval=1000"]
        fixed += [
            f"callbacks.{name}=null" for name in ("checkpoint", "last", "detections", "progress", "speed")
        ]
        words = [*sys.argv[1:], f"run_dir={folder}", *fixed]
        config = compose_config("train", words)
        data = build(config.data)
        data.setup("fit")
        shares = Shares(list(islice(data.train_dataloader(), config.callbacks.measure.batches)))
        train(config, [shares])
    print("| loss |", " | ".join(f"{step} steps" for step in STEPS), "|")
    for loss, values in shares.found.items():
        print(f"| {loss} |", " | ".join(f"{value:.2g}" for value in values), "|")


if __name__ == "__main__":
    main()
