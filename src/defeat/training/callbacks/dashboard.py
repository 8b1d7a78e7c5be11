"""What TensorBoard shows of a run beside its curves: charts, hyper-parameters, and how it was made."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from tensorboard.plugins.hparams.api_pb2 import Status
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.tensorboard.summary import hparams

from defeat.command_line import command_words, set_values, swept_keys
from defeat.config import leaves
from defeat.io.safe_read import is_file
from defeat.io.text import printable
from defeat.render import Table, escape_markdown
from defeat.training.module import DetectionModule
from defeat.training.tensorboard import METRICS, hyperparameters, scalar_layout, writers


class Dashboard(Callback):
    """Write once a run what TensorBoard arranges and explains the curves by.

    These are the charts of its custom scalars, the run's row of the HParams table, and texts: the command,
    the teacher, the data, the pre-flight and the gradients. A resumed run has a folder of its own and so a
    row of its own. Loggers other than TensorBoard's are told nothing.

    Args:
        folder: the run's, in which the files of its start are.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write everything, after callbacks have measured the run and set weights in their set-up."""
        module = cast(DetectionModule, pl_module)
        config = module.provenance.get("config") or {}
        words = command_words()
        shown = hyperparameters(dict(leaves(config)), config.get("distiller"), set_values(words or []))
        swept = [key.removeprefix("distiller.terms.") for key in swept_keys()]
        for writer in writers(trainer):
            writer.add_custom_scalars(scalar_layout(module))
            for summary in _row(shown, swept):
                writer.file_writer.add_summary(summary)
            for title, text in _texts(self.folder, words, module.provenance):
                writer.add_text(f"run/{title}", text, 0)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the row of the HParams table."""
        _end(trainer, "STATUS_SUCCESS")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """End the row of a run that is stopped or fails."""
        _end(trainer, "STATUS_FAILURE")


def _row(shown: dict[str, float | str], swept: Sequence[str]) -> list[Any]:
    """Build the summaries that begin a row of the HParams table; what was swept stands first there."""
    experiment, start, _ = hparams(shown, dict.fromkeys(METRICS))
    with _content(experiment) as content:
        for info in content.experiment.hparam_infos:
            info.differs = info.name in swept
    return [experiment, start]


def _end(trainer: Trainer, status: str) -> None:
    _, _, end = hparams({}, {})  # which says SUCCESS, and no time
    with _content(end) as content:
        content.session_end_info.status = Status.Value(status)
        content.session_end_info.end_time_secs = time.time()
    for writer in writers(trainer):
        writer.file_writer.add_summary(end)


@contextmanager
def _content(summary: Any) -> Iterator[Any]:
    """Within the ``with`` block, let what a summary tells the HParams plugin be changed."""
    plugin = summary.value[0].metadata.plugin_data
    content = HParamsPluginData.FromString(plugin.content)
    yield content
    plugin.content = content.SerializeToString()


def _texts(folder: Path, words: list[str] | None, provenance: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the titles of the texts and the texts, in Markdown."""
    if words is not None:
        lines = ["defeat-train", *(printable(shlex.quote(word)) for word in words)]
        yield "1 command", "    " + " \\\n      ".join(lines)
    if teacher := provenance.get("teacher"):
        rows = [["weights", teacher["source"]], ["SHA-256", teacher["sha256"]]]
        yield "2 teacher", Table(["teacher", ""], rows, text_columns=2).as_markdown()
    if is_file(folder / "data.json"):
        yield "3 data", _data(json.loads((folder / "data.json").read_text(encoding="utf-8")))
    for title, name in (("4 pre-flight", "preflight.md"), ("5 gradients", "gradients.md")):
        if is_file(folder / name):
            yield title, (folder / name).read_text(encoding="utf-8")


def _data(described: Mapping[str, Any]) -> str:
    rows = [
        [split, part["source"], part["images"], part["boxes"], part["sha256"]]
        for split, part in described["splits"].items()
    ]
    table = Table(["split", "source", "images", "boxes", "SHA-256"], rows, text_columns=2)
    names = ", ".join(escape_markdown(name) for name in described["classes"])
    return f"{table.as_markdown()}\n{len(described['classes'])} classes: {names}"
