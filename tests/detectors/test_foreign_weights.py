"""Weights as other programs save them: averages beside raw weights, wrapped names, quantised numbers."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision.models import mobilenet_v2

from defeat.detectors import (
    create_detector,
    faster_rcnn,
    load_backbone_weights,
    load_detector_weights,
    read_weights,
)
from defeat.errors import ConfigError, WeightsError
from tests.helpers.narrow import NARROW

Tensors = dict[str, Tensor]


@pytest.fixture(scope="module")
def raw() -> nn.Module:
    return build(3)


@pytest.fixture(scope="module")
def average() -> nn.Module:
    return build(3)


def build(num_classes: int) -> nn.Module:
    return faster_rcnn(num_classes, backbone=NARROW, fpn_channels=8, box_head_channels=16)


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def before(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + name: value for name, value in tensors.items()}


def averaged_model(model: nn.Module) -> Tensors:
    """The state of torch's own average of a model, with its counter."""
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9)).state_dict()


def of_mmcv(raw: nn.Module, average: nn.Module) -> Tensors:
    """The model has the average when it is saved, and a buffer of the raw value for each parameter."""
    held = {f"ema_{name.replace('.', '_')}": value for name, value in raw.named_parameters()}
    rest = {
        name: value for name, value in raw.state_dict().items() if name not in dict(raw.named_parameters())
    }
    return {**average.state_dict(), **rest, **held}


FORMATS: dict[str, tuple[bool, Callable[[nn.Module, nn.Module], Any]]] = {
    "torchvision": (
        False,
        lambda r, a: {"model": r.state_dict(), "model_ema": averaged_model(a), "epoch": 3},
    ),
    "timm": (False, lambda r, a: {"state_dict": r.state_dict(), "state_dict_ema": a.state_dict()}),
    "RT-DETR": (
        False,
        lambda r, a: {"model": r.state_dict(), "ema": {"module": a.state_dict(), "updates": 9}},
    ),
    "DINO": (False, lambda r, a: {"model": r.state_dict(), "ema_model": before("module.", a.state_dict())}),
    "YOLO-like": (False, lambda r, a: {"net": r.state_dict(), "ema": a.state_dict()}),
    "one state_dict": (
        False,
        lambda r, a: {
            "state_dict": {**before("model.", r.state_dict()), **before("ema.", averaged_model(a))}
        },
    ),
    "mmengine": (
        True,
        lambda r, a: {
            "state_dict": a.state_dict(),
            "ema_state_dict": {"steps": torch.tensor(7), **before("module.", r.state_dict())},
        },
    ),
    "mmcv": (True, lambda r, a: {"state_dict": of_mmcv(r, a)}),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_an_average_beside_raw_weights_is_told_and_chosen(
    kind: str, raw: nn.Module, average: nn.Module, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    average_first, make = FORMATS[kind]
    path = str(tmp_path / "w.pth")
    torch.save(make(raw, average), path)
    for ema, wanted in ((None, average if average_first else raw), (True, average), (False, raw)):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            model = create_detector(build, ["a", "b"], weights=path, ema=ema).model
        if kind == "mmcv" and wanted is average:  # its buffers, such as running means, are not averaged
            assert all(
                torch.equal(p, q) for p, q in zip(model.parameters(), wanted.parameters(), strict=True)
            )
        else:
            assert same(model, wanted)
        told = "averaged" if wanted is average else "raw"
        assert (f"the {told} ones are taken" in caplog.text) == (ema is None)


class Averaging(LightningModule):
    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.student = detector

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["defeat"] = {"classes": ["a", "b"], "config": {}}


def test_lightning_exchanges_the_weights_when_it_saves(raw: nn.Module, tmp_path: Path) -> None:
    module, path = Averaging(build(3)), tmp_path / "last.ckpt"
    callback = WeightAveraging()
    trainer = Trainer(callbacks=[callback], logger=False, accelerator="cpu", enable_model_summary=False)
    trainer.strategy.connect(module)
    callback.setup(trainer, module, "fit")
    average = build(3)
    average.load_state_dict(module.student.state_dict())
    module.student.load_state_dict(raw.state_dict())
    trainer.save_checkpoint(path, weights_only=False)
    for ema, wanted in ((None, average), (True, average), (False, raw)):
        model = build(3)
        load_detector_weights(model, path, ema=ema)
        assert same(model, wanted)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda t: {"ema": t, "epoch": 1, "loss": torch.tensor(0.5)},
        lambda t: {"ema_state_dict": t},
        lambda t: {"model_ema": {"n_averaged": torch.tensor(5), **before("module._orig_mod.", t)}},
    ],
)
def test_a_file_of_an_average_alone(wrap: Any, raw: nn.Module, tmp_path: Path) -> None:
    torch.save(wrap(raw.state_dict()), tmp_path / "w.pth")
    for ema in (None, True):
        model = build(3)
        load_detector_weights(model, tmp_path / "w.pth", ema=ema)
        assert same(model, raw)
    with pytest.raises(WeightsError, match=r"holds no raw weights .* leave out ema=false"):
        read_weights(tmp_path / "w.pth", ema=False)


