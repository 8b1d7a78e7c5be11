"""Every file under conf/ composes, and everything in it can be built."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from defeat.config import build, compose_config, conf_dir, to_plain
from defeat.detectors.weights import read_weights
from defeat.distill import Distiller
from defeat.errors import ConfigError, WeightsError

RUN = ["run_dir=runs/x"]
EXPERIMENTS = sorted(p.stem for p in (conf_dir() / "experiment").glob("*.yaml"))
SHRINK = ["backbone=resnet10", "fpn_channels=8"]


def choices(group: str) -> list[str]:
    return sorted(p.stem for p in (conf_dir() / group).glob("*.yaml"))


def build_detector(node: DictConfig, classes: int = 3) -> torch.nn.Module:
    """As configured but for the weights, which are not here."""
    names = [f"class {i}" for i in range(classes)]
    return build(node, classes=names, weights=None, backbone_weights=None).model  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_compose_and_name_themselves(name: str) -> None:
    config = compose_config("train", [f"+experiment={name}", *RUN])
    assert config.name == name
    header = (conf_dir() / "experiment" / f"{name}.yaml").read_text().splitlines()
    assert header[0] == "# @package _global_"
    assert header[1].startswith(f"# defeat-train +experiment={name}")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_leave_open_only_what_the_user_knows(name: str) -> None:
    config = compose_config("train", [f"+experiment={name}", *RUN])
    assert OmegaConf.missing_keys(config) <= {"data.root"}


@pytest.mark.parametrize("name", [n for n in EXPERIMENTS if "152" not in n or n.endswith("r50")])
def test_experiments_instantiate(name: str) -> None:
    """Detectors at a tiny size; everything else as it is."""
    small = [f"student.model.{word}" for word in SHRINK]
    config = compose_config("train", [f"+experiment={name}", *RUN, *small, "data.root=x"])
    if config.teacher is not None:
        config = compose_config(
            "train",
            [f"+experiment={name}", *RUN, *small, "data.root=x", *(f"teacher.model.{w}" for w in SHRINK)],
        )
    student = build_detector(config.student)
    build(config.data)
    parameters = [p for p in student.parameters() if p.requires_grad]
    optimizer = build(config.optim.optimizer)(parameters)
    build(config.optim.rate)(optimizer, total_steps=100, steps_per_epoch=10)
    if config.distiller is not None:
        distiller = build(config.distiller)(student, build_detector(config.teacher))
        assert isinstance(distiller, Distiller)
        assert [p for p in distiller.parameters() if p.requires_grad]


@pytest.mark.parametrize("name", [n for n in choices("detector") if not n.endswith(("r101", "r152", "r34"))])
def test_detectors_instantiate(name: str) -> None:
    config = compose_config("train", [f"detector@student={name}", *RUN])
    shrink = {} if name.startswith("torchvision") else {"fpn_channels": 8}
    OmegaConf.set_struct(config, False)
    config.student.model.update(shrink)
    assert build_detector(config.student).training


@pytest.mark.parametrize("name", choices("detector"))
def test_weights_named_by_detectors_exist_in_torchvision(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    node = compose_config("train", [f"detector@student={name}", *RUN]).student
    for source in filter(None, (node.weights, node.backbone_weights)):
        with pytest.raises(WeightsError, match=r"not in torch's cache .* downloads are off"):
            read_weights(source)


@pytest.mark.parametrize("name", choices("trainer"))
def test_trainers_compose_with_known_arguments(name: str) -> None:
    from inspect import signature

    from lightning.pytorch import Trainer

    node = compose_config("train", [f"trainer={name}", *RUN]).trainer
    assert set(node) - {"_target_"} <= set(signature(Trainer.__init__).parameters)


@pytest.mark.parametrize("name", choices("data"))
def test_data_modules_instantiate(name: str) -> None:
    build(compose_config("train", [f"data={name}", "data.root=x", *RUN]).data)


@pytest.mark.parametrize("name", choices("optim"))
def test_optimisers_instantiate(name: str) -> None:
    config = compose_config("train", [f"optim={name}", *RUN])
    optimizer = build(config.optim.optimizer)([torch.nn.Parameter(torch.zeros(1))])
    build(config.optim.rate)(optimizer, total_steps=100, steps_per_epoch=10)


@pytest.mark.parametrize("name", choices("distiller"))
@pytest.mark.parametrize("family", ["frcnn", "retinanet"])
def test_distillers_instantiate_or_say_why_not(name: str, family: str) -> None:
    words = [f"detector@student={family}_r18", f"detector@teacher={family}_r50", f"distiller={name}", *RUN]
    config = compose_config("train", words)
    OmegaConf.set_struct(config, False)
    config.student.model.update(fpn_channels=8)
    config.teacher.model.update(fpn_channels=16, backbone="resnet18")
    student, teacher = build_detector(config.student), build_detector(config.teacher)
    if family == "retinanet" and name.startswith("defeat") and name != "defeat_retinanet":
        with pytest.raises(ConfigError, match="the student is a one-stage detector"):
            build(config.distiller)(student, teacher)
    else:
        assert len(build(config.distiller)(student, teacher).terms) >= 1


def test_distilled_rows_differ_from_their_baseline_by_teacher_and_distiller_alone() -> None:
    for baseline, row in (
        ("frcnn_r50", "frcnn_r152_r50"),
        ("retinanet_r50", "retinanet_r152_r50"),
        ("scenes_plain", "scenes"),
        ("bccd_plain", "bccd"),
    ):
        words = [*RUN, "data.root=x"]
        a, b = (compose_config("train", [f"+experiment={name}", *words]) for name in (baseline, row))
        for key in a:
            if key not in ("name", "teacher", "distiller"):
                assert a[key] == b[key], f"{row} changes {key}"


def test_plain_containers_hold_no_interpolation() -> None:
    plain = to_plain(compose_config("train", ["+experiment=scenes_plain", *RUN]))
    assert type(plain) is dict
    assert plain["student"]["download"] is False


def test_a_target_that_does_not_exist_and_one_called_wrongly() -> None:
    with pytest.raises(ConfigError, match=r"defeat\.nothing"):
        build(OmegaConf.create({"_target_": "defeat.nothing"}))
    with pytest.raises(ConfigError, match="unexpected keyword argument 'colour'"):
        build(OmegaConf.create({"a": {"_target_": "torch.nn.ReLU", "colour": 1}}).a)
