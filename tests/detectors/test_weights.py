from __future__ import annotations

import hashlib
import inspect
import pickle
import re
from functools import partial
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.models import get_model_builder, get_weight, list_models, resnet18
from torchvision.models._api import Weights, WeightsEnum
from torchvision.models.detection import fasterrcnn_resnet50_fpn
from torchvision.ops.misc import FrozenBatchNorm2d

import defeat.detectors.loading as loading
import defeat.detectors.weights as weights
from defeat.config import build as build_node
from defeat.config import compose_config
from defeat.detectors import (
    create_detector,
    faster_rcnn,
    fcos,
    load_backbone_weights,
    load_detector_weights,
    read_weights,
    retinanet,
)
from defeat.detectors.weights import WeightFile, torchvision_weights
from defeat.errors import ConfigError, WeightsError

SMALL = {"backbone": "resnet10", "fpn_channels": 8, "box_head_channels": 16}


def build(num_classes: int = 3) -> nn.Module:
    return faster_rcnn(num_classes, **SMALL)


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def save_checkpoint(model: nn.Module, classes: list[str], settings: dict, folder: Path) -> Path:  # type: ignore[type-arg]
    """A checkpoint as a run of this project leaves it."""
    own = {"classes": classes, "config": {"student": {"model": settings}}}
    state = {f"student.{k}": v for k, v in model.state_dict().items()}
    torch.save({"state_dict": state, "defeat": own}, folder / "c.ckpt")
    return folder / "c.ckpt"


@pytest.fixture
def saved(tmp_path: Path) -> tuple[nn.Module, Path]:
    source = build()
    path = tmp_path / "detector.pth"
    torch.save(source.state_dict(), path)
    return source, path


def test_pth_loads_whole(saved: tuple[nn.Module, Path]) -> None:
    source, path = saved
    target = build()
    report, file = load_detector_weights(target, path)
    assert same(source, target)
    assert len(report.matched) == len(source.state_dict())
    assert (report.missing, report.unexpected, report.mismatched) == ([], [], [])
    assert file.classes is None


def test_safetensors_in_half_precision_load_whole(tmp_path: Path) -> None:
    source, target = build(), build()
    path = tmp_path / "detector.safetensors"
    save_file({k: v.half() for k, v in source.state_dict().items()}, path)
    load_detector_weights(target, path)
    for key, value in target.state_dict().items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, source.state_dict()[key], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("wrap", ["state_dict", "model"])
def test_wrapped_state_dicts_are_found(tmp_path: Path, wrap: str) -> None:
    source, target = build(), build()
    torch.save({wrap: source.state_dict(), "epoch": 3}, tmp_path / "w.pth")
    load_detector_weights(target, tmp_path / "w.pth")
    assert same(source, target)


def test_a_checkpoint_gives_its_student_and_its_classes(tmp_path: Path) -> None:
    source, target = build(), build()
    state = {f"student.{k}": v for k, v in source.state_dict().items()} | {"distiller.x": torch.zeros(1)}
    own = {"classes": ["a", "b"], "config": {"name": "x"}}
    torch.save({"state_dict": state, "defeat": own}, tmp_path / "best.ckpt")
    report, file = load_detector_weights(target, tmp_path / "best.ckpt")
    assert same(source, target)
    assert report.unexpected == []
    assert file.classes == ("a", "b")
    assert file.config == {"name": "x"}


def test_a_head_of_another_class_count_must_be_asked_for(saved: tuple[nn.Module, Path]) -> None:
    source, path = saved
    target = build(5)
    with pytest.raises(WeightsError, match=r"4 mismatched .*new_head=true"):
        load_detector_weights(target, path)
    report, _ = load_detector_weights(target, path, new_head=True)
    assert sorted(report.mismatched) == [
        "roi_heads.box_predictor.bbox_pred.bias",
        "roi_heads.box_predictor.bbox_pred.weight",
        "roi_heads.box_predictor.cls_score.bias",
        "roi_heads.box_predictor.cls_score.weight",
    ]
    assert torch.equal(target.backbone.body.conv1.weight, source.backbone.body.conv1.weight)


@pytest.mark.parametrize("new_head", [False, True])
def test_weights_of_another_model_are_refused(saved: tuple[nn.Module, Path], new_head: bool) -> None:
    other = faster_rcnn(3, **{**SMALL, "backbone": "resnet18"})
    with pytest.raises(
        WeightsError, match=r"keys matched, \d+ missing \(backbone.body.layer1.1.conv1.*another model"
    ):
        load_detector_weights(other, saved[1], new_head=new_head)


