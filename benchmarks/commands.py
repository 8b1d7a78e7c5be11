"""What a command costs that does no work: seconds and memory of --help, of a configuration, of a mistake.

Every command is a fresh process, as a shell starts it. This script imports nothing large itself: the peak
memory that the system reports of a process includes that of the one that started it.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

SECONDS, MIB = 2.0, 350.0
"""The most that a command may take."""

COMMANDS = (
    "defeat-train --help",
    "defeat-train --version",
    "defeat-train --cfg job",
    "defeat-train optim.optmizer.lr=1",
    "defeat-train +experiment=scenes_plan",
    "defeat-train +experiment=frcnn_r50",
    "defeat-train data.root=x optim.optimizer.lr=abc",
    "defeat-eval --help",
    "defeat-predict --help",
    "defeat-eval --version",
    "defeat-eval --cfg job",
    "defeat-eval chekpoint=x",
    "defeat-demo --help",
    "defeat-demo --version",
    "defeat-demo --cfg job",
    "defeat-demo stepz=1",
    "defeat-report --help",
    "defeat-report --version",
    "defeat-report runs --bseline x",
)


class Cost(NamedTuple):
    """Cost of one process."""

    seconds: float
    """Wall time."""
    cpu: float
    """Seconds that the processors worked for it."""
    mib: float
    """Peak of resident memory."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="fresh processes for each command")
    rounds = parser.parse_args().rounds
    machine = f"Python {platform.python_version()}, {os.cpu_count()} cores"
    print(f"### Commands\n\n{machine}; median of {rounds} rounds\n")
    print("| command | seconds | CPU seconds | MiB |\n| --- | ---: | ---: | ---: |")
    worst = Cost(0.0, 0.0, 0.0)
    for command in COMMANDS:
        costs = [cost_of(*command.split()) for _ in range(rounds)]
        cost = Cost(*(statistics.median(column) for column in zip(*costs, strict=True)))
        print(f"| `{command}` | {cost.seconds:.2f} | {cost.cpu:.2f} | {cost.mib:.0f} |", flush=True)
        worst = Cost(*map(max, worst, cost))
    print(f"\nSlowest: {worst.seconds:.2f} s, goal {SECONDS:g} s")
    print(f"Largest: {worst.mib:.0f} MiB, goal {MIB:g} MiB")


def cost_of(name: str, *words: str) -> Cost:
    """Run a command in an empty folder and measure it."""
    executable = str(Path(sys.executable).with_name(name))
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        process = subprocess.Popen(
            [executable, *words], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        _, _, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = 0  # it has been waited for
    return Cost(seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


if __name__ == "__main__":
    main()
