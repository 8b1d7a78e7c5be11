"""The last lines of a run: what came of it and where it lies."""

from __future__ import annotations

import shlex
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console

from defeat.config import typed
from defeat.evaluation.detections import DETECTIONS_FILE
from defeat.render import decimals, print_line
from defeat.run.train import Outcome

GO_ON = "take best.ckpt, or go on with callbacks.early_stopping.patience raised and ckpt_path=last"


@rank_zero_only
def print_summary(outcome: Outcome, console: Console | None = None) -> None:
    """Print figures, time and files of a finished run."""
    console = console or Console()
    for name, value in _rows(outcome):
        print_line(console, f"{name:<11} {value}")


def _rows(outcome: Outcome) -> list[tuple[str, str]]:
    metrics = outcome.metrics
    rows = [
        (name, f"{metrics[f'val/{name}']:.4f}")
        for name in ("AP", "AP50", "AP75", "AP_raw")
        if f"val/{name}" in metrics
    ]
    if outcome.best is not None:
        rows.append(("best AP", decimals(outcome.best_score, 4)))
    rows += [
        ("parameters", f"{outcome.parameters / 1e6:.2f} M"),
        ("steps", f"{outcome.steps}{', stopped early: ' + GO_ON if outcome.stopped_early else ''}"),
        ("seconds", f"{outcome.seconds:.1f}"),
    ]
    if "train/images_per_s" in metrics:
        rows.append(("images/s", f"{metrics['train/images_per_s']:.1f}"))
    gradients = outcome.run_dir / "gradients.md"
    if gradients.is_file():
        rows.append(("gradients", str(gradients)))
    if outcome.best is not None:
        checkpoint = _checkpoint(outcome.best, outcome.run_dir)
        rows.append(("evaluate", f"defeat-eval {checkpoint}"))
        rows.append(("predict", f"defeat-predict {checkpoint} source=PICTURES"))
        rows.append(("export", f"defeat-export {checkpoint}"))
    if (outcome.run_dir / DETECTIONS_FILE).is_file():
        rows.append(("report", shlex.join(["defeat-report", str(outcome.run_dir)])))
    rows += [("curves", viewer) for viewer in outcome.viewers]
    return rows


def _checkpoint(path: Path, run_dir: Path) -> str:
    """Write a checkpoint as a word of a command, from where the run's folder is named from."""
    if path.is_relative_to(run_dir.absolute()):
        path = run_dir / path.relative_to(run_dir.absolute())
    return typed("checkpoint", path)
