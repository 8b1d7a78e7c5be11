"""``defeat-predict``: objects found in pictures and videos, drawn, as CSV and as COCO results."""

from __future__ import annotations

from omegaconf import DictConfig

from defeat.cli.launch import launch
from defeat.io.text import counted
from defeat.render import print_line


def main() -> None:
    """Entry point of the console script."""
    launch(run, "predict")


def run(config: DictConfig) -> None:
    """Predict, and print how many objects of each class were found.

    Raises:
        DefeatError: see :func:`~defeat.predict.predict.predict`.
    """
    from rich.console import Console

    from defeat.predict.predict import predict
    from defeat.warning_filters import filter_warnings

    filter_warnings()
    predicted = predict(config)
    console = Console()
    if predicted.objects:
        console.print(predicted.summary().as_rich())
    else:
        looked = counted(len(predicted.entries), "images")
        print_line(console, f"no object in {looked} has a score of {config.score_threshold} or more")
    if predicted.failed:
        console.print(f"{len(predicted.failed)} files could not be read; the log names them")
    print_line(console, f"written to {config.run_dir}")
