"""A data loader whose worker processes can neither keep a run waiting for ever nor be stopped before it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator

from torch.utils.data import DataLoader

from defeat.errors import WorkerError
from defeat.types import Batch

POLL_SECONDS = 5.0
"""Seconds of one wait for a batch; after each it is looked whether a worker process has died."""

LIMIT_SECONDS = 600.0
"""Seconds without a batch from any worker process after which they count as stuck.

A slow disk gives a batch in this time. Whole waits are counted, so that the time in which the run itself was
suspended makes one of them at most.
"""


MOST_WORKERS = 8
"""Worker processes that ``auto`` starts at most; more seldom decode faster than one GPU computes."""


def auto_workers(processes: int, *, gpu: bool) -> int:
    """Choose the number of worker processes: a core each, one being left to the process that computes.

    Args:
        processes: processes of the training on this machine, which share its cores.
        gpu: whether they compute on GPUs; where they compute on the CPU, workers would take its cores away.
    """
    if not gpu:
        return 0
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(0, min(MOST_WORKERS, cores // processes - 1))


class WatchedDataLoader(DataLoader[Batch]):
    """torch's data loader, which ends with an error where its worker processes give no batch any more.

    Raises:
        WorkerError: from the iteration: no batch came for :data:`LIMIT_SECONDS`.
    """

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        """Start or reset the worker processes now, and iterate over the batches."""
        batches = super().__iter__()
        return _watched(batches, self.timeout) if self.num_workers else batches


def _watched(batches: Iterator[Batch], timeout: float) -> Iterator[Batch]:
    waited = 0.0
    while True:
        try:
            yield next(batches)
            waited = 0.0
        except StopIteration:
            return
        except RuntimeError as error:
            if not str(error).startswith("DataLoader timed out"):
                raise
            waited += timeout
            if waited >= LIMIT_SECONDS:
                _kill_workers()
                raise WorkerError(
                    f"the data loader's worker processes gave no batch for {waited:g} s: the disk or the "
                    "network behind data.root does not answer, or a transform never ends; with "
                    "data.num_workers=0 Ctrl-C shows where"
                ) from error


def _kill_workers() -> None:
    """Kill them, whom Python waits for at its end: one that waits for a network disk hears nothing else."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    # torch's handler would raise that they were killed, wherever this process stands by then.
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL) if in_main_thread else None
    for process in multiprocessing.active_children():
        process.kill()
        process.join(POLL_SECONDS)
    if handler is not None:
        signal.signal(signal.SIGCHLD, handler)


def keep_out_of_signals(worker_id: int) -> None:
    """Let a worker process, whose loader calls this at its start, go on when its whole group is told to stop.

    A terminal sends Ctrl-C and SIGHUP to all processes of a group, and torchrun, SLURM and containers send
    theirs to all that they have started. The main process then ends its step and saves, for which it may
    need one more batch. It ends the workers by SIGTERM, which from others is ignored; if it is gone, they
    notice by themselves.
    """
    for name in ("SIGHUP", "SIGINT", "SIGUSR1", "SIGUSR2"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with, args=(os.getppid(),), name="sigterm", daemon=True).start()


def _end_with(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)  # as torch's own handler does, since any other status would count as a failure
