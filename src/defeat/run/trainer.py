"""The trainer that conf/trainer/ describes: Lightning's, and what this project adds to its settings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer

from defeat.training.callbacks.profile import ProfileSteps


def build_trainer(
    *,
    profile: int | None = None,
    callbacks: Sequence[Callback] = (),
    default_root_dir: str,
    **settings: Any,
) -> Trainer:
    """Build Lightning's trainer.

    Args:
        profile: training steps to time, see :class:`~defeat.training.callbacks.ProfileSteps`; None for none.
        callbacks: see Lightning.
        default_root_dir: see Lightning; the profile is filed there too.
        settings: all others of ``lightning.pytorch.Trainer``.

    Raises:
        ConfigError: ``profile`` is no positive whole number.
    """
    profiling = [] if profile is None else [ProfileSteps(profile, Path(default_root_dir))]
    return Trainer(callbacks=[*callbacks, *profiling], default_root_dir=default_root_dir, **settings)
