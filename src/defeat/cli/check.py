"""``defeat-data check``: a data set looked at before it is used."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

from omegaconf import DictConfig

from defeat.command_line import command_words
from defeat.config import typed
from defeat.errors import ConfigError
from defeat.io.text import counted, one_line
from defeat.render import print_line


def run(config: DictConfig) -> None:
    """Print figures and findings, file them in the run's folder, and end with 1 where a training would fail.

    Raises:
        DefeatError: a setting makes no sense, or the results cannot be written.
    """
    if config.pictures is not None and (not isinstance(config.pictures, int) or config.pictures < 1):
        raise ConfigError(f"pictures={config.pictures} must be a whole number from 1 on, or null for all")
    from rich.console import Console

    from defeat.data_report import inspect_data, write_report
    from defeat.data_report.pages import class_table, level_table, overview
    from defeat.io.run_dirs import refuse_overwriting
    from defeat.warning_filters import filter_warnings

    filter_warnings()
    folder = Path(config.run_dir)
    refuse_overwriting(folder / "check.md", folder / "check.json")
    report = inspect_data(config, decoded=config.pictures)
    console = Console()
    if report.splits:
        for table in (overview(report), class_table(report), level_table(report)):
            console.print(table.as_rich())
    for split in report.splits:
        if changed := report.splits[split].annotations.counts:
            print_line(console, f"{split}: {', '.join(counted(n, reason) for reason, n in changed.items())}")
    for located in report.problems:
        problem = located.problem
        kind, style = ("error", "red") if problem.severe else ("warning", "yellow")
        print_line(
            console, one_line(f"{kind}: {located.split}: {problem.cause}: {problem.remedy}", 1000), style
        )
    write_report(report, folder)
    ending = "a training would fail" if report.fails else "a training can begin"
    print_line(console, f"{ending}; {counted(len(report.problems), 'findings')}; written to {folder}")
    if report.fails:
        sys.exit(1)
    chosen = [shlex.quote(word) for word in command_words() or [] if re.match("data(=|[.](?!root=))", word)]
    words = " ".join([typed("data.root", config.data.root), *chosen])
    print_line(console, f"train       defeat-train +experiment=own_teacher {words} download=true")
