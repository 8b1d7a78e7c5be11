"""The splits of a data set as Lightning wants them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any, Literal

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from defeat.data.checks import log_problems
from defeat.data.class_checks import class_problems
from defeat.data.dataset import DetectionDataset, Transforms, collate, drop_undecodable
from defeat.data.division import Division
from defeat.data.error_policy import OnError, check_on_error
from defeat.data.exif import Exif, check_exif, decide_exif
from defeat.data.fields import check_classes
from defeat.data.fingerprint import fingerprint
from defeat.data.loader import POLL_SECONDS, WatchedDataLoader, auto_workers, keep_out_of_signals
from defeat.data.sampler import TrainingSampler, orientations
from defeat.errors import ConfigError, DataError
from defeat.types import Annotations, Batch, Problem, Record

Split = Literal["train", "val", "test"]

_SPLITS_OF_STAGE: dict[str | None, tuple[Split, ...]] = {
    "fit": ("train", "val"),
    "validate": ("val",),
    "test": ("test",),
    None: ("train", "val", "test"),
}

_EVALUATED: tuple[Split, ...] = ("val", "test")


class DetectionDataModule(LightningDataModule):
    """Training, validation and test split, each read once and only when a stage needs it.

    The class names, and so the number of classes, come from the training split unless ``classes`` gives them;
    the other splits are read with the same names, whatever their own order. Without ``classes`` an evaluation
    alone therefore reads the training annotations too.

    Args:
        train: reader of the training split with everything but ``classes`` and ``on_error`` bound, for
            instance ``functools.partial(read_coco, "train.json", "images")``.
        val: the same for validation.
        test: the same for testing, if there is a test split.
        root: folder that the readers' paths start from; None leaves it to them.
        batch_size: images in a training batch.
        val_batch_size: images in a validation or test batch; ``batch_size`` by default.
        num_workers: processes that decode; 0 decodes in the main process; ``auto`` see
            :func:`~defeat.data.loader.auto_workers`. No more are started than there are batches.
        train_transforms: see :class:`~defeat.data.dataset.DetectionDataset`; training only.
        pin_memory: copy batches into page-locked memory, which a GPU reads while it computes; without one
            there is nothing to lock for, and nothing is done.
        on_error: ``raise`` stops at the first record that cannot be used; ``skip`` leaves such records out,
            and decodes every image once at the start to find those that cannot be decoded.
        limit_train: only the first so many training images.
        limit_val: only the first so many validation and test images.
        repeat: passes over the training split in one epoch, as usual for VOC's small one.
        seed: decides the order of the training images and their augmentation, see
            :class:`~defeat.data.sampler.TrainingSampler`.
        group_by_aspect_ratio: training batches of images that are all higher than wide or all not, so that
            less of a batch is padding; where all images are of one kind, nothing changes.
        classes: names in the order of the labels.
        exif: how pictures are read that their EXIF data say to turn: ``apply`` turns all, ``ignore`` none,
            ``auto`` as the boxes lie, see :func:`~defeat.data.exif.decide_exif`.
        division: what the readers go by where one part was divided into several; it is recorded with the run.

    Raises:
        ConfigError: an argument makes no sense; or a test split is asked for and there is none.
        DataError: from ``setup``: see the readers; or a split holds no image.
    """

    def __init__(
        self,
        train: Callable[..., Annotations] | None,
        val: Callable[..., Annotations] | None,
        test: Callable[..., Annotations] | None = None,
        root: str | None = None,
        batch_size: int = 2,
        val_batch_size: int | None = None,
        num_workers: int | Literal["auto"] = 0,
        train_transforms: Transforms | None = None,
        pin_memory: bool = False,
        on_error: OnError = "raise",
        limit_train: int | None = None,
        limit_val: int | None = None,
        repeat: int = 1,
        seed: int = 0,
        group_by_aspect_ratio: bool = True,
        classes: Sequence[str] | None = None,
        exif: Exif = "auto",
        division: Division | None = None,
    ) -> None:
        super().__init__()
        check_on_error(on_error)
        check_exif(exif)
        if isinstance(num_workers, str):
            if num_workers != "auto":
                raise ConfigError(f"num_workers must be a whole number or auto, got {num_workers}")
            num_workers = auto_workers(1, gpu=torch.accelerator.is_available())
        _check_least(0, seed=seed, num_workers=num_workers)
        _check_least(1, batch_size=batch_size, val_batch_size=val_batch_size, repeat=repeat)
        _check_least(1, limit_train=limit_train, limit_val=limit_val)
        self.division = division
        self.annotations: dict[Split, Annotations] = {}
        self._read_before: dict[Split, Annotations] = {}
        self._told: set[Problem] = set()
        self._readers: dict[Split, Callable[..., Annotations] | None] = {
            "train": train,
            "val": val,
            "test": test,
        }
        self._limits: dict[Split, int | None] = {"train": limit_train, "val": limit_val, "test": limit_val}
        self._classes = None if classes is None else check_classes(classes)
        self._root = {} if root is None else {"root": root}
        self._batch_size = batch_size
        self._val_batch_size = val_batch_size or batch_size
        self._num_workers = num_workers
        self._train_transforms = train_transforms
        self._pin_memory = pin_memory
        self._on_error = on_error
        self._exif = exif
        self._repeat = repeat
        self._seed = seed
        self._group_by_aspect_ratio = group_by_aspect_ratio
        self._begin = (0, 0)

    def setup(self, stage: str | None = None) -> None:
        """Read the splits of a stage: fit, validate, test, or None for all there are."""
        for split in _SPLITS_OF_STAGE[stage]:
            if stage is not None or split in self.splits:
                self.read(split)

    @property
    def classes(self) -> tuple[str, ...]:
        """K names; label i stands for ``classes[i - 1]``. Reads the training split if need be."""
        return self._classes or self._annotated("train").classes

    @property
    def class_ids(self) -> tuple[int, ...]:
        """K ids to write into results: of the validation split if it was read, else test's, else train's."""
        evaluated = [self.annotations[split] for split in _EVALUATED if split in self.annotations]
        return (evaluated[0] if evaluated else self._annotated("train")).class_ids

    def fingerprints(self) -> dict[str, str]:
        """Checksum of each split read so far, see :func:`~defeat.data.fingerprint.fingerprint`."""
        return {split: fingerprint(annotations) for split, annotations in self.annotations.items()}

    def train_dataloader(self) -> DataLoader[Batch]:
        """Load the training split, shuffled by ``seed``.

        An incomplete last batch is left out unless it is the only one. Boxes to ignore are left out here and
        nowhere else. The order begins where :meth:`begin_at` says.
        """
        dataset = DetectionDataset(self.read("train"), self._train_transforms, drop_ignored=True)
        epoch, batches = self._begin
        sampler = TrainingSampler(
            dataset,
            self._batch_size,
            repeat=self._repeat,
            seed=self._seed,
            groups=self._groups,
            replicas=self.trainer.world_size if self.trainer else 1,
            rank=self.trainer.global_rank if self.trainer else 0,
            epoch=epoch,
            batches=batches,
        )
        return self._loader(dataset, self._batch_size, sampler)

    def order(self, processes: int) -> dict[str, int | None]:
        """Return the settings that decide which images a step sees, by the configuration's key.

        ``data.group_by_aspect_ratio`` is None where that changes nothing, as in checkpoints of times when
        there was no such key.
        """
        return {
            "data.seed": self._seed,
            "data.repeat": self._repeat,
            "data.batch_size x processes": self._batch_size * processes,
            "data.group_by_aspect_ratio": None if self._groups is None else True,
        }

    def begin_at(self, epoch: int, batches: int) -> None:
        """Let the training begin after so many batches of an epoch, as one does that is resumed."""
        self._begin = (epoch, batches)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Load the validation split in its own order, with the boxes to ignore."""
        return self._loader(DetectionDataset(self.read("val")), self._val_batch_size)

    def test_dataloader(self) -> DataLoader[Batch]:
        """Load the test split in its own order, with the boxes to ignore."""
        return self._loader(DetectionDataset(self.read("test")), self._val_batch_size)

    def ground_truth(self, split: Split) -> Annotations:
        """Read a whole split by itself, with its classes in its own order, as a results file needs it."""
        annotations = self._reader(split)(on_error=self._on_error, **self._root)
        self._warn(annotations)
        return annotations

    def read(self, split: Split) -> Annotations:
        """Return a split that is ready for use; it is read at the first call."""
        if split not in self.annotations:
            annotations = self.whole(split)
            annotations = annotations._replace(records=annotations.records[: self._limits[split]])
            if self._on_error == "skip":
                annotations = drop_undecodable(annotations)
            if not annotations.records:
                raise DataError(f"{annotations.source}: the {split} split holds no usable image")
            self.annotations[split] = annotations
        return self.annotations[split]

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits that there is a reader for; a division may have learnt of one from a checkpoint."""
        divided = self.division.parts if self.division else ()
        return tuple(split for split, reader in self._readers.items() if reader or split in divided)

    def whole(self, split: Split) -> Annotations:
        """Return all images of a split with the rule for their orientation; no image is decoded."""
        annotations = decide_exif(self._annotated(split), self._exif, self._other_records(split))
        self._warn(annotations)
        return annotations

    def _other_records(self, split: Split) -> Iterator[Sequence[Record]]:
        """Read the other splits one by one; an evaluation need not have them."""
        for other in self._readers:
            if other != split and other in self.splits:
                with suppress(DataError):
                    yield self._annotated(other).records

    def _annotated(self, split: Split) -> Annotations:
        """Return a split as its reader gives it. That is enough to know the classes; no image is opened."""
        if split not in self._read_before:
            reader = self._reader(split)
            # the training split is what says the classes, unless they are given
            named = {} if split == "train" and self._classes is None else {"classes": self.classes}
            annotations = reader(**named, on_error=self._on_error, **self._root)
            of_classes = class_problems(annotations, trained=split == "train")
            self._read_before[split] = annotations._replace(problems=(*annotations.problems, *of_classes))
            self._warn(self._read_before[split])
        return self._read_before[split]

    def _warn(self, annotations: Annotations) -> None:
        """Tell once what is probably wrong, also where several splits have it."""
        log_problems(annotations.source, [p for p in annotations.problems if p not in self._told])
        self._told.update(annotations.problems)

    @cached_property
    def _groups(self) -> Tensor | None:
        return orientations(self.read("train").records) if self._group_by_aspect_ratio else None

    def _reader(self, split: Split) -> Callable[..., Annotations]:
        reader = self._readers[split]
        if reader is None and self.division and split in self.division.parts:
            return self.division.reader(split)
        if reader is None:
            where = f"in {self._root['root']} " if self._root else ""
            parts = ", ".join(self.splits) or "nothing"
            raise ConfigError(
                f"the data {where}has no {split} split, only {parts}: see that its annotations are there"
            )
        return reader

    def _loader(
        self, dataset: Dataset[Any], batch_size: int, sampler: Sampler[Any] | None = None
    ) -> DataLoader[Batch]:
        images = len(dataset) if sampler is None else len(sampler)  # type: ignore[arg-type]
        workers = min(self._num_workers, -(-images // batch_size))
        return WatchedDataLoader(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            collate_fn=collate,
            num_workers=workers,
            persistent_workers=workers > 0,
            timeout=POLL_SECONDS if workers else 0,
            worker_init_fn=keep_out_of_signals,
            pin_memory=self._pin_memory and self._on_gpu(),
        )

    def _on_gpu(self) -> bool:
        """Torch warns of pinning where there is no GPU, and pins in vain where there is one that rests."""
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"


def _check_least(least: int, **numbers: int | None) -> None:
    for name, number in numbers.items():
        if number is not None and number < least:
            raise ConfigError(f"{name} must be at least {least}, got {number}")
