"""Sizes that the data decide, against figures worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from defeat.detectors import faster_rcnn, fcos, retinanet
from defeat.run.fit_to_data import fit_to_data, fitted_sizes
from defeat.types import Record


def records(width: int, height: int, side: float) -> list[Record]:
    """Pictures with one square object each."""
    boxes = np.array([[0, 0, side, side]], dtype=np.float32)
    one = Record(
        1, Path("a"), width, height, boxes, np.ones(1, np.int64), np.zeros(1, bool), np.ones(1, np.float32)
    )
    return [one] * 3


def test_large_pictures_are_reduced_and_small_objects_enlarged() -> None:
    # 1280 x 960 with objects of 240: shorter side 640, objects of 160, of which anchors take at most 32
    large = fitted_sizes("defeat.detectors.faster_rcnn", records(1280, 960, 240))
    assert large["min_size"] == [480, 576, 704, 640]  # 560 and 720 are no multiples of 32
    assert large["max_size"] == 960  # 640 * 1.125 * 4 / 3
    assert large["anchor_sizes"] == [[32], [64], [128], [256], [512]]
    # 320 x 320 with objects of 10: enlarged 1.6 times
    small = fitted_sizes("defeat.detectors.faster_rcnn", records(320, 320, 10))
    assert small["min_size"][-1] == 512
    assert small["anchor_sizes"][0] == [16]
    # of 2 pixels: no more than twice
    assert fitted_sizes("defeat.detectors.faster_rcnn", records(320, 320, 2))["min_size"][-1] == 640


@pytest.mark.parametrize("builder", [faster_rcnn, retinanet, fcos], ids=lambda builder: builder.__name__)
def test_every_family_is_built_of_its_sizes(builder: Any) -> None:
    sizes = fitted_sizes(f"defeat.detectors.{builder.__name__}", records(320, 240, 30))
    with torch.device("meta"):
        detector = builder(3, backbone="resnet10", fpn_channels=64, **sizes)
    assert detector.transform.min_size == tuple(sizes["min_size"])


def config(**model: Any) -> dict[str, Any]:
    model = {"_target_": "defeat.detectors.faster_rcnn", "norm": "frozen", "trainable_layers": 3, **model}
    return {"student": {"model": model, "weights": None, "backbone_weights": "x"}, "teacher": None}


def test_what_is_given_stays_and_norms_of_random_weights_learn(tmp_path: Path) -> None:
    given = config(min_size=100, max_size=None, anchor_sizes=None)
    model = fit_to_data(given, records(320, 240, 30))["student"]["model"]
    assert model["min_size"] == 100
    assert model["max_size"] == 384  # 256 * 1.125 * 4 / 3
    assert model["norm"] == "frozen"
    assert given["student"]["model"]["max_size"] is None
    given["student"]["backbone_weights"] = None
    model = fit_to_data(given, records(320, 240, 30))["student"]["model"]
    assert (model["norm"], model["trainable_layers"]) == ("batch", 5)


def test_a_teacher_has_the_sizes_of_its_training(tmp_path: Path) -> None:
    trained = {"student": {"model": {"min_size": [96, 128], "anchor_sizes": [[8]], "norm": "batch"}}}
    own = {"classes": ["a"], "config": trained}
    torch.save({"state_dict": {"student.x": torch.zeros(1)}, "defeat": own}, tmp_path / "t.ckpt")
    node = config(min_size=None, max_size=None, anchor_sizes=None)
    node["teacher"] = {
        "model": dict(node["student"]["model"]),
        "weights": str(tmp_path / "t.ckpt"),
        "download": False,
    }
    model = fit_to_data(node, records(320, 240, 30))["teacher"]["model"]
    assert (model["min_size"], model["anchor_sizes"]) == ([96, 128], [[8]])
    assert "max_size" not in model, "the builder's own"
    assert model["norm"] == "frozen"
