"""What all benchmarks share: alternating rounds, medians with their spread, and the machine's description."""

from __future__ import annotations

import gc
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import NamedTuple

import torch


class Timed(NamedTuple):
    """Seconds of every round of one variant."""

    seconds: list[float]

    @property
    def median(self) -> float:
        """Of the rounds."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Half of the distance between the quartiles, as a share of the median."""
        if len(self.seconds) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return (high - low) / 2 / self.median


def alternate(
    variants: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    warmup: int = 1,
    device: str | torch.device = "cpu",
) -> dict[str, Timed]:
    """Time all variants in turn, round after round, so that what the machine does meets each of them alike.

    Every round begins with another variant. The collector of garbage runs between, not within.
    """
    for _ in range(warmup):
        for run in variants.values():
            run()
    names = list(variants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for first in range(rounds):
        for i in range(len(names)):
            name = names[(first + i) % len(names)]
            gc.collect()
            gc.disable()
            wait(device)
            started = time.perf_counter()
            variants[name]()
            wait(device)
            seconds[name].append(time.perf_counter() - started)
            gc.enable()
    return {name: Timed(own) for name, own in seconds.items()}


def ratio(over: Sequence[Timed], under: Sequence[Timed]) -> tuple[float, float]:
    """Ratio of two sums of variants, each taken within a round: the median over rounds, and the spread.

    What slows a whole round down cancels.
    """
    sums = [
        [sum(parts) for parts in zip(*(one.seconds for one in side), strict=True)] for side in (over, under)
    ]
    ratios = Timed([a / b for a, b in zip(*sums, strict=True)])
    return ratios.median, ratios.spread


def wait(device: str | torch.device) -> None:
    """Until the device has done what is queued."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def machine(
    device: str | torch.device = "cpu", packages: Sequence[str] = ("torch", "torchvision", "lightning")
) -> str:
    """The cores or the GPU, and the versions of packages: what a table of measurements is headed by."""
    if torch.device(device).type == "cuda":
        where = torch.cuda.get_device_name(device)
    else:
        kind = torch.backends.cpu.get_cpu_capability()
        kind += ", avx512_bf16" if torch.cpu._is_avx512_bf16_supported() else ""
        where = f"{torch.get_num_threads()} of {os.cpu_count()} CPU cores ({kind})"
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    return f"{where}; Python {platform.python_version()}, {versions}"


def heading(title: str, *, device: str | torch.device = "cpu", packages: Sequence[str] = ()) -> None:
    """Print what was measured where, by which command, and whether the machine was idle before."""
    names = ["torch", "torchvision", *packages]
    print(f"### {title}\n\n{machine(device, names)}; load before {os.getloadavg()[0]:.1f}")
    print(f"`python {' '.join(sys.argv)}`\n", flush=True)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown; numbers to the right from the second column on."""
    rules = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [list(header), rules, *map(list, rows)])


def verdict(value: float, goal: float, *, at_least: bool = False) -> str:
    """A ratio beside its goal."""
    met = value >= goal if at_least else value <= goal
    return f"{'≥' if at_least else '≤'} {goal:g}: {'met' if met else 'missed'}"
