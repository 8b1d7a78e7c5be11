"""Files of other frameworks, opened: what is taken off, what is left out, and what is refused."""

from __future__ import annotations

import argparse
import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from defeat.errors import DefeatError, WeightsError
from defeat.importer.classes import named_classes
from defeat.importer.convert import convert
from defeat.importer.importer import import_detector
from defeat.importer.source import read_source
from tests.helpers.foreign import Tensors, build, foreign, source_of
from tests.helpers.trials import refused


def few(*names: str) -> Tensors:
    return {name: torch.zeros(2) for name in names}


MM = few("backbone.conv1.weight", "neck.lateral_convs.0.conv.weight")
D2 = few("backbone.bottom_up.stem.conv1.weight", "backbone.fpn_lateral2.weight")
TV = few("backbone.body.conv1.weight", "backbone.fpn.inner_blocks.0.0.weight")


def write(path: Path, content: Any) -> str:
    torch.save(content, path)
    return str(path)


@pytest.mark.parametrize(("tensors", "kind"), [(MM, "mmdetection"), (D2, "detectron2"), (TV, "torchvision")])
@pytest.mark.parametrize("prefix", ["", "module.", "model.", "module.model.", "detector.net."])
def test_the_framework_is_told_behind_any_prefix(
    tensors: Tensors, kind: str, prefix: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.pth", {"state_dict": {prefix + name: x for name, x in tensors.items()}})
    source = read_source(path)
    assert (source.kind, source.prefix, list(source.tensors)) == (kind, prefix, list(tensors))
    assert source.digest == hashlib.sha256(Path(path).read_bytes()).hexdigest()
    with pytest.raises(WeightsError, match=f"has the names of {kind}: leave out kind="):
        read_source(path, "torchvision" if kind != "torchvision" else "detectron2")


def test_what_compiled_and_averaged_models_are_wrapped_in(tmp_path: Path) -> None:
    compiled = {f"_orig_mod.{name}": x for name, x in TV.items()}
    assert list(read_source(write(tmp_path / "a.pth", compiled)).tensors) == list(TV)
    averaged = {f"module.{name}": x + 1 for name, x in MM.items()}
    content = {"meta": {}, "state_dict": MM, "ema_state_dict": {**averaged, "steps": torch.tensor(9)}}
    path = write(tmp_path / "b.pth", content)
    # mmengine exchanges them when it saves: the model's key holds the average
    for ema, value in ((None, 0.0), (True, 0.0), (False, 1.0)):
        source = read_source(path, ema=ema)
        assert list(source.tensors) == list(MM)
        assert all((x == value).all() for x in source.tensors.values())


def test_branches_and_records_are_left_out(tmp_path: Path) -> None:
    branches = few("roi_heads.mask_head.mask_fcn1.weight", "roi_heads.keypoint_head.conv1.weight")
    silent = few("pixel_mean", "pixel_std", "proposal_generator.anchor_generator.cell_anchors.0")
    content = {"model": {**D2, **branches, **silent}, "optimizer": {}, "iteration": 5}
    source = read_source(write(tmp_path / "model_final.pth", content))
    assert list(source.tensors) == list(D2)
    assert source.dropped == {"the mask branch": 1, "the keypoint branch": 1}
    assert source.keys == ("optimizer", "iteration")
    assert list(source.buffers) == ["pixel_mean", "pixel_std"]


def test_a_checkpoint_of_torchvisions_reference_script(tmp_path: Path) -> None:
    content = {"model": TV, "optimizer": {}, "lr_scheduler": {}, "epoch": 25}
    path = write(tmp_path / "model_25.pth", {**content, "args": argparse.Namespace(lr=0.02)})
    assert read_source(path).keys == ("optimizer", "lr_scheduler", "epoch", "args")


def test_a_file_of_the_model_zoo_is_compared_with_its_name(tmp_path: Path) -> None:
    written = Path(write(tmp_path / "a.pth", {"state_dict": MM})).read_bytes()
    digest = hashlib.sha256(written).hexdigest()[:8]
    for name, fits in ((digest, True), ("0" * 8, False)):
        path = tmp_path / f"faster_rcnn_r50_fpn_1x_coco_20200130-{name}.pth"
        path.write_bytes(written)
        if fits:
            assert read_source(str(path)).kind == "mmdetection"
        else:
            with pytest.raises(WeightsError, match=f"begins with {digest}, and its name says 00000000"):
                read_source(str(path))


REFUSED: dict[str, tuple[Any, str, str]] = {
    "Caffe2": ({"blobs": {"conv1_w": np.zeros(2, "f4")}}, "blobs", "background first"),
    "Caffe2, converted": (
        {"model": D2, "matching_heuristics": True},
        "matching_heuristics",
        "background first",
    ),
    "its author": ({"model": D2, "__author__": "Caffe2"}, "__author__", "background first"),
    "momentum": (
        {"conv1_w": torch.zeros(2), "conv1_w_momentum": torch.zeros(2)},
        "conv1_w_momentum",
        "Caffe2",
    ),
    "mmdetection 1": (
        {"state_dict": MM, "meta": {"mmdet_version": "1.2.0"}},
        "mmdet_version",
        "mmdetection 2",
    ),
    "mmdetection 1, its names": (
        {**MM, **few("bbox_head.shared_fcs.0.weight")},
        "bbox_head.shared",
        "background first",
    ),
    "deformable": ({**MM, **few("backbone.layer2.0.conv2.conv_offset.weight")}, "conv_offset", "deformable"),
    "deformable, detectron2": (
        {**D2, **few("backbone.bottom_up.res3.0.conv2_offset.weight")},
        "conv2_offset",
        "deformable",
    ),
    "cascade": ({**MM, **few("roi_head.bbox_head.0.fc_cls.weight")}, "roi_head.bbox_head.0", "cascade"),
    "cascade, detectron2": (
        {**D2, **few("roi_heads.box_predictor.1.cls_score.weight")},
        "box_predictor.1",
        "cascade",
    ),
    "C4": ({**few("backbone.res2.0.conv1.weight", "roi_heads.res5.0.conv1.weight")}, "roi_heads.res5", "C4"),
    "DC5": (few("backbone.res2.0.conv1.weight", "roi_heads.box_head.fc1.weight"), "backbone.res2", "FPN"),
    "GroupNorm": ({**MM, **few("backbone.gn1.weight")}, "backbone.gn1", "group normalisation"),
    "GroupNorm, detectron2": (
        {**D2, **few("backbone.fpn_lateral2.norm.weight")},
        "fpn_lateral2.norm",
        "group",
    ),
    "GroupNorm, RetinaNet": ({**D2, **few("head.cls_subnet.1.weight")}, "head.cls_subnet.1", "group"),
    "R50-D": ({**MM, **few("backbone.stem.0.weight")}, "backbone.stem.0", "deep stem"),
    "R50-D, detectron2": ({**D2, **few("backbone.bottom_up.stem.conv2.weight")}, "stem.conv2", "deep stem"),
    "FCOS, scales": (
        {**MM, "bbox_head.scales.0.scale": torch.ones(())},
        "bbox_head.scales.0",
        "FCOS_ResNet50",
    ),
    "FCOS": ({**MM, **few("bbox_head.conv_centerness.weight")}, "conv_centerness", "FCOS_ResNet50"),
    "Swin": ({**MM, **few("backbone.patch_embed.projection.weight")}, "patch_embed", "Swin"),
    "ConvNeXt": ({**MM, **few("backbone.stages.0.0.gamma")}, "backbone.stages.0", "ConvNeXt"),
    "layer scale": ({**MM, **few("backbone.layer1.0.ls1")}, "layer1.0.ls1", "ConvNeXt"),
    "a classifier": (few("conv1.weight", "fc.weight"), "conv1.weight", "backbone_weights"),
    "a loss beside it": (
        {**{f"model.{k}": x for k, x in MM.items()}, **few("loss.w")},
        "loss.w",
        "state_dict alone",
    ),
    "names of nobody": (few("backbone.features.0.weight"), "backbone.features.0", "FPN"),
}
"""Files, by what they are of; the key that the message names, and a word of its reason or mend."""


@pytest.mark.parametrize("of", REFUSED)
def test_what_cannot_be_computed_here_is_refused(of: str, tmp_path: Path) -> None:
    content, key, told = REFUSED[of]
    path = tmp_path / "model.pth"
    if "blobs" in content:
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path)
    with pytest.raises(DefeatError) as caught:
        read_source(str(path))
    refused(caught.value, str(path), key, told)


