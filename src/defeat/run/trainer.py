"""Build the trainer with its loggers and callbacks."""

from __future__ import annotations

from collections.abc import Sequence

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint, LearningRateMonitor, ProgressBar
from omegaconf import DictConfig

from defeat.config import build
from defeat.run.checkpoint_io import SafeCheckpointIO


def build_trainer(config: DictConfig, callbacks: Sequence[Callback] = ()) -> Trainer:
    """Build Lightning's trainer as ``config.trainer``, ``config.logger`` and ``config.callbacks`` say.

    Args:
        config: composed from conf/train.yaml.
        callbacks: further ones, called after the configured.

    Raises:
        ConfigError: a part does not take its settings.
    """
    loggers = [build(node) for node in (config.logger or {}).values() if node]
    every = [*(build(node) for node in (config.callbacks or {}).values() if node), *callbacks]
    if not loggers:
        every = [callback for callback in every if not isinstance(callback, LearningRateMonitor)]
    trainer: Trainer = build(
        config.trainer,
        logger=loggers or False,
        callbacks=every,
        # None but those that are configured: Lightning would add its own.
        enable_checkpointing=_has(Checkpoint, every),
        enable_progress_bar=config.trainer.get("enable_progress_bar", _has(ProgressBar, every)),
        plugins=[SafeCheckpointIO(), *_slurm()],
    )
    return trainer


def _has(kind: type[Callback], callbacks: Sequence[Callback]) -> bool:
    return any(isinstance(callback, kind) for callback in callbacks)


def _slurm() -> list[SLURMEnvironment]:
    """Lightning's, without its own requeueing, which resumes from the folder of the run that was stopped.

    A plugin that is given is used whatever started the processes, so it is given for SLURM's own alone.
    """
    started = SLURMEnvironment.detect() and not TorchElasticEnvironment.detect()
    return [SLURMEnvironment(auto_requeue=False)] if started else []
