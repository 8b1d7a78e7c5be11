"""RoIAlign at scales that are known, on all cores of a CPU, where torchvision's own computes on one."""

from __future__ import annotations

import math
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
from torchvision.ops.poolers import LevelMapper

Sizes = list[tuple[int, int]]

_CHANNELS = 32
"""The most channels in a piece of work: maps of few channels stay in a core's cache."""


def set_strides(pool: MultiScaleRoIAlign, strides: Sequence[int]) -> None:
    """Fix the scales of a pooling, which torchvision's own infers from its first batch and keeps.

    It divides a map's height by that of the highest image, which is wrong where padding adds much: of 12
    rows, padded to 32, the map of stride 4 has 8, and the power of two nearest to 8 / 12 is 1 / 2.

    Args:
        pool: changed in place.
        strides: pixels per cell of each map that is pooled from, in the order of the maps.
    """
    pool.scales = [1 / stride for stride in strides]
    finest, coarsest = (round(math.log2(stride)) for stride in (strides[0], strides[-1]))
    pool.map_levels = LevelMapper(finest, coarsest, pool.canonical_scale, pool.canonical_level)


class ParallelRoIAlign(MultiScaleRoIAlign):
    """torchvision's MultiScaleRoIAlign with scales that are given, and shared among torch's threads on a CPU.

    The results are torchvision's, bit for bit, where that infers these scales. Channels do not depend on each
    other, so that pooling some of them at a time adds up the same numbers in the same order. ``make
    bench-step`` measures what it saves.

    Args:
        featmap_names: names of the maps that are pooled from.
        output_size: cells of a pooled region, one number or (height, width).
        sampling_ratio: samples per cell and direction.
        strides: pixels per cell of each of those maps, in their order.
        canonical_scale: side in pixels of the regions that ``canonical_level`` is for.
        canonical_level: binary logarithm of that level's stride.
    """

    def __init__(
        self,
        featmap_names: list[str],
        output_size: int | tuple[int] | list[int],
        sampling_ratio: int,
        *,
        strides: Sequence[int],
        canonical_scale: int = 224,
        canonical_level: int = 4,
    ) -> None:
        super().__init__(
            featmap_names,
            output_size,
            sampling_ratio,
            canonical_scale=canonical_scale,
            canonical_level=canonical_level,
        )
        set_strides(self, strides)

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
            return self.pool(x, boxes, image_shapes)

        def pool(part: Sequence[Tensor]) -> Tensor:
            return self.pool(dict(zip(maps, part, strict=True)), boxes, image_shapes)

        return cast(Tensor, _Shared.apply(pool, *maps.values()))

    def pool(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: Sizes) -> Tensor:
        """Pool in one thread, from all channels or from some; see :meth:`forward`."""
        return cast(Tensor, MultiScaleRoIAlign.forward(self, x, boxes, image_shapes))


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
