"""``defeat-report``: runs compared over seeds, as tables, Markdown, CSV and pictures."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NoReturn

from defeat.cli.error_messages import explain
from defeat.cli.streams import prepare_streams
from defeat.cli.version import version_text
from defeat.errors import ConfigError

EPILOG = """\
RUN is a run folder (runs/NAME/TIME), or any folder with runs below it: that of
a sweep, runs/NAME, or runs. Runs count by the last validation's
detections.safetensors in their folder; neither the data set nor a checkpoint
is read. Runs that were validated on other images than most are left out, with
a warning.

  defeat-report runs/scenes_plain runs/scenes
  defeat-report runs/sweeps/TIME --baseline scenes_plain --output report
"""


class _Parser(argparse.ArgumentParser):
    """Reports wrong words as the other console scripts do."""

    def error(self, message: str) -> NoReturn:
        message = message.removeprefix("argument RUN: ").replace(
            "the following arguments are required: RUN",
            "no run is given: name run folders, or one with runs below",
        )
        raise ConfigError(f"{message}; {self.prog} --help tells how it is used")


def main() -> None:
    """Entry point of the console script.

    Errors that the user can correct end the process with status 1 and one line on standard error.
    """
    prepare_streams()
    try:
        run(_parser().parse_args())
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        line = explain(error, "", ())
        if line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        sys.exit(1)


def run(words: argparse.Namespace) -> None:
    """Compare as the command line says."""
    # These imports take seconds, and --help and mistakes are answered without them.
    from defeat.report import make_report
    from defeat.warning_filters import filter_warnings

    filter_warnings()
    make_report(words.runs, words.output, baseline=words.baseline, resamples=words.resamples, seed=words.seed)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="defeat-report",
        description=(
            "Compare runs: COCO figures over seeds, differences to a baseline on the same\n"
            "images, AP by size and by class, parameters and FLOPs, and what kinds of errors\n"
            "are made (TIDE)."
        ),
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=version_text())
    parser.add_argument("runs", metavar="RUN", nargs="+", type=_path, help="a run, or a folder of runs")
    parser.add_argument(
        "--output",
        type=_path,
        metavar="DIR",
        help="new folder for report.md, *.csv and *.png (default: reports/<date and time>)",
    )
    parser.add_argument(
        "--baseline",
        metavar="LABEL",
        help="group to compare with (default: the only one without a distiller, else the first)",
    )
    parser.add_argument(
        "--resamples",
        type=_positive,
        default=1000,
        metavar="N",
        help="draws of the bootstrap (default: 1000)",
    )
    parser.add_argument(
        "--trust",
        action="store_true",
        help="count the cost of students of other packages too, by running the code that their runs name",
    )
    parser.add_argument(
        "--seed", type=_natural, default=0, metavar="N", help="seed of the bootstrap (default: 0)"
    )
    return parser


def _path(text: str) -> Path:
    key, equals, value = text.partition("=")
    key = {"run_dir": "output"}.get(key, key)
    if equals and key in ("output", "baseline", "resamples", "seed", "trust") and not Path(text).exists():
        written = f"--{key}" if key == "trust" else f"--{key} {value}"
        raise argparse.ArgumentTypeError(f"{text}: here options have dashes, {written}")  # unlike elsewhere
    return Path(text).expanduser()


def _natural(text: str) -> int:
    """A whole number from 0 on."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is no whole number from 0 on")
    return int(text)


def _positive(text: str) -> int:
    if _natural(text) == 0:
        raise argparse.ArgumentTypeError("at least one is needed")
    return _natural(text)
