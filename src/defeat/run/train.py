"""One training run from its configuration: the main path of the project, top to bottom."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import lightning.pytorch as pl
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig

from defeat.config import build, build_factory, to_plain
from defeat.data import DetectionDataModule
from defeat.detectors import Detector
from defeat.distill import Distiller
from defeat.errors import ConfigError
from defeat.evaluation import Evaluation, check_backend
from defeat.preflight import Preflight, Subject
from defeat.run.checkpoint_io import SafeCheckpointIO
from defeat.run.hardware import (
    keep_freed_memory,
    laid_like_parameters,
    lay_channels_last,
    set_hardware,
)
from defeat.run.loss_weights import changed_weights, checkpoint_weights, fix_weights
from defeat.run.prepare_teacher import prepare_teacher
from defeat.run.provenance import check_no_run, write_config, write_record
from defeat.run.resume import check_same, find_checkpoint, take_over
from defeat.training.callbacks.exact_resume import ExactResume
from defeat.training.callbacks.measure_gradients import MeasureGradients
from defeat.training.module import DetectionModule

log = logging.getLogger(__name__)


class Outcome(NamedTuple):
    """What a run ended with."""

    run_dir: Path
    metrics: dict[str, float]
    """The last logged value of everything, under the logged names."""
    best: Path | None
    """Checkpoint with the best validation AP."""
    best_score: float
    """Its AP; nan where there was no validation."""
    evaluation: Evaluation | None
    """Of the last validation."""
    seconds: float
    """Wall time of the fit, validation included, without the measurement of gradients before it."""
    steps: int
    parameters: int
    """Of the student, frozen ones included."""


def train(config: DictConfig, callbacks: Sequence[pl.Callback] = ()) -> Outcome:
    """Train as configured (conf/train.yaml) and file everything under ``config.run_dir``.

    Args:
        config: composed from conf/train.yaml.
        callbacks: further ones, beside the configured.

    Raises:
        DefeatError: anything in the configuration or the files it names that the user can mend.
    """
    config = copy.deepcopy(config)  # weights may be written into it
    run_dir = Path(config.run_dir)
    # Further processes find what the first one has begun.
    if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
        check_no_run(run_dir)
    _check_teacher(config)
    _check_precision(config)
    check_backend(config.evaluation.backend)
    set_hardware(config)
    checkpoint = find_checkpoint(
        config.ckpt_path, Path(config.output_root) / config.name, run_dir, swept=_in_sweep()
    )
    if checkpoint and config.distiller is not None:
        _keep_weights(config, checkpoint)
    _check_measure(config)
    preflight = _preflight(config, resumed=checkpoint is not None)
    pl.seed_everything(config.seed, workers=True, verbose=False)
    data: DetectionDataModule = build(config.data)
    data.setup("fit")
    student: Detector = build(config.student, classes=list(data.classes))
    teacher, distiller = _teacher(config, data.classes, student)
    if config.channels_last:
        lay_channels_last(student.model, distiller)
    provenance: dict[str, Any] = {
        "config": to_plain(config),
        "class_ids": list(data.class_ids),
        "teacher": {"source": teacher.source, "sha256": teacher.digest} if teacher else None,
        "data": data.fingerprints(),
    }
    measuring = _measuring(config, provenance["config"], resumed=checkpoint is not None)
    trainer = _trainer(config, [*measuring, *callbacks])
    _refuse_sweep_of_processes(trainer)
    _check_lengths(trainer)
    provenance["order"] = data.order(trainer.world_size)
    if checkpoint:
        check_same(checkpoint, {**provenance, "classes": list(data.classes)}, force=config.force_resume)
    # Not before the annotations are read, whose file takes more memory than what is kept of it.
    if config.keep_freed_memory:
        keep_freed_memory()
    frozen_teacher = (
        prepare_teacher(teacher, student.model, data, trainer.strategy.root_device) if teacher else None
    )
    module = DetectionModule(
        student.model,
        data.classes,
        optimizer=laid_like_parameters(build_factory(config.optim.optimizer)),
        rate=build_factory(config.optim.rate),
        seed=config.seed,
        teacher=frozen_teacher,
        distiller=distiller,
        nonfinite=build(config.nonfinite),
        provenance=provenance,
        backend=config.evaluation.backend,
    )
    if trainer.is_global_zero:
        write_record(run_dir, config, data)
        if checkpoint:
            take_over(checkpoint, run_dir)
    if preflight and trainer.is_global_zero:
        preflight(Subject(module, data, trainer, student, teacher, provenance["config"]))
    if preflight and preflight.only:
        return _outcome(run_dir, trainer, module, 0.0)
    # After the checks, whose batches have other shapes than those of the training.
    if teacher and frozen_teacher and teacher.compile:
        frozen_teacher.compile_backbone(teacher.compile)
    # Building a teacher and adapters drew random numbers: start the training itself from the seed again, so
    # that a distilled run and its baseline begin alike.
    pl.seed_everything(config.seed, workers=True, verbose=False)
    started = time.perf_counter()
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    seconds = time.perf_counter() - started - sum(callback.seconds for callback in measuring)
    return _outcome(run_dir, trainer, module, seconds)


def _check_teacher(config: DictConfig) -> None:
    """Before any data is read: that can take minutes."""
    if config.distiller is None:
        if config.teacher is not None:
            raise ConfigError(
                "a teacher is chosen but no distiller, so it would teach nothing: add distiller=defeat"
            )
        return
    if config.teacher is None:
        raise ConfigError(
            "a distiller is chosen but no teacher: add detector@teacher=... and teacher.weights=..."
        )
    if config.teacher.get("weights") is None:
        raise ConfigError(
            "teacher.weights is not set, and an untrained teacher teaches nothing: "
            "add teacher.weights=<checkpoint of a trained teacher>"
        )


def _check_precision(config: DictConfig) -> None:
    precision = str(config.trainer.precision)
    if precision in ("16-true", "bf16-true", "16", "bf16"):
        mixed = precision.removesuffix("-true")
        raise ConfigError(
            f"trainer.precision={precision}: torchvision selects boxes (NMS) in float32 alone; "
            f"take {mixed}-mixed"
        )
    if config.student.get("precision") is not None:
        raise ConfigError(
            f"student.precision={config.student.precision} is for teachers alone: leave it null, a student "
            "computes in trainer.precision"
        )


def _check_lengths(trainer: pl.Trainer) -> None:
    """Refuse what takes the order of the images, or exact checkpoints, away."""
    if cast(Any, trainer).overfit_batches:  # set by a connector, so untyped
        raise ConfigError(
            "trainer.overfit_batches replaces the order of the images: use data.limit_train=<images>"
        )
    interval, accumulated = trainer.val_check_interval, trainer.accumulate_grad_batches
    if isinstance(interval, int) and interval % accumulated:
        raise ConfigError(
            f"trainer.val_check_interval={interval} is no multiple of trainer.accumulate_grad_batches="
            f"{accumulated}: validations would fall into the middle of a step, where nothing can be saved"
        )


def _check_measure(config: DictConfig) -> None:
    if (
        config.measure is None
        and config.distiller is not None
        and config.distiller.get("balance") == "gradient"
    ):
        raise ConfigError(
            "distiller.balance=gradient needs the measurement that measure=null leaves out: drop one of them"
        )


def _teacher(
    config: DictConfig, classes: Sequence[str], student: Detector
) -> tuple[Detector | None, Distiller | None]:
    if config.distiller is None:
        return None, None
    teacher: Detector = build(config.teacher, classes=list(classes))
    distiller: Distiller = build(
        config.distiller, student=student.model, teacher=teacher.model, _partial_=False
    )
    if not teacher.whole and distiller.needs_teacher_head:
        raise ConfigError(
            "the teacher's classification head is new (teacher.new_head=true) and has nothing to teach: "
            "leave the head term out with ~distiller.terms.head"
        )
    return teacher, distiller


def _keep_weights(config: DictConfig, checkpoint: Path) -> None:
    """A resumed run keeps the weights that were balanced at its start, and others never go unmentioned."""
    if config.distiller.get("balance") == "gradient":
        weights = checkpoint_weights(config, checkpoint)
        fix_weights(config, weights)
        log.info("the loss weights are those of %s: %s", checkpoint, weights)
    elif changed := list(changed_weights(config, checkpoint)):
        log.warning("loss weights differ from those of %s: %s", checkpoint, ", ".join(changed))


def _preflight(config: DictConfig, *, resumed: bool) -> Preflight | None:
    """The checks of a distilled run before it begins, or of any run where nothing else is to be done."""
    if not config.preflight:
        return None
    preflight: Preflight = build(config.preflight)()
    return preflight if preflight.only or (config.distiller is not None and not resumed) else None


def _measuring(config: DictConfig, recorded: dict[str, Any], *, resumed: bool) -> list[MeasureGradients]:
    """The callback that measures the losses at the start of a distilled run.

    Args:
        recorded: the configuration as checkpoints hold it.
        resumed: this run started elsewhere, and was measured there.
    """
    if config.distiller is None or config.measure is None or resumed:
        return []

    def adopt(weights: Mapping[str, float]) -> None:
        fix_weights(config, weights)
        recorded["distiller"] = to_plain(config)["distiller"]
        rank_zero_only(write_config)(Path(config.run_dir), config)

    return [build(config.measure)(on_weights=adopt)]


def _trainer(config: DictConfig, more: Sequence[pl.Callback]) -> pl.Trainer:
    loggers = [build(node) for node in (config.logger or {}).values() if node]
    callbacks = [build(node) for node in (config.callbacks or {}).values() if node] + list(more)
    if not loggers:
        callbacks = [c for c in callbacks if not isinstance(c, pl.callbacks.LearningRateMonitor)]
    exact = ExactResume(loggers, new_settings=config.force_resume)
    trainer: pl.Trainer = build(
        config.trainer,
        logger=[*loggers, exact.recorder] if loggers else False,
        callbacks=[exact, *callbacks],
        enable_checkpointing=any(isinstance(c, Checkpoint) for c in callbacks),  # none of Lightning's own
        plugins=[SafeCheckpointIO(), *_slurm()],
    )
    return trainer


def _slurm() -> list[SLURMEnvironment]:
    """Lightning's, without its own requeueing, which resumes from the folder of the run that was stopped.

    A plugin that is given is used whatever started the processes, so it is given for SLURM's own alone.
    """
    started = SLURMEnvironment.detect() and not TorchElasticEnvironment.detect()
    return [SLURMEnvironment(auto_requeue=False)] if started else []


def _in_sweep() -> bool:
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def _refuse_sweep_of_processes(trainer: pl.Trainer) -> None:
    """Lightning starts further processes by the same command line: each would begin the sweep again.

    Lightning issues 11300 and 18175: outputs double, or the processes wait for each other for ever. Processes
    that SLURM has started are there already.
    """
    environment = getattr(trainer.strategy, "cluster_environment", None)
    outside = environment is not None and environment.creates_processes_externally
    if trainer.world_size > 1 and not outside and _in_sweep():
        raise ConfigError(
            "a sweep (-m) cannot start runs of several processes on this machine: give each value a command "
            "of its own, sweep on SLURM (hydra/launcher=slurm), or with trainer.devices=1"
        )


def _outcome(run_dir: Path, trainer: pl.Trainer, module: DetectionModule, seconds: float) -> Outcome:
    keeper = next((c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)), None)
    best = Path(keeper.best_model_path) if keeper and keeper.best_model_path else None
    score = keeper.best_model_score if keeper else None
    return Outcome(
        run_dir=run_dir,
        metrics={name: float(value) for name, value in trainer.callback_metrics.items()},
        best=best,
        best_score=math.nan if score is None else float(score),
        evaluation=module.evaluation,
        seconds=seconds,
        steps=trainer.global_step,
        parameters=sum(p.numel() for p in module.student.parameters()),
    )
