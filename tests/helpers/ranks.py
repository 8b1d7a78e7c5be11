"""Two processes that work together."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

import torch.multiprocessing as mp


def start_two(function: Callable[..., None], *args: Any) -> None:
    """Call ``function(rank, *args)`` in two processes, and wait for both.

    A fork server imports for all processes that this one starts, which is most of the time that they take.
    """
    multiprocessing.set_forkserver_preload(["defeat.run.train"])
    mp.start_processes(function, args=args, nprocs=2, start_method="forkserver")
