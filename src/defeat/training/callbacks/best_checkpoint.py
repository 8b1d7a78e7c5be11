"""The checkpoint of the best validation."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only

from defeat.errors import ConfigError
from defeat.io.atomic_write import replacing

log = logging.getLogger(__name__)

MIDWAY = ("every_n_train_steps", "train_time_interval", "save_on_exception")
"""Settings of Lightning's ``ModelCheckpoint`` that save between a step and its logs, or within a step."""


class BestCheckpoint(ModelCheckpoint):
    """Lightning's, but for a resumed run, which has a folder of its own: the best so far stays the best.

    Lightning forgets the score where the folder has changed, and takes the next validation for the best.

    Args:
        settings: those of ``ModelCheckpoint``, but for :data:`MIDWAY`.

    Raises:
        ConfigError: one of these is set, or several checkpoints are to have one name.
    """

    def __init__(self, **settings: Any) -> None:
        for name in MIDWAY:
            if settings.get(name):
                raise ConfigError(
                    f"callbacks.checkpoint.{name} would save where a training cannot be resumed exactly: to "
                    "save by steps use callbacks.last.every_n_steps"
                )
        if settings.get("save_top_k", 1) not in (0, 1) and "{" not in (settings.get("filename") or "{step}"):
            raise ConfigError(
                f"callbacks.checkpoint.save_top_k={settings['save_top_k']} needs a name for each checkpoint, "
                "such as callbacks.checkpoint.filename='best_{step}'"
            )
        super().__init__(**settings)
        self._resumed_from: str | Path | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Note which checkpoint the run goes on from."""
        super().setup(trainer, pl_module, stage)
        self._resumed_from = trainer.ckpt_path

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the score and a copy of the file of the run that is resumed, wherever it lies by now."""
        best = state_dict["best_model_path"]
        source = self._of_resumed_run(Path(best)) if best else None
        if best and source is None:
            log.warning("%s, the best so far, is gone: the best checkpoint is chosen anew from here", best)
            return
        for name in ("best_model_score", "current_score", "kth_value"):
            setattr(self, name, state_dict[name])
        self.best_model_path = self._taken_over(source) if source else ""
        self.kth_best_model_path = self.best_model_path
        self.best_k_models = {self.best_model_path: state_dict["best_model_score"]} if source else {}

    def _of_resumed_run(self, best: Path) -> Path | None:
        """Find the file beside the checkpoint that is resumed, or where it was when that was written."""
        beside = [Path(self._resumed_from).with_name(best.name)] if self._resumed_from else []
        return next((path for path in (*beside, best) if path.is_file()), None)

    @rank_zero_only
    def _copy(self, source: Path, target: Path) -> None:
        with replacing(target) as part:
            shutil.copyfile(source, part)

    def _taken_over(self, source: Path) -> str:
        """Copy the best checkpoint of the run that is resumed into this one; return its path."""
        if not self.dirpath:
            return str(source)
        target = Path(self.dirpath) / source.name
        if not target.exists():
            self._copy(source, target)
        return str(target)
