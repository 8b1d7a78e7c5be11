"""What may be resumed, and from where."""

from __future__ import annotations

import csv
import logging
import os
import re
from pathlib import Path

import pytest
import torch

from defeat.config import compose_config
from defeat.errors import ConfigError
from defeat.run.resume import find_checkpoint
from defeat.run.train import train
from defeat.training.curves import Curves
from tests.helpers.tiny import tiny, tiny_teacher


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory, scenes: Path, teacher: Path) -> Path:
    """The last checkpoint of a distilled run of two steps."""
    run_dir = tmp_path_factory.mktemp("begun")
    train(compose_config("train", ["+experiment=scenes", *tiny(run_dir, scenes, *tiny_teacher(teacher))]))
    return run_dir / "checkpoints" / "last.ckpt"


def resume(
    checkpoint: Path, run_dir: Path, scenes: Path, teacher: Path, *more: str, experiment: str = "scenes"
) -> int:
    words = tiny(run_dir, scenes, *tiny_teacher(teacher), f"ckpt_path={checkpoint}", *more, steps=4)
    return train(compose_config("train", [f"+experiment={experiment}", *words])).steps


@pytest.fixture(scope="module")
def other_teacher(tmp_path_factory: pytest.TempPathFactory, teacher: Path) -> Path:
    """The teacher's weights but for one number."""
    content = torch.load(teacher, weights_only=True)
    content["state_dict"]["student.roi_heads.box_head.fc6.bias"][0] += 1
    path = tmp_path_factory.mktemp("other") / "teacher.ckpt"
    torch.save(content, path)
    return path


CHANGES = {
    "data.limit_train=6": r"train data \w{57}\.\.\. -> \w{57}\.\.\.",
    "data.batch_size=2": r"data\.batch_size x processes 4 -> 2",
    "data.repeat=2": r"data\.repeat 1 -> 2",
    "seed=1": r"data\.seed 0 -> 1; .*; seed 0 -> 1",
    "optim.optimizer.lr=0.5": r"optim\.optimizer\.lr \S+ -> 0\.5",
    "student.model.box_score_thresh=0.3": r"student\.model\.box_score_thresh 0\.05 -> 0\.3",
    "distiller.terms.head.object_temperature=2": r"distiller\.terms\.head\.object_temperature 1\.0 -> 2",
    "data.train_transforms.p=0.1": r"data\.train_transforms\.p 0\.5 -> 0\.1",
    "trainer.accumulate_grad_batches=2": r"trainer\.accumulate_grad_batches 1 -> 2",
}


def test_another_training_is_not_resumed(begun: Path, scenes: Path, teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"last\.ckpt is of another training: .* force_resume=true"
    ) as refused:
        resume(begun, tmp_path / "run", scenes, teacher, *CHANGES)
    assert [text for text in CHANGES.values() if not re.search(text, str(refused.value))] == []
    # each change has one entry, but for the seed, which is that of the data too
    assert str(refused.value).count(" -> ") == len(CHANGES) + 1
    with pytest.raises(ConfigError, match=r"distiller\.terms\.head"):
        resume(begun, tmp_path / "run", scenes, teacher, "~distiller.terms.head")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_training_on_other_data_is_not_resumed(
    split: str, begun: Path, teacher: Path, tmp_path: Path
) -> None:
    more = {"train": "data.train.images=12", "val": "data.val.seed=3"}[split]
    with pytest.raises(ConfigError, match=rf"{split} data \w{{57}}\.\.\. -> \w{{57}}\.\.\.\. Set them"):
        resume(begun, tmp_path / "run", tmp_path / "scenes", teacher, more)
    assert not (tmp_path / "run").exists()


