"""The order of training images: a function of seed, epoch and step alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler

from defeat.errors import ConfigError
from defeat.seeds import Stream, derive_seed
from defeat.types import Record


class SeededIndex(NamedTuple):
    """An image that a sampler asks a data set for, with a seed for its augmentation."""

    image: int
    """Position in the data set."""
    seed: int
    """The seed of the random numbers that its augmentation draws."""


class TrainingSampler(DistributedSampler[SeededIndex]):
    """Shuffled samples of one process, batch after batch; an incomplete last batch is dropped.

    In every epoch the data set is shuffled anew and cut into global batches, of which each process takes an
    equal share. Neither the number of processes nor that of worker processes, and nothing that the training
    draws, changes which images, so augmented, a step sees; a training that was begun on one process goes on
    with the same global batches on two. (MosaicML Streaming calls it elastic determinism.)

    With ``groups``, a global batch holds images of one group. Which images come when is still by chance: each
    waits in the shuffled order until its group fills a batch. What is left of all groups in the end makes the
    last batches, which are mixed, so an epoch has as many batches as without groups; and where all images are
    of one group, they are the same.

    It is a ``DistributedSampler`` because Lightning leaves these alone and would put another one over any
    other sampler.

    Args:
        dataset: images.
        batch_size: images of a batch of one process.
        repeat: how often an epoch goes over the data set.
        seed: of the order and of the augmentation.
        groups: (N,) group of each image, see :func:`orientations`; None makes no difference among them.
        replicas: number of processes.
        rank: number of this process.
        epoch: epoch to begin in.
        batches: number of batches of that epoch that are done already.

    Raises:
        ConfigError: there are fewer images than a global batch has. One process alone takes what there is.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        batch_size: int,
        *,
        repeat: int = 1,
        seed: int = 0,
        groups: Tensor | None = None,
        replicas: int = 1,
        rank: int = 0,
        epoch: int = 0,
        batches: int = 0,
    ) -> None:
        super().__init__(dataset, num_replicas=replicas, rank=rank, seed=seed)
        self.images: int = len(dataset)  # type: ignore[arg-type]
        self.all = self.images * repeat
        self.batch_size = batch_size if replicas > 1 else min(batch_size, self.all)
        self.global_batch = self.batch_size * replicas
        if self.all < self.global_batch:
            raise ConfigError(
                f"{self.all} training images are fewer than a batch of {replicas} processes, data.batch_size="
                f"{batch_size} each: lower data.batch_size"
            )
        self.groups = groups
        self.epoch = epoch
        self.batches = batches

    def __len__(self) -> int:
        """Return the number of samples of this process in a whole epoch."""
        return self.all // self.global_batch * self.batch_size

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch; to stay in the one that is under way changes nothing."""
        if epoch != self.epoch:
            self.epoch, self.batches = epoch, 0

    def __iter__(self) -> Iterator[SeededIndex]:
        """Yield the samples that the epoch has left."""
        generator = torch.Generator().manual_seed(derive_seed(Stream.SHUFFLE, self.seed, self.epoch))
        shuffled = torch.randperm(self.all, generator=generator) % self.images
        if self.groups is not None:
            shuffled = shuffled[_by_group(self.groups[shuffled], self.global_batch)]
        images = shuffled.tolist()
        for batch in range(self.batches, self.all // self.global_batch):
            first = batch * self.global_batch + self.rank * self.batch_size
            for position in range(first, first + self.batch_size):
                seed = derive_seed(Stream.AUGMENTATION, self.seed, self.epoch, position)
                yield SeededIndex(images[position], seed)


def orientations(records: Sequence[Record]) -> Tensor | None:
    """Tell for each image whether it is higher than wide: (N,) bool; None where all are alike.

    Images of both kinds in one batch are all padded to its greatest height and width. An image of unknown
    size counts as a wide one.
    """
    high = torch.tensor([0 < record.width < record.height for record in records], dtype=torch.bool)
    return high if high.any() and not high.all() else None


def _by_group(groups: Tensor, size: int) -> Tensor:
    """Return an (N,) int64 order that puts samples of one group together, ``size`` at a time.

    Within a group and among what is left over they keep their order, and batches come in the order in which
    they are filled.
    """
    batches, left = [], []
    for group in groups.unique():
        positions = (groups == group).nonzero().flatten()  # (n,) int64
        whole = len(positions) // size * size
        batches.append(positions[:whole].view(-1, size))  # (n // size, size)
        left.append(positions[whole:])
    filled = torch.cat(batches)  # (batches, size), sorted below by when each is full
    return torch.cat([filled[filled[:, -1].argsort()].flatten(), torch.cat(left).sort().values])
