"""``defeat-import``: detectors of mmdetection, detectron2 and torchvision's users as teachers."""

from __future__ import annotations

from omegaconf import DictConfig

from defeat.cli.launch import launch
from defeat.config import to_plain, typed
from defeat.importer.keys import check_keys
from defeat.render import print_line


def main() -> None:
    """Entry point of the console script."""
    launch(run, "import")


def run(config: DictConfig) -> None:
    """Import, and print what was mapped, folded, permuted and dropped, and what could not be checked.

    Raises:
        DefeatError: see :func:`~defeat.importer.importer.import_detector`.
    """
    plain = to_plain(config)
    check_keys(plain)
    from rich.console import Console

    from defeat.importer.imported import report_table
    from defeat.importer.importer import import_detector
    from defeat.warning_filters import filter_warnings

    filter_warnings()
    imported = import_detector(plain)
    console = Console()
    console.print(report_table(imported.rows).as_rich())
    print_line(console, f"written to {plain['output']}")
    weights = typed("teacher.weights", plain["output"])
    print_line(console, f"defeat-eval {typed('checkpoint', plain['output'])} data=coco data.root=<folder>")
    print_line(console, f"defeat-train +experiment=<name> detector@teacher=imported {weights}")
