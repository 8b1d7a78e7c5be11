"""Refuse a configuration that cannot be trained, before anything is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from defeat.errors import ConfigError
from defeat.evaluation import check_backend, check_max_dets
from defeat.run.hardware import check_hardware
from defeat.run.provenance import check_no_run


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
    _check_teacher(config)
    _check_precision(config)
    _check_callbacks(config)
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


def check_trainer(trainer: pl.Trainer, *, swept: bool) -> None:
    """Refuse what takes the order of the images, exact checkpoints, or the machine away.

    Args:
        trainer: as the run is to have it.
        swept: the run is a job of a sweep.

    Raises:
        ConfigError: says which keys to change.
    """
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
    if swept:
        _refuse_sweep_of_processes(trainer)


def _refuse_sweep_of_processes(trainer: pl.Trainer) -> None:
    """Lightning starts further processes by the same command line: each would begin the sweep again.

    Lightning issues 11300 and 18175: outputs double, or the processes wait for each other for ever. Processes
    that SLURM has started are there already.
    """
    environment = getattr(trainer.strategy, "cluster_environment", None)
    outside = environment is not None and environment.creates_processes_externally
    if trainer.world_size > 1 and not outside:
        raise ConfigError(
            "a sweep (-m) cannot start runs of several processes on this machine: give each value a command "
            "of its own, sweep on SLURM (hydra/launcher=slurm), or with trainer.devices=1"
        )
