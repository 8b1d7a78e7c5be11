"""Evaluation of a detector from files, by the same steps that training validates with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import lightning.pytorch as pl
from lightning.pytorch import Callback
from omegaconf import DictConfig

from defeat.config import build
from defeat.data import DetectionDataModule, worker_errors
from defeat.detectors import Detector, WeightFile, load_detector_weights, read_weights
from defeat.errors import ConfigError
from defeat.evaluation import Evaluation, check_backend, evaluate_results
from defeat.training.callbacks import KeepPredictions
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
    check_backend(config.evaluation.backend)
    return _from_results(config) if config.results else _from_checkpoint(config)


def _from_results(config: DictConfig) -> Evaluated:
    if config.data is None:
        raise ConfigError("results= needs the ground truth: add data=<name> and data.root=<folder>")
    data: DetectionDataModule = build(config.data)
    annotations = data.ground_truth(config.split)
    evaluation = evaluate_results(annotations, Path(config.results), config.evaluation.backend)
    return Evaluated(evaluation, str(config.results), annotations, {}, 0)


def _from_checkpoint(config: DictConfig) -> Evaluated:
    file = read_weights(config.checkpoint, download=config.download, ema=config.ema)
    data = _data(config, file)
    detector = _detector(config, file, data.classes)
    load_detector_weights(detector.model, file, classes=data.classes)
    module = DetectionModule(detector.model, data.classes, backend=config.evaluation.backend)
    annotations = data.read(config.split)
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
        sum(p.numel() for p in detector.model.parameters()),
    )


def _data(config: DictConfig, file: WeightFile) -> DetectionDataModule:
    node = config.data if config.data is not None else file.node("data", "data=<name>")
    if node is None:
        raise ConfigError(
            f"{config.checkpoint} does not say what data it is for: add data=<name> and data.root=<folder>"
        )
    # The checkpoint's classes in its order, so that labels mean the same and training data need not be read.
    extra: dict[str, Any] = {} if file.classes is None else {"classes": list(file.classes)}
    data: DetectionDataModule = build(node, **extra)
    return data


def _detector(config: DictConfig, file: WeightFile, classes: Sequence[str]) -> Detector:
    node = config.student
    if node is None:
        node = file.node("student", "detector@student=<name>")
        if node is None:
            raise ConfigError(
                f"{config.checkpoint} holds weights alone: say of which detector, detector@student=<name>"
            )
        node = {**node, "ema": None}  # said of the weights that its training started from
    # Everything comes from the checkpoint; what the training started from need not exist any more.
    detector: Detector = build(node, classes=list(classes), weights=None, backbone_weights=None)
    return detector


def _trainer(config: DictConfig, file: WeightFile, callbacks: list[Callback]) -> pl.Trainer:
    trained = (file.config or {}).get("trainer") or {}
    precision = config.trainer.precision or trained.get("precision") or "32-true"
    trainer: pl.Trainer = build(
        config.trainer, precision=precision, logger=False, callbacks=callbacks, enable_checkpointing=False
    )
    if trainer.world_size > 1:
        raise ConfigError("an evaluation runs on one device: set trainer.devices=1")
    return trainer
