"""The order of training images is a function of seed, epoch and step, whoever asks for it."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DistributedSampler

from defeat.data.order import Sample, TrainingOrder
from defeat.errors import ConfigError
from defeat.seeds import Stream, fold, isolated


def steps(order: TrainingOrder) -> list[list[Sample]]:
    """The samples of each step."""
    samples = list(order)
    return [samples[i : i + order.batch_size] for i in range(0, len(samples), order.batch_size)]


sizes = st.tuples(
    st.integers(1, 4),  # processes
    st.integers(1, 4),  # batch of each
    st.integers(0, 40),  # images beyond one global batch
    st.integers(1, 3),  # repeats
    st.integers(0, 3),  # seed
    st.integers(0, 3),  # epoch
)


@given(sizes)
def test_processes_share_the_batches_of_one(sizes: tuple[int, ...]) -> None:
    processes, each, more, repeat, seed, epoch = sizes
    data = range(processes * each + more)
    one = TrainingOrder(data, processes * each, repeat=repeat, seed=seed, epoch=epoch)
    many = [
        TrainingOrder(data, each, repeat=repeat, seed=seed, epoch=epoch, replicas=processes, rank=rank)
        for rank in range(processes)
    ]
    together = zip(*map(steps, many), strict=True)
    assert [[sample for share in shares for sample in share] for shares in together] == steps(one)
    assert {len(order) for order in many} == {len(list(order)) for order in many} == {len(one) // processes}


@given(sizes, st.data())
def test_the_rest_of_an_epoch_is_its_tail(sizes: tuple[int, ...], data: st.DataObject) -> None:
    _, each, more, repeat, seed, epoch = sizes
    images = range(each + more)
    whole = steps(TrainingOrder(images, each, repeat=repeat, seed=seed, epoch=epoch))
    done = data.draw(st.integers(0, len(whole)))
    order = TrainingOrder(images, each, repeat=repeat, seed=seed, epoch=epoch, batches=done)
    assert steps(order) == whole[done:]
    assert len(order) == len(whole) * each, "a loader has the length of the epoch"
    order.set_epoch(epoch)
    assert steps(order) == whole[done:]
    order.set_epoch(epoch + 1)
    assert steps(order) == steps(TrainingOrder(images, each, repeat=repeat, seed=seed, epoch=epoch + 1))


def test_an_epoch_shows_every_image_as_often_and_never_augmented_alike() -> None:
    samples = list(TrainingOrder(range(50), 5, repeat=3))
    assert Counter(sample.image for sample in samples) == dict.fromkeys(range(50), 3)
    others = [list(TrainingOrder(range(50), 5, repeat=3, **more)) for more in ({"epoch": 1}, {"seed": 1})]
    everything = [*samples, *others[0], *others[1]]
    assert len({sample.seed for sample in everything}) == len(everything)
    assert [s.image for s in samples] != [s.image for s in others[0]] != [s.image for s in others[1]]


def test_one_process_takes_what_there_is_and_several_refuse() -> None:
    assert len(list(TrainingOrder(range(3), 8))) == 3
    with pytest.raises(ConfigError, match=r"7 training images .* 2 processes, data.batch_size=4 each: lower"):
        TrainingOrder(range(7), 4, replicas=2)


def test_lightning_leaves_it_alone() -> None:
    assert isinstance(TrainingOrder(range(3), 1), DistributedSampler)


def test_drawing_apart_leaves_all_generators_as_they_were() -> None:
    def draw() -> tuple[float, float, float]:
        return torch.rand(()).item(), np.random.rand(), random.random()

    def seed() -> None:
        torch.manual_seed(1)
        np.random.seed(1)
        random.seed(1)

    seed()
    expected = draw()
    seed()
    with isolated(5):
        first = draw()
    assert draw() == expected
    with isolated(5):
        assert draw() == first
    with isolated(6):
        assert draw() != first


def test_seeds_depend_on_every_number() -> None:
    seeds = {fold(stream, *numbers) for stream in Stream for numbers in np.ndindex(6, 6, 6)}
    seeds |= {fold(stream, *numbers) for stream in Stream for numbers in np.ndindex(6, 6)}
    assert len(seeds) == len(Stream) * (6**3 + 6**2)
    assert all(0 <= seed < 2**63 for seed in seeds)
