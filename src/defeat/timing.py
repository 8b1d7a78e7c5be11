"""The time of a training step by phases; every moment belongs to exactly one of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import pairwise
from typing import Generic, Literal, NamedTuple, Protocol, TypeVar, get_args

import torch

Phase = Literal["data", "student", "teacher", "losses", "backward", "optimizer", "other"]

PHASES: tuple[Phase, ...] = get_args(Phase)
"""All phases in the order of a step; the time outside of all others is ``other``."""

_NOTHING = nullcontext()

_mark: Callable[[Phase], AbstractContextManager[None]] | None = None
"""Opens a phase of the recorder that runs; None while none does."""


def phase(name: Phase) -> AbstractContextManager[None]:
    """Count the time of a ``with`` block to one phase of the step, while a :class:`Recorder` runs.

    Phases nest: the time of an inner one is not that of the outer one. Without a recorder this costs one
    look-up, and it never waits for a device. Not for code that ``torch.compile`` traces.
    """
    return _NOTHING if _mark is None else _mark(name)


Stamp = TypeVar("Stamp")


class Clock(Protocol[Stamp]):
    """Notes moments now and compares them later."""

    def now(self) -> Stamp:
        """This moment; nothing is waited for."""

    def wait(self) -> None:
        """Return when all the moments noted so far can be compared."""

    def seconds(self, start: Stamp, end: Stamp) -> float:
        """Time between two moments."""


class HostClock:
    """The clock of the process, right for work on the CPU."""

    def now(self) -> float:
        """Seconds since some fixed moment."""
        return time.perf_counter()

    def wait(self) -> None:
        """There is nothing to wait for."""

    def seconds(self, start: float, end: float) -> float:
        """Time between two moments."""
        return end - start


class CudaClock:
    """Events in the current stream: when the device gets there, rather than when the host asks it to.

    What the host does while the device is busy takes no time on this clock; a device that waits for the host
    does.
    """

    def now(self) -> torch.cuda.Event:
        """An event between the work that is queued already and that to come."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def wait(self) -> None:
        """Wait until the device has passed all events."""
        torch.cuda.synchronize()

    def seconds(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        """Time between two events that the device has passed."""
        milliseconds: float = start.elapsed_time(end)
        return milliseconds / 1e3


class _Mark(NamedTuple, Generic[Stamp]):
    """The moment at which a phase begins."""

    phase: Phase
    moment: Stamp


class Recorder(Generic[Stamp]):
    """Notes when each phase of each step begins, and adds up the times when all is over.

    One recorder at a time can run.
    """

    def __init__(self, clock: Clock[Stamp]) -> None:
        self._clock = clock
        self._open: list[Phase] = ["other"]
        self._step: list[_Mark[Stamp]] = []
        self._steps: list[list[_Mark[Stamp]]] = []

    @property
    def running(self) -> bool:
        """Tell whether a step is being recorded."""
        return bool(self._step)

    def start(self) -> None:
        """Begin a step."""
        global _mark
        _mark = self._phase
        self._step = [self._here()]

    def end_step(self) -> None:
        """Keep the step that is being recorded, and begin the next one at this very moment."""
        here = self._here()
        self._steps.append([*self._step, here])
        self._step = [here]

    def stop(self) -> None:
        """Record no further, and forget the step that is not over."""
        global _mark
        _mark = None
        self._step = []

    def steps(self) -> list[dict[Phase, float]]:
        """Wait for the device; return the seconds of each phase of each step that was kept.

        Phases that a step did not come by are left out. The sum over the phases is the time of the step.
        """
        self._clock.wait()
        return [self._sums(marks) for marks in self._steps]

    def _sums(self, marks: list[_Mark[Stamp]]) -> dict[Phase, float]:
        sums: dict[Phase, float] = {}
        for mark, following in pairwise(marks):
            seconds = self._clock.seconds(mark.moment, following.moment)
            sums[mark.phase] = sums.get(mark.phase, 0.0) + seconds
        return sums

    def _here(self) -> _Mark[Stamp]:
        return _Mark(self._open[-1], self._clock.now())

    @contextmanager
    def _phase(self, name: Phase) -> Iterator[None]:
        self._open.append(name)
        self._change()
        try:
            yield
        finally:
            self._open.pop()
            self._change()

    def _change(self) -> None:
        if self.running:
            self._step.append(self._here())