@pytest.mark.parametrize("new_head", [False, True])
def test_weights_of_another_width_are_refused(saved: tuple[nn.Module, Path], new_head: bool) -> None:
    wider = faster_rcnn(3, **{**SMALL, "fpn_channels": 2 * SMALL["fpn_channels"]})
    with pytest.raises(WeightsError, match=r"backbone\.fpn\..*another model"):
        load_detector_weights(wider, saved[1], new_head=new_head)


def test_backbone_weights_of_a_classifier(tmp_path: Path) -> None:
    classifier = resnet18()
    torch.save(classifier.state_dict(), tmp_path / "r18.pth")
    detector = faster_rcnn(3, **{**SMALL, "backbone": "resnet18"})
    report = load_backbone_weights(detector, tmp_path / "r18.pth")
    assert torch.equal(detector.backbone.body.layer4[1].conv2.weight, classifier.layer4[1].conv2.weight)
    assert report.unexpected == ["fc.weight", "fc.bias"]
    with pytest.raises(WeightsError, match="another backbone"):
        load_backbone_weights(faster_rcnn(3, **{**SMALL, "backbone": "resnet50"}), tmp_path / "r18.pth")


def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "mark"

    class Runs:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return (Path.touch, (mark,))

    for name, save in (("a.pth", torch.save), ("b.pth", lambda o, p: p.write_bytes(pickle.dumps(o)))):
        save({"state_dict": {"x": torch.zeros(1)}, "extra": Runs()}, tmp_path / name)
        with pytest.raises(
            WeightsError, match=r"refused: it holds more than tensors and plain containers, .*run code"
        ):
            read_weights(tmp_path / name)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.pth", b"not a pickle at all", "refused|not a readable"),
        ("x.pth", b"", "not a readable weight file|refused"),
        ("x.safetensors", b"short", "not a readable safetensors file"),
    ],
)
def test_damaged_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=message):
        read_weights(tmp_path / name)


def test_files_without_tensors(tmp_path: Path) -> None:
    torch.save({"epoch": 1}, tmp_path / "a.pth")
    torch.save([1, 2], tmp_path / "b.pth")
    with pytest.raises(WeightsError, match="holds no tensors"):
        read_weights(tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="holds a list, not a state_dict"):
        read_weights(tmp_path / "b.pth")


def test_a_path_that_does_not_exist_and_a_folder(tmp_path: Path) -> None:
    message = (
        r"'missing.pth': no such file, none that this package ships \(scenes_teacher\), and no torchvision"
    )
    with pytest.raises(WeightsError, match=message):
        read_weights("missing.pth")
    with pytest.raises(WeightsError, match="is a folder"):
        read_weights(tmp_path)


def served_weights(folder: Path, model: nn.Module) -> type[WeightsEnum]:
    """A weights enum whose address is a local file, named with its checksum as torchvision's are."""
    data = folder / "raw.pth"
    torch.save(model.state_dict(), data)
    digest = hashlib.sha256(data.read_bytes()).hexdigest()[:8]
    served = folder / f"small-{digest}.pth"
    data.rename(served)

    class Served(WeightsEnum):
        ONE = Weights(url=served.as_uri(), transforms=None, meta={})

    return Served


def test_torchvision_weights_are_fetched_when_allowed_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = build(), build()
    served = served_weights(tmp_path, source)
    monkeypatch.setattr(torchvision_weights, "get_weight", lambda name: served.ONE)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    with pytest.raises(WeightsError, match="downloads are off: set download=true"):
        load_detector_weights(target, "Served.ONE")
    load_detector_weights(target, "Served.ONE", download=True)
    assert same(source, target)
    load_detector_weights(build(), "Served.ONE")  # from the cache now


def test_a_download_with_another_checksum_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served = served_weights(tmp_path, build())
    path = next(tmp_path.glob("small-*.pth"))
    path.write_bytes(path.read_bytes() + b"x")
    monkeypatch.setattr(torchvision_weights, "get_weight", lambda name: served.ONE)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    with pytest.raises(WeightsError, match=r"Served.ONE could not be fetched: invalid hash value"):
        load_detector_weights(build(), "Served.ONE", download=True)


def test_the_file_of_a_checkpoint_is_known_by_its_digest(tmp_path: Path) -> None:
    path = save_checkpoint(build(), ["cat", "dog"], {}, tmp_path)
    made = create_detector(build, ["cat", "dog"], weights=str(path))
    assert made.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (made.source, made.whole) == (str(path), True)


