"""RoIAlign on all cores of a CPU, where torchvision's own computes on one."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from threading import Barrier
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils._python_dispatch import is_in_torch_dispatch_mode
from torchvision.ops import MultiScaleRoIAlign

Sizes = list[tuple[int, int]]

_CHANNELS = 32
"""The most channels in a piece of work: maps of few channels stay in a core's cache."""


class ParallelRoIAlign(MultiScaleRoIAlign):
    """torchvision's MultiScaleRoIAlign, bit for bit, with the channels shared among torch's threads on a CPU.

    Channels do not depend on each other, so that pooling some of them at a time adds up the same numbers in
    the same order. ``make bench-step`` measures what it saves.
    """

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: Sizes) -> Tensor:
        """Pool as :class:`torchvision.ops.MultiScaleRoIAlign` does.

        Args:
            x: maps (B, C, H, W) by name.
            boxes: (N, 4) xyxy in pixels, by image.
            image_shapes: (height, width) by image.

        Returns:
            (sum of N, C, *output_size) in the dtype of the maps.
        """
        maps = {name: level for name, level in x.items() if name in self.featmap_names}
        first = next(iter(maps.values()), None)
        if first is None or not _can_share(first) or any(own.requires_grad for own in boxes):
            return cast(Tensor, super().forward(x, boxes, image_shapes))

        def pool(part: Sequence[Tensor]) -> Tensor:
            whole = MultiScaleRoIAlign.forward(self, dict(zip(maps, part, strict=True)), boxes, image_shapes)
            return cast(Tensor, whole)

        return cast(Tensor, _Shared.apply(pool, *maps.values()))


def _can_share(level: Tensor) -> bool:
    return (
        level.device.type == "cpu"
        and min(torch.get_num_threads(), level.shape[1]) > 1
        # Whoever follows operations (a counter of FLOPs, a compiler) follows those of one thread.
        and not is_in_torch_dispatch_mode()
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined]
    )


class _Part(NamedTuple):
    """Some channels of all maps, pooled."""

    leaves: list[Tensor]
    pooled: Tensor
    edge: GradientEdge | None
    """The edge by which a gradient of ``pooled`` enters; None where nothing is to be learned."""


class _Shared(torch.autograd.Function):
    """A function of maps that treats every channel alike, computed for some channels in each thread."""

    @staticmethod
    def forward(ctx: Any, pool: Callable[[Sequence[Tensor]], Tensor], *maps: Tensor) -> Tensor:
        needed = ctx.needs_input_grad[1:]
        learning = any(needed)
        half = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")

        def compute(channels: slice) -> _Part:
            # Modes are a thread's own.
            with torch.set_grad_enabled(learning), torch.autocast("cpu", half[1], enabled=half[0]):
                leaves = [level[:, channels] for level in maps]
                if learning:
                    leaves = [
                        leaf.detach().requires_grad_(own) for leaf, own in zip(leaves, needed, strict=True)
                    ]
                pooled = pool(leaves)
                return _Part(leaves, pooled.detach(), get_gradient_edge(pooled) if learning else None)

        threads = torch.get_num_threads()
        slices = _slices(maps[0].shape[1], threads)
        parts = list(_workers(threads, os.getpid()).map(compute, slices))
        if learning:
            ctx.slices = slices
            ctx.needed = needed
            ctx.shapes = [level.shape for level in maps]
            ctx.leaves = [part.leaves for part in parts]
            ctx.edges = [part.edge for part in parts]
        return torch.cat([part.pooled for part in parts], dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        results = [
            grad.new_empty(shape) if own else None for shape, own in zip(ctx.shapes, ctx.needed, strict=True)
        ]
        wanted = [i for i, own in enumerate(ctx.needed) if own]

        def compute(which: int) -> None:
            channels = ctx.slices[which]
            leaves = [ctx.leaves[which][i] for i in wanted]
            grads = torch.autograd.grad(
                ctx.edges[which],
                leaves,
                grad[:, channels],
                retain_graph=True,  # there may be another backward, and it holds boxes alone
                materialize_grads=True,
            )
            for i, own in zip(wanted, grads, strict=True):
                cast(Tensor, results[i])[:, channels] = own

        threads = torch.get_num_threads()
        list(_workers(threads, os.getpid()).map(compute, range(len(ctx.slices))))
        return (None, *results)


def _slices(channels: int, threads: int) -> list[slice]:
    """Cut the channels into an equal number of pieces of work for each thread."""
    count = min(channels, threads * -(-channels // (threads * _CHANNELS)))
    ends = [channels * i // count for i in range(count + 1)]
    return [slice(start, end) for start, end in pairwise(ends)]


@cache
def _workers(threads: int, process: int) -> ThreadPoolExecutor:
    """Threads that compute on one core each; a forked process needs others than its parent's.

    torch.set_num_threads sets the caller's own number, and that of threads to come, which is put back.
    """
    barrier = Barrier(threads)

    def begin() -> None:
        torch.set_num_threads(1)
        barrier.wait()

    pool = ThreadPoolExecutor(threads, thread_name_prefix="roi-align")
    for started in [pool.submit(begin) for _ in range(threads)]:
        started.result()
    torch.set_num_threads(threads)
    return pool
