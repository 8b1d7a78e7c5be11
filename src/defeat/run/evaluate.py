"""Evaluation of a detector from files, by the same steps that training validates with."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

import lightning.pytorch as pl
from lightning.pytorch import Callback
from omegaconf import DictConfig

from defeat.config import build, overlay, to_plain
from defeat.data import DetectionDataModule, worker_errors
from defeat.data.checks import crowding_problems, log_problems
from defeat.detectors import WeightFile, read_weights
from defeat.errors import ConfigError
from defeat.evaluation import DEFAULT_MAX_DETS, Evaluation, check_backend, check_max_dets, evaluate_results
from defeat.run.check_trainer import check_trainer_settings
from defeat.run.checkpoint_detector import build_student
from defeat.training.callbacks import KeepPredictions, ProgressBar
from defeat.training.module import DetectionModule
from defeat.types import Annotations, Prediction

Split = Literal["val", "test"]


class Evaluated(NamedTuple):
    """Figures and what they are of."""

    evaluation: Evaluation
    source: str
    annotations: Annotations
    predictions: dict[int, Prediction]
    """Detections by position in ``annotations.records``; empty for a results file."""
    parameters: int
    """Number of the detector's parameters; 0 for a results file."""


@worker_errors()
def evaluate(config: DictConfig) -> Evaluated:
    """Evaluate as configured (conf/eval.yaml).

    Raises:
        DefeatError: anything in the configuration or the files it names that the user can correct.
    """
    if (config.checkpoint is None) == (config.results is None):
        raise ConfigError("give either checkpoint=<weights of a detector> or results=<COCO results JSON>")
    if config.split not in ("val", "test"):
        raise ConfigError(f"split={config.split} is neither val nor test")
    check_trainer_settings(config)
    if config.trainer.get("limit_val_batches") == 0:
        raise ConfigError("trainer.limit_val_batches=0 evaluates nothing: leave it out")
    check_backend(config.evaluation.backend)
    _max_dets(config)
    return _from_results(config) if config.results else _from_checkpoint(config)


def _from_results(config: DictConfig) -> Evaluated:
    if not _names_data(config):
        raise ConfigError("results= needs the ground truth: add data=<name> and data.root=<folder>")
    data: DetectionDataModule = build(config.data)
    annotations = data.ground_truth(config.split)
    most = _max_dets(config)
    log_problems(annotations.source, crowding_problems(annotations, most))
    evaluation = evaluate_results(annotations, Path(config.results), config.evaluation.backend, most)
    return Evaluated(evaluation, str(config.results), annotations, {}, 0)


def _from_checkpoint(config: DictConfig) -> Evaluated:
    file = read_weights(config.checkpoint, download=config.download, ema=config.ema)
    data = evaluation_data(config, file)
    student = build_student(file, data.classes, node=config.student)
    most = _max_dets(config, file)
    module = DetectionModule(student, data.classes, backend=config.evaluation.backend, max_dets=most)
    annotations = data.read(config.split)
    log_problems(annotations.source, crowding_problems(annotations, most))
    keeper = KeepPredictions()
    trainer = _trainer(config, file, [keeper])
    loader = data.val_dataloader() if config.split == "val" else data.test_dataloader()
    trainer.validate(module, dataloaders=loader, verbose=False, weights_only=True)
    assert module.evaluation is not None
    return Evaluated(
        module.evaluation,
        str(config.checkpoint),
        annotations,
        keeper.predictions,
        sum(p.numel() for p in student.parameters()),
    )


def _names_data(config: DictConfig) -> bool:
    """Whether a data set was chosen, rather than single keys of the checkpoint's, such as data.root."""
    return config.data is not None and "_target_" in config.data


def _max_dets(config: DictConfig, file: WeightFile | None = None) -> int:
    """Return what is configured; else what the checkpoint was validated with; else COCO's number."""
    trained = file.config.get("evaluation") if file and file.config else None
    in_training = trained.get("max_dets") if isinstance(trained, dict) else None
    given = config.evaluation.max_dets
    chosen = next((n for n in (given, in_training) if n is not None), DEFAULT_MAX_DETS)
    return check_max_dets(chosen)


def evaluation_data(config: DictConfig, file: WeightFile) -> DetectionDataModule:
    """Make the data module of ``data=NAME``, or that of a checkpoint's training with single keys changed.

    Args:
        config: with ``checkpoint`` and ``data``.
        file: the content of the checkpoint, whose classes and division of the data are kept.

    Raises:
        ConfigError: no data set was chosen, and the checkpoint does not name one.
    """
    node = config.data
    if not _names_data(config):
        changes = {} if node is None else {key: x for key, x in to_plain(node).items() if x is not None}
        stored = file.node("data", "data=<name>")
        node = stored and overlay(stored, changes)
    if node is None:
        raise ConfigError(
            f"{config.checkpoint} does not say what data it is for: add data=<name> and data.root=<folder>"
        )
    # The checkpoint's classes in its order, so that labels mean the same and training data need not be read.
    extra: dict[str, Any] = {} if file.classes is None else {"classes": list(file.classes)}
    data: DetectionDataModule = build(node, **extra)
    if file.divided and data.division:
        take = data.division.take_if_there if _names_data(config) else data.division.take
        take(file.divided)
    return data


def _trainer(config: DictConfig, file: WeightFile, callbacks: list[Callback]) -> pl.Trainer:
    if config.trainer.get("enable_progress_bar", True):
        callbacks = [*callbacks, ProgressBar()]
    trained = (file.config or {}).get("trainer") or {}
    precision = config.trainer.precision or trained.get("precision") or "32-true"
    trainer: pl.Trainer = build(
        config.trainer,
        precision=precision,
        logger=False,
        callbacks=callbacks,
        enable_checkpointing=False,
    )
    if trainer.world_size > 1:
        raise ConfigError("an evaluation runs on one device: set trainer.devices=1")
    return trainer
