"""RoIAlign shared among threads is torchvision's, bit for bit."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import MultiScaleRoIAlign

from defeat.detectors.adapted import AlignedRoIAlign
from defeat.detectors.adapted.parallel_roi_align import ParallelRoIAlign, _workers

THREADS = 3
NAMES = ["0", "1", "pool"]
SIZES = [(64, 96), (60, 96)]
STRIDES = (4, 8, 16)


def torchvisions() -> MultiScaleRoIAlign:
    return MultiScaleRoIAlign(NAMES, 7, 2)


def ours() -> ParallelRoIAlign:
    return ParallelRoIAlign(NAMES, 7, 2, strides=STRIDES)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def computed_in(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of the threads that pooled."""
    names: set[str] = set()
    own = MultiScaleRoIAlign.forward

    def forward(self: MultiScaleRoIAlign, *args: Any) -> Tensor:
        names.add(threading.current_thread().name.partition("_")[0])
        return own(self, *args)

    monkeypatch.setattr(MultiScaleRoIAlign, "forward", forward)
    return names


def maps(channels: int = 70) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {name: torch.randn(2, channels, 16 >> i, 24 >> i) for i, name in enumerate([*NAMES, "unused"])}


def boxes(counts: tuple[int, int] = (20, 7)) -> list[Tensor]:
    torch.manual_seed(1)
    corners = [torch.rand(count, 2) * 60 for count in counts]
    return [torch.cat([xy, xy + 1 + torch.rand_like(xy) * 40], dim=1) for xy in corners]


def pooled(
    make: Callable[[], MultiScaleRoIAlign], levels: dict[str, Tensor], regions: list[Tensor]
) -> tuple[Tensor, list[Tensor | None]]:
    """The result, and the gradients of its weighted sum."""
    leaves = {name: x.clone().detach().requires_grad_(x.requires_grad) for name, x in levels.items()}
    out = make()(leaves, regions, SIZES)
    if out.requires_grad:
        torch.manual_seed(2)
        (out * torch.randn_like(out)).sum().backward()
    return out.detach(), [x.grad for x in leaves.values()]


def same(levels: dict[str, Tensor], regions: list[Tensor]) -> bool:
    (a, a_grads), (b, b_grads) = (pooled(make, levels, regions) for make in (ours, torchvisions))
    pairs = zip(a_grads, b_grads, strict=True)
    grads = all((x is None) == (y is None) and (x is None or x.equal(y)) for x, y in pairs)
    return a.dtype == b.dtype and a.equal(b) and grads


@pytest.mark.parametrize("channels", [1, 2, 3, 70, 256])
@pytest.mark.parametrize("learning", [NAMES, ["1"], []], ids=["all", "one", "none"])
def test_results_and_gradients_are_torchvisions(
    channels: int, learning: list[str], computed_in: set[str]
) -> None:
    levels = maps(channels)
    for name in learning:
        levels[name].requires_grad_()
    assert same(levels, boxes())
    assert computed_in == ({"MainThread", "roi-align"} if channels > 1 else {"MainThread"})


