"""The callback that measures a distilled run before it begins, says what it found, and sets weights."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from itertools import islice
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from rich.console import Console
from torch.utils.data import DataLoader

from defeat.config import write_config
from defeat.distill import Distiller
from defeat.errors import ConfigError
from defeat.io.atomic_write import write_text
from defeat.io.text import counted
from defeat.training.balance import balanced_weights, with_weights
from defeat.training.gradient_tables import (
    as_csv,
    chart,
    figures,
    gradient_shares,
    gradient_tables,
    strong_losses,
    weight_table,
)
from defeat.training.loggers import trackers
from defeat.training.loss_gradients import Measurement, measure, precision_of
from defeat.training.module import DetectionModule
from defeat.types import Batch

log = logging.getLogger(__name__)


class MeasureGradients(Callback):
    """Measure every loss on the first training batches, print and file it; balance, if the distiller asks.

    Nothing is measured without a distiller, nor in a run that is resumed, which was measured at its start.
    One process measures and all take its weights. The training itself begins as it would have begun: nothing
    of it is touched, neither weights nor statistics nor any random number.

    Weights that a balance sets are written into the run's configuration, that of the checkpoints and
    ``config.yaml``, so that it can be run again with these.

    Args:
        folder: the run's; ``gradients.md`` and ``gradients.csv`` go here. Loggers get the share of each loss
            in the gradient, with the weights that the run begins with, as ``gradient_share/...``; those
            that show pictures also get a chart.
        batches: of the first process, as its training draws them.
        adapter_steps: steps by which copies of the adapters are fitted before the second measurement, see
            :func:`~defeat.training.loss_gradients.measure`; 0 measures the adapters as they are.
        adapter_rate: learning rate of that. Adapters that end in a ReLU die of much more than 1e-3.

    Raises:
        ConfigError: a number makes no sense; from the fit, if weights cannot be balanced.
    """

    def __init__(
        self,
        folder: str,
        *,
        batches: int,
        adapter_steps: int,
        adapter_rate: float,
    ) -> None:
        if batches < 1 or adapter_steps < 0 or adapter_rate <= 0:
            raise ConfigError(
                "callbacks.measure: batches must be at least 1, adapter_steps at least 0 and adapter_rate "
                f"positive, got {batches}, {adapter_steps} and {adapter_rate}"
            )
        self.folder = Path(folder)
        self.batches = batches
        self.adapter_steps = adapter_steps
        self.adapter_rate = adapter_rate

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Measure, in the first process alone."""
        assert isinstance(pl_module, DetectionModule)
        distiller = pl_module.distiller
        if stage != "fit" or distiller is None or trainer.ckpt_path is not None:
            return
        result = self._measure(trainer, pl_module, distiller) if trainer.is_global_zero else None
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.empty_cache()  # the training begins with all of the memory
        # Two devices never measure quite the same: all processes take the first one's weights, or its error.
        weights: dict[str, float] | str | None = trainer.strategy.broadcast(result)
        if isinstance(weights, str):
            raise ConfigError(weights)
        if weights:
            distiller.set_weights(weights)
            self._record(trainer, pl_module, {distiller.key(name): w for name, w in weights.items()})

    def _record(self, trainer: Trainer, module: DetectionModule, weights: Mapping[str, float]) -> None:
        if "config" in module.provenance:
            module.provenance["config"] = with_weights(module.provenance["config"], weights)
            if trainer.is_global_zero:
                write_config(self.folder, module.provenance["config"])

    def _measure(
        self, trainer: Trainer, module: DetectionModule, distiller: Distiller
    ) -> dict[str, float] | str | None:
        """Measure and report; return balanced weights if they are asked for, or why there are none."""
        started = time.perf_counter()
        # The first line of a run that may need minutes for this on a CPU.
        log.info(
            "measuring the gradients of %s on %s, and after %s of the adapters",
            counted(len(distiller.weights), "losses"),
            counted(self.batches, "batches"),
            counted(self.adapter_steps, "steps"),
        )
        measured = measure(
            module,
            self._first_batches(trainer),
            adapter_steps=self.adapter_steps,
            adapter_rate=self.adapter_rate,
            device=trainer.strategy.root_device,
            precision=precision_of(trainer),
        )
        weights = None
        failed = None
        if distiller.balance == "gradient":
            try:
                weights = balanced_weights(distiller, measured)
            except ConfigError as error:
                failed = str(error)
        self._report(trainer, distiller, measured, weights, time.perf_counter() - started)
        return failed or weights

    def _first_batches(self, trainer: Trainer) -> list[Batch]:
        loader: DataLoader[Batch] = trainer.datamodule.train_dataloader()  # type: ignore[attr-defined]
        with isolate_rng():  # a loader draws a seed for its workers
            return list(islice(loader, self.batches))

    def _report(
        self,
        trainer: Trainer,
        distiller: Distiller,
        measured: Measurement,
        weights: Mapping[str, float] | None,
        seconds: float,
    ) -> None:
        title = (
            f"Losses on {counted(measured.images, 'images')} ({counted(measured.batches, 'batches')}), "
            f"adapters fitted for {counted(self.adapter_steps, 'steps')}, {seconds:.1f} s"
        )
        found = list(figures(measured, distiller))
        tables = gradient_tables(measured, distiller)
        words = "\n".join(f"{cause}: {remedy}" for cause, remedy in strong_losses(measured, distiller))
        if weights is not None:
            tables.append(weight_table(measured, distiller, weights))
            fixed = " ".join(f"{distiller.key(name)}={weight:g}" for name, weight in weights.items())
            words = f"distiller.balance=gradient has set the weights. The same run with these fixed: {fixed}"
        console = Console()
        console.print(title, highlight=False)
        for table in tables:
            console.print(table.as_rich(), highlight=False)
        if words:
            console.print(words, highlight=False, soft_wrap=True)
        text = "\n".join(
            [
                title,
                "",
                *(f"**{table.title}**\n\n{table.as_markdown()}" for table in tables),
                *([words, ""] if words else []),
            ]
        )
        write_text(self.folder / "gradients.md", text)
        write_text(self.folder / "gradients.csv", as_csv(found))
        for tracker in trackers(trainer):
            tracker.show_figure("gradients", chart(found), 0)
        changed = {name: weight / distiller.weights[name] for name, weight in (weights or {}).items()}
        shares = {
            f"gradient_share/{name}": share * changed.get(name, 1.0)
            for name, share in gradient_shares(measured, distiller).items()
        }
        for logger in trainer.loggers:
            logger.log_metrics(shares, step=0)
