"""The order of training images is a function of seed, epoch and step, whoever asks for it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DistributedSampler

from defeat.data.sampler import SeededIndex, TrainingSampler, orientations
from defeat.errors import ConfigError
from defeat.seeds import Stream, derive_seed
from defeat.types import Record


def steps(order: TrainingSampler) -> list[list[SeededIndex]]:
    """The samples of each step."""
    samples = list(order)
    return [samples[i : i + order.batch_size] for i in range(0, len(samples), order.batch_size)]


def naive(shuffled: Sequence[int], groups: Sequence[int], size: int) -> list[list[int]]:
    """Fill a bucket for each group, image after image; a full one is a batch; what is left follows."""
    buckets: dict[int, list[int]] = {}
    place: dict[int, list[int]] = {}
    batches: list[list[int]] = []
    for i, image in enumerate(shuffled):
        group = groups[image]
        buckets.setdefault(group, []).append(image)
        place.setdefault(group, []).append(i)
        if len(buckets[group]) == size:
            batches.append(buckets.pop(group))
            place.pop(group)
    left = [shuffled[i] for i in sorted(i for places in place.values() for i in places)]
    return batches + [left[i : i + size] for i in range(0, len(left) - size + 1, size)]


def record(width: int, height: int) -> Record:
    boxes = np.zeros((0, 4), dtype=np.float32)
    return Record(1, Path("a.jpg"), width, height, boxes, boxes[:, 0], boxes[:, 0], boxes[:, 0])


sizes = st.tuples(
    st.integers(1, 4),  # processes
    st.integers(1, 4),  # batch of each
    st.integers(0, 40),  # images beyond one global batch
    st.integers(1, 3),  # repeats
    st.integers(0, 3),  # seed
    st.integers(0, 3),  # epoch
)


kinds = st.one_of(st.none(), st.integers(1, 4))
"""How many groups of images there are; None gives the order none."""


def groups_of(images: int, kinds: int | None) -> torch.Tensor | None:
    return (
        None if kinds is None else torch.randint(kinds, (images,), generator=torch.Generator().manual_seed(5))
    )


@given(sizes, kinds)
def test_processes_share_the_batches_of_one(sizes: tuple[int, ...], kinds: int | None) -> None:
    processes, each, more, repeat, seed, epoch = sizes
    data = range(processes * each + more)
    common = {"repeat": repeat, "seed": seed, "epoch": epoch, "groups": groups_of(len(data), kinds)}
    one = TrainingSampler(data, processes * each, **common)
    many = [TrainingSampler(data, each, replicas=processes, rank=rank, **common) for rank in range(processes)]
    together = zip(*map(steps, many), strict=True)
    assert [[sample for share in shares for sample in share] for shares in together] == steps(one)
    assert {len(order) for order in many} == {len(list(order)) for order in many} == {len(one) // processes}


@given(sizes, kinds, st.data())
def test_the_rest_of_an_epoch_is_its_tail(
    sizes: tuple[int, ...], kinds: int | None, data: st.DataObject
) -> None:
    _, each, more, repeat, seed, epoch = sizes
    images = range(each + more)
    common = {"repeat": repeat, "seed": seed, "groups": groups_of(len(images), kinds)}
    whole = steps(TrainingSampler(images, each, epoch=epoch, **common))
    done = data.draw(st.integers(0, len(whole)))
    order = TrainingSampler(images, each, epoch=epoch, batches=done, **common)
    assert steps(order) == whole[done:]
    assert len(order) == len(whole) * each, "a loader has the length of the epoch"
    order.set_epoch(epoch)
    assert steps(order) == whole[done:]
    order.set_epoch(epoch + 1)
    assert steps(order) == steps(TrainingSampler(images, each, epoch=epoch + 1, **common))


@given(sizes, st.integers(1, 4))
def test_batches_are_of_one_group_as_filling_buckets_makes_them(sizes: tuple[int, ...], kinds: int) -> None:
    _, each, more, repeat, seed, epoch = sizes
    images = range(each + more)
    groups = groups_of(len(images), kinds)
    plain = TrainingSampler(images, each, repeat=repeat, seed=seed, epoch=epoch)
    order = TrainingSampler(images, each, repeat=repeat, seed=seed, epoch=epoch, groups=groups)
    generator = torch.Generator().manual_seed(derive_seed(Stream.SHUFFLE, seed, epoch))
    shuffled = [i % len(images) for i in torch.randperm(len(images) * repeat, generator=generator).tolist()]
    seen = [[sample.image for sample in step] for step in steps(order)]
    assert seen == naive(shuffled, groups.tolist(), each)
    mixed = [len({int(groups[image]) for image in step}) > 1 for step in seen]
    assert sum(mixed) <= kinds - 1
    assert mixed == sorted(mixed), "mixed batches come last"
    assert max(Counter(image for step in seen for image in step).values()) <= repeat
    assert [s.seed for s in order] == [s.seed for s in plain], "random numbers belong to the place"


@pytest.mark.parametrize("groups", [None, 0])
def test_with_one_group_the_order_is_that_of_old(groups: int | None) -> None:
    """Recorded before there were groups; another order would end the exact resuming of older runs."""

    def order(images: int, each: int, **more: int) -> list[tuple[int, int]]:
        alike = None if groups is None else torch.zeros(images, dtype=torch.int64)
        return [tuple(s) for s in TrainingSampler(range(images), each, groups=alike, **more)]

    assert order(5, 2, repeat=2, seed=3, epoch=1, batches=1) == [
        (2, 2981118128734045138),
        (4, 5611922569721312229),
        (0, 8259337466059035496),
        (2, 7148305636618466496),
        (3, 5572162756309141205),
        (4, 5607801240851232630),
        (0, 5161417116568539677),
        (1, 1664948405660296339),
    ]
    shares = [order(101, 3, repeat=3, seed=7, epoch=4, replicas=2, rank=rank, batches=5) for rank in range(2)]
    assert [hashlib.sha256(str(share).encode()).hexdigest()[:16] for share in shares] == [
        "533fcd1375147efa",
        "c77558c419ac60bd",
    ]


def test_orientations() -> None:
    wide, high, square = record(640, 480), record(480, 640), record(500, 500)
    unknown = [record(0, 0), record(0, 480)]
    assert orientations([wide, high, square, *unknown]).tolist() == [False, True, False, False, False]
    assert orientations([high, high]) is None
    assert orientations([wide, square, *unknown]) is None
    assert orientations([]) is None


def test_an_epoch_shows_every_image_as_often_and_never_augmented_alike() -> None:
    samples = list(TrainingSampler(range(50), 5, repeat=3))
    assert Counter(sample.image for sample in samples) == dict.fromkeys(range(50), 3)
    others = [list(TrainingSampler(range(50), 5, repeat=3, **more)) for more in ({"epoch": 1}, {"seed": 1})]
    everything = [*samples, *others[0], *others[1]]
    assert len({sample.seed for sample in everything}) == len(everything)
    assert [s.image for s in samples] != [s.image for s in others[0]] != [s.image for s in others[1]]


def test_one_process_takes_what_there_is_and_several_refuse() -> None:
    assert len(list(TrainingSampler(range(3), 8))) == 3
    with pytest.raises(ConfigError, match=r"7 training images .* 2 processes, data.batch_size=4 each: lower"):
        TrainingSampler(range(7), 4, replicas=2)


def test_lightning_leaves_it_alone() -> None:
    assert isinstance(TrainingSampler(range(3), 1), DistributedSampler)


def test_seeds_depend_on_every_number() -> None:
    seeds = {derive_seed(stream, *numbers) for stream in Stream for numbers in np.ndindex(6, 6, 6)}
    seeds |= {derive_seed(stream, *numbers) for stream in Stream for numbers in np.ndindex(6, 6)}
    assert len(seeds) == len(Stream) * (6**3 + 6**2)
    assert all(0 <= seed < 2**63 for seed in seeds)
