"""A head put into another order of classes gives the same detections under the same names."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torchvision.models._api import Weights, WeightsEnum
from torchvision.models._meta import _COCO_CATEGORIES
from torchvision.models.detection import maskrcnn_resnet50_fpn, ssdlite320_mobilenet_v3_large

from defeat.config import build, compose_config
from defeat.detectors import (
    create_detector,
    faster_rcnn,
    fcos,
    load_detector_weights,
    loading,
    retinanet,
)
from defeat.detectors.class_order import is_head, order, reorder
from defeat.detectors.weights import WeightFile, torchvision_weights
from defeat.errors import WeightsError
from tests.helpers.narrow import NARROW

Builder = Callable[..., nn.Module]

COCO = [name for name in _COCO_CATEGORIES[1:] if name != "N/A"]
SMALL: dict[str, Any] = {"backbone": NARROW, "fpn_channels": 64, "min_size": 64, "max_size": 64}
# Nothing is cut off or suppressed, so that detections do not hang on the last digit of a score.
ALL: dict[str, Any] = {
    "score_thresh": 0.0,
    "nms_thresh": 1.0,
    "detections_per_img": 99999,
    "topk_candidates": 99999,
}
PAIR: dict[str, Any] = {
    "box_score_thresh": 0.0,
    "box_nms_thresh": 1.0,
    "box_detections_per_img": 99999,
    "rpn_post_nms_top_n_test": 20,
}


FAMILIES: dict[str, Builder] = {
    "faster_rcnn": partial(faster_rcnn, **SMALL, **PAIR),
    "faster_rcnn_v2": partial(faster_rcnn, **SMALL, **PAIR, heads="v2", norm="batch"),
    "retinanet": partial(retinanet, **SMALL, **ALL),
    "fcos": partial(fcos, **SMALL, **ALL),
}
families = pytest.mark.parametrize("model", FAMILIES.values(), ids=FAMILIES)


def source_of(model: Builder, outputs: Sequence[str]) -> nn.Module:
    """A detector whose outputs differ clearly, and whose outputs that stand for nothing are silent."""
    detector = model(num_classes=len(outputs))
    silent = torch.tensor([name == "N/A" for name in outputs])
    with torch.no_grad():
        for key, value in detector.state_dict().items():
            if is_head(key):
                value.normal_(std=0.1)
            if key.endswith(("cls_score.bias", "cls_logits.bias")) and is_head(key):
                value.unflatten(0, (-1, len(outputs))).masked_fill_(silent, -99.0)
    return detector


@torch.no_grad()
def named(detector: nn.Module, outputs: Sequence[str]) -> dict[str, Tensor]:
    """Rows of score and box by class name, background too where it is returned, on a fixed image."""
    image = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(1)).double()
    found = detector.double().eval()([image])[0]
    rows = torch.cat([found["scores"][:, None], found["boxes"]], dim=1).round(decimals=6)
    return {
        outputs[i]: torch.tensor(sorted(rows[found["labels"] == i].tolist()))
        for i in found["labels"].unique().tolist()
    }


def assert_same_detections(a: dict[str, Tensor], b: dict[str, Tensor], classes: Sequence[str]) -> None:
    a = {name: found for name, found in a.items() if name != "N/A"}
    assert set(classes) <= set(a)
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name])


def save_checkpoint(model: nn.Module, classes: Sequence[str], folder: Path) -> str:
    state = {f"student.{k}": v for k, v in model.state_dict().items()}
    own = {"classes": list(classes), "config": {}}
    torch.save({"state_dict": state, "defeat": own}, folder / "c.ckpt")
    return str(folder / "c.ckpt")


@families
def test_a_checkpoint_in_another_order(
    model: Builder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    theirs, ours = ["ant", "bee", "cat", "dog"], ["cat", "ant", "dog", "bee"]
    source = source_of(model, ["background", *theirs])
    before = named(source, ["background", *theirs])
    with caplog.at_level(logging.INFO):
        made = create_detector(model, ours, weights=save_checkpoint(source, theirs, tmp_path))
    assert made.whole
    assert "0 mismatched, classes remapped by name (5 of 5 outputs)" in caplog.text
    after = named(made.model, ["background", *ours])
    assert_same_detections(before, after, ours)
    # The names matter: read in the source's order, the same detections would be wrong.
    with pytest.raises(AssertionError):
        assert_same_detections(before, named(made.model, ["background", *theirs]), ours)


@families
def test_torchvisions_91_outputs_for_80_classes_in_another_order(
    model: Builder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = source_of(model, _COCO_CATEGORIES)
    serve(source, tmp_path, monkeypatch)
    ours = sorted(COCO)
    made = create_detector(model, ours, weights="Served.COCO", download=True)
    assert made.whole
    assert_same_detections(
        named(source, _COCO_CATEGORIES), named(made.model, ["__background__", *ours]), ours
    )


def serve(model: nn.Module, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the model's weights those of a torchvision enum, whose address is a local file."""
    torch.save(model.state_dict(), folder / "raw.pth")
    digest = hashlib.sha256((folder / "raw.pth").read_bytes()).hexdigest()[:8]
    served = (folder / "raw.pth").rename(folder / f"small-{digest}.pth")

    class Served(WeightsEnum):
        COCO = Weights(url=served.as_uri(), transforms=None, meta={"categories": _COCO_CATEGORIES})

    monkeypatch.setattr(torchvision_weights, "get_weight", lambda name: Served.COCO)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(folder / "hub"))