def test_what_ema_cannot_choose_is_refused(raw: nn.Module, tmp_path: Path) -> None:
    save_file(raw.state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"holds no averaged weights .* leave out ema=true"):
        read_weights(tmp_path / "w.safetensors", ema=True)
    with pytest.raises(WeightsError, match=r"ema must be true, false or null, got 'yes'"):
        read_weights(tmp_path / "w.safetensors", ema="yes")  # type: ignore[arg-type]
    with pytest.raises(
        ConfigError, match=r"ema=True chooses between the weights of a file, and none is given"
    ):
        create_detector(build, ["a"], ema=True)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda t: {"state_dict": before("module.", t)},
        lambda t: {"state_dict": before("model.", t)},
        lambda t: before("_orig_mod.", t),
        lambda t: before("module._orig_mod.", t),
        lambda t: before("student.detector.", t),
        lambda t: {"n_averaged": torch.tensor(5), **before("module.", t)},
        lambda t: {name.replace("backbone.", "backbone._orig_mod."): value for name, value in t.items()},
        lambda t: {"model": {"module": t}},
        lambda t: {"net": OrderedDict(t)},
        lambda t: {"model_state_dict": t, "optimizer_state_dict": {}},
    ],
)
def test_what_wraps_a_model_is_taken_off(wrap: Any, raw: nn.Module, tmp_path: Path) -> None:
    torch.save(wrap(raw.state_dict()), tmp_path / "w.pth")
    model = build(3)
    report, _ = load_detector_weights(model, tmp_path / "w.pth")
    assert same(model, raw)
    assert report.unexpected == []


def test_a_prefix_is_no_other_models(raw: nn.Module, tmp_path: Path) -> None:
    torch.save(
        {**before("model.", raw.state_dict()), **before("other.", raw.state_dict())}, tmp_path / "w.pth"
    )
    with pytest.raises(
        WeightsError, match=r"unexpected \(model\.backbone\.body\.conv1\.weight.*another model"
    ):
        load_detector_weights(build(3), tmp_path / "w.pth")
    inside = nn.ModuleDict({"module": raw})
    torch.save(inside.state_dict(), tmp_path / "w.pth")
    model = nn.ModuleDict({"module": build(3)})
    load_detector_weights(model, tmp_path / "w.pth")
    assert same(model, inside)


def test_a_wrapped_classifier_fills_its_backbone(tmp_path: Path) -> None:
    classifier = mobilenet_v2()
    torch.save({"model_ema": averaged_model(classifier), "model": {}}, tmp_path / "w.pth")
    detector = faster_rcnn(3, backbone="mobilenet_v2", fpn_channels=8, box_head_channels=16)
    load_backbone_weights(detector, tmp_path / "w.pth")
    assert torch.equal(
        detector.backbone.body["3"].conv[0][0].weight, classifier.features[3].conv[0][0].weight
    )


def test_integers_are_refused_unless_their_scales_come_along(tmp_path: Path) -> None:
    model = build(3)
    tensors = {name: torch.rand_like(value) for name, value in model.state_dict().items()}
    name = "backbone.body.conv1.weight"
    integers = (tensors[name] * 100).to(torch.int8)
    path = tmp_path / "w.safetensors"
    save_file({**tensors, name: integers}, path)
    with pytest.raises(WeightsError, match=r"'backbone\.body\.conv1\.weight' holds int8 numbers, which mean"):
        load_detector_weights(model, path)
    scale, zero = torch.rand(64, 1), torch.randint(-5, 5, (64,), dtype=torch.int8)
    parts = {f"{name}_scale": scale, f"{name}_zero_point": zero}
    save_file({**tensors, name: integers, **parts}, path)
    report, _ = load_detector_weights(model, path)
    wanted = (integers.float() - zero.reshape(64, 1, 1, 1)) * scale.reshape(64, 1, 1, 1)
    assert torch.equal(model.state_dict()[name], wanted)
    assert report.unexpected == []
    save_file({**tensors, name: integers, f"{name}_scale": torch.rand(64, 3)}, path)
    with pytest.raises(WeightsError, match="has neither one scale nor one for each output"):
        load_detector_weights(model, path)
