from __future__ import annotations

from pathlib import Path

import pytest
import torch

from defeat.config import compose_config
from defeat.errors import DataError
from defeat.evaluation import Detections, read_detections, write_detections
from defeat.evaluation.image_result import ImageResult
from defeat.evaluation.metrics import evaluate_images
from defeat.run.train import train
from tests.helpers.evaluation_cases import CLASSES
from tests.helpers.tiny import tiny


def image(found: int, true: int) -> ImageResult:
    return ImageResult(
        boxes=torch.rand(found, 4).double(),
        scores=torch.rand(found).double(),
        labels=torch.randint(1, 4, (found,)),
        true_boxes=torch.rand(true, 4, dtype=torch.float64),
        true_labels=torch.randint(1, 4, (true,)),
        ignore=torch.rand(true) > 0.5,
        area=torch.rand(true, dtype=torch.float64),
    )


def test_what_is_written_is_read_bit_for_bit(tmp_path: Path) -> None:
    images = {7: image(3, 0), 2: image(0, 2), 4: image(0, 0), 3: image(5, 4)}
    path = tmp_path / "new" / "detections.safetensors"
    write_detections(path, Detections(images, ("a", "b", "ß"), 12))
    read = read_detections(path)
    assert list(read.images) == [2, 3, 4, 7]
    assert read.classes == ("a", "b", "ß")
    assert read.step == 12
    for index, expected in images.items():
        for ours, theirs in zip(read.images[index], expected, strict=True):
            assert ours.dtype == theirs.dtype
            assert torch.equal(ours, theirs)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_no_images_at_all(tmp_path: Path) -> None:
    write_detections(tmp_path / "x.safetensors", Detections({}, CLASSES, 0))
    assert read_detections(tmp_path / "x.safetensors") == Detections({}, tuple(CLASSES), 0)


@pytest.mark.parametrize("content", [None, b"", b"not tensors", b"\x00" * 64])
def test_other_files_are_refused_by_name(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "detections.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"detections\.safetensors"):
        read_detections(path)


def test_a_run_keeps_what_its_last_validation_found(tmp_path: Path, scenes: Path) -> None:
    words = ["+experiment=scenes_plain", *tiny(tmp_path, scenes, "~logger", steps=4)]
    outcome = train(compose_config("train", words))
    kept = read_detections(tmp_path / "detections.safetensors")
    assert kept.step == 4
    assert list(kept.images) == [0, 1, 2, 3]
    assert sum(len(one.true_boxes) for one in kept.images.values()) > 0
    figures = evaluate_images(list(kept.images.values()), kept.classes)
    assert outcome.evaluation is not None
    assert figures.coco == pytest.approx(outcome.evaluation.coco, abs=1e-12, nan_ok=True)
