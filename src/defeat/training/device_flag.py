"""A yes or no that is found on a device and read later, without making the device wait."""

from __future__ import annotations

from functools import cache

import torch
import torch.distributed as dist
from lightning.pytorch import Trainer
from torch import Tensor


class DeviceFlag:
    """A flag that is up if it is up in any process.

    It is read without waiting for anything that was queued on the device after the flag: on CUDA it travels
    on a stream of its own.

    Args:
        flag: scalar of type bool, on the device of the training.
        trainer: knows whether there are other processes; all of them make their flag together.
    """

    def __init__(self, flag: Tensor, trainer: Trainer) -> None:
        self._flag = flag.int()
        self._arrived: torch.cuda.Event | None = None
        self._reduced: dist.Work | None = None
        if trainer.world_size > 1:
            self._reduced = dist.all_reduce(self._flag, op=dist.ReduceOp.MAX, async_op=True)
        if self._flag.is_cuda:
            stream = _side_stream(self._flag.device)
            stream.wait_stream(torch.cuda.current_stream(self._flag.device))
            with torch.cuda.stream(stream):
                self._wait_for_processes()
                self._flag.record_stream(stream)
                self._flag = self._flag.to("cpu", non_blocking=True)  # to pinned memory, so it does not block
                self._arrived = stream.record_event()

    def read(self) -> bool:
        """Wait for the flag of all processes and read it."""
        self._wait_for_processes()
        if self._arrived is not None:
            self._arrived.synchronize()
        return bool(self._flag)

    def _wait_for_processes(self) -> None:
        if self._reduced is not None:
            self._reduced.wait()
            self._reduced = None


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
