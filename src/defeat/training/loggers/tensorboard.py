"""TensorBoard: charts of custom scalars, a row of the HParams table, pictures as JPEG, curves."""

from __future__ import annotations

import io
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams.api_pb2 import Status
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.tensorboard.summary import hparams

from defeat.evaluation.precision_recall import PrecisionRecall
from defeat.training.loggers.charts import Layout
from defeat.training.loggers.tracker import Tracker

METRICS = (*(f"val/{name}" for name in ("AP", "AP50", "AP75", "APs", "APm", "APl")), "train/loss_detection")
"""Scalars that the HParams table shows, by their tags: the last value of each."""

QUALITY = 88
"""Of the JPEG files, which are a fifth as large as PNG files of photos."""

THRESHOLDS = np.linspace(0, 1, 101)
"""Scores at which TensorBoard is told a curve; it takes 127 at most."""


class TensorBoard(Tracker, TensorBoardLogger):
    """Lightning's logger, and all else that TensorBoard can show. A resumed run has a folder of its own."""

    _has_row = False

    def show_charts(self, layout: Layout) -> None:
        """Write the layout of the custom scalars."""
        self.experiment.add_custom_scalars(layout)

    def show_hyperparameters(self, shown: Mapping[str, float | str], swept: Sequence[str]) -> None:
        """Begin the run's row of the HParams table; what was swept stands first there."""
        experiment, start, _ = hparams(dict(shown), dict.fromkeys(METRICS))
        with _content(experiment) as content:
            for info in content.experiment.hparam_infos:
                info.differs = info.name in swept
        for summary in (experiment, start):
            self._write(summary)
        self._has_row = True

    def show_text(self, tag: str, text: str, step: int) -> None:
        """Write a text."""
        self.experiment.add_text(tag, text, step)

    def show_picture(self, tag: str, picture: Image.Image, step: int, *, encoding: str = "JPEG") -> None:
        """Write a picture as it is encoded; the writer's own methods make PNG of every one."""
        buffer = io.BytesIO()
        picture.save(buffer, encoding, quality=QUALITY)
        width, height = picture.size
        encoded = buffer.getvalue()
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=encoded)
        self._write(Summary(value=[Summary.Value(tag=tag, image=image)]), step)

    def show_curves(self, curves: Mapping[str, PrecisionRecall], step: int) -> None:
        """Write each curve by the counts of which TensorBoard makes it."""
        for tag, curve in curves.items():
            precision, recall = curve.at_thresholds(THRESHOLDS)
            hits = recall * curve.positives
            false = np.divide(hits * (1 - precision), precision, out=np.zeros_like(hits), where=precision > 0)
            self.experiment.add_pr_curve_raw(
                tag,
                *(hits, false, np.zeros_like(hits), curve.positives - hits),  # there are no true negatives
                precision,
                recall,
                step,
                num_thresholds=len(THRESHOLDS),
            )

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """End the row of the HParams table, and the file."""
        if self._has_row:
            self._has_row = False
            _, _, end = hparams({}, {})  # which says SUCCESS, and no time
            with _content(end) as content:
                ending = "STATUS_SUCCESS" if status == "success" else "STATUS_FAILURE"
                content.session_end_info.status = Status.Value(ending)
                content.session_end_info.end_time_secs = time.time()
            self._write(end)
        super().finalize(status)

    def viewer(self) -> str:
        """Return the command for the run's folder."""
        return shlex.join(["tensorboard", "--logdir", str(self.save_dir)])

    def _write(self, summary: Any, step: int | None = None) -> None:
        self.experiment.file_writer.add_summary(summary, step)


@contextmanager
def _content(summary: Any) -> Iterator[Any]:
    """Within the ``with`` block, let what a summary tells the HParams plugin be changed."""
    plugin = summary.value[0].metadata.plugin_data
    content = HParamsPluginData.FromString(plugin.content)
    yield content
    plugin.content = content.SerializeToString()
