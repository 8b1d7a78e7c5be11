"""``defeat-export``: a student as files that need nothing of this project."""

from __future__ import annotations

import sys

from omegaconf import DictConfig

from defeat.cli.launch import launch
from defeat.config import to_plain, typed
from defeat.export.keys import check_keys
from defeat.render import print_line


def main() -> None:
    """Entry point of the console script."""
    launch(run, "export")


def run(config: DictConfig) -> None:
    """Export, print what was written and found, and end with status 1 where a comparison has failed.

    Raises:
        DefeatError: see :func:`~defeat.export.export.export`.
    """
    check_keys(to_plain(config))
    from rich.console import Console

    from defeat.export.export import export
    from defeat.export.report import checks_table, files_table
    from defeat.warning_filters import filter_warnings

    filter_warnings()
    exported = export(config)
    console = Console()
    console.print(files_table(exported).as_rich())
    if exported.speed is not None:
        console.print(exported.speed.table().as_rich())
    for line in (*filter(None, [exported.sentence]), *exported.notes):
        print_line(console, line)
    failed = {
        name: [check for check in checks if not check.passed] for name, checks in exported.checks.items()
    }
    if any(failed.values()):
        console.print(checks_table(failed).as_rich())
    print_line(console, f"written to {exported.folder}")
    if any(failed.values()):
        print("error: a file does not do what the student does, see above and export.md", file=sys.stderr)
        sys.exit(1)
    graph = exported.files.get("onnx")
    if graph is not None and config.nms:
        print_line(console, f"predict     defeat-predict {typed('checkpoint', graph)} source=PICTURES")
    print_line(console, f"how to use  {exported.folder / 'README.md'}")
