"""What a run's loggers show beside its curves: charts, hyper-parameters, and how it was made."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer

from defeat.command_line import command_words, set_values, swept_keys
from defeat.config import leaves
from defeat.io.safe_read import is_file
from defeat.io.text import printable
from defeat.render import Table, escape_markdown
from defeat.training.hyperparameters import TERMS, hyperparameters
from defeat.training.loggers import trackers
from defeat.training.loggers.charts import scalar_layout
from defeat.training.module import DetectionModule


class Dashboard(Callback):
    """Tell the loggers once a run what its curves are arranged and explained by.

    These are charts for TensorBoard's custom scalars, the hyper-parameters, and texts: the command, the
    teacher, the data, the pre-flight and the gradients. A resumed run has a folder of its own and so a row of
    its own in TensorBoard's HParams table.

    Args:
        folder: the run's, in which the files of its start are.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell everything, after callbacks have measured the run and set weights in their set-up."""
        module = cast(DetectionModule, pl_module)
        config = module.provenance.get("config") or {}
        words = command_words()
        shown = hyperparameters(dict(leaves(config)), config.get("distiller"), set_values(words or []))
        swept = [key.removeprefix(TERMS) for key in swept_keys()]
        for tracker in trackers(trainer):
            tracker.show_charts(scalar_layout(module))
            tracker.show_hyperparameters(shown, swept)
            for title, text in _texts(self.folder, words, module.provenance):
                tracker.show_text(f"run/{title}", text, 0)


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
