"""What sums over a batch are divided by when the batch is spread over processes.

Data-parallel training (DDP) averages the gradients of P processes, and so trains on the mean of their losses.
A sum over objects divided by the process's own number of objects then counts an object the more, the fewer
there are beside it. Divided by ``max(1, N) / P`` instead, with N counted over all processes, the mean of the
losses is the loss of the global batch, sum over ``max(1, N)``, as one process would compute it if it padded
the images to the same sizes; padding counts as background.

torchvision's own detection losses are divided by numbers of their process alone. For Faster R-CNN these are
the numbers of sampled anchors and proposals, alike everywhere as long as the samplers find enough; RetinaNet
divides image by image, which is exact for equal numbers of images; FCOS divides by its process's number of
foreground points, and is the mean of the processes' losses rather than the loss of the global batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

Normalizer = Callable[[Tensor], Tensor]
"""From the counts of this process's part of a batch to what its sums are divided by, elementwise."""


def local_normalizer(counts: Tensor) -> Tensor:
    """``max(1, N)``, of this process alone. No gradient."""
    return counts.detach().clamp(min=1)


def global_normalizer(counts: Tensor) -> Tensor:
    """``max(1, N) / P`` with N summed over the P processes. No gradient; nothing waits for the device.

    One all-reduce, so that every process must call it, with counts of the same shape. In one process, or
    without a process group, it is :func:`local_normalizer`, bit for bit.

    Args:
        counts: of this process, of any shape; left as they are.
    """
    processes = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if processes == 1:
        return local_normalizer(counts)
    total = counts.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return local_normalizer(total) / processes
