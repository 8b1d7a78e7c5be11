"""One training run from its configuration: the main path of the project, top to bottom."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import DictConfig

from defeat.config import build
from defeat.data import worker_errors
from defeat.evaluation import Evaluation
from defeat.preflight import Preflight
from defeat.run.build import build_run
from defeat.run.look_at_data import look_at_data
from defeat.run.provenance import write_record
from defeat.run.resume import take_over
from defeat.training.loggers import trackers
from defeat.training.run import Run


class Outcome(NamedTuple):
    """The end of a run."""

    run_dir: Path
    metrics: dict[str, float]
    """The last logged value of everything, under the logged names."""
    best: Path | None
    """Checkpoint with the best validation AP."""
    best_score: float
    """Its AP; nan where there was no validation, or nothing to find in it."""
    evaluation: Evaluation | None
    """Result of the last validation."""
    seconds: float
    """Wall time of the fit, validation included, without the measurement of gradients before it."""
    steps: int
    stopped_early: bool
    """Whether the training ended before its planned steps, as early stopping has it."""
    parameters: int
    """Number of the student's parameters, frozen ones included."""
    viewers: Sequence[str]
    """Commands or addresses that show the curves, one for each logger that has one."""


@worker_errors()
def train(config: DictConfig, callbacks: Sequence[pl.Callback] = (), *, swept: bool = False) -> Outcome:
    """Train as configured (conf/train.yaml) and file everything under ``config.run_dir``.

    Args:
        config: composed from conf/train.yaml.
        callbacks: further ones, beside the configured.
        swept: the run is a job of a sweep.

    Raises:
        DefeatError: anything in the configuration or the files it names that the user can correct.
    """
    preflight: Preflight | None = build(config.preflight) if config.preflight else None
    clock = _Clock()
    run = build_run(config, [*callbacks, clock], swept=swept)
    if run.trainer.is_global_zero:
        _begin(run, preflight)
    if preflight and preflight.only:
        return _outcome(run, 0.0)
    # After the checks, whose batches have other shapes than those of the training.
    if run.distillation and run.distillation.teacher.compile:
        run.distillation.frozen_teacher.compile_backbone(run.distillation.teacher.compile)
    # Building a teacher and adapters drew random numbers: start the training itself from the seed again, so
    # that a distilled run and its baseline begin alike.
    pl.seed_everything(config.seed, workers=True, verbose=False)
    run.trainer.fit(run.module, datamodule=run.data, weights_only=True)
    return _outcome(run, time.perf_counter() - clock.started)


class _Clock(pl.Callback):
    """Notes when the training begins: after what callbacks do in their set-up, such as measuring."""

    started = math.nan

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.started = time.perf_counter()


def _begin(run: Run, preflight: Preflight | None) -> None:
    """Look at the data, record the run, and check it unless it goes on from another one."""
    look_at_data(run, strict=preflight is not None)
    write_record(run)
    if run.checkpoint:
        take_over(run.checkpoint, run.run_dir)
    if preflight and (preflight.only or (run.distillation and not run.checkpoint)):
        preflight(run)


def _outcome(run: Run, seconds: float) -> Outcome:
    trainer = run.trainer
    keeper = next((c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)), None)
    best = Path(keeper.best_model_path) if keeper and keeper.best_model_path else None
    score = keeper.best_model_score if keeper else None
    return Outcome(
        run_dir=run.run_dir,
        metrics={name: float(value) for name, value in trainer.callback_metrics.items()},
        best=best,
        # a validation without objects has no AP, for which Lightning keeps -inf
        best_score=float(score) if score is not None and score.isfinite() else math.nan,
        evaluation=run.module.evaluation,
        seconds=seconds,
        steps=trainer.global_step,
        stopped_early=trainer.should_stop and trainer.global_step < trainer.estimated_stepping_batches,
        parameters=sum(p.numel() for p in run.module.student.parameters()),
        viewers=[viewer for tracker in trackers(trainer) if (viewer := tracker.viewer())],
    )
