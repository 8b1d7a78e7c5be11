"""Predictions from Python: of files, of images of Pillow and of tensors, whole and in tiles."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import defeat
from defeat.errors import ConfigError
from defeat.predict import Predictor
from defeat.predict.predictor import to_image


@pytest.fixture(scope="module")
def model(teacher: Path) -> Predictor:
    loaded = defeat.load(teacher, device="cpu")
    loaded.detector.roi_heads.score_thresh = 0.0  # it has learned next to nothing
    return loaded


@pytest.fixture(scope="module")
def pictures(scenes: Path, teacher: Path) -> list[Path]:
    return sorted((scenes / "val").glob("*.png"))[:3]


def by_torchvision(model: Predictor, image: Tensor) -> dict[str, Tensor]:
    """What the plain detector finds in one image."""
    with torch.no_grad():
        detections: dict[str, Tensor] = model.detector([image / 255])[0]
    return detections


def test_every_kind_of_picture_gives_what_the_plain_detector_gives(model: Predictor, pictures: list[Path]):
    opened = Image.open(pictures[1])
    tensor = torch.from_numpy(np.array(Image.open(pictures[2]).convert("RGB"))).permute(2, 0, 1)
    found = model.predict([pictures[0], opened, tensor], score_threshold=0)
    assert len(found) == 3
    for path, prediction in zip(pictures, found, strict=True):
        image = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)
        expected = by_torchvision(model, image)
        assert len(expected["boxes"])
        for name in ("boxes", "scores", "labels"):
            assert torch.equal(prediction[name], expected[name])
    (alone,) = model.predict(str(pictures[0]), score_threshold=0)
    assert torch.equal(alone["boxes"], found[0]["boxes"])


def test_threshold_and_classes_select(model: Predictor, pictures: list[Path]):
    (everything,) = model.predict(pictures[0], score_threshold=0)
    label = int(everything["labels"][0])
    middle = float(everything["scores"].median())
    (some,) = model.predict(pictures[0], score_threshold=middle, classes=[model.classes[label - 1]])
    kept = (everything["scores"] >= middle) & (everything["labels"] == label)
    assert 0 < int(kept.sum()) < len(kept)
    assert torch.equal(some["boxes"], everything["boxes"][kept])


def test_tiles_of_a_mosaic_find_what_the_pictures_have(model: Predictor, pictures: list[Path]):
    pytest.importorskip("supervision")
    first, second = (to_image(path) for path in pictures[:2])
    side = first.shape[-1]
    mosaic = torch.cat([first, second], dim=2)
    (tiled,) = model.predict(mosaic, score_threshold=0, tile=side, tile_overlap=0, batch_size=2)
    left, right = model.predict([first, second], score_threshold=0)
    boxes = torch.cat([left["boxes"], right["boxes"] + torch.tensor([side, 0, side, 0])])
    scores = torch.cat([left["scores"], right["scores"]])
    assert len(tiled["boxes"])
    assert tiled["scores"].tolist() == sorted(tiled["scores"].tolist(), reverse=True)
    # Merging leaves out what overlaps by more than half; all that is left stands in one of the pictures.
    for box, score in zip(tiled["boxes"], tiled["scores"], strict=True):
        assert ((boxes - box).abs().amax(dim=1) + (scores - score).abs()).min() < 1e-2


def test_pictures_stand_upright(tmp_path: Path):
    pixels = np.zeros((20, 30, 3), dtype=np.uint8)
    pixels[:10] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise: the white upper half comes to the right
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    for picture in (tmp_path / "turned.png", Image.open(tmp_path / "turned.png")):
        image = to_image(picture)
        assert image.shape == (3, 30, 20)
        assert bool((image[:, :, 10:] == 255).all())
        assert bool((image[:, :, :10] == 0).all())
        assert to_image(picture, upright=False).shape == (3, 20, 30)


def test_the_detector_is_a_plain_module_that_moves(model: Predictor):
    assert isinstance(model.detector, torch.nn.Module)
    assert not model.detector.training
    assert model.to("cpu") is model
    assert model.device == torch.device("cpu")
    with pytest.raises(ConfigError, match="device=nonsense"):
        model.to("nonsense")
    model.to("cpu")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"score_threshold": 1.5}, "score_threshold"),
        ({"score_threshold": float("nan")}, "score_threshold"),
        ({"batch_size": 0}, "batch_size"),
        ({"tile": 64, "tile_overlap": 64}, "tile_overlap"),
        ({"tile": "large"}, "tile=large"),
        ({"classes": ["unicorn"]}, "unicorn"),
        ({"classes": "unicorn"}, "'unicorn'"),
    ],
)
def test_wrong_settings_are_refused(model: Predictor, wrong: dict[str, object], words: str):
    with pytest.raises(ConfigError, match=words):
        model.predict(torch.zeros(3, 64, 64, dtype=torch.uint8), **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [torch.zeros(3, 8, 8), torch.zeros(8, 8, 3, dtype=torch.uint8), 3])
def test_other_things_than_pictures_are_refused(wrong: object):
    with pytest.raises(ConfigError, match="uint8"):
        to_image(wrong)  # type: ignore[arg-type]


def test_weights_without_classes_are_refused(model: Predictor, tmp_path: Path):
    torch.save(model.detector.state_dict(), tmp_path / "plain.pth")
    with pytest.raises(ConfigError, match=r"plain\.pth does not name its classes"):
        defeat.load(tmp_path / "plain.pth")


def test_the_lines_of_the_page_run(
    teacher: Path, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    Path("best.ckpt").symlink_to(teacher)
    Path("photos").mkdir()
    for name, path in zip(("a.jpg", "b.jpg"), pictures, strict=False):
        Image.open(path).convert("RGB").save(Path("photos", name))
    page = Path(__file__).parents[2] / "docs" / "deploy.md"
    (code,) = re.findall(r"```python\n(import defeat\n.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    exec(code, names := {})
    assert len(names["prediction"]["boxes"]) == len(names["prediction"]["scores"])


def test_a_plain_run_has_no_teacher(teacher: Path):
    with pytest.raises(ConfigError, match="no teacher"):
        defeat.load(teacher, teacher=True)
