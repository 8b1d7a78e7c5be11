"""What became of the worker processes of a data loader, in one line that says what to do."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from traceback import walk_tb

from defeat.errors import WorkerError

SHARED_MEMORY = "/dev/shm"
"""Folder under which Linux keeps shared memory."""

FEWER = "lower data.num_workers (with 0 the main process loads by itself)"

TOO_MANY_FILES = (
    "the worker processes of the data loader have too many files open: allow more (ulimit -n 4096), or "
    + FEWER
)


@contextmanager
def worker_errors() -> Iterator[None]:
    """Raise what became of worker processes as one line, for everything that loads within this block.

    torch notices by a signal that a process has died, so that its error comes up wherever the main process
    stands at that moment.

    Raises:
        WorkerError: worker processes cannot be started, or one of them has died.
    """
    try:
        yield
    except (RuntimeError, OSError, EOFError) as error:
        line = _explain(error)
        if line is None:
            raise
        raise WorkerError(line) from error


def hand_over_error(error: Exception) -> str:
    """Say why a worker process could not put a batch where the main process reads it.

    Args:
        error: of torch or the system.
    """
    if "Too many open files" in str(error):
        return TOO_MANY_FILES
    return _no_shared_memory(str(error))


def _explain(error: Exception) -> str | None:
    text = f"{error} {error.__cause__}."  # the cause may be the signal by which a process has died
    died = re.search(r"DataLoader worker \(pid.*?(is killed by signal: .*?|exited unexpectedly)[. ]", text)
    if died is not None:
        if "Bus error" in text:  # Linux found no room when the memory was first written to
            return _no_shared_memory("Bus error")
        how = "was killed, as the system does when memory runs out" if "Killed" in text else died[1]
        return f"a worker process of the data loader {how}: {FEWER}"
    if "Too many open files" in text and ("workers" in text or _between_processes(error)):
        return TOO_MANY_FILES
    if not _between_processes(error) or isinstance(error, RuntimeError):
        return None
    if isinstance(error, ConnectionError | EOFError | FileNotFoundError):
        try:
            time.sleep(1)  # the signal that it has died comes after its connections are closed
        except RuntimeError as death:
            return _explain(death)
        return f"a worker process of the data loader exited unexpectedly: {FEWER}"
    return f"the worker processes of the data loader cannot be started: {error}; {FEWER}"


def _between_processes(error: BaseException) -> bool:
    """Whether the error comes from starting processes, or from what lies between them."""
    modules = (str(frame.f_globals.get("__name__")) for frame, _ in walk_tb(error.__traceback__))
    return any(module.startswith("multiprocessing.") for module in modules)


def _no_shared_memory(reason: str) -> str:
    try:
        usage = shutil.disk_usage(SHARED_MEMORY)
        room = f" ({SHARED_MEMORY}: {usage.free / 1e6:.0f} of {usage.total / 1e6:.0f} MB are free)"
    except OSError:
        room = ""
    return (
        f"a worker process of the data loader got no shared memory for a batch{room}: {reason}; give more "
        f"(docker run --shm-size=8g, or --ipc=host), or {FEWER}"
    )
