"""A comparison of runs from top to bottom."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from defeat.io.run_dirs import refuse_used_folder
from defeat.render import print_line
from defeat.report.compare import Comparison, compare
from defeat.report.csv_files import write_csv
from defeat.report.groups import choose_baseline, group_runs
from defeat.report.markdown import markdown
from defeat.report.plots import (
    plot_confusion,
    plot_differences,
    plot_errors,
    plot_figures,
    plot_precision_recall,
)
from defeat.report.runs import find_runs, with_same_truth
from defeat.report.terminal import print_report


def make_report(
    paths: Sequence[Path],
    output: Path | None = None,
    *,
    baseline: str | None = None,
    resamples: int = 1000,
    seed: int = 0,
    trust: bool = False,
    console: Console | None = None,
) -> Comparison:
    """Compare runs: print tables, and write report.md, CSV files and pictures into a folder.

    Args:
        paths: run folders, or folders with runs below them.
        output: a folder that does not exist or is empty; None makes ``reports/<time>``.
        baseline: label of the group that the others are compared with, see
            :func:`defeat.report.groups.choose_baseline`.
        resamples: of the bootstrap over images.
        seed: of the bootstrap.
        trust: build the students by whatever functions the runs name, to count their parameters and FLOPs.
        console: where to print.

    Raises:
        DefeatError: there is nothing to compare; no such baseline; the
            output folder has files in it.
    """
    console = console or Console()
    output = output or Path("reports", f"{datetime.now():%Y-%m-%d_%H-%M-%S}")
    refuse_used_folder(output, f"--output {output}")  # before anything is computed
    runs, warnings = find_runs(paths)
    runs, others = with_same_truth(runs)
    groups, repeats = group_runs(runs)
    chosen = choose_baseline(groups, baseline)
    terminal = Console(stderr=True)
    with Progress(console=terminal, transient=True, disable=not terminal.is_terminal) as progress:
        task = progress.add_task("runs", total=sum(len(group.runs) for group in groups))
        comparison = compare(
            groups,
            chosen,
            resamples=resamples,
            seed=seed,
            warnings=[*warnings, *others, *repeats],
            done=lambda: progress.advance(task),
            trust=trust,
        )
    print_report(comparison, console)
    _write(comparison, output)
    print_line(console, f"written to   {output}")
    return comparison


def _write(comparison: Comparison, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pictures = [("AP", "ap.png"), ("Errors", "errors.png")]
    pictures += [("Precision and recall", "precision_recall.png"), ("Confusion of classes", "confusion.png")]
    plot_figures(comparison, folder / "ap.png")
    plot_errors(comparison, folder / "errors.png")
    plot_precision_recall(comparison, folder / "precision_recall.png")
    plot_confusion(comparison, folder / "confusion.png")
    if len(comparison.groups) > 1:
        plot_differences(comparison, folder / "difference.png")
        pictures.insert(1, ("Difference to the baseline", "difference.png"))
    write_csv(comparison, folder)
    (folder / "report.md").write_text(markdown(comparison, pictures), encoding="utf-8")