def shapes(family: str, framework: str, **more: Any) -> Tensors:
    with torch.device("meta"):
        return foreign(build(family, "resnet50", 80, **more), family, "resnet50", framework)


META = {"CLASSES": tuple(f"class {i}" for i in range(80))}


def converted(tensors: Tensors, framework: str, **more: Any) -> Any:
    return convert(source_of(tensors, framework, meta=META), **more)


def changed(tensors: Tensors, name: str, tensor: Tensor) -> Tensors:
    assert name in tensors
    return {**tensors, name: tensor}


def test_networks_that_are_refused_by_their_shapes() -> None:
    tensors = shapes("faster_rcnn", "mmdetection")
    fc = "roi_head.bbox_head.fc_reg.weight"
    wide = {
        k: torch.zeros(128, 128, 3, 3) if k == "backbone.layer1.0.conv2.weight" else x
        for k, x in tensors.items()
    }
    three = {k: x for k, x in tensors.items() if "convs.3" not in k}
    retina = shapes("retinanet", "detectron2", extra_levels_from="c5")
    retina = {
        **retina,
        "head.bbox_pred.weight": torch.zeros(12, 256, 3, 3),
        "head.bbox_pred.bias": torch.zeros(12),
        "head.cls_score.weight": torch.zeros(240, 256, 3, 3),
    }
    for framework, wrong, told in (
        ("mmdetection", changed(tensors, fc, torch.zeros(4, 1024)), "class-agnostic"),
        ("mmdetection", wide, "1 groups of 128 channels is not built here"),
        ("mmdetection", three, "the pyramid is built on 3 stages"),
        ("detectron2", retina, "3 anchors in a cell"),
    ):
        with pytest.raises(WeightsError, match=told):
            converted(wrong, framework)


