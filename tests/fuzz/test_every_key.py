"""Every key of conf/ with values that are odd: what it configures is built, or one line says why not."""

from __future__ import annotations

import copy
import math
import random
import shutil
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from defeat.cli.error_messages import explain
from defeat.cli.overrides import check_types
from defeat.config import build, build_factory, compose_config, to_plain
from defeat.detectors import Detector
from defeat.export.export import export
from defeat.predict.predict import predict
from defeat.run.check import check_config
from defeat.run.check_trainer import check_trainer
from defeat.run.evaluate import evaluate
from defeat.run.train import train
from defeat.run.trainer import build_trainer
from tests.helpers.distillation import distillation
from tests.helpers.trials import Tally, time_limit

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice on odd settings

VALUES: tuple[Any, ...] = (
    *(None, "", "word", "a\nb\x1b[31m", "x\0y", True, 0, -1, 0.5, -0.5, math.inf, math.nan, 10**30),
    *([], [1, None], [[-1]], {}, {"a": 1}, {"_target_": "torch.nn.ReLU"}),
)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> DictConfig:
    root = tmp_path_factory.mktemp("data")
    more = ["teacher.weights=none.pth", "callbacks=profile", f"output_root={root}"]
    return compose_config("train", [*distillation(root), *more])


@pytest.fixture(scope="module")
def models(config: DictConfig) -> dict[str, nn.Module]:
    nodes = {role: config[role] for role in ("student", "teacher")}
    return {role: build(node, classes=["cat"], weights=None).model for role, node in nodes.items()}


def leaves(node: Any, prefix: str = "") -> Iterator[str]:
    """Keys of all values, and of the groups that hold them."""
    for name in node:
        yield f"{prefix}{name}"
        if not OmegaConf.is_interpolation(node, name) and isinstance(node[name], DictConfig):
            yield from leaves(node[name], f"{prefix}{name}.")


def build_part(config: DictConfig, key: str, models: dict[str, nn.Module]) -> None:
    """Build what a key belongs to, as a training does."""
    part = key.partition(".")[0]
    if part in ("trainer", "logger", "callbacks"):
        check_trainer(build_trainer(config), swept=False, scheduled=True)
    elif part == "optim":
        optimizer = build_factory(config.optim.optimizer)(nn.Linear(2, 2).parameters())
        build_factory(config.optim.lr_schedule)(optimizer, total_steps=100, steps_per_epoch=10)
    elif part in ("distiller", "neck_weights"):
        build(config.distiller, **models)
    elif part in ("student", "teacher"):
        detector: Detector = build(config[part], classes=["cat"], weights=None, backbone_weights=None)
        assert isinstance(detector, Detector)
    elif part in ("data", "preflight") and config[part] is not None:
        build(config[part])


def outcome(config: DictConfig, key: str, value: Any, models: dict[str, nn.Module]) -> str:
    def build_run(changed: DictConfig) -> None:
        to_plain(changed)
        check_config(changed)
        build_part(changed, key, models)

    return outcome_of("train", build_run, config, key, value)


def outcome_of(
    command: str, run: Callable[[DictConfig], object], config: DictConfig, key: str, value: Any
) -> str:
    changed = copy.deepcopy(config)
    OmegaConf.set_struct(changed, False)
    try:
        OmegaConf.update(changed, key, value, merge=False)
        check_types(changed, config)
        run(changed)
    except Exception as error:
        line = explain(error, command, ())
        told = "".join(traceback.format_exception(error))[-2500:]
        assert line is not None, f"{key}={value!r}: {told}"
        assert line.isprintable()
        return f"refused: {line}"
    return "built"


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("name", None, "name must be text"),
        ("preflight.folder", "x\0y", "preflight.folder="),
        ("neck_weights.object", math.nan, "neck_weights.object=nan"),
        ("data.val_batch_size", [], "data.val_batch_size must be int"),
        ("student.weights", True, "student.weights must be str"),
        ("callbacks.x", 3, "Cannot instantiate config of type int"),
        ("callbacks.checkpoint.monitor", "val/ap", "callbacks.checkpoint.monitor=val/ap is none of val/AP,"),
        ("callbacks.checkpoint.monitor", "val_AP_class/cat", None),
        ("data.train.images", 3, "~data.train.images leaves it out"),
    ],
)
def test_values_that_once_were_built_or_ended_in_a_traceback(
    key: str, value: Any, told: str | None, config: DictConfig, models: dict[str, nn.Module]
) -> None:
    text = outcome(config, key, value, models)
    assert text == "built" if told is None else text.startswith("refused: ") and told in text


@pytest.mark.parametrize(
    ("step", "most"), [(6, 1), pytest.param(1, len(VALUES), marks=pytest.mark.slow)], ids=["quick", "full"]
)
def test_every_key(
    step: int,
    most: int,
    config: DictConfig,
    models: dict[str, nn.Module],
    tally: Tally,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    defects: list[str] = []
    for key in list(leaves(config))[::step]:
        for value in random.Random(key).sample(VALUES, most):
            try:
                with time_limit():
                    tally.outcomes["keys"][outcome(config, key, value, models).partition(": ")[0]] += 1
            except AssertionError as error:
                defects.append(str(error))
    torch.manual_seed(0)
    assert not defects, "\n\n".join(defects)
    assert not any(tmp_path.iterdir())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trained")
    plain = [
        word for word in distillation(root) if not word.startswith(("detector@teacher", "dist", "teach"))
    ]
    short = ["trainer=cpu", "trainer.max_steps=1", "data.batch_size=1", "student.model.min_size=32"]
    run = train(compose_config("train", [*plain, *short, "~callbacks.progress", "preflight=off"]))
    return run.run_dir / "checkpoints" / "last.ckpt"


COMMANDS: dict[str, tuple[Callable[[DictConfig], object], str]] = {
    "eval": (evaluate, "trainer.accelerator=cpu"),
    "predict": (predict, "device=cpu"),
    "export": (export, "format=state_dict"),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("step", "most"), [(3, 1), pytest.param(1, len(VALUES), marks=pytest.mark.slow)], ids=["quick", "full"]
)
def test_every_key_of_the_commands_after_a_training(
    step: int,
    most: int,
    command: str,
    checkpoint: Path,
    tally: Tally,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    run, word = COMMANDS[command]
    words = [f"checkpoint={checkpoint}", f"run_dir={tmp_path / 'results'}", f"output_root={tmp_path}", word]
    if command == "predict":
        words.append(f"source={checkpoint.parents[2] / 'a.jpg'}")
    config = compose_config(command, words)
    defects: list[str] = []
    for key in list(leaves(config))[::step]:
        for value in random.Random(key).sample(VALUES, most):
            try:
                with time_limit():
                    tally.outcomes["keys"][
                        outcome_of(command, run, config, key, value).partition(": ")[0]
                    ] += 1
            except AssertionError as error:
                defects.append(str(error))
            shutil.rmtree(tmp_path / "results", ignore_errors=True)
    assert not defects, "\n\n".join(defects)
