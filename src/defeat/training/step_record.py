"""A training batch with its losses: what is said and filed about it when one of them is not finite."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from defeat.data import DetectionDataModule
from defeat.errors import StorageError
from defeat.io.atomic_write import replacing
from defeat.training.module import DetectionModule
from defeat.types import Batch, Target


class StepRecord(NamedTuple):
    """A batch, its losses, and when they were computed."""

    step: int
    """Optimiser steps done before it."""
    epoch: int
    progress: float
    """Share of the training done before it, in [0, 1]."""
    seed: int
    """The seed of the random numbers that the step drew."""
    learning_rates: list[float]
    batch: Batch
    names: tuple[str, ...]
    """Names of the T losses, and ``loss`` for their sum."""
    values: Tensor
    """(T + 1,) float32, on the device."""

    @classmethod
    def of(cls, module: DetectionModule, batch: Batch) -> StepRecord:
        """Record the step whose forward has just ended; nothing is waited for."""
        groups = [group for optimizer in module.trainer.optimizers for group in optimizer.param_groups]
        return cls(
            step=module.global_step,
            epoch=module.current_epoch,
            progress=module.progress(),
            seed=torch.initial_seed(),
            learning_rates=[group["lr"] for group in groups],
            batch=batch,
            names=tuple(module.last_losses),
            values=torch.stack(list(module.last_losses.values())).float(),
        )

    def not_finite(self) -> list[str]:
        """Names of the losses that are not finite; ``loss`` where it is their sum alone."""
        finite = self.values.isfinite().tolist()
        names = [name for name, fine in zip(self.names, finite, strict=True) if not fine]
        return names[:-1] or names

    def cause(self) -> str | None:
        """Say which losses of this process are not finite; None if those of another process are not."""
        values = dict(zip(self.names, self.values.tolist(), strict=True))
        names = self.not_finite()
        if not names:
            return None
        if names == ["loss"]:
            return f"the sum of the losses is {values['loss']}"
        cause = ", ".join(f"{name} is {values[name]}" for name in names)
        if len(names) == len(values) - 1 > 1:
            cause += " (as all of them: the step before may have spoilt the weights by its gradient)"
        return cause

    def describe(self, trainer: Trainer, cause: str) -> str:
        """Put step, cause, losses, images and learning rates into a line."""
        pairs = zip(self.names, self.values.tolist(), strict=True)
        values = ", ".join(f"{name} {value:.4g}" for name, value in pairs)
        images = ", ".join(map(str, _image_ids(trainer, self.batch.targets)))
        rates = ", ".join(f"{rate:.4g}" for rate in dict.fromkeys(self.learning_rates))
        return (
            f"step {self.step}, epoch {self.epoch}{_of_process(trainer, ', process ')}: {cause}; "
            f"losses {values}; images {images}; learning rate {rates}"
        )

    def save(self, trainer: Trainer, folder: Path) -> str:
        """Write the batch under a name that is free, and say where.

        A file that cannot be written is said too, rather than raised: the training's own error comes first.
        """
        content = {
            "step": self.step,
            "epoch": self.epoch,
            "rank": trainer.global_rank,
            "progress": self.progress,
            "seed": self.seed,
            "losses": dict(zip(self.names, self.values.tolist(), strict=True)),
            "image_ids": _image_ids(trainer, self.batch.targets),
            # copies: a tensor that is part of a larger one would be written with all of it
            "images": [image.cpu().clone() for image in self.batch.images],
            "targets": [
                {name: cast(Tensor, value).cpu().clone() for name, value in target.items()}
                for target in self.batch.targets
            ],
        }
        path = _free_path(folder, f"nonfinite_step{self.step}" + _of_process(trainer, "_rank"))
        try:
            with replacing(path) as part, part.open("wb") as file:
                torch.save(content, file)
        except (StorageError, OSError, RuntimeError) as error:  # torch's writer makes the last of a full disk
            return f"the batch could not be saved: {error}"
        return f"the batch is in {path}"


def _of_process(trainer: Trainer, before: str) -> str:
    """The rank of this process, where there are several."""
    return f"{before}{trainer.global_rank}" if trainer.world_size > 1 else ""


def _image_ids(trainer: Trainer, targets: Sequence[Target]) -> list[int | str]:
    """The annotation file's ids; positions in the data set where the data are no data module of ours."""
    positions = [int(target["index"]) for target in targets]
    data: Any = cast(Any, trainer).datamodule  # set by a connector, so untyped
    if not isinstance(data, DetectionDataModule):
        return list(positions)
    records = data.annotations["train"].records
    return [records[position].image_id for position in positions]


def _free_path(folder: Path, name: str) -> Path:
    """A path where nothing is: a resumed run may come by the same step again."""
    names = chain([name], (f"{name}_{number}" for number in count(2)))
    return next(path for path in (folder / f"{candidate}.pt" for candidate in names) if not path.exists())
