"""Every choice under conf/ composes, and everything in it can be built; experiments: test_experiments.py."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from defeat.config import build, compose_config, conf_dir, to_plain
from defeat.detectors.weights import read_weights
from defeat.distill import Distiller
from defeat.errors import ConfigError, WeightsError
from tests.helpers.console import process_environment
from tests.helpers.data_sets import CocoFiles
from tests.helpers.distillation import distiller_config

RUN = ["run_dir=runs/x"]


def choices(group: str) -> list[str]:
    return sorted(p.stem for p in (conf_dir() / group).glob("*.yaml"))


def build_detector(node: DictConfig, classes: int = 3) -> torch.nn.Module:
    """As configured but for the weights, which are not here."""
    names = [f"class {i}" for i in range(classes)]
    return build(node, classes=names, weights=None, backbone_weights=None).model  # type: ignore[no-any-return]


@cache
def detector(name: str) -> DictConfig:
    """A choice of conf/detector. Not to be changed."""
    node: DictConfig = compose_config("train", [f"detector@student={name}", *RUN]).student
    return node


DETECTORS = [name for name in choices("detector") if name != "imported"]  # whose builder stands in its file


@pytest.mark.parametrize(
    "name",  # the deepest take long, and are built with their experiments
    [pytest.param(n, marks=pytest.mark.slow) if n.endswith(("101", "152")) else n for n in DETECTORS],
)
def test_detectors_instantiate(name: str) -> None:
    with torch.device("meta"):
        assert build_detector(detector(name)).training


@pytest.mark.parametrize("name", DETECTORS)
def test_weights_named_by_detectors_exist_in_torchvision(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    node = detector(name)
    for source in filter(None, (node.weights, node.backbone_weights)):
        with pytest.raises(WeightsError, match=r"not in torch's cache .* downloads are off"):
            read_weights(source)


@pytest.mark.parametrize("name", choices("trainer"))
def test_trainers_compose_with_known_arguments(name: str) -> None:
    from inspect import signature

    from lightning.pytorch import Trainer

    node = compose_config("train", [f"trainer={name}", *RUN]).trainer
    known = {*signature(Trainer.__init__).parameters}
    assert {key for key in node if not key.startswith("_")} <= known


@pytest.mark.parametrize("name", choices("data"))
def test_data_modules_instantiate(name: str, tmp_path: Path) -> None:
    CocoFiles(tmp_path).write()  # data=folder looks at what is there
    build(compose_config("train", [f"data={name}", f"data.root={tmp_path}", *RUN]).data)


@pytest.mark.parametrize("name", choices("optim"))
def test_optimisers_instantiate(name: str) -> None:
    config = compose_config("train", [f"optim={name}", *RUN])
    optimizer = build(config.optim.optimizer)([torch.nn.Parameter(torch.zeros(1))])
    build(config.optim.lr_schedule)(optimizer, total_steps=100, steps_per_epoch=10)


@cache
def pair(family: str) -> tuple[torch.nn.Module, torch.nn.Module]:
    """A student and a wider teacher of a family."""
    few = 64 if family == "fcos" else 8  # the fewest that the head of FCOS takes
    student, teacher = (detector(f"{family}_{size}").copy() for size in ("r18", "r50"))
    student.model.update(fpn_channels=few, backbone="resnet10")
    teacher.model.update(fpn_channels=max(few, 16), backbone="resnet10")
    return build_detector(student), build_detector(teacher)


ONE_STAGE = ["neck", "neck_cls", "pkd", "defeat_retinanet", "defeat_retinanet_head"]
"""One distiller of each kind of term; tests/distill computes with more."""


@pytest.mark.parametrize(
    ("family", "name"),
    [
        *(("frcnn", name) for name in choices("distiller")),
        *((family, name) for family in ("retinanet", "fcos") for name in ONE_STAGE),
    ],
)
def test_distillers_instantiate_or_say_why_not(family: str, name: str) -> None:
    node, (student, teacher) = distiller_config(name), pair(family)
    terms = [term for term in node.terms.values() if term is not None]
    targets = {term["_target_"] for term in terms}
    if family != "frcnn" and "defeat.distill.HeadTerm" in targets:
        with pytest.raises(ConfigError, match="the student is a one-stage detector"):
            build(node)(student, teacher)
    elif family != "retinanet" and "defeat.distill.AnchorTerm" in targets:
        with pytest.raises(ConfigError, match="the anchor term compares two RetinaNets"):
            build(node)(student, teacher)
    else:
        distiller = build(node)(student, teacher)
        assert isinstance(distiller, Distiller)
        assert len(distiller.terms) == len(terms) >= 1


def test_plain_containers_hold_no_interpolation() -> None:
    plain = to_plain(compose_config("train", ["+experiment=scenes_plain", *RUN]))
    assert type(plain) is dict
    assert plain["student"]["download"] is False


def test_a_target_that_does_not_exist_and_one_called_wrongly() -> None:
    with pytest.raises(ConfigError, match=r"defeat\.nothing"):
        build(OmegaConf.create({"_target_": "defeat.nothing"}))
    with pytest.raises(ConfigError, match="unexpected keyword argument 'colour'"):
        build(OmegaConf.create({"a": {"_target_": "torch.nn.ReLU", "colour": 1}}).a)


def test_compositions_of_the_suite_are_those_of_hydra_alone() -> None:
    """The suite's Hydra remembers what it has read, see ``tests/helpers/quick_hydra.py``."""
    lines = [
        ["+experiment=scenes", "distiller=neck", "data.root=x", *RUN],
        ["+experiment=own", "data.root=x", "~logger", "teacher.weights=y", *RUN],
        [
            "+experiment=own",
            "data.root=z",
            "detector@student=fcos_r18",
            "+new.key=1",
            "teacher.weights=y",
            *RUN,
        ],
    ]
    program = (
        "import json, sys; from defeat.config import compose_config; from omegaconf import OmegaConf;"
        "configs = [compose_config('train', words) for words in json.loads(sys.argv[1])];"
        "print(json.dumps([OmegaConf.to_container(config) for config in configs]))"
    )
    command = [sys.executable, "-c", program, json.dumps(lines)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=process_environment())
    for _ in range(2):
        assert json.loads(done.stdout) == [OmegaConf.to_container(compose_config("train", x)) for x in lines]


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    words = ["+experiment=other", f"hydra.searchpath=[file://{tmp_path}]", *RUN]
    for seed in (11, 2):
        (tmp_path / "experiment").mkdir(exist_ok=True)
        (tmp_path / "experiment" / "other.yaml").write_text(f"# @package _global_\nseed: {seed}\n")
        assert compose_config("train", words).seed == seed
