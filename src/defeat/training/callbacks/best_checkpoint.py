"""The checkpoint of the best validation."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only

from defeat.errors import ConfigError
from defeat.io.atomic_write import replacing

MIDWAY = ("every_n_train_steps", "train_time_interval", "save_on_exception")
"""Settings of Lightning's ``ModelCheckpoint`` that save between a step and its logs, or within a step."""


class BestCheckpoint(ModelCheckpoint):
    """Lightning's, but for a resumed run, which has a folder of its own: the best so far stays the best.

    Lightning forgets the score where the folder has changed, and takes the next validation for the best.

    Args:
        settings: those of ``ModelCheckpoint``, but for :data:`MIDWAY`.

    Raises:
        ConfigError: one of these is set.
    """

    def __init__(self, **settings: Any) -> None:
        for name in MIDWAY:
            if settings.get(name):
                raise ConfigError(
                    f"callbacks.checkpoint.{name} would save where a training cannot be resumed exactly: to "
                    "save by steps use callbacks.last.every_n_steps"
                )
        super().__init__(**settings)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the score and a copy of the file of the run that is resumed."""
        for name in (
            "best_model_score",
            "best_k_models",
            "current_score",
            "kth_best_model_path",
            "kth_value",
        ):
            setattr(self, name, state_dict[name])
        self.best_model_path = self._taken_over(state_dict["best_model_path"])
        if self.best_model_path != state_dict["best_model_path"]:
            self.kth_best_model_path = self.best_model_path
            self.best_k_models = {self.best_model_path: state_dict["best_model_score"]}

    @rank_zero_only
    def _copy(self, source: Path, target: Path) -> None:
        with replacing(target) as part:
            shutil.copyfile(source, part)

    def _taken_over(self, path: str) -> str:
        """Copy the best checkpoint of the run that is resumed into this one; return its path."""
        source = Path(path)
        if not path or not self.dirpath or not source.is_file():
            return path
        target = Path(self.dirpath) / source.name
        if not target.exists():
            self._copy(source, target)
        return str(target)
