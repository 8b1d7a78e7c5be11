import random
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from defeat.data import DetectionDataModule, fingerprint, read_coco
from defeat.errors import ConfigError, DataError
from defeat.types import Batch
from tests.helpers.data_sets import save_picture


class Reader:
    """A reader that counts its calls."""

    def __init__(self, read) -> None:
        self.read = read
        self.calls: list[dict] = []

    def __call__(self, **options):
        self.calls.append(options)
        return self.read(**options)


@pytest.fixture
def readers(coco, tmp_path) -> dict[str, Reader]:
    """Train as it is (dog 3, cat 18); validation lists the classes in another order, under other ids."""
    coco.write()
    other = {**coco.content, "categories": [{"id": 3, "name": "cat"}, {"id": 18, "name": "dog"}]}
    coco.content, coco.file = other, coco.root / "val.json"
    coco.write()
    return {
        "train": Reader(partial(read_coco, coco.root / "instances.json", coco.images)),
        "val": Reader(partial(read_coco, coco.root / "val.json", coco.images)),
    }


def indices(loader: DataLoader[Batch]) -> list[list[int]]:
    return [[int(target["index"]) for target in batch.targets] for batch in loader]


def test_fit_reads_each_split_once_with_the_classes_of_training(readers) -> None:
    module = DetectionDataModule(**readers)
    for stage in ("fit", "validate", "fit", None):
        module.setup(stage)
    assert readers["train"].calls == [{"on_error": "raise"}]
    assert readers["val"].calls == [{"classes": ("dog", "cat"), "on_error": "raise"}]
    assert module.classes == ("dog", "cat")
    assert module.class_ids == (18, 3)  # those of the split that results are written for
    assert set(module.annotations) == {"train", "val"}
    assert module.annotations["val"].records[0].labels.tolist() == [2, 1]


def test_evaluation_alone_reads_training_for_its_classes_only(readers, coco) -> None:
    (coco.images / "a.jpg").write_bytes(b"no picture")
    module = DetectionDataModule(**readers, on_error="skip")
    module.setup("validate")
    assert set(module.annotations) == {"val"}
    assert len(readers["train"].calls) == 1


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_with_classes_given_evaluation_does_not_touch_training(readers, stage) -> None:
    module = DetectionDataModule(**readers, test=readers["val"], classes=["cat", "dog"])
    module.setup(stage)
    assert module.classes == ("cat", "dog")
    assert module.class_ids == (3, 18)
    assert readers["train"].calls == []
    assert readers["val"].calls == [{"classes": ("cat", "dog"), "on_error": "raise"}]
    module.setup("fit")
    assert readers["train"].calls[0]["classes"] == ("cat", "dog")


def test_readers_are_given_the_root(coco) -> None:
    coco.write()
    reader = partial(read_coco, "instances.json", "images")
    module = DetectionDataModule(reader, reader, root=str(coco.root))
    module.setup("fit")
    assert module.annotations["train"].source == str(coco.file)


def test_boxes_to_ignore_stay_in_evaluation_and_never_reach_training(readers) -> None:
    module = DetectionDataModule(**readers, test=readers["val"], batch_size=1)
    module.setup()
    seen = {
        name: sum(int(target["ignore"].sum()) for batch in loader for target in batch.targets)
        for name, loader in (
            ("train", module.train_dataloader()),
            ("val", module.val_dataloader()),
            ("test", module.test_dataloader()),
        )
    }
    assert seen == {"train": 0, "val": 1, "test": 1}
    assert sum(record.ignore.sum() for record in module.annotations["train"].records) == 1


def test_evaluation_comes_in_order_and_whole(readers) -> None:
    module = DetectionDataModule(**readers, test=readers["val"], batch_size=1, val_batch_size=2)
    for loader in (module.val_dataloader(), module.test_dataloader()):
        assert indices(loader) == [[0, 1], [2]]


def test_training_drops_an_incomplete_last_batch_unless_it_is_the_only_one(readers) -> None:
    assert [
        len(batch) for batch in indices(DetectionDataModule(**readers, batch_size=2).train_dataloader())
    ] == [2]
    assert [
        len(batch) for batch in indices(DetectionDataModule(**readers, batch_size=5).train_dataloader())
    ] == [3]


