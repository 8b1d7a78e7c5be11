"""How inputs are tried: within limits of time and memory, counted, and with errors of one line."""

from __future__ import annotations

import faulthandler
import logging
import re
import signal
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from defeat.io.text import LINE

SECONDS = 60.0
"""For one input, also on a machine that others use; the slowest take a second or two."""

MOST_MEMORY = 2 * 1024**3
"""Bytes by which the process may grow."""

HINT = len(" (data.on_error=skip leaves such records out)")


class Tally:
    """What came of the inputs tried so far."""

    def __init__(self) -> None:
        self.outcomes: dict[str, Counter[str]] = defaultdict(Counter)
        self.messages: dict[str, set[str]] = defaultdict(set)
        self.slowest: dict[str, float] = defaultdict(float)
        self.growth = 0
        """Bytes by which the peak of memory grew at most during one test."""

    @property
    def total(self) -> int:
        return sum(counts.total() for counts in self.outcomes.values())

    def lines(self) -> Iterator[str]:
        for kind, counts in sorted(self.outcomes.items()):
            told = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
            different = len(self.messages[kind])
            yield f"{kind}: {counts.total()} inputs: {told}; {different} different messages"
        yield f"all: {self.total} inputs; memory grew by at most {self.growth / 2**20:.0f} MiB"


class TooSlowError(BaseException):
    """No Exception, so that nothing which takes an input's errors in takes this one too."""


@contextmanager
def time_limit(seconds: float = SECONDS) -> Iterator[None]:
    """Interrupt what takes too long; what cannot be interrupted ends the process with all its tracebacks."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TooSlowError(f"an input took more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    faulthandler.dump_traceback_later(3 * seconds, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def peak_memory() -> int:
    """Bytes of main memory that this process has had at once, since :func:`forget_peak`; 0 where unknown."""
    with suppress(OSError):
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        return int(found[1]) * 1024 if found else 0
    return 0


def forget_peak() -> None:
    """Start the peak anew from what is used now, where the system can."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def try_inputs(
    kind: str, strategy: st.SearchStrategy[Any], check: Callable[[Any], str], examples: int, tally: Tally
) -> None:
    """Check ``examples`` inputs, always the same ones, and count what ``check`` says came of each."""

    @seed(2103_14475)
    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def each(case: Any) -> None:
        with time_limit():
            outcome = check(case)
        tally.outcomes[kind][outcome.partition(": ")[0]] += 1
        if outcome.startswith("refused: "):
            tally.messages[kind].add(_outline(outcome))
        assert peak_memory() - before < MOST_MEMORY

    logging.disable(logging.WARNING)  # each input that was read in part is a warning
    forget_peak()
    before = peak_memory()
    try:
        each()
    finally:
        logging.disable(logging.NOTSET)
    tally.growth = max(tally.growth, peak_memory() - before)


def _outline(message: str) -> str:
    """A message without what is of its input alone."""
    return re.sub(
        r"\S*/\S*|'[^']*'|\"[^\"]*\"|\[[^\]]*\]|[-+\d.]+(e[-+]?\d+)?|\bnan\b|\binf\b", "_", message
    )[:80]


def refused(error: BaseException, *parts: str) -> str:
    """Check that an error is a line that names what it must, and say so."""
    message = str(error)
    assert message.isprintable(), repr(message)
    assert len(message) <= LINE + HINT, message
    for part in parts:
        assert part in message, (part, message)
    return f"refused: {message}"


def sizes(quick: int, full: int) -> pytest.MarkDecorator:
    """Run a test with a few inputs always, and with many in the slow suite."""
    cases = [pytest.param(quick, id="quick"), pytest.param(full, id="full", marks=pytest.mark.slow)]
    return pytest.mark.parametrize("examples", cases)
