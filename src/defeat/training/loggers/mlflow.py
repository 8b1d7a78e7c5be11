"""MLflow, in files beside the runs unless an address says otherwise."""

from __future__ import annotations

import logging
import os
import re
import shlex
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image

from defeat.errors import ConfigError
from defeat.training.loggers.tracker import ServiceRun, Tracker, name_of_run

log = logging.getLogger(__name__)

VALUE = 250
"""Characters of a parameter's value, as Lightning cuts it."""


class MLflow(Tracker, MLFlowLogger):
    """Lightning's logger, which also takes any class name, shows pictures and texts, and goes on with a run.

    Args:
        run_dir: the folder of the run, which gives it its name.
        save_dir: where the folder ``mlruns`` is, if there is no address.
        tracking_uri: address of a server, of a database, or of a folder (``file:``). None is that of the
            environment's MLFLOW_TRACKING_URI, which no record of the run tells, else the folder here.
        run_name: another name.
        arguments: further ones of Lightning's logger.

    Raises:
        ConfigError: the extra ``mlflow`` is not installed, or the address is none.
    """

    def __init__(
        self,
        *,
        run_dir: str,
        save_dir: str,
        tracking_uri: str | None = None,
        run_name: str | None = None,
        **arguments: Any,
    ) -> None:
        address = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        if not address or rank_zero_only.rank > 0:  # type: ignore[attr-defined]
            # Another process logs nothing, and two that make the tables of a database at a time fail.
            # Several runs can share files; but for a folder that is new, which each of them would fill.
            folder = Path(save_dir, "mlruns").absolute()
            folder.mkdir(parents=True, exist_ok=True)
            address = folder.as_uri()
        self._in_files = address.startswith("file:") or "://" not in address
        if self._in_files:  # MLflow adds nothing to this store any more, and wants to hear that it is meant
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        try:
            super().__init__(run_name=run_name or name_of_run(run_dir), tracking_uri=address, **arguments)
        except ModuleNotFoundError as error:
            raise ConfigError("logger=mlflow needs an extra: pip install 'defeat[mlflow]'") from error
        self._names: dict[str, str] = {}

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """MLflow's client, whose run is begun by the first call.

        Raises:
            ConfigError: it cannot begin.
        """
        if self._initialized:
            return super().experiment
        from mlflow.exceptions import MlflowException

        try:
            if self._run_id is not None:
                self._begin_again(self._run_id)
            with suppress(MlflowException):  # another run may make it at the same moment
                if self._mlflow_client.get_experiment_by_name(self._experiment_name) is None:
                    self._mlflow_client.create_experiment(self._experiment_name, self._artifact_location)
            return super().experiment
        except MlflowException as error:
            raise ConfigError(f"MLflow begins no run: {error}") from error

    def _begin_again(self, run_id: str) -> None:
        from mlflow.entities import LifecycleStage
        from mlflow.exceptions import MlflowException

        try:
            run = self._mlflow_client.get_run(run_id)
        except MlflowException:
            run = None
        self.continued = run is not None and run.info.lifecycle_stage == LifecycleStage.ACTIVE
        if self.continued:
            self._mlflow_client.update_run(run_id, status="RUNNING")
        else:
            log.warning("MLflow has no run %s any more: a new one gets the curves up to here", run_id)
            self._run_id = None

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log a row; Lightning would leave out letters that are not ASCII."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        prefix = f"{self._prefix}{self.LOGGER_JOIN_CHAR}" if self._prefix else ""
        row = [Metric(self._name(f"{prefix}{tag}"), value, now, step or 0) for tag, value in metrics.items()]
        self.experiment.log_batch(self.run_id, metrics=row, **self._log_batch_kwargs)

    def show_hyperparameters(self, shown: Mapping[str, float | str], swept: Sequence[str]) -> None:
        """Make them the run's parameters. These never change: new ones of a resumed run are tags."""
        before = self.experiment.get_run(self.run_id).data.params
        now = {self._name(key): str(value)[:VALUE] for key, value in shown.items()}
        self.log_hyperparams({key: value for key, value in now.items() if key not in before})
        for key, value in now.items():
            if before.get(key, value) != value:
                self.experiment.set_tag(self.run_id, f"resumed.{key}", value)

    def show_text(self, tag: str, text: str, step: int) -> None:
        """File a text."""
        self.experiment.log_text(self.run_id, text, f"{tag}.md")

    def show_picture(self, tag: str, picture: Image.Image, step: int, *, encoding: str = "JPEG") -> None:
        """Log an image, of which MLflow itself makes a PNG and a preview."""
        self.experiment.log_image(self.run_id, picture, key=tag, step=step)

    def service_run(self) -> tuple[str, ServiceRun] | None:
        """Return the experiment, and the run's id."""
        return (self._place(), {"id": self._run_id, "rows": 0}) if self._run_id else None

    def go_on(self, runs: Mapping[str, ServiceRun]) -> None:
        """Take the id of the run before, if there is one."""
        if self._place() in runs:
            self._run_id = runs[self._place()]["id"]

    def viewer(self) -> str | None:
        """Return the command for a store on this machine; a server has its page."""
        local = self._in_files or self._tracking_uri.startswith("sqlite:")
        if not (local and self._run_id):
            return None
        allowed = "MLFLOW_ALLOW_FILE_STORE=true " if self._in_files else ""
        return allowed + shlex.join(["mlflow", "ui", "--backend-store-uri", self._tracking_uri])

    def _place(self) -> str:
        return f"mlflow:{self._experiment_name}"

    def _name(self, tag: str) -> str:
        """Write a tag in a name that MLflow takes, and that no other tag has."""
        name = _plain_name(tag)
        while self._names.setdefault(name, tag) != tag:
            name += "_"
        return name


def _plain_name(tag: str) -> str:
    """Keep letters, figures and a few marks; names may be paths, so one slash at most, and no part ``..``."""
    parts = [re.sub(r"[^\w.: -]", "_", part) for part in tag.split("/", 1)]
    short = [part.encode()[:200].decode(errors="ignore") for part in parts]
    return "/".join(part if part.strip(".") else "_" for part in short)
