"""Weights & Biases, offline unless its mode says otherwise."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image

from defeat.errors import ConfigError
from defeat.training.loggers.tracker import ServiceRun, Tracker, name_of_run

AFTER_CHECKPOINT = 10_000
"""More rows than a run has logged after the checkpoint that another goes on from.

Offline nobody knows how many there were, and W&B takes the rows of a run in rising order alone.
"""


class WandB(Tracker, WandbLogger):
    """Lightning's logger, which also ends its run with the training, and goes on with it.

    Args:
        save_dir: the folder of the run, which gives it its name; ``wandb/`` in it has all that is logged.
        name: another name.
        settings: of ``wandb.Settings``, over those that this makes: what is printed and the state of a git
            checkout are not recorded.
        arguments: further ones of Lightning's logger and of ``wandb.init``.

    Raises:
        ConfigError: the extra ``wandb`` is not installed.
    """

    def __init__(
        self,
        *,
        save_dir: str,
        name: str | None = None,
        settings: Mapping[str, Any] | None = None,
        **arguments: Any,
    ) -> None:
        offline = arguments.get("mode") == "offline"  # then it has nothing to say that viewer() does not
        settings = {"console": "off", "disable_git": True, "silent": offline, **(settings or {})}
        try:
            super().__init__(
                name=name or name_of_run(save_dir), save_dir=save_dir, settings=settings, **arguments
            )
        except ModuleNotFoundError as error:
            raise ConfigError("logger=wandb needs an extra: pip install 'defeat[wandb]'") from error
        self._wandb_init.pop("anonymous", None)  # wandb warns of it, whatever it is
        self._viewer: str | None = None
        self._rows = 0

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """W&B's run, begun by the first call.

        Raises:
            ConfigError: it cannot begin, as without a key in mode ``online``.
        """
        if self._experiment is None:
            import wandb

            try:
                run = super().experiment
            except (wandb.Error, TypeError, ValueError) as error:
                reason = str(error).rstrip(".")
                raise ConfigError(
                    f"W&B begins no run: {reason}; the key of an account is given by `wandb login` or "
                    "WANDB_API_KEY, and logger.wandb.mode=offline needs none"
                ) from error
            self._viewer = shlex.join(["wandb", "sync", run.sync_dir]) if run.offline else run.url
            if run.offline and self._rows:
                run.log({}, step=self._rows + AFTER_CHECKPOINT, commit=False)
        return self._experiment

    def show_hyperparameters(self, shown: Mapping[str, float | str], swept: Sequence[str]) -> None:
        """Make them the run's config."""
        self.log_hyperparams(dict(shown))

    def show_text(self, tag: str, text: str, step: int) -> None:
        """Log a table of one cell."""
        self.log_text(tag, columns=["text"], data=[[text]], step=step)

    def show_picture(self, tag: str, picture: Image.Image, step: int, *, encoding: str = "JPEG") -> None:
        """Log an image."""
        self.log_image(tag, [picture], step=step, file_type=[encoding.lower()])

    def service_run(self) -> tuple[str, ServiceRun] | None:
        """Return project and mode, and the run with the rows that it has."""
        if self._experiment is None:
            return None
        return self._place(), {"id": self._experiment.id, "rows": self._experiment.step}

    def go_on(self, runs: Mapping[str, ServiceRun]) -> None:
        """Take the id of the run before; W&B adds to that run."""
        if self._place() in runs:
            run = runs[self._place()]
            self._id = self._wandb_init["id"] = run["id"]
            self._rows = run["rows"]
            # Offline the last rows before a kill never reach the disk: there they are all logged again.
            self.continued = self._wandb_init.get("mode") == "online"

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """End W&B's run, so that the next one of this process begins its own."""
        super().finalize(status)
        if self._experiment is not None:
            self._id = self._experiment.id
            self._experiment.finish(exit_code=0 if status == "success" else 1)
            self._experiment = None

    def viewer(self) -> str | None:
        """Return the run's address, or the command that sends what was logged offline."""
        return self._viewer

    def _place(self) -> str:
        parts = (self._wandb_init.get(key) or "" for key in ("entity", "project", "mode"))
        return f"wandb:{'/'.join(parts)}"