def test_another_teacher_is_refused_unless_forced(
    begun: Path,
    scenes: Path,
    other_teacher: Path,
    teacher: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(ConfigError, match=r"teacher file \w{57}\.\.\. -> \w{57}\.\.\.\. Set them back"):
        resume(begun, tmp_path / "refused", scenes, other_teacher)
    assert resume(begun, tmp_path / "forced", scenes, other_teacher, "force_resume=true") == 4
    assert "is of another training: teacher file" in caplog.text
    assert "resumed all the same" in caplog.text
    moved = tmp_path / "moved.ckpt"
    moved.write_bytes(teacher.read_bytes())
    assert resume(begun, tmp_path / "moved", scenes, moved) == 4, "a file is its content"


def test_forced_it_goes_on_with_new_settings_of_the_optimiser(
    begun: Path, scenes: Path, teacher: Path, tmp_path: Path
) -> None:
    def rates(run_dir: Path) -> list[float]:
        with (run_dir / "csv" / "metrics.csv").open() as file:
            return [float(row["lr-AdamW"]) for row in csv.DictReader(file) if row["lr-AdamW"]]

    assert resume(begun, tmp_path / "same", scenes, teacher) == 4
    more = ["optim.optimizer.lr=3e-3", "optim.optimizer.weight_decay=0.5", "force_resume=true"]
    assert resume(begun, tmp_path / "twice", scenes, teacher, *more) == 4
    same, twice = rates(tmp_path / "same"), rates(tmp_path / "twice")
    assert twice == pytest.approx([same[0], same[1], 2 * same[2], 2 * same[3]])
    content = torch.load(tmp_path / "twice" / "checkpoints" / "last.ckpt", weights_only=True)
    assert content["optimizer_states"][0]["param_groups"][0]["weight_decay"] == 0.5


def test_another_optimiser_cannot_go_on(begun: Path, scenes: Path, teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the state of another optimiser: .* student.weights="):
        resume(begun, tmp_path / "run", scenes, teacher, "optim=sgd_1x", "force_resume=true")


def test_a_plain_run_does_not_go_on_from_a_distilled_one(begun: Path, scenes: Path, tmp_path: Path) -> None:
    words = tiny(tmp_path / "run", scenes, f"ckpt_path={begun}")
    with pytest.raises(ConfigError, match=r"teacher file \w+\.\.\. -> None"):
        train(compose_config("train", ["+experiment=scenes_plain", *words]))


def test_what_does_not_make_the_training_may_change(
    begun: Path, scenes: Path, teacher: Path, tmp_path: Path
) -> None:
    more = [
        "name=other",
        "data.num_workers=1",
        "trainer.log_every_n_steps=2",
        "callbacks.last.every_n_steps=7",
    ]
    weights = ["distiller.terms.neck.object_weight=2", "data.val_batch_size=2"]
    assert resume(begun, tmp_path / "run", scenes, teacher, *more, *weights) == 4


def test_a_checkpoint_without_its_place_says_what_it_is_good_for(
    begun: Path, scenes: Path, teacher: Path, tmp_path: Path
) -> None:
    content = torch.load(begun, weights_only=True)
    del content["place"]
    torch.save(content, tmp_path / "old.ckpt")
    with pytest.raises(ConfigError, match=r"does not say where its training stood.*student.weights=<it>"):
        resume(tmp_path / "old.ckpt", tmp_path / "run", scenes, teacher)


def test_a_finished_training_is_left_as_it_is(
    begun: Path, scenes: Path, teacher: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert resume(begun, tmp_path / "run", scenes, teacher, "trainer.max_steps=2") == 2
    assert "is of a training that is over (2 steps); to go on raise trainer.max_steps" in caplog.text


def touch(path: Path, age: int) -> Path:
    path.parent.mkdir(parents=True)
    path.touch()
    os.utime(path, (1e9 - age, 1e9 - age))
    return path


def test_the_newest_run_of_a_name_is_found(tmp_path: Path) -> None:
    runs = tmp_path / "runs" / "a"
    touch(runs / "1" / "checkpoints" / "last.ckpt", 5)
    newest = touch(runs / "0" / "checkpoints" / "last.ckpt", 3)
    touch(tmp_path / "runs" / "b" / "checkpoints" / "last.ckpt", 0)
    for asked in ("last", "auto"):
        assert find_checkpoint(asked, runs, runs / "2", swept=False) == newest
    empty = tmp_path / "runs" / "c"
    assert find_checkpoint("auto", empty, empty / "0", swept=False) is None
    with pytest.raises(ConfigError, match=r"ckpt_path=last: no run below .*c has a last.ckpt"):
        find_checkpoint("last", empty, empty / "0", swept=False)
    with pytest.raises(ConfigError, match="ckpt_path=gone: no such file"):
        find_checkpoint("gone", runs, runs / "2", swept=False)


def test_a_job_of_a_sweep_goes_on_from_itself_alone(tmp_path: Path) -> None:
    sweep = tmp_path / "sweeps" / "now"
    touch(sweep / "1" / "checkpoints" / "last.ckpt", 5)
    again = touch(sweep / "1_2" / "checkpoints" / "last.ckpt", 3)
    for other in ("11", "1_a", "1_2_3x"):
        touch(sweep / other / "checkpoints" / "last.ckpt", 0)
    runs = tmp_path / "runs"
    touch(runs / "0" / "checkpoints" / "last.ckpt", 0)
    assert find_checkpoint("auto", runs, sweep / "1_3", swept=True) == again
    assert find_checkpoint("auto", runs, sweep / "2", swept=True) is None
    with pytest.raises(ConfigError, match=r"ckpt_path=last: .*2 and what it was before has no last.ckpt"):
        find_checkpoint("last", runs, sweep / "2", swept=True)


def test_curves_keep_rows_values_and_order() -> None:
    rows = [(0, {"a": 0.1, "b": 1e300}), (0, {"c": float("inf")}), (1, {"a": -2.0, "b": 0.0}), (5, {})]
    curves = Curves()
    for step, row in rows:
        curves.add(row, step)
    again = Curves.from_plain(curves.to_plain())
    assert list(again) == list(curves) == rows
    assert list(again.before(1)) == rows[:2]
    again.add({"c": 3.0, "d": 4.0}, 6)
    assert list(Curves.from_plain(again.to_plain()))[-1] == (6, {"c": 3.0, "d": 4.0})
    assert len(again) == 5


def test_a_checkpoint_from_before_a_setting_goes_on_with_what_it_stood_for(
    begun: Path, scenes: Path, teacher: Path, tmp_path: Path
) -> None:
    content = torch.load(begun, weights_only=True)
    for role in ("student", "teacher"):
        assert content["defeat"]["config"][role]["model"].pop("size_divisible") == 32
        content["defeat"]["config"][role].pop("precision")
    torch.save(content, tmp_path / "old.ckpt")
    assert resume(tmp_path / "old.ckpt", tmp_path / "a", scenes, teacher) == 4
    with pytest.raises(ConfigError, match=r"student.model.size_divisible 32 -> 64"):
        resume(tmp_path / "old.ckpt", tmp_path / "b", scenes, teacher, "student.model.size_divisible=64")


def test_a_checkpoint_from_before_a_key_got_its_name_goes_on(
    begun: Path, scenes: Path, teacher: Path, tmp_path: Path
) -> None:
    content = torch.load(begun, weights_only=True)
    recipe = content["defeat"]["config"]["optim"]
    recipe["rate"] = recipe.pop("lr_schedule")
    torch.save(content, tmp_path / "old.ckpt")
    assert resume(tmp_path / "old.ckpt", tmp_path / "a", scenes, teacher) == 4
    recipe["rate"] |= {"warmup_steps": 1 + recipe["rate"]["warmup_steps"]}
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(ConfigError, match=r"optim\.lr_schedule\.warmup_steps \d+ -> \d+"):
        resume(tmp_path / "other.ckpt", tmp_path / "b", scenes, teacher)
