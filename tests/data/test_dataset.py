import pickle
import random

import numpy as np
import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from defeat.data import DetectionDataset, collate, drop_undecodable, read_coco, read_image
from defeat.data.sampler import SeededIndex
from defeat.errors import ConfigError, DataError
from defeat.types import Batch

TYPES = {
    "boxes": torch.float32,
    "labels": torch.int64,
    "ignore": torch.bool,
    "area": torch.float32,
    "index": torch.int64,
}


@pytest.fixture
def annotations(coco):
    return read_coco(*coco.write())


def test_image_and_target(annotations) -> None:
    dataset = DetectionDataset(annotations)
    assert len(dataset) == 3
    image, target = dataset[1]
    assert torch.equal(image, read_image(annotations.records[1].path))
    assert type(target["boxes"]) is torch.Tensor
    assert {name: value.dtype for name, value in target.items()} == TYPES
    assert target["boxes"].tolist() == [[1, 2, 31, 22], [0, 0, 60, 40]]
    assert target["labels"].tolist() == [2, 1]
    assert target["ignore"].tolist() == [False, True]
    assert target["area"].tolist() == [450.5, 2000]
    assert annotations.records[int(target["index"])].image_id == 900
    assert int(dataset[-1][1]["index"]) == 2


def test_an_image_without_boxes_has_empty_fields_of_the_right_type(annotations) -> None:
    for transforms in (None, v2.RandomHorizontalFlip(1.0)):
        _, target = DetectionDataset(annotations, transforms)[2]
        assert target["boxes"].shape == (0, 4)
        assert {name: value.dtype for name, value in target.items()} == TYPES


def test_training_drops_boxes_to_ignore_with_all_their_fields(annotations) -> None:
    _, target = DetectionDataset(annotations, drop_ignored=True)[1]
    assert target["boxes"].tolist() == [[1, 2, 31, 22]]
    assert [len(target[name]) for name in ("labels", "ignore", "area")] == [1, 1, 1]
    assert not target["ignore"].any()


def test_what_it_gives_may_be_changed(annotations) -> None:
    dataset = DetectionDataset(annotations)
    dataset[1][1]["boxes"].mul_(0)
    assert dataset[1][1]["boxes"].tolist() == [[1, 2, 31, 22], [0, 0, 60, 40]]


def test_a_flip_flips_image_and_boxes(annotations) -> None:
    image, target = DetectionDataset(annotations, v2.RandomHorizontalFlip(1.0))[1]
    plain, _ = DetectionDataset(annotations)[1]
    assert type(image) is torch.Tensor
    assert type(target["boxes"]) is torch.Tensor
    assert torch.equal(image, plain.flip(2))
    assert target["boxes"].tolist() == [[29, 2, 59, 22], [0, 0, 60, 40]]
    assert target["area"].tolist() == [450.5, 2000]


def test_a_batch_is_its_samples_and_leaves_the_generators_alone(annotations) -> None:
    def draw():
        return torch.rand(()).item(), np.random.rand(), random.random()

    def shade(image, fields):
        level = sum(draw()) * 80
        return torch.full_like(image, int(level)), fields

    dataset = DetectionDataset(annotations, shade)
    samples = [SeededIndex(i % 3, 50 + i) for i in range(6)]
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(1)
    expected = draw()
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(1)
    levels = [int(image[0, 0, 0]) for image, _ in dataset.__getitems__(samples)]
    assert draw() == expected
    assert levels == [int(dataset[sample][0][0, 0, 0]) for sample in samples]
    assert len(set(levels)) > 3


def crop(left: int, top: int, width: int, height: int):
    def call(image, fields):
        cropped = (v2.functional.crop(part, top, left, height, width) for part in (image, fields["boxes"]))
        return next(cropped), {**fields, "boxes": next(cropped)}

    return call


def test_boxes_that_a_crop_removes_go_with_all_their_fields(annotations) -> None:
    image, target = DetectionDataset(annotations, crop(40, 25, 20, 15))[1]
    assert image.shape == (3, 15, 20)
    assert target["boxes"].tolist() == [[0, 0, 20, 15]]
    assert target["labels"].tolist() == [1]
    assert target["ignore"].tolist() == [True]
    assert target["area"].tolist() == [250]  # of 2000, as the box has 20 x 15 left of 60 x 40


def test_a_box_without_height_goes_though_it_has_a_width(annotations) -> None:
    _, target = DetectionDataset(annotations, crop(0, 25, 60, 15))[1]
    assert target["boxes"].tolist() == [[0, 0, 60, 15]]


