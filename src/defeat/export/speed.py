"""The time that a student needs in PyTorch, compiled and as an exported graph, beside its teacher."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Mapping, Sequence
from statistics import median, quantiles
from typing import NamedTuple

import torch
from torch import Tensor, nn

from defeat.detectors.compiled_backbone import compile_backbone
from defeat.detectors.inference import detect
from defeat.errors import ConfigError
from defeat.io.text import one_line
from defeat.render import Table
from defeat.report.student_cost import Cost, count

log = logging.getLogger(__name__)

BATCHES = (1, 8)
ROUNDS = 30
"""Calls of each contender at most."""
LEAST_ROUNDS = 5
SECONDS = 30.0
"""Time after which no further round begins, for each size of batch."""


class Timed(NamedTuple):
    """The calls of one contender with one size of batch."""

    name: str
    batch: int
    seconds: list[float]
    """Of each call, from uint8 pictures to boxes: resizing, padding and NMS are in it."""

    @property
    def median(self) -> float:
        """Median of the seconds of a call."""
        return median(self.seconds)

    @property
    def ninetieth(self) -> float:
        """The seconds that 90 % of the calls do not exceed."""
        return quantiles(self.seconds, n=10, method="inclusive")[-1] if len(self.seconds) > 1 else self.median


class Speed(NamedTuple):
    """The times of one alternating run, and the costs of the networks."""

    timed: list[Timed]
    notes: list[str]
    """Contenders that could not be timed, and why."""
    height: int
    """Of the pictures, pixels, before they are resized."""
    width: int
    threads: int
    costs: dict[str, Cost]
    """Network to parameters and FLOPs."""

    def median(self, name: str, batch: int = 1) -> float | None:
        """The median seconds of a contender; None where it was not timed."""
        return next((t.median for t in self.timed if (t.name, t.batch) == (name, batch)), None)

    def table(self) -> Table:
        """Latency and throughput of every contender."""
        rows = [
            (
                t.name,
                t.batch,
                f"{1e3 * t.median:.1f}",
                f"{1e3 * t.ninetieth:.1f}",
                f"{t.batch / t.median:.2f}",
            )
            for t in self.timed
        ]
        columns = ("", "batch", "median ms", "90 % ms", "images/s")
        title = f"Time for pictures of {self.height} x {self.width}, on {self.threads} threads"
        return Table(columns, rows, title)


def measure(
    contenders: Mapping[str, nn.Module], images: Sequence[Tensor], *, compiled: str | None = None
) -> Speed:
    """Time detectors in turn, so that what else the machine does meets all of them.

    Args:
        contenders: name to a detector in eval mode that takes and returns what torchvision's do.
        images: (3, H, W) uint8 pictures of one size; a batch takes as many of them as it needs, in turn.
        compiled: name of a contender that is timed with its backbone and pyramid compiled as well.
    """
    contenders, notes, costs = dict(contenders), list[str](), _costs(contenders)
    if compiled is not None:
        compiled_name = f"{compiled.partition(', ')[0]}, torch.compile"
        contenders[compiled_name] = copy.deepcopy(contenders[compiled])
        if reason := _compile(contenders[compiled_name], images):
            del contenders[compiled_name]
            notes.append(f"{compiled_name}: not timed, as torch.compile fails here ({reason})")
    timed = [timing for batch in BATCHES for timing in _alternate(contenders, images, batch)]
    height, width = images[0].shape[1:]
    return Speed(timed, notes, height, width, torch.get_num_threads(), costs)


@torch.inference_mode()
def _alternate(contenders: Mapping[str, nn.Module], images: Sequence[Tensor], batch: int) -> list[Timed]:
    pictures = [images[i % len(images)] for i in range(batch)]
    timed = [Timed(name, batch, []) for name in contenders]
    for detector in contenders.values():
        detect(detector, pictures)  # buffers, threads, and the compiler's kernels for this size
    begun = time.perf_counter()
    for done in range(ROUNDS):
        if done >= LEAST_ROUNDS and time.perf_counter() - begun > SECONDS:
            break
        for timing in timed:
            start = time.perf_counter()
            detect(contenders[timing.name], pictures)
            timing.seconds.append(time.perf_counter() - start)
    return timed


def _compile(detector: nn.Module, images: Sequence[Tensor]) -> str | None:
    """Compile in place; return the reason where that fails."""
    try:
        compile_backbone(detector, "default")
        with torch.inference_mode():
            detect(detector, images[:1])
    except ConfigError as error:
        return one_line(str(error), 200)
    except Exception as error:  # whatever the compiler or the C++ compiler behind it says
        log.debug("torch.compile", exc_info=True)
        return one_line((str(error).splitlines() or [type(error).__name__])[0], 200)
    return None


def _costs(contenders: Mapping[str, nn.Module]) -> dict[str, Cost]:
    costs = {}
    for name, detector in contenders.items():
        try:
            costs[name] = count(detector)
        except (ConfigError, StopIteration):  # a graph, or a kind whose operations are not counted
            continue
    return costs
