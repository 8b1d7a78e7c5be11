"""Refuse a configuration that cannot be trained, before anything is read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from defeat.config import check_no_secrets, to_plain
from defeat.errors import ConfigError
from defeat.evaluation import COCO_KEYS, VOC_KEYS, check_backend, check_max_dets
from defeat.io.text import few
from defeat.run.check_trainer import check_trainer_settings
from defeat.run.hardware import check_hardware
from defeat.run.provenance import check_no_run
from defeat.training.metric_names import class_metric


def check_config(config: DictConfig) -> None:
    """Refuse settings that contradict each other, and a folder that holds a run already.

    Args:
        config: composed from conf/train.yaml.

    Raises:
        ConfigError: says which keys to change.
    """
    # Further processes find what the first one has begun.
    if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
        check_no_run(Path(config.run_dir))
    check_no_secrets(to_plain(config)["logger"])
    check_trainer_settings(config)
    if not 0 <= config.seed < 2**32:
        raise ConfigError(f"seed={config.seed} must be a whole number from 0 to {2**32 - 1}")
    _check_teacher(config)
    _check_precision(config)
    _check_callbacks(config)
    check_metrics(config)
    check_backend(config.evaluation.backend)
    check_max_dets(config.evaluation.max_dets)
    check_hardware(config)


def _check_teacher(config: DictConfig) -> None:
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


def _check_callbacks(config: DictConfig) -> None:
    balanced = OmegaConf.select(config, "distiller.balance") == "gradient"
    if balanced and OmegaConf.select(config, "callbacks.measure") is None:
        raise ConfigError(
            "distiller.balance=gradient needs the measurement that callbacks.measure=null leaves out: "
            "drop one of them"
        )
    if config.ckpt_path is not None and OmegaConf.select(config, "callbacks.resume") is None:
        raise ConfigError(
            f"ckpt_path={config.ckpt_path} cannot be resumed without callbacks.resume: leave it in"
        )
    for name, node in (config.callbacks or {}).items():
        if OmegaConf.is_dict(node) and str(node.get("_target_")).endswith(
            ("BatchSizeFinder", "LearningRateFinder")
        ):
            raise ConfigError(
                f"callbacks.{name}: Lightning's finders set attributes that this module does not have: try "
                "values by a sweep, such as -m optim.optimizer.lr=0.005,0.01,0.02"
            )


def check_metrics(config: DictConfig, classes: Sequence[str] | None = None) -> None:
    """Refuse misspelt metrics before the training rather than after it: ``optimized_metric`` and monitors.

    Callbacks from elsewhere may log metrics of their own; where there is one, nothing is refused.

    Args:
        config: composed from conf/train.yaml.
        classes: K class names; None where they are not known yet.

    Raises:
        ConfigError: with the key, and the metrics that there are.
    """
    callbacks = {key: node for key, node in (config.callbacks or {}).items() if OmegaConf.is_dict(node)}
    if not all(
        str(node.get("_target_")).startswith(("defeat.", "lightning.")) for node in callbacks.values()
    ):
        return
    monitors = {f"callbacks.{key}.monitor": node.get("monitor") for key, node in callbacks.items()}
    figures = {f"val/{key}" for key in COCO_KEYS} | {f"val/voc_{key}" for key in VOC_KEYS}
    for key, name in {"optimized_metric": config.optimized_metric, **monitors}.items():
        if name is None or name in figures or str(name).startswith(("train/", "distill", "lr-")):
            continue
        if str(name).startswith("val_AP_class/"):
            if classes is None or name in map(class_metric, classes):
                continue
            figures = {class_metric(of) for of in classes}
        raise ConfigError(f"{key}={name} is none of {few(sorted(figures), 30)}")
