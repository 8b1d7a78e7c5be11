"""Where the host waits for a GPU."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def gpu_waits() -> Iterator[list[str]]:
    """Collect the files whose code waits for the GPU inside; complete when the block has ended.

    CUDA warns where it happens. It also warns that this mode is a prototype, which is no wait.
    """
    files: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            torch.cuda.set_sync_debug_mode("warn")
            yield files
        finally:
            torch.cuda.set_sync_debug_mode("default")
            files += [w.filename for w in caught if "synchronizing CUDA operation" in str(w.message)]