def test_training_order_follows_the_seed_whatever_else_draws(readers) -> None:
    orders = {}
    for seed in (0, 0, 1, 2, 3):
        torch.manual_seed(len(orders))
        loader = DetectionDataModule(**readers, batch_size=3, repeat=4, seed=seed).train_dataloader()
        order = str([indices(loader), indices(loader)])
        assert orders.setdefault(seed, order) == order
    assert len(set(orders.values())) > 1
    first = indices(loader)
    assert indices(loader) == first
    loader.sampler.set_epoch(1)
    assert indices(loader) != first


@pytest.mark.parametrize("transforms", ["torch", "numpy", "python"])
def test_augmentation_belongs_to_the_sample(transforms: str, readers) -> None:
    draws = {
        "torch": lambda: int(torch.randint(256, ())),
        "numpy": lambda: int(np.random.randint(256)),
        "python": lambda: random.randrange(256),
    }[transforms]

    def shade(image, target):  # type: ignore[no-untyped-def]
        return torch.full_like(image, draws()), target

    def shades(loader: DataLoader) -> list[int]:
        return [int(image[0, 0, 0]) for batch in loader for image in batch.images]

    module = DetectionDataModule(**readers, batch_size=1, repeat=8, train_transforms=shade)
    whole = shades(module.train_dataloader())
    torch.rand(1)
    assert shades(module.train_dataloader()) == whole
    assert len(set(whole)) > 3
    module.begin_at(0, 3)
    assert shades(module.train_dataloader()) == whole[3:]


@pytest.fixture
def both_orientations(coco):
    """Nine images, every third higher than wide."""
    coco.content["annotations"] = []
    coco.content["images"] = []
    for i in range(9):
        width, height = (40, 60) if i % 3 == 0 else (60, 40)
        save_picture(coco.images / f"{i}.png", width, height)
        coco.content["images"].append({"id": i, "file_name": f"{i}.png", "width": width, "height": height})
    coco.write()
    reader = partial(read_coco, coco.file, coco.images)
    return {"train": reader, "val": reader}


def test_training_batches_are_of_one_orientation(both_orientations) -> None:
    options = {**both_orientations, "batch_size": 3, "repeat": 4, "seed": 1}

    def mixed(**more) -> int:
        loader = DetectionDataModule(**options, **more).train_dataloader()
        return sum(len({image.shape for image in batch.images}) > 1 for batch in loader)

    assert mixed() == 0
    assert mixed(group_by_aspect_ratio=False) > 0
    module = DetectionDataModule(**options)
    whole = indices(module.train_dataloader())
    assert len(whole) == 12
    module.begin_at(0, 5)
    assert indices(module.train_dataloader()) == whole[5:]


def test_grouping_is_part_of_what_a_resume_compares(both_orientations) -> None:
    key = "data.group_by_aspect_ratio"
    assert DetectionDataModule(**both_orientations).order(1)[key] is True
    # what a checkpoint has that is older than the key
    assert DetectionDataModule(**both_orientations, group_by_aspect_ratio=False).order(1)[key] is None


def test_images_of_one_orientation_come_as_they_did(readers) -> None:
    module, before = (
        DetectionDataModule(**readers, batch_size=1, repeat=4, group_by_aspect_ratio=grouped)
        for grouped in (True, False)
    )
    assert indices(module.train_dataloader()) == indices(before.train_dataloader())
    assert module.order(1) == before.order(1)


@pytest.mark.parametrize(
    ("device", "wanted", "pinned"), [("cpu", True, False), ("cuda", True, True), ("cuda", False, False)]
)
def test_memory_is_locked_only_for_a_gpu(readers, device, wanted, pinned) -> None:
    module = DetectionDataModule(**readers, pin_memory=wanted)
    assert not module.val_dataloader().pin_memory, "nothing says that there is a GPU"
    module.trainer = SimpleNamespace(
        strategy=SimpleNamespace(root_device=torch.device(device)), world_size=1, global_rank=0
    )
    assert module.val_dataloader().pin_memory is pinned
    assert module.train_dataloader().pin_memory is pinned


def test_repeat_goes_over_training_several_times_in_an_epoch(readers) -> None:
    module = DetectionDataModule(**readers, batch_size=1, repeat=3)
    assert sorted(indices(module.train_dataloader())) == [[0]] * 3 + [[1]] * 3 + [[2]] * 3
    assert len(module.val_dataloader()) == 3


def test_limits_take_the_first(readers) -> None:
    module = DetectionDataModule(**readers, batch_size=1, limit_train=2, limit_val=1)
    assert sorted(indices(module.train_dataloader())) == [[0], [1]]
    assert indices(module.val_dataloader()) == [[0]]