def test_boxes_are_clamped_and_brought_back_to_corners(annotations) -> None:
    def moved(image, fields):
        boxes = tv_tensors.wrap(fields["boxes"] + torch.tensor([50.0, 0, 50, 0]), like=fields["boxes"])
        return image, {
            **fields,
            "boxes": v2.functional.convert_bounding_box_format(boxes, new_format="CXCYWH"),
        }

    _, target = DetectionDataset(annotations, moved)[1]
    assert target["boxes"].tolist() == [[51, 2, 60, 22], [50, 0, 60, 40]]


@pytest.mark.parametrize(
    "transforms",
    [
        v2.ScaleJitter((48, 48)),
        v2.RandomIoUCrop(),
        v2.Compose([v2.RandomPhotometricDistort(), v2.RandomZoomOut(p=1.0), v2.RandomShortestSize(32)]),
        v2.RandomResize(20, 50),
    ],
)
def test_torchvisions_own_transforms(annotations, transforms) -> None:
    torch.manual_seed(0)
    dataset = DetectionDataset(annotations, transforms)
    for _ in range(10):
        for image, target in (dataset[0], dataset[1]):
            height, width = image.shape[1:]
            assert image.dtype == torch.uint8
            assert image.is_contiguous()
            assert len({len(target[name]) for name in ("boxes", "labels", "ignore", "area")}) == 1
            assert (target["boxes"][:, 2:] > target["boxes"][:, :2]).all()
            assert (target["boxes"] >= 0).all()
            assert (target["boxes"] <= torch.tensor([width, height, width, height])).all()


def test_a_sanitizer_that_sees_all_fields_is_welcome_and_one_that_does_not_is_told(annotations) -> None:
    away = crop(40, 25, 20, 15)
    fields = v2.SanitizeBoundingBoxes(
        labels_getter=lambda args: tuple(args[1][k] for k in ("labels", "ignore", "area"))
    )
    _, target = DetectionDataset(annotations, lambda *args: fields(*away(*args)))[1]
    assert target["area"].tolist() == [2000]
    labels_only = v2.SanitizeBoundingBoxes()
    with pytest.raises(ConfigError, match="drop SanitizeBoundingBoxes"):
        DetectionDataset(annotations, lambda *args: labels_only(*away(*args)))[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda image, fields: (image.float(), fields), r"uint8 image, got \(3, 40, 60\) torch.float32"),
        (lambda image, fields: (image[:1], fields), r"uint8 image, got \(1, 40, 60\)"),
        (lambda image, fields: (image.numpy(), fields), "uint8 image, got ndarray"),
        (
            lambda image, fields: (image, {**fields, "boxes": fields["boxes"].as_subclass(torch.Tensor)}),
            "BoundingBoxes",
        ),
    ],
)
def test_transforms_that_return_something_else_are_told(annotations, change, message) -> None:
    with pytest.raises(ConfigError, match=message):
        DetectionDataset(annotations, change)[0]


def test_an_undecodable_image_names_file_and_image_id(annotations, coco) -> None:
    (coco.images / "b.png").write_bytes(b"no picture")
    with pytest.raises(DataError) as caught:
        DetectionDataset(annotations)[1]
    assert str(caught.value).startswith(
        f"{coco.file}: image id 900: image {coco.images / 'b.png'} cannot be decoded"
    )


def test_another_size_names_file_and_image_id(coco) -> None:
    coco.content["images"][0]["width"] = 50
    with pytest.raises(
        DataError, match=r"image id 7: .*a\.jpg is 60x40 pixels, but its annotation says 50x40"
    ):
        DetectionDataset(read_coco(*coco.write()))[0]


def test_a_size_that_is_not_known_is_not_checked(annotations) -> None:
    records = [annotations.records[0]._replace(width=0, height=0)]
    assert DetectionDataset(annotations._replace(records=records))[0][0].shape == (3, 40, 60)


def test_drop_undecodable_leaves_out_and_counts(annotations, coco, caplog) -> None:
    assert drop_undecodable(annotations) is annotations
    (coco.images / "b.png").write_bytes(b"no picture")
    annotations.counts["boxes clipped"] = 4
    data = drop_undecodable(annotations)
    assert [record.image_id for record in data.records] == [7, 31]
    assert data.counts == {"boxes clipped": 4, "images undecodable": 1}
    assert len(caplog.records) == 1
    assert (
        f"{coco.file}: 1 image undecodable; the first one skipped: {coco.file}: image id 900" in caplog.text
    )


def test_collate(annotations) -> None:
    dataset = DetectionDataset(annotations)
    batch = collate([dataset[0], dataset[1]])
    assert isinstance(batch, Batch)
    assert len(batch.images) == len(batch.targets) == 2
    assert torch.equal(batch.images[1], dataset[1][0])
    assert batch.targets[1]["boxes"].shape == (2, 4)


def test_it_travels_to_worker_processes(annotations) -> None:
    copied = pickle.loads(pickle.dumps(DetectionDataset(annotations)))
    assert np.array_equal(copied[1][0], DetectionDataset(annotations)[1][0])
