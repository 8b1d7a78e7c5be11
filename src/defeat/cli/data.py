"""``defeat-data``: what can be done with a data set before it is trained on."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from omegaconf import DictConfig

from defeat.cli import check
from defeat.cli.launch import launch
from defeat.cli.streams import prepare_streams
from defeat.cli.version import version_text
from defeat.config import quoted, typed
from defeat.io.atomic_write import write_text
from defeat.io.text import one_line
from defeat.render import Table, print_line

HELP = """\
defeat-data COMMAND ROOT [KEY=VALUE ...]

  check    count and draw what it holds, and tell what is probably wrong
  split    divide a data set that is one part into training and validation,
           by lists

ROOT is a folder of COCO JSON, Pascal VOC or YOLO, see data=folder.
defeat-data COMMAND --help tells more.
"""


def main() -> None:
    """Entry point of the console script: the first word is the command, the second may be the root."""
    prepare_streams()
    words = sys.argv[1:]
    if not words or words[0] in ("--help", "-h"):
        print(HELP, end="")
        sys.exit(0 if words else 1)
    if words[0] == "--version":
        print(version_text())
        return
    if words[0] not in COMMANDS:
        _refuse(f"{words[0]!r} is no command: there are {', '.join(COMMANDS)}")
    sys.argv[1:] = _with_root(words[0], words[1:])
    launch(COMMANDS[words[0]], f"data_{words[0]}")


def split(config: DictConfig) -> None:
    """Write the lists of a division, and print how many images of each class they hold.

    Raises:
        DefeatError: see :func:`~defeat.data.folder.divide_folder`.
    """
    from rich.console import Console

    from defeat.data.division import count_images
    from defeat.data.folder import divide_folder
    from defeat.warning_filters import filter_warnings

    filter_warnings()
    whole, lists = divide_folder(config)
    for part, names in lists.items():
        write_text(Path(config.run_dir) / f"{part}.txt", "".join(f"{name}\n" for name in names))
    rows = count_images(whole, lists, Path(config.data.root))
    console = Console()
    console.print(Table(("images", *lists), rows).as_rich())
    print_line(console, f"written to {config.run_dir}")
    root, lists_dir = Path(config.data.root), Path(config.run_dir)
    used = [] if lists_dir == root / "splits" else [typed("data.split", os.path.relpath(lists_dir, root))]
    print_line(console, " ".join(["check       defeat-data check", shlex.quote(str(root)), *used]))


COMMANDS: dict[str, Callable[[DictConfig], None]] = {"check": check.run, "split": split}


def _with_root(command: str, words: list[str]) -> list[str]:
    """Turn a first word that is no KEY=VALUE and no flag into data.root, a text however it looks.

    It is looked at here, since a folder for results may be made in it before the task begins.
    """
    first = words[0] if words else ""
    if first and not first.startswith("-") and ("=" not in first or Path(first).exists()):
        if not Path(first).expanduser().is_dir():
            _refuse(f"{first} is no folder: check the path of the data set")
        return [f"data.root={quoted(first)}", *words[1:]]
    if not any(word.startswith(("-", "data.root=")) for word in words):
        _refuse(f"the data set is missing: defeat-data {command} ROOT")
    return words


def _refuse(line: str) -> NoReturn:
    print(f"error: {one_line(line)}", file=sys.stderr)
    sys.exit(1)