CONFIG = """
img_norm_cfg = dict(
    mean=[{mean}], std=[{std}], to_rgb={rgb})
model = dict(backbone=dict(type='ResNet', depth=50, style='{style}'))
"""


def with_config(tensors: Tensors, **words: str) -> Any:
    return convert(source_of(tensors, "mmdetection", meta={**META, "config": CONFIG.format(**words)}))


def test_the_configuration_in_a_file_decides_over_its_name() -> None:
    tensors = shapes("faster_rcnn", "mmdetection")
    caffe = {"mean": "103.53, 116.28, 123.675", "std": "1.0, 1.0, 1.0", "rgb": "False", "style": "caffe"}
    assert with_config(tensors, **caffe).model["stride_in_1x1"]
    usual = {"mean": "123.675, 116.28, 103.53", "std": "58.395, 57.12, 57.375", "rgb": "True"}
    assert not with_config(tensors, **usual, style="pytorch").model["stride_in_1x1"]
    with pytest.raises(WeightsError, match=r"mean: 103\.5, 116, 123.* cannot be folded exactly"):
        with_config(tensors, mean="103.5, 116, 123", std="1, 1, 1", rgb="True", style="pytorch")


def test_settings_that_no_tensor_shows_are_refused_by_the_configuration() -> None:
    tensors = shapes("retinanet", "mmdetection", extra_levels_from="p5")

    def of(text: str) -> Any:
        return convert(source_of(tensors, "mmdetection", meta={**META, "config": text}))

    coder = "bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_stds=[{}]), reg_decoded_bbox=False"
    for usual in ("1.0, 1.0, 1.0, 1.0", "0.1, 0.1, 0.2, 0.2"):
        of(f"add_extra_convs='on_output', {coder.format(usual)}")
    for wrong, told in (
        ("add_extra_convs='on_lateral'", "on_lateral.*lateral of C5"),
        (coder.format("0.05, 0.05, 0.1, 0.1"), r"target_stds=\[0\.05.*scaled otherwise"),
    ):
        with pytest.raises(WeightsError, match=told):
            of(wrong)