@families
def test_rows_are_those_that_the_published_layout_says(model: Builder) -> None:
    """Element by element, against the indices that torchvision's forward passes read."""
    rows = [0, 3, 1]  # outputs 0, 3 and 1 of 4
    tensors = source_of(model, "xabc").state_dict()
    changed = reorder(tensors, rows, 4, "x")
    for key, new in changed.items():
        old = tensors[key]
        if "bbox_pred" in key and "roi_heads" in key:
            expected = torch.stack([old[4 * row + side] for row in rows for side in range(4)])
        elif is_head(key):
            expected = torch.stack([old[4 * a + row] for a in range(len(old) // 4) for row in rows])
        else:
            assert new is old
            continue
        torch.testing.assert_close(new, expected, rtol=0, atol=0)
    assert sum(new.shape != tensors[k].shape for k, new in changed.items()) in (2, 4)


@pytest.mark.parametrize("name", ["frcnn_r50_v2", "retinanet_r50_v2", "fcos_r50"])
def test_torchvisions_own_detectors_are_whole_teachers_on_coco(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By shape alone, which costs nothing: on the meta device."""
    node = compose_config("train", [f"detector@student=torchvision_{name}"]).student
    OmegaConf.set_struct(node, False)
    with torch.device("meta"):
        theirs = build(node.model)(num_classes=91).state_dict()
        file = WeightFile(theirs, None, None, tuple(_COCO_CATEGORIES), "Served.COCO")
        monkeypatch.setattr(loading, "read_weights", lambda source, **options: file)
        made = build(node, classes=sorted(COCO))
    assert made.whole
    heads = {k: len(v) for k, v in made.model.state_dict().items() if is_head(k)}
    assert set(heads.values()) <= {81, 4 * 81, 9 * 81}
    assert len(heads) == (4 if name == "frcnn_r50_v2" else 2)


@pytest.mark.parametrize(
    ("builder", "heads"),
    [(maskrcnn_resnet50_fpn, 6), (ssdlite320_mobilenet_v3_large, 12)],
    ids=["mask_rcnn", "ssdlite"],
)
def test_every_class_dependent_parameter_of_other_detectors_is_known(builder: Builder, heads: int) -> None:
    with torch.device("meta"):
        four, six = (builder(weights=None, weights_backbone=None, num_classes=n).state_dict() for n in (4, 6))
    differ = {k for k in four if four[k].shape != six[k].shape}
    assert differ == {k for k in four if is_head(k)}
    assert len(differ) == heads
    selected = reorder(six, [0, 5, 2, 3], 6, "x")
    assert {k: v.shape for k, v in selected.items()} == {k: v.shape for k, v in four.items()}


def test_a_ssd_gives_the_same_detections() -> None:
    model = partial(
        ssdlite320_mobilenet_v3_large,
        weights=None,
        weights_backbone=None,
        **ALL,
    )
    source, target = source_of(model, "xabc"), model(num_classes=4)
    target.load_state_dict(reorder(source.state_dict(), [0, 2, 3, 1], 4, "x"))
    assert_same_detections(named(source, "xabc"), named(target, "xbca"), "abc")


def test_the_same_order_is_left_alone(tmp_path: Path) -> None:
    source = source_of(FAMILIES["fcos"], "xab")
    report, _ = load_detector_weights(
        FAMILIES["fcos"](num_classes=3), save_checkpoint(source, "ab", tmp_path), classes=["a", "b"]
    )
    assert str(report).endswith("0 mismatched")
    # Nothing can be out of order, even where a name stands twice.
    assert order(["x", "a", "a"], ["a", "a"], "file") == [0, 1, 2]


@families
def test_other_classes_are_refused_unless_the_head_is_new(model: Builder, tmp_path: Path) -> None:
    theirs, ours = ["ant", "bee", "cat"], ["bee", "Ant", "cat"]  # names are compared exactly
    source = source_of(model, ["background", *theirs])
    path = save_checkpoint(source, theirs, tmp_path)
    message = (
        r"was trained on other classes \(only there: 'ant'; only here: 'Ant'\)\. Use data of its classes, or,"
        r" to train from these weights with a new head, set new_head=true"
    )
    with pytest.raises(WeightsError, match=message):
        create_detector(model, ours, weights=path)
    torch.manual_seed(3)
    fresh = model(num_classes=4).state_dict()
    torch.manual_seed(3)
    made = create_detector(model, ours, weights=path, new_head=True)
    assert not made.whole  # although every shape would have fitted
    assert made.report is not None
    assert made.report.new == ("Ant",)
    values = {"cls_score": 1, "bbox_pred": 4, "cls_logits": 1}
    for key, value in made.model.state_dict().items():
        if is_head(key):  # background, bee and cat in their new places, Ant as initialised
            shape = (-1, 4, values[key.split(".")[-2]])  # anchors, outputs, values of each
            old, new = (x[key].unflatten(0, shape) for x in (source.state_dict(), fresh))
            wanted = torch.stack([old[:, 0], old[:, 2], new[:, 2], old[:, 3]], dim=1)
            assert torch.equal(value.unflatten(0, shape), wanted), key
        elif not key.endswith("num_batches_tracked"):
            assert torch.equal(value, source.state_dict()[key]), key


@families
def test_a_new_head_of_classes_that_the_source_has_none_of_is_all_new(model: Builder, tmp_path: Path) -> None:
    path = save_checkpoint(source_of(model, "xab"), "ab", tmp_path)
    torch.manual_seed(3)
    fresh = model(num_classes=3).state_dict()
    torch.manual_seed(3)
    made = create_detector(model, ["c", "d"], weights=path, new_head=True)
    assert all(torch.equal(x, fresh[key]) for key, x in made.model.state_dict().items() if is_head(key))
    assert not made.whole


def test_a_new_head_takes_a_class_by_the_name_that_the_source_has_for_it(tmp_path: Path) -> None:
    model = FAMILIES["faster_rcnn"]
    source = source_of(model, "xabc")
    path = save_checkpoint(source, "abc", tmp_path)
    made = create_detector(model, ["z", "new"], weights=path, new_head=True, class_map={"z": "c"})
    key = "roi_heads.box_predictor.cls_score.weight"
    assert made.model.state_dict()[key][:2].equal(source.state_dict()[key][[0, 3]])
    assert made.report is not None
    assert made.report.new == ("new",)


def test_messages_name_a_few_classes(tmp_path: Path) -> None:
    model = FAMILIES["fcos"]
    path = save_checkpoint(source_of(model, "xabcdefg"), "abcdefg", tmp_path)
    with pytest.raises(WeightsError, match=r"\(only there: 'a', 'b', 'c', 'd' and 2 more\)\."):
        create_detector(model, ["g"], weights=path)
    with pytest.raises(WeightsError, match=r"\(only here: 'h'\)\."):
        create_detector(model, list("abcdefgh"), weights=path)


def test_a_refused_source_leaves_the_detector_as_it_was(tmp_path: Path) -> None:
    model = FAMILIES["faster_rcnn"]
    path = save_checkpoint(source_of(model, "xabc"), "abc", tmp_path)
    target = model(num_classes=4)
    before = {k: v.clone() for k, v in target.state_dict().items()}
    with pytest.raises(WeightsError, match="other classes"):
        load_detector_weights(target, path, classes=["a", "b", "d"])
    assert all(torch.equal(v, before[k]) for k, v in target.state_dict().items())


def test_new_head_keeps_a_head_that_only_needs_another_order(tmp_path: Path) -> None:
    model = FAMILIES["fcos"]
    path = save_checkpoint(source_of(model, "xabc"), "abc", tmp_path)
    assert create_detector(model, list("cab"), weights=path, new_head=True).whole


def test_what_cannot_be_put_in_order_is_refused() -> None:
    with pytest.raises(WeightsError, match="file: the class name 'a' stands twice"):
        order(["x", "a", "b", "a"], ["b", "a"], "file")
    with pytest.raises(WeightsError, match="file: the class name 'b' stands twice"):
        order(["x", "a", "b"], ["b", "a", "b"], "file")
    with pytest.raises(
        WeightsError, match="file has its classes in another order, and a head that is none of"
    ):
        reorder({"my.head.weight": torch.zeros(3, 2)}, [0, 2, 1], 3, "file")
    logits = {"head.classification_head.cls_logits.bias": torch.zeros(8)}
    with pytest.raises(WeightsError, match=r"file names 3 classes with background, but head\..* has 8 rows"):
        reorder(logits, [0, 2, 1], 3, "file")


def test_outputs_that_stand_for_nothing_may_also_be_classes_of_the_data() -> None:
    assert order(["__background__", "a", "N/A", "b"], ["b", "a"], "file") == [0, 3, 1]
    assert order(["__background__", "a", "N/A"], ["N/A", "a"], "file") == [0, 2, 1]
    assert order(["no person", "person"], ["person"], "file") == [0, 1]  # of torchvision's keypoint detector
    assert order(["__background__", "a"], ["a", "b"], "file") is None
