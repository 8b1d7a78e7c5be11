"""The memory that a process takes."""

from __future__ import annotations

import math
import sys

import torch


def peak_memory(device: torch.device) -> float:
    """Bytes: of the device's memory that torch held at most, or, on a CPU, of the process's resident memory.

    nan where the platform does not say.
    """
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    if device.type != "cpu" or sys.platform == "win32":
        return math.nan
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else peak * 1024)


def describe_memory(peak: float, device: torch.device) -> str:
    """Say how much memory was taken, and which."""
    if math.isnan(peak):
        return "memory not known"
    where = "GPU memory" if device.type == "cuda" else "resident memory of the process"
    return f"{peak / 2**30:.2f} GiB {where}"
