"""A callback that a run on the command line can be given, to tell what it trained on."""

from __future__ import annotations

import json
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from defeat.types import Batch


class SeenImages(Callback):
    """Write the images of each training batch: lines of [step, indices], in a file of each process."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        seen = [trainer.global_step, [int(target["index"]) for target in batch.targets]]
        with (self.folder / f"{trainer.global_rank}.jsonl").open("a") as file:
            file.write(json.dumps(seen) + "\n")


def global_batches(folder: Path) -> dict[int, list[int]]:
    """Images of each step over all processes, in ascending order."""
    batches: dict[int, list[int]] = {}
    for path in folder.glob("*.jsonl"):
        for line in path.read_text().splitlines():
            step, images = json.loads(line)
            batches[step] = sorted([*batches.get(step, []), *images])
    return batches
