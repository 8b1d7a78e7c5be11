"""The seam between a run and the services that show it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TypedDict

from lightning.pytorch import Trainer
from matplotlib.figure import Figure
from PIL import Image

from defeat.evaluation.precision_recall import PrecisionRecall
from defeat.training.loggers.charts import Layout
from defeat.visual.figures import rendered
from defeat.visual.precision_recall import draw_precision_recall


class ServiceRun(TypedDict):
    """A run as a service knows it, in what a checkpoint may hold."""

    id: str
    rows: int
    """How many rows the service has of it; 0 where nobody counts them."""


class Tracker(ABC):
    """A logger that shows more of a run than its scalars.

    Callbacks tell each of a run's trackers the same and know no service: see :func:`trackers`. What a service
    has no room for stays with these methods, which do nothing or draw a picture instead.
    """

    continued = False
    """Whether the service's run was begun by a run before, and has the curves up to here."""

    def show_charts(self, layout: Layout) -> None:  # noqa: B027 - most services need nothing
        """Arrange the scalars in charts; a service that arranges them by their groups needs none of it."""

    @abstractmethod
    def show_hyperparameters(self, shown: Mapping[str, float | str], swept: Sequence[str]) -> None:
        """Show the settings of the run, and which of them its sweep varies."""

    @abstractmethod
    def show_text(self, tag: str, text: str, step: int) -> None:
        """Show a text in Markdown."""

    @abstractmethod
    def show_picture(self, tag: str, picture: Image.Image, step: int, *, encoding: str = "JPEG") -> None:
        """Show an RGB picture, one of many steps under the same tag; ``encoding`` is JPEG or PNG."""

    def show_figure(self, tag: str, figure: Figure, step: int) -> None:
        """Show a chart that was drawn, with sharp edges."""
        self.show_picture(tag, rendered(figure), step, encoding="PNG")

    def show_curves(self, curves: Mapping[str, PrecisionRecall], step: int) -> None:
        """Show curves of precision over recall by tags ``group/name``: a picture for each group."""
        for group, tags in groupby(sorted(curves), key=lambda tag: tag.partition("/")[0]):
            named = {tag.partition("/")[2]: curves[tag].precision for tag in tags}
            self.show_figure(group, draw_precision_recall(named), step)

    def service_run(self) -> tuple[str, ServiceRun] | None:
        """Return where the service keeps this run, and which it is; None where the run's folder is all."""
        return None

    def go_on(self, runs: Mapping[str, ServiceRun]) -> None:  # noqa: B027 - nor here
        """Let a run that is resumed go on in the service's run, if one was kept in the same place.

        Args:
            runs: those of services, by places as :meth:`service_run` returns them.
        """

    @abstractmethod
    def viewer(self) -> str | None:
        """Return the command or the address that shows the run; None if it has not begun."""


def trackers(trainer: Trainer) -> list[Tracker]:
    """Return the trackers among a run's loggers, in the first process; no other process has any."""
    every = trainer.loggers if trainer.is_global_zero else []
    return [logger for logger in every if isinstance(logger, Tracker)]


def name_of_run(run_dir: str) -> str:
    """Name a run by the last two parts of its folder, such as ``scenes/2026-01-31_12-00-00``."""
    return "/".join(Path(run_dir).absolute().parts[-2:])[-100:]
