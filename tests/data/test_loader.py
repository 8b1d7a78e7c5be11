"""Worker processes that die, hang or find no room end a run with a line, and outlive signals to a group."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from defeat.data import collate, worker_errors
from defeat.data import loader as module
from defeat.data.loader import WatchedDataLoader, auto_workers, keep_out_of_signals
from defeat.errors import WorkerError
from defeat.types import Batch, Target

LENGTH = 24


class Images(Dataset[tuple[Tensor, Target]]):
    """Grey images of 1.2 MB; ``at`` is called in the worker process that is asked for the tenth."""

    def __init__(self, at: Callable[[], object] = lambda: None) -> None:
        self.at = at

    def __len__(self) -> int:
        return LENGTH

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        if index == 10:
            self.at()
        target = Target(
            boxes=torch.zeros(1, 4),
            labels=torch.ones(1, dtype=torch.int64),
            ignore=torch.zeros(1, dtype=torch.bool),
            area=torch.zeros(1),
            index=torch.tensor(index),
        )
        return torch.full((3, 640, 640), index, dtype=torch.uint8), target


def load(
    at: Callable[[], object] = lambda: None, start: Callable[[int], None] = keep_out_of_signals
) -> Iterator[Batch]:
    loader = WatchedDataLoader(
        Images(at),
        batch_size=4,
        collate_fn=collate,
        num_workers=2,
        timeout=0.5,
        worker_init_fn=start,
        persistent_workers=True,
    )
    with worker_errors():
        try:
            yield from loader
        finally:
            loader._iterator._shutdown_workers()  # type: ignore[union-attr]


def in_small_shared_memory(worker_id: int) -> None:
    """Give this process a /dev/shm of 4 MB, as a container might have."""
    libc = ctypes.CDLL(None, use_errno=True)
    new_mounts, private = 0x20000, 0x44000
    if (
        libc.unshare(new_mounts)
        or libc.mount(b"none", b"/", None, private, None)
        or libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, b"size=4m")
    ):
        raise PermissionError(ctypes.get_errno(), "mount")


def in_small_files(worker_id: int) -> None:
    """Let no file of this process, and so no piece of shared memory, have more than 1 MB."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, resource.RLIM_INFINITY))


def test_full_shared_memory_ends_the_run_with_a_line() -> None:
    try:
        with pytest.raises(WorkerError, match=r"got no shared memory .*--shm-size.* data.num_workers"):
            list(load(start=in_small_shared_memory))
    except PermissionError:
        pytest.skip("no right to mount a small /dev/shm")


def test_any_other_reason_not_to_get_shared_memory_is_said_too() -> None:
    with pytest.raises(WorkerError, match=r"got no shared memory .*File too large.* data.num_workers"):
        list(load(start=in_small_files))


KILLED = "(was killed, as the system does when memory runs out|exited unexpectedly): lower data.num_workers"
"""torch learns of a death by a signal, which says how, or by looking, whichever comes first."""


@pytest.mark.parametrize(
    ("at", "message"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), KILLED),
        (lambda: os._exit(0), "exited unexpectedly: lower data.num_workers"),
        (lambda: time.sleep(1000), "gave no batch for 1 s: .* data.num_workers=0"),
    ],
    ids=["killed", "gone", "stuck"],
)
# The signal of the death may interrupt torch while it opens temporary files to see whether too many are open.
@pytest.mark.filterwarnings(r"ignore:unclosed file <_io\.BufferedRandom:ResourceWarning")
def test_a_worker_that_dies_or_hangs_ends_the_run_with_a_line(
    at: Callable[[], object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LIMIT_SECONDS", 1.0)
    with pytest.raises(WorkerError, match=message):
        list(load(at))


def test_a_slow_worker_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LIMIT_SECONDS", 10.0)
    assert len(list(load(lambda: time.sleep(1.2)))) == LENGTH // 4


def test_workers_outlive_the_signals_that_stop_a_run() -> None:
    batches = load()
    next(batches), next(batches)  # one of each worker
    workers = multiprocessing.active_children()
    assert workers
    for name in ("HUP", "INT", "USR1", "USR2", "TERM"):  # from another process than their parent
        subprocess.run(["kill", f"-{name}", *(str(worker.pid) for worker in workers)], check=True)
    assert len(list(batches)) == LENGTH // 4 - 2
    for worker in workers:
        worker.join(5)
        assert worker.exitcode == 0


def test_a_worker_that_is_stuck_ends_when_its_parent_says_so() -> None:
    def stuck() -> None:
        keep_out_of_signals(0)
        ready.set()
        time.sleep(1000)

    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=stuck, daemon=True)
    process.start()
    assert ready.wait(5)
    process.terminate()
    process.join(5)
    assert process.exitcode == 0


@pytest.mark.parametrize(
    ("cores", "processes", "gpu", "workers"),
    [
        (16, 1, True, 8),
        (6, 1, True, 5),
        (16, 4, True, 3),
        (1, 1, True, 0),
        (4, 8, True, 0),
        (16, 1, False, 0),
    ],
)
def test_auto_leaves_a_core_to_each_process(
    cores: int, processes: int, gpu: bool, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    assert auto_workers(processes, gpu=gpu) == workers
