"""The memory that a process takes."""

from __future__ import annotations

import math
import os
import re
import sys
from pathlib import Path

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


def held_memory(device: torch.device) -> float:
    """Bytes that tensors on a GPU hold now, or a process on the CPU; nan where the platform does not say."""
    if device.type == "cuda":
        return float(torch.cuda.memory_allocated(device))
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:  # Linux alone has it
        return math.nan
    return float(pages * os.sysconf("SC_PAGE_SIZE")) if device.type == "cpu" else math.nan


def free_memory(device: torch.device) -> float:
    """Bytes that this process can still get of a device, or of the machine; nan where nobody says."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(torch.cuda.mem_get_info(device)[0] + kept)
    try:
        (line,) = re.findall(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text("ascii"), re.M)
    except (OSError, ValueError):
        return math.nan
    return float(line) * 1024 if device.type == "cpu" else math.nan


def largest_batch(images: int, taken: float, free: float) -> int | None:
    """Estimate how many images fit into nine tenths of the free memory; None where it is not known.

    Args:
        images: images of the batch that was measured.
        taken: bytes that it took at its peak, beside weights and the optimiser's state.
        free: bytes that were free before it.
    """
    if math.isnan(taken) or math.isnan(free) or taken <= 0:
        return None
    return max(1, int(images * 0.9 * free / taken))


def describe_memory(peak: float, device: torch.device) -> str:
    """Say how much memory was taken, and which."""
    if math.isnan(peak):
        return "memory not known"
    where = "GPU memory" if device.type == "cuda" else "resident memory of the process"
    return f"{peak / 2**30:.2f} GiB {where}"