def test_settings_that_shapes_do_not_show_must_be_the_checkpoints(tmp_path: Path) -> None:
    # The weights would load whole and compute something else.
    settings = {**SMALL, "backbone": "resnet50", "stride_in_1x1": True, "aspect_ratios": [0.5, 1.0, 2.0]}
    source = faster_rcnn(2, **settings)
    path = save_checkpoint(source, ["a"], settings, tmp_path)
    create_detector(partial(faster_rcnn, **settings), ["a"], weights=str(path))
    for key, value in (("stride_in_1x1", False), ("aspect_ratios", (0.4, 1.0, 2.5))):
        other = partial(faster_rcnn, **{**settings, key: value})
        with pytest.raises(WeightsError, match=rf"was trained with {key}=.*, but {key}="):
            create_detector(other, ["a"], weights=str(path))


def test_fcos_must_have_the_checkpoints_units_of_length(tmp_path: Path) -> None:
    settings = {"backbone": "resnet10", "fpn_channels": 64, "anchor_sizes": [[8], [16], [32], [64], [128]]}
    path = save_checkpoint(fcos(2, **settings), ["a"], settings, tmp_path)
    assert create_detector(partial(fcos, **settings), ["a"], weights=str(path)).whole
    with pytest.raises(WeightsError, match=r"was trained with strides=derived, but strides=fixed is"):
        create_detector(partial(fcos, **settings, strides="fixed"), ["a"], weights=str(path))
    settings["anchor_sizes"] = [[4], [8], [16], [32], [64]]
    with pytest.raises(WeightsError, match=r"was trained with anchor_sizes=\[\[8\], .*, but anchor_sizes="):
        create_detector(partial(fcos, **settings), ["a"], weights=str(path))


def test_a_setting_that_torchvision_ignores_is_an_error() -> None:
    ignored = partial(
        fasterrcnn_resnet50_fpn, weights=None, weights_backbone=None, trainable_backbone_layers=3
    )
    with pytest.raises(ConfigError, match="torchvision ignores trainable_backbone_layers"):
        create_detector(ignored, ["a"])


def test_frozen_norms_of_torchvisions_first_coco_weights_have_no_epsilon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = build()
    served = served_weights(tmp_path, source)
    monkeypatch.setattr(torchvision_weights, "get_weight", lambda name: served.ONE)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    for special, eps in ((("Served.ONE",), 0.0), ((), 1e-5)):
        monkeypatch.setattr(loading, "ZERO_EPS", special)
        detector = build()
        load_detector_weights(detector, "Served.DEFAULT", download=True)  # known by its own name all the same
        assert {m.eps for m in detector.modules() if isinstance(m, FrozenBatchNorm2d)} == {eps}


@pytest.mark.parametrize(
    ("weights", "eps"),
    [
        ("FasterRCNN_ResNet50_FPN_Weights.COCO_V1", 0.0),
        ("FasterRCNN_ResNet50_FPN_Weights.DEFAULT", 0.0),
        ("folder/fasterrcnn_resnet50_fpn_coco-258fb6c6.pth", 0.0),
        ("FasterRCNN_ResNet50_FPN_V2_Weights.COCO_V1", 1e-5),
        (None, 1e-5),
    ],
)
def test_a_checkpoint_has_the_epsilon_of_its_training(weights: str | None, eps: float) -> None:
    detector = build()
    config = {"student": {"weights": weights}}
    load_detector_weights(detector, WeightFile(build().state_dict(), None, config))
    assert {m.eps for m in detector.modules() if isinstance(m, FrozenBatchNorm2d)} == {eps}


def test_weights_without_epsilon_are_those_whose_builders_take_it_away() -> None:
    """Read from torchvision's own builders, so that a new one of them does not go unnoticed."""
    found = set()
    for name in list_models(torchvision.models.detection):
        source = inspect.getsource(inspect.unwrap(get_model_builder(name)))
        found |= set(re.findall(r"if weights == (\w+\.\w+):\s+overwrite_eps\(model, 0\.0\)", source))
    assert found == set(loading.ZERO_EPS)
    assert all(str(get_weight(name)) == name for name in found)


