"""A student that goes on from a detector of other classes: what it brings along learns at a lower rate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from defeat.config import compose_config
from defeat.data.scenes import CLASSES
from defeat.errors import ConfigError
from defeat.run.build import build_run
from defeat.run.train import train
from tests.helpers.tiny import tiny

FACTOR = 0.25


@pytest.fixture(scope="module")
def other(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector of all classes of the scenes but one."""
    content = torch.load(teacher, weights_only=True)
    content["defeat"]["classes"] = ["unicorn", *CLASSES[1:]]
    path = tmp_path_factory.mktemp("other") / "other.ckpt"
    torch.save(content, path)
    return path


def words(run_dir: Path, scenes: Path, other: Path, *more: str, steps: int = 2) -> list[str]:
    start = [f"student.weights={other}", "student.new_head=true", "student.model.fpn_channels=16"]
    rate = f"optim.pretrained_lr_mult={FACTOR}"
    return ["+experiment=scenes_plain", *tiny(run_dir, scenes, *start, rate, *more, steps=steps)]


def test_each_parameter_steps_at_its_rate(tmp_path: Path, scenes: Path, other: Path) -> None:
    more = ["optim=sgd_1x", "optim.optimizer.weight_decay=0", "optim.optimizer.lr=0.5"]
    module = build_run(compose_config("train", words(tmp_path, scenes, other, *more))).module
    before = {name: x.clone() for name, x in module.student.named_parameters() if x.requires_grad}
    saved = torch.load(other, weights_only=True)["state_dict"]
    optimizer = module.build_optimizer()
    for group in optimizer.param_groups:
        for x in group["params"]:
            x.grad = torch.ones_like(x)
    optimizer.step()
    whole = set()
    for name, x in before.items():
        step = x - module.student.get_parameter(name)
        rate = 0.5 if "box_predictor" in name else 0.5 * FACTOR
        torch.testing.assert_close(step, torch.full_like(step, rate))
        rows = x[4:] if "bbox_pred" in name else x[1:]  # without background
        if rate == 0.5:
            whole.add(name)
            values = 4 if "bbox_pred" in name else 1
            kept, new = rows[values:], rows[:values]  # all but the unicorn's
            theirs = saved[f"student.{name}"][2 * values :]
            assert torch.equal(kept, theirs)
            assert not torch.equal(new, saved[f"student.{name}"][values : 2 * values])
        else:
            assert torch.equal(x, saved[f"student.{name}"])
    assert len(whole) == 4


def groups(checkpoint: Path) -> list[Any]:
    (state,) = torch.load(checkpoint, weights_only=True)["optimizer_states"]
    return [(len(group["params"]), group["initial_lr"]) for group in state["param_groups"]]


def test_it_trains_and_goes_on_with_the_same_groups(tmp_path: Path, scenes: Path, other: Path) -> None:
    train(compose_config("train", words(tmp_path / "a", scenes, other)))
    last = tmp_path / "a" / "checkpoints" / "last.ckpt"
    rates = sorted(groups(last), key=lambda group: group[1])
    assert [rate for _, rate in rates] == [pytest.approx(FACTOR * rates[1][1]), rates[1][1]]
    assert rates[1][0] == 4
    again = [f"ckpt_path={last}"]
    assert train(compose_config("train", words(tmp_path / "b", scenes, other, *again, steps=4))).steps == 4
    again += ["optim.pretrained_lr_mult=null", "force_resume=true"]
    with pytest.raises(ConfigError, match=r"set optim\.pretrained_lr_mult back"):
        build_run(compose_config("train", words(tmp_path / "c", scenes, other, *again)))


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("student.weights=null", "starts from random weights: set student.weights"),
        ("optim.pretrained_lr_mult=0", "has to be above 0"),
    ],
)
def test_what_cannot_be_is_refused(
    word: str, message: str, tmp_path: Path, scenes: Path, other: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        build_run(compose_config("train", words(tmp_path, scenes, other, word)))