def test_pixel_statistics_in_old_files_are_compared() -> None:
    tensors = shapes("faster_rcnn", "detectron2")
    source = source_of(tensors, "detectron2", meta=META)
    mean, one = torch.tensor([103.53, 116.28, 123.675]), torch.ones(3, 1, 1)
    convert(source._replace(buffers={"pixel_mean": mean.reshape(3, 1, 1), "pixel_std": one}))
    for buffers, told in (
        ({"pixel_mean": mean.flip(0)}, "pixel_mean: 103.53, 116.28, 123.675 .* another mean"),
        ({"pixel_std": torch.tensor([57.375, 57.12, 58.395])}, "pixel_std is 58.395.* give style="),
    ):
        with pytest.raises(WeightsError, match=told):
            convert(source._replace(buffers=buffers))


def test_norms_without_statistics_get_those_that_were_folded_away() -> None:
    tensors = {
        name: torch.empty_like(x, device="meta")
        for name, x in shapes("faster_rcnn", "detectron2").items()
        if "running" not in name
    }
    imported = converted(tensors, "detectron2")
    assert imported.tensors["backbone.body.layer4.2.bn3.running_var"].shape == (2048,)
    assert ("set", 106) in [(row.step, row.tensors) for row in imported.rows]


def test_weights_that_come_from_caffe_are_told_where_nothing_else_says_so() -> None:
    tensors = shapes("faster_rcnn", "mmdetection")
    folded = {"backbone.bn1.running_mean": torch.zeros(64), "backbone.bn1.running_var": torch.ones(64)}
    told = [row.what for row in converted({**tensors, **folded}, "mmdetection").rows]
    assert any("style=caffe if it is one of those" in what for what in told)


@pytest.mark.parametrize(
    "meta",
    [
        {"CLASSES": ("cat", "dog")},
        {"dataset_meta": {"classes": ["cat", "dog"], "palette": None}},
        {"dataset_meta": {"CLASSES": ("cat", "dog")}},
    ],
)
def test_classes_that_mmdetection_stores(meta: Any) -> None:
    with torch.device("meta"):
        detector = build("faster_rcnn", "resnet50", 2)
    tensors = foreign(detector, "faster_rcnn", "resnet50", "mmdetection")
    assert convert(source_of(tensors, "mmdetection", meta=meta)).classes == ["cat", "dog"]


def test_classes_that_are_given(tmp_path: Path) -> None:
    tensors = shapes("faster_rcnn", "detectron2")
    names = convert(source_of(tensors, "detectron2"), classes="coco80").classes
    assert (len(names), names[0], names[11], names[-1]) == (80, "person", "stop sign", "toothbrush")
    (tmp_path / "names.txt").write_text("cat\n\n traffic light \n", encoding="utf-8")
    assert named_classes(str(tmp_path / "names.txt")) == ["cat", "traffic light"]
    categories = '{"categories": [{"id": 7, "name": "dog"}, {"id": 2, "name": "cat"}]}'
    (tmp_path / "a.json").write_text(categories)
    assert named_classes(str(tmp_path / "a.json")) == ["cat", "dog"]
    (tmp_path / "twice.txt").write_text("cat\ncat\n")
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "bad.json").write_text("[[[")
    for given in ("twice.txt", "empty.txt", "bad.json", "absent.txt"):
        with pytest.raises(DefeatError, match=rf"classes=.*{given}.* one name a line"):
            named_classes(str(tmp_path / given))
    with pytest.raises(WeightsError, match="does not name its 80 classes: give classes=coco80"):
        convert(source_of(tensors, "detectron2"))
    with pytest.raises(WeightsError, match=r"has 80 classes, but classes=.* names 2"):
        convert(source_of(tensors, "detectron2"), classes=str(tmp_path / "names.txt"))


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "t.safetensors").touch()
    keys = {"source": "x", "output": str(tmp_path / "t.safetensors")}
    with pytest.raises(DefeatError, match="exists already"):
        import_detector(keys)