@pytest.mark.parametrize("build", [faster_rcnn, retinanet], ids=["faster_rcnn", "retinanet"])
def test_parameters_under_torchvisions_old_names_are_found(build, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Its first COCO weights have them. That these are the old names, torchvision's own loading confirms."""
    source, target, theirs = (build(3, backbone="resnet10", fpn_channels=8) for _ in range(3))
    old = {}
    for key, value in source.state_dict().items():
        key = re.sub(r"(_blocks\.\d)\.0\.", r"\1.", key).replace("rpn.head.conv.0.0.", "rpn.head.conv.")
        key = re.sub(r"(_head\.conv)\.(\d)\.0\.", lambda m: f"{m[1]}.{2 * int(m[2])}.", key)
        old[key] = value
    assert len(old.keys() - source.state_dict().keys()) == (18 if build is faster_rcnn else 28)
    torch.save(old, tmp_path / "old.pth")
    report, _ = load_detector_weights(target, tmp_path / "old.pth")
    theirs.load_state_dict(old)
    assert same(source, target)
    assert same(source, theirs)
    assert report.unexpected == []


def test_weights_of_this_package_go_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A config must mean the same wherever it is run: neither a file nor a folder of that name gets between.
    shipped = weights.ASSETS / "scenes_teacher.safetensors"
    monkeypatch.chdir(tmp_path)
    Path("scenes_teacher").mkdir()
    read = read_weights("scenes_teacher")
    assert {k: v.tolist() for k, v in read.tensors.items() if k.endswith("cls_score.bias")} == {
        k: v.tolist() for k, v in load_file(shipped).items() if k.endswith("cls_score.bias")
    }
    Path("scenes_teacher").rmdir()
    torch.save({"w": torch.ones(2)}, "scenes_teacher")
    assert read_weights("scenes_teacher").tensors.keys() == read.tensors.keys()
    assert read_weights("./scenes_teacher").tensors.keys() == {"w"}
    assert read_weights(Path("scenes_teacher")).tensors.keys() == {"w"}


def test_a_teacher_of_this_package_is_known_by_its_digest() -> None:
    node = compose_config(
        "train", ["detector@student=scenes_teacher", "student.weights=scenes_teacher"]
    ).student
    made = build_node(node, classes=list("abcdefgh"), backbone_weights=None)
    shipped = weights.ASSETS / "scenes_teacher.safetensors"
    assert (made.source, made.whole) == ("scenes_teacher", True)
    assert made.digest == hashlib.sha256(shipped.read_bytes()).hexdigest()


def test_backbone_weights_are_not_read_where_weights_are_given(saved: tuple[nn.Module, Path]) -> None:
    source, path = saved
    made = create_detector(
        lambda num_classes: build(num_classes), ["a", "b"], weights=str(path), backbone_weights="?"
    )
    assert same(source, made.model)


def test_an_infinite_variance_is_read(tmp_path: Path) -> None:
    # half precision overflows at 65,520, and ImageNet's first norm has variances beyond
    save_file({"bn1.running_var": torch.tensor([1.0, 1e6]).half()}, tmp_path / "a.safetensors")
    assert read_weights(tmp_path / "a.safetensors").tensors["bn1.running_var"][1] == torch.inf
    save_file({"bn1.running_mean": torch.tensor([1.0, 1e6]).half()}, tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match=r"'bn1\.running_mean' holds numbers that are not finite"):
        read_weights(tmp_path / "a.safetensors")


def test_dead_channels_of_a_backbone_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = faster_rcnn(3, backbone="resnet10", fpn_channels=8).get_submodule("backbone.body").state_dict()
    state["bn1.running_var"] = torch.tensor([1e6] * 64).half()
    torch.save(state, tmp_path / "a.pth")
    build = partial(faster_rcnn, backbone="resnet10", fpn_channels=8)
    made = create_detector(build, ["a", "b"], backbone_weights=str(tmp_path / "a.pth"))
    assert made.infinite == ("backbone.body.bn1.running_var",)
    assert "their channels are dead; take the file in float32" in caplog.text


def test_layers_without_statistics_are_told_and_single_silent_channels_are_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = partial(faster_rcnn, backbone="resnet10", fpn_channels=8, box_head_channels=8)
    tensors = model(num_classes=2).state_dict()
    layer = "backbone.body.layer1.0.bn1"
    for name in ("weight", "bias", "running_var"):
        tensors[f"{layer}.{name}"][3] = 0
    tensors["backbone.body.bn1.running_var"][5] = 0
    torch.save(tensors, tmp_path / "w.pth")
    create_detector(model, ["a"], weights=str(tmp_path / "w.pth"))
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    tensors[f"{layer}.running_var"].zero_()
    torch.save(tensors, tmp_path / "w.pth")
    create_detector(model, ["a"], weights=str(tmp_path / "w.pth"))
    assert f"w.pth: all variances are 0 in {layer}.running_var:" in caplog.text


def test_the_suffix_of_a_file_may_be_in_capitals(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(1)}, tmp_path / "a.SAFETENSORS")
    assert read_weights(tmp_path / "a.SAFETENSORS").tensors.keys() == {"w"}


def test_the_shared_imagenet_weights_fill_their_backbones(shared: Path) -> None:
    for name, file, extra in (
        ("mobilenet_v2", "mobilenet_v2_imagenet_features", {}),
        ("resnet50", "resnet50_imagenet_fp16", {"stride_in_1x1": True}),
    ):
        detector = faster_rcnn(3, backbone=name, fpn_channels=8, **extra)
        report = load_backbone_weights(detector, shared / "weights" / f"{file}.safetensors")
        assert len(report.matched) > 200