def test_the_aligned_one_is_shared_likewise(computed_in: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its loops of one thread, which ``test_levels.py`` compares, give the same numbers and gradients."""
    own = AlignedRoIAlign.pool

    def pool(self: AlignedRoIAlign, *args: Any) -> Tensor:
        computed_in.add(threading.current_thread().name.partition("_")[0])
        return own(self, *args)

    monkeypatch.setattr(AlignedRoIAlign, "pool", pool)
    make = partial(AlignedRoIAlign, NAMES, 7, 0, strides=STRIDES)
    levels = {name: x.requires_grad_() for name, x in maps().items()}
    shared, shared_grads = pooled(make, levels, boxes())
    assert computed_in == {"roi-align"}
    torch.set_num_threads(1)
    alone, grads = pooled(make, levels, boxes())
    assert computed_in == {"roi-align", "MainThread"}
    assert shared.equal(alone)
    assert shared.dtype == torch.float32
    assert all(a.equal(b) for a, b in zip(shared_grads[:3], grads[:3], strict=True))
    torch.set_num_threads(THREADS)
    with torch.autocast("cpu", torch.bfloat16):
        half, _ = pooled(make, {name: x.detach().bfloat16() for name, x in levels.items()}, boxes())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), alone, atol=0.05, rtol=0.02)


@pytest.mark.parametrize("counts", [(0, 5), (0, 0), (1, 0)])
def test_images_without_boxes(counts: tuple[int, int]) -> None:
    assert same({name: x.requires_grad_() for name, x in maps().items()}, boxes(counts))


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_under_autocast(half: torch.dtype) -> None:
    with torch.autocast("cpu", half):
        assert same({name: x.to(half).requires_grad_() for name, x in maps().items()}, boxes())


def test_channels_last_and_double() -> None:
    levels = {name: x.to(memory_format=torch.channels_last) for name, x in maps().items()}
    assert same({name: x.requires_grad_() for name, x in levels.items()}, boxes())
    doubles = {name: x.double().requires_grad_() for name, x in maps().items()}
    assert same(doubles, [x.double() for x in boxes()])


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(mode: Any) -> None:
    with mode():
        levels = maps()
        assert same(levels, boxes())
    assert same(levels, boxes())


def test_a_second_backward_through_the_same_graph() -> None:
    """As a measurement of each loss's gradients does."""
    grads = []
    for make in (ours, torchvisions):
        level = {name: x.requires_grad_() for name, x in maps().items()}
        out = make()(level, boxes(), SIZES)
        first = torch.autograd.grad(out.sum(), level["0"], retain_graph=True)[0]
        second = torch.autograd.grad(out.square().sum(), [level["0"], level["1"]])
        grads.append([first, *second])
    assert all(a.equal(b) for a, b in zip(*grads, strict=True))


def test_an_error_is_raised_as_torchvision_raises_it() -> None:
    for make in (torchvisions, ours):
        with pytest.raises(IndexError, match="out of bounds"):
            make()(maps(), [x[:, :3] for x in boxes()], SIZES)


def test_the_number_of_threads_is_left_alone() -> None:
    ours()(maps(), boxes(), SIZES)
    assert torch.get_num_threads() == THREADS
    found: list[int] = []
    later = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert found == [THREADS]


@pytest.mark.parametrize("following", [False, True])
def test_who_follows_operations_sees_them_all(following: bool, computed_in: set[str]) -> None:
    with FlopCounterMode(display=False) if following else nullcontext():
        ours()(maps(), boxes(), SIZES)
    assert computed_in == ({"MainThread"} if following else {"roi-align"})


def _send_from_a_worker(end: Connection) -> None:
    end.send(_workers(THREADS, os.getpid()).submit(os.getpid).result())


def test_a_forked_process_has_threads_of_its_own() -> None:
    """The threads of its parent do not live on in it."""
    assert _workers(THREADS, os.getpid()).submit(os.getpid).result() == os.getpid()
    context = multiprocessing.get_context("fork")
    mine, its = context.Pipe()
    process = context.Process(target=_send_from_a_worker, args=(its,), daemon=True)
    process.start()
    assert mine.poll(60), "the fork waits for threads that it does not have"
    assert mine.recv() == process.pid
    process.join(60)


@pytest.mark.filterwarnings(
    "ignore::torch.jit.TracerWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"
)
def test_a_trace_has_torchvisions_operations() -> None:
    class Pools(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool = ours()

        def forward(self, *levels: Tensor) -> Tensor:
            return self.pool(dict(zip(NAMES, levels, strict=True)), regions, SIZES)

    regions = boxes()
    levels = tuple(maps().values())[:3]
    traced = torch.jit.trace(Pools(), levels, check_trace=False)
    assert "torchvision::roi_align" in str(traced.inlined_graph)
    assert traced(*levels).equal(Pools()(*levels))
