"""``defeat-export``: a student as files that need nothing of this project."""

from __future__ import annotations

import sys

from omegaconf import DictConfig, ListConfig

from defeat.cli.launch import launch
from defeat.errors import ConfigError
from defeat.io.text import quote
from defeat.render import print_line

FORMATS = ("state_dict", "safetensors", "onnx", "core")

LEAST = 32
"""Pixels of a picture's side; the deepest stage of a backbone has one cell then."""


def main() -> None:
    """Entry point of the console script."""
    launch(run, "export")


def run(config: DictConfig) -> None:
    """Export, print what was written and found, and end with status 1 where a comparison has failed.

    Raises:
        DefeatError: see :func:`~defeat.export.export.export`.
    """
    _check(config)
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


def _check(config: DictConfig) -> None:
    """Refuse what cannot be right before anything large is imported."""
    chosen = list(config.format) if isinstance(config.format, ListConfig) else [config.format]
    unknown = [name for name in chosen if name not in FORMATS]
    if unknown or not chosen:
        wrong = quote(unknown[0] if unknown else [])
        raise ConfigError(f"format={wrong} is none of {', '.join(FORMATS)}, or a list of them")
    if not isinstance(config.images, int) or config.images < 0:
        raise ConfigError(f"images={config.images} must be a whole number from 0 on")
    size = config.size
    if size is not None and not (
        isinstance(size, ListConfig) and len(size) == 2 and all(isinstance(x, int) for x in size)
    ):
        raise ConfigError(f"size={size} must be [height, width] in pixels, or null")
    if size is not None and min(size) < LEAST:
        raise ConfigError(f"size={list(size)} is too small: a side has at least {LEAST} pixels")
