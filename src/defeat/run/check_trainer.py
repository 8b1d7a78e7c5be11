"""Refuse settings of Lightning's trainer that it takes without a word, or fails on without naming the key."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

import lightning.pytorch as pl
from omegaconf import DictConfig

from defeat.errors import ConfigError

LEAST: dict[str, tuple[int, str]] = {
    "accumulate_grad_batches": (1, "1 steps after every batch"),
    "check_val_every_n_epoch": (1, "null counts trainer.val_check_interval in steps over epochs"),
    "gradient_clip_val": (0, "null clips nothing"),
    "limit_train_batches": (0, "null takes all of them"),
    "limit_val_batches": (0, "0 leaves validations out, null takes all batches"),
    "log_every_n_steps": (0, "0 logs no training losses"),
    "max_steps": (-1, "-1 leaves it to trainer.max_epochs"),
    "min_epochs": (0, "leave it out for none"),
    "min_steps": (0, "leave it out for none"),
    "num_sanity_val_steps": (-1, "-1 takes the whole validation split, 0 none of it"),
}
"""The least value of numbers, and what some values mean."""

NEVER_NULL = ("accumulate_grad_batches", "max_steps")
"""Those of :data:`LEAST` for which Lightning has no value of its own behind null."""

INSTEAD: dict[str, str] = {
    "barebones": "it leaves out checkpoints and logs; to measure steps use callbacks=profile",
    "callbacks": "add callbacks by +callbacks.NAME._target_=...",
    "logger": "loggers are those of the group `logger`: logger.NAME=null or ~logger leaves them out",
    "overfit_batches": "it replaces the order of the images: use data.limit_train=<images>",
    "plugins": "checkpoints and SLURM have their plugins, and others cannot be added",
}
"""Settings that cannot be used here, and what to do instead."""

UNITS = ("weeks", "days", "hours", "minutes", "seconds")

SHARDED = "fsdp|deepspeed|model_?parallel|xla"
IN_PYTHON = "spawn|fork|notebook"


def check_trainer_settings(config: DictConfig) -> None:
    """Refuse values of ``trainer``, before anything is built.

    Args:
        config: composed from conf/train.yaml or conf/eval.yaml.

    Raises:
        ConfigError: with the key, the value, and what to write.
    """
    trainer = config.trainer
    for key, instead in INSTEAD.items():
        if trainer.get(key) or (key == "logger" and trainer.get(key) is False):
            raise ConfigError(f"trainer.{key} cannot be set: {instead}")
    for key, (least, meaning) in LEAST.items():
        value = trainer.get(key)
        missing = value is None and key in trainer and key in NEVER_NULL
        number = isinstance(value, int | float) and not isinstance(value, bool) and value >= least
        if missing or not (value is None or number):
            shown = "null" if value is None else value
            raise ConfigError(f"trainer.{key} must be a number from {least} on, got {shown}: {meaning}")
    if trainer.get("deterministic") not in (True, False, None, "warn"):
        raise ConfigError(f"trainer.deterministic must be true, false or warn, got {trainer.deterministic}")
    if trainer.get("val_check_interval") == 0:
        raise ConfigError("trainer.val_check_interval=0: trainer.limit_val_batches=0 leaves validations out")
    for key in ("max_time", "val_check_interval"):
        _check_duration(key, trainer.get(key))
    _check_switched_off(config)
    _check_strategy(str(trainer.get("strategy")))


def _check_duration(key: str, value: Any) -> None:
    """Numbers are no durations, though ``val_check_interval`` may be a number of steps."""
    number = key == "max_time" and isinstance(value, int | float)
    if number or (isinstance(value, Mapping) and not set(value) <= set(UNITS)):
        raise ConfigError(
            f"trainer.{key}={value}: write days, hours, minutes and seconds as 00:12:00:00, or {{hours: 12}}"
        )


def _check_switched_off(config: DictConfig) -> None:
    """Lightning's switches do not take away what the callbacks of the configuration bring."""
    if config.get("callbacks") and config.trainer.get("enable_checkpointing") is False:
        raise ConfigError(
            "trainer.enable_checkpointing=false: callbacks.checkpoint=null callbacks.last=null leave them out"
        )
    progress = config.get("callbacks") and config.callbacks.get("progress")
    if progress and config.trainer.get("enable_progress_bar") is False:
        raise ConfigError("trainer.enable_progress_bar=false: callbacks.progress=null leaves the bar out")


def _check_strategy(strategy: str) -> None:
    if re.search(SHARDED, strategy, re.IGNORECASE):
        raise ConfigError(
            f"trainer.strategy={strategy} splits the model among processes, but checkpoints hold it whole: "
            "use trainer=ddp; to save memory, lower data.batch_size and raise trainer.accumulate_grad_batches"
        )
    if re.search(IN_PYTHON, strategy):
        raise ConfigError(
            f"trainer.strategy={strategy} trains in processes whose results are lost with them: use "
            "trainer.strategy=ddp, which starts the command once for each process"
        )


def check_trainer(trainer: pl.Trainer, *, swept: bool, scheduled: bool) -> None:
    """Refuse what takes the length, exact checkpoints, or the machine away.

    Args:
        trainer: as the run is to have it.
        swept: the run is a job of a sweep.
        scheduled: the learning rate follows a schedule, for which the length must be known.

    Raises:
        ConfigError: says which keys to change.
    """
    if scheduled and trainer.max_epochs == trainer.max_steps == -1:
        raise ConfigError(
            "neither trainer.max_epochs nor trainer.max_steps bounds the training, whose learning rate "
            "follows its length: set one of them, which trainer.max_time ends earlier, or "
            "optim.lr_schedule=null"
        )
    if trainer.limit_train_batches == 0:
        raise ConfigError("trainer.limit_train_batches=0 trains nothing: defeat-eval evaluates a checkpoint")
    _check_interval(trainer, trainer.accumulate_grad_batches)
    if swept:
        _refuse_sweep_of_processes(trainer)


def _check_interval(trainer: pl.Trainer, accumulated: int) -> None:
    """Refuse validations between the batches of one step."""
    # A trainer that validates by time has no such interval.
    by_time = cast(Any, trainer)._val_check_time_interval is not None
    interval = "by time" if by_time else trainer.val_check_interval
    if accumulated > 1 and (by_time or (isinstance(interval, int) and interval % accumulated)):
        raise ConfigError(
            f"trainer.val_check_interval={interval} is no multiple of trainer.accumulate_grad_batches="
            f"{accumulated}: validations would fall into the middle of a step, where nothing can be saved"
        )


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
