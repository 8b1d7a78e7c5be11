"""The presets of conf/transforms: boxes where the object is seen, with their areas, labels and marks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from defeat.config import build, compose_config, conf_dir
from defeat.data import DetectionDataset
from defeat.data.dataset import Transforms
from defeat.types import Annotations, Record

PRESETS = sorted(path.stem for path in (conf_dir() / "transforms").glob("*.yaml"))
WIDTH, HEIGHT = 200, 100
BOXES = [(20, 10, 60, 50), (120, 40, 180, 90)]  # red, a crowd; and blue, whose object fills half of its box


def dataset(folder: Path, transforms: Transforms) -> DetectionDataset:
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for channel, (x0, y0, x1, y1) in zip((0, 2), BOXES, strict=True):
        pixels[y0:y1, x0:x1, channel] = 255
    Image.fromarray(pixels).save(folder / "a.png")
    record = Record(
        image_id=1,
        path=folder / "a.png",
        width=WIDTH,
        height=HEIGHT,
        boxes=np.array(BOXES, np.float32),
        labels=np.array([1, 2]),
        ignore=np.array([True, False]),
        area=np.array([1600.0, 1500.0], np.float32),
    )
    annotations = Annotations([record], ("red", "blue"), (1, 2), "test", {})
    return DetectionDataset(annotations, transforms)


def extent(channel: torch.Tensor, others: torch.Tensor) -> list[int]:
    """Box around the pixels of one colour, corners in pixels; another colour is what fills the sides."""
    rows, columns = ((channel > 150) & (others < 100)).nonzero().unbind(1)
    return [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]


@pytest.mark.parametrize("preset", [name for name in PRESETS if "photometric" not in name])
def test_boxes_stay_on_their_objects(preset: str, tmp_path: Path) -> None:
    words = ["data=scenes", f"transforms@data.train_transforms={preset}", "run_dir=."]
    images = dataset(tmp_path, build(compose_config("train", words).data.train_transforms))
    counts = set()
    for seed in range(12):
        torch.manual_seed(seed)
        image, target = images[0]
        counts.add(len(target["labels"]))
        fields = zip(target["labels"], target["boxes"], target["area"], target["ignore"], strict=True)
        for label, box, area, ignore in fields:
            assert bool(ignore) == (label == 1), "the red one is the crowd"
            channel = 0 if label == 1 else 2
            sides = box[2:] - box[:2]
            if sides.min() > 2:  # thinner ones are mixed with what is beside them
                seen = torch.tensor(extent(image[channel], image[1]))
                torch.testing.assert_close(box, seen.float(), rtol=0, atol=1.5)
            torch.testing.assert_close(area, sides.prod() * (1 if label == 1 else 0.5), rtol=1e-3, atol=1e-3)
    assert max(counts) == 2
    assert preset != "lsj" or min(counts) < 2, "a crop leaves an object out"


def test_a_scale_and_a_crop_by_hand(tmp_path: Path) -> None:
    """Half the size, then what lies right of pixel 70: the red box goes, two thirds of the blue one stay."""
    half = v2.Resize((50, 100))
    images = dataset(tmp_path, v2.Compose([half, v2.RandomCrop((50, 100))]))
    _, target = images[0]
    assert target["boxes"].tolist() == [[10, 5, 30, 25], [60, 20, 90, 45]]
    assert target["area"].tolist() == [400, 375]  # a quarter of 1600 and of 1500
    right = v2.Compose([half, v2.Lambda(lambda x: v2.functional.crop(x, 0, 70, 50, 30))])
    _, target = dataset(tmp_path, right)[0]
    assert target["boxes"].tolist() == [[0, 20, 20, 45]]  # 60..90 less 70, clipped at 0
    assert (target["labels"].tolist(), target["ignore"].tolist()) == ([2], [False])
    assert target["area"].tolist() == [250]  # 1500 * (20 * 25) / (60 * 50)


@pytest.mark.parametrize("preset", [name for name in PRESETS if "photometric" in name])
def test_photometric_presets_change_colours(preset: str, tmp_path: Path) -> None:
    words = ["data=scenes", f"transforms@data.train_transforms={preset}", "run_dir=."]
    images = dataset(tmp_path, build(compose_config("train", words).data.train_transforms))
    pictures = []
    for seed in range(8):
        torch.manual_seed(seed)
        image, target = images[0]
        assert image.dtype == torch.uint8
        assert len(target["boxes"]) == len(target["labels"])
        pictures.append(image.unique().tolist())
    assert any(colours != [0, 255] for colours in pictures)