def test_transforms_are_for_training(readers) -> None:
    module = DetectionDataModule(**readers, batch_size=3, train_transforms=v2.Resize((20, 30)))
    assert {tuple(image.shape) for image in next(iter(module.train_dataloader())).images} == {(3, 20, 30)}
    assert {tuple(image.shape) for image in next(iter(module.val_dataloader())).images} == {(3, 40, 60)}


def test_skip_leaves_undecodable_images_out_and_raise_names_them(readers, coco) -> None:
    (coco.images / "b.png").write_bytes(b"no picture")
    skipping = DetectionDataModule(**readers, on_error="skip")
    skipping.setup("fit")
    assert [record.image_id for record in skipping.annotations["train"].records] == [7, 31]
    assert skipping.annotations["train"].counts == {"images undecodable": 1}
    assert readers["train"].calls == [{"on_error": "skip"}]
    with pytest.raises(DataError, match="image id 900"):
        list(DetectionDataModule(**readers).val_dataloader())


def test_worker_processes_give_the_same_and_pass_errors_on(readers, coco) -> None:
    module = DetectionDataModule(**readers, num_workers=1, val_batch_size=1)
    loader = module.val_dataloader()
    assert loader.persistent_workers
    assert indices(loader) == [[0], [1], [2]]
    (coco.images / "b.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="image id 900"):
        indices(loader)
    loader._iterator._shutdown_workers()  # left to the garbage collector, this takes five seconds


def test_worker_processes_change_nothing(readers) -> None:
    def batches(workers: int) -> list[Batch]:
        flip = v2.RandomHorizontalFlip(0.5)
        options = {"batch_size": 3, "repeat": 4, "train_transforms": flip, "num_workers": workers}
        loader = DetectionDataModule(**readers, **options).train_dataloader()
        found = list(loader)
        if workers:
            loader._iterator._shutdown_workers()
        return found

    own, sent = batches(0), batches(1)
    assert len(own) == 4
    assert all(type(batch) is Batch for batch in (*own, *sent))
    assert_equal(own, sent)
    pieces = [{image.untyped_storage().data_ptr() for image in batch.images} for batch in sent]
    assert [len(piece) for piece in pieces] == [1] * 4, "all images of a batch travel in one"


def assert_equal(these: list[Batch], those: list[Batch]) -> None:
    for one, other in zip(these, those, strict=True):
        pairs = list(zip(one.images, other.images, strict=True))
        for mine, theirs in zip(one.targets, other.targets, strict=True):
            assert list(mine) == list(theirs)
            pairs += zip(mine.values(), theirs.values(), strict=True)
        for left, right in pairs:
            assert left.dtype == right.dtype
            assert torch.equal(left, right)


def test_fingerprints_of_what_was_read(readers) -> None:
    module = DetectionDataModule(**readers)
    assert module.fingerprints() == {}
    module.setup("fit")
    assert module.fingerprints() == {name: fingerprint(data) for name, data in module.annotations.items()}
    assert len(module.fingerprints()) == 2


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_empty_split_is_an_error(readers, split) -> None:
    empty = readers[split].read
    readers[split].read = lambda **options: empty(**options)._replace(records=[])
    with pytest.raises(DataError, match=f"the {split} split holds no usable image"):
        DetectionDataModule(**readers).setup("fit")


def test_a_missing_test_split_is_said(readers) -> None:
    module = DetectionDataModule(**readers)
    module.setup()  # whatever there is
    with pytest.raises(ConfigError, match="the data has no test split"):
        module.setup("test")


@pytest.mark.parametrize("name", ["batch_size", "val_batch_size", "limit_train", "limit_val", "repeat"])
def test_counts_must_be_positive(readers, name) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be at least 1, got 0"):
        DetectionDataModule(**readers, **{name: 0})


@pytest.mark.parametrize("options", [{"num_workers": -1}, {"on_error": "ignore"}, {"classes": []}])
def test_other_options_must_make_sense(readers, options) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        DetectionDataModule(**readers, **options)


def test_no_more_workers_than_batches_and_a_word_that_is_none(coco) -> None:
    reader = partial(read_coco, *coco.write())
    module = DetectionDataModule(train=reader, val=reader, num_workers=50, val_batch_size=2)
    assert 0 < module.val_dataloader().num_workers <= -(-len(module.read("val").records) // 2) < 50
    with pytest.raises(ConfigError, match="whole number or auto, got many"):
        DetectionDataModule(train=reader, val=reader, num_workers="many")  # type: ignore[arg-type]
