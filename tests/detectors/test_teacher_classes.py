"""A teacher of other classes scores those of the student as it did among all of its own."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models._api import Weights, WeightsEnum

from defeat.detectors import FrozenTeacher, create_detector, faster_rcnn, fcos, retinanet
from defeat.detectors.class_order import is_head, read_class_map, select_outputs
from defeat.detectors.weights import read_weights, torchvision_weights
from defeat.errors import WeightsError
from tests.helpers.narrow import NARROW

SMALL: dict[str, Any] = {"backbone": NARROW, "fpn_channels": 64, "min_size": 32, "max_size": 32}
ALL: dict[str, Any] = {"score_thresh": 0.0, "nms_thresh": 1.0, "detections_per_img": 99999}
MANY: dict[str, Any] = {"topk_candidates": 99999}
FAMILIES: dict[str, Any] = {
    "faster_rcnn": partial(
        faster_rcnn,
        **SMALL,
        **{f"box_{key}": x for key, x in ALL.items()},
        rpn_post_nms_top_n_test=20,
        box_head_channels=64,
    ),
    "retinanet": partial(retinanet, **SMALL, **ALL, **MANY),
    "fcos": partial(fcos, **SMALL, **ALL, **MANY),
}
families = pytest.mark.parametrize("model", FAMILIES.values(), ids=FAMILIES)
OUTPUTS = ["background", "ant", "bee", "cat", "dog", "eel"]


def source_of(model: Any) -> nn.Module:
    """A detector of five classes that differ clearly, and that are likely."""
    detector: nn.Module = model(num_classes=len(OUTPUTS))
    with torch.no_grad():
        for key, value in detector.state_dict().items():
            if is_head(key):
                value.normal_(std=0.3)
    return detector


def save(model: nn.Module, folder: Path) -> str:
    state = {f"student.{key}": value for key, value in model.state_dict().items()}
    torch.save({"state_dict": state, "defeat": {"classes": OUTPUTS[1:], "config": {}}}, folder / "t.ckpt")
    return str(folder / "t.ckpt")


@torch.no_grad()
def detections(model: nn.Module, names: list[str]) -> dict[str, Tensor]:
    """Rows of score and box of each class by name, on a fixed image."""
    image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(1)).double()
    found = model.double().eval()([image])[0]
    rows = torch.cat([found["scores"][:, None], found["boxes"]], dim=1).round(decimals=5)
    return {
        name: torch.tensor(sorted(rows[found["labels"] == i].tolist())) for i, name in enumerate(names) if i
    }


@families
def test_it_finds_the_students_classes_as_it_does_among_all_of_its_own(model: Any, tmp_path: Path) -> None:
    source = source_of(model)
    classes = ["dog", "ant"]
    made = create_detector(model, classes, weights=save(source, tmp_path), teacher=True)
    assert made.whole
    assert made.known_labels is None
    # With the probabilities that the whole softmax gives them: what was left out is background.
    whole = detections(source, OUTPUTS)
    for name, rows in detections(made.model, ["background", *classes]).items():
        assert len(rows)
        torch.testing.assert_close(rows, whole[name], atol=1e-4, rtol=0)


@families
def test_classes_that_it_lacks_are_never_found(
    model: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = source_of(model)
    classes = ["fox", "dog", "gnu", "ant"]
    made = create_detector(model, classes, weights=save(source, tmp_path), teacher=True)
    assert made.known_labels == (2, 4)
    assert "'fox', 'gnu'" in caplog.text
    whole, found = detections(source, OUTPUTS), detections(made.model, ["background", *classes])
    for name in ("dog", "ant"):
        torch.testing.assert_close(found[name], whole[name], atol=1e-4, rtol=0)
    for name in ("fox", "gnu"):
        assert not found[name].numel() or found[name][:, 0].max() == 0


def test_the_background_is_the_sum_of_all_that_was_left_out(tmp_path: Path) -> None:
    model = FAMILIES["faster_rcnn"]
    source = source_of(model)
    made = create_detector(model, ["dog", "ant"], weights=save(source, tmp_path), teacher=True)
    features = torch.randn(7, 64)
    heads: Any = [detector.roi_heads.box_predictor.cls_score for detector in (source, made.model)]
    whole, marginal = (head(features).softmax(1) for head in heads)
    torch.testing.assert_close(marginal[:, 1], whole[:, 4])
    torch.testing.assert_close(marginal[:, 2], whole[:, 1])
    torch.testing.assert_close(marginal[:, 0], whole[:, [0, 2, 3, 5]].sum(1))


def test_a_map_of_names_and_one_of_numbers_do_the_same(tmp_path: Path) -> None:
    model = FAMILIES["fcos"]
    source = source_of(model)
    torch.save(source.state_dict(), tmp_path / "plain.pth")  # says nothing of classes
    create = partial(create_detector, model, ["hound", "ant"], teacher=True)
    by_name = create(weights=save(source, tmp_path), class_map={"hound": "dog"})
    by_number = create(weights=str(tmp_path / "plain.pth"), class_map="{'hound': 4, ant: 1}")
    assert by_name.known_labels is by_number.known_labels is None
    for key, value in by_number.model.state_dict().items():
        assert torch.equal(value, by_name.model.state_dict()[key]), key


def test_a_student_may_start_from_renamed_classes_and_from_no_others(tmp_path: Path) -> None:
    model = FAMILIES["fcos"]
    path = save(source_of(model), tmp_path)
    renamed = {"hound": "dog"}
    made = create_detector(model, ["hound", "cat", "bee", "ant", "eel"], weights=path, class_map=renamed)
    assert made.whole
    with pytest.raises(WeightsError, match="was trained on other classes"):
        create_detector(model, ["hound", "cat"], weights=path, class_map=renamed)
    with pytest.raises(WeightsError, match=r"was trained on other classes.*teacher\.class_map"):
        create_detector(model, ["fox"], weights=path, teacher=True)


@pytest.mark.parametrize(
    ("class_map", "told"),
    [
        ({"fox": "ant"}, "the data have no class 'fox'"),
        ({"dog": "hound"}, "file has no output 'hound'"),
        ({"dog": 6}, "has no output 6"),
        ({"dog": 0}, "has no output 0"),
        ({"dog": "ant"}, "the output 'ant' of file would stand for two classes"),
    ],
)
def test_a_map_that_makes_no_sense_is_refused(class_map: dict[str, str | int], told: str) -> None:
    with pytest.raises(WeightsError, match=told):
        select_outputs(OUTPUTS, ["dog", "ant"], "file", class_map)


@pytest.mark.parametrize("text", ["dog", "{dog: [", "[dog, ant]"])
def test_a_map_as_text_is_a_map(text: str) -> None:
    assert read_class_map("{'traffic light': 'stop sign', münze: 3}") == {
        "traffic light": "stop sign",
        "münze": 3,
    }
    with pytest.raises(WeightsError, match="is no map"):
        read_class_map(text)


def test_a_local_file_of_torchvisions_names_its_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import hashlib

    torch.save({"x": torch.zeros(1)}, tmp_path / "raw.pth")
    digest = hashlib.sha256((tmp_path / "raw.pth").read_bytes()).hexdigest()[:8]
    name = f"detector_coco-{digest}.pth"

    class Published(WeightsEnum):
        COCO = Weights(url=f"https://x/{name}", transforms=None, meta={"categories": ["background", "ant"]})

    monkeypatch.setattr(torchvision_weights, "get_model_weights", lambda model: Published)
    (tmp_path / "raw.pth").rename(tmp_path / name)
    assert read_weights(tmp_path / name).outputs == ("background", "ant")
    torch.save({"x": torch.ones(1)}, tmp_path / name)  # another content under that name
    assert read_weights(tmp_path / name).outputs is None


def test_known_labels_move_with_the_teacher_and_are_not_saved() -> None:
    teacher = FrozenTeacher(nn.Linear(1, 1), (2, 4))
    assert teacher.known_labels is not None
    assert teacher.known_labels.tolist() == [2, 4]
    assert "known_labels" not in teacher.state_dict()
