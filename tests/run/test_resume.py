"""What may be resumed, and from where."""

from __future__ import annotations

import csv
import logging
import os
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig

from defeat.errors import ConfigError, WeightsError
from defeat.run.build import build_run
from defeat.run.find_checkpoint import find_checkpoint
from defeat.run.train import train
from defeat.training.callbacks.exact_resume import _current_name
from defeat.training.curves import Curves
from tests.helpers.tiny import tiny, tiny_config, tiny_teacher


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory, scenes: Path, teacher: Path) -> Path:
    """The last checkpoint of a distilled run of two steps."""
    run_dir = tmp_path_factory.mktemp("begun")
    train(tiny_config("scenes", tiny(run_dir, scenes, *tiny_teacher(teacher))))
    return run_dir / "checkpoints" / "last.ckpt"


def resumed(checkpoint: Path, run_dir: Path, scenes: Path, teacher: Path, *more: str) -> DictConfig:
    words = tiny(run_dir, scenes, *tiny_teacher(teacher), f"ckpt_path={checkpoint}", *more, steps=4)
    return tiny_config("scenes", words)


def resume(checkpoint: Path, run_dir: Path, scenes: Path, teacher: Path, *more: str) -> int:
    return train(resumed(checkpoint, run_dir, scenes, teacher, *more)).steps


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
    build_run(resumed(begun, tmp_path / "moved", scenes, moved))  # a file is its content


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
        train(tiny_config("scenes_plain", words))


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
    run = build_run(resumed(begun, tmp_path / "run", scenes, teacher, *more, *weights))
    assert run.checkpoint == begun


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


def saved(
    path: Path, *, name: str = "a", run: dict[str, Any] | None = None, steps: int = 1, **config: Any
) -> Path:
    """Write what is read of a checkpoint; all files have the same time, as those of a restored copy."""
    path.parent.mkdir(parents=True)
    place = {"epoch": 0, "batches": steps, "steps": steps, "validation_due": False}
    made = {"config": {"name": name, **config}} | ({"run": run} if run else {})
    torch.save({"place": place, "global_step": steps, "defeat": made}, path)
    os.utime(path, (1e9, 1e9))
    return path


def began(minute: int, *before: int) -> dict[str, Any]:
    start = "2026-01-31T12:{:02}:00.000000+00:00".format
    return {"started": start(minute), "resumed_from": [start(one) for one in before]}


def found(folder: Path, asked: str = "last", *, name: str = "a", **config: Any) -> Path | None:
    wanted = {
        "ckpt_path": asked,
        "output_root": str(folder),
        "name": name,
        "run_dir": str(folder / name / "now"),
    }
    return find_checkpoint(wanted | config, swept=False)


def test_a_run_goes_on_from_its_own_name_alone(tmp_path: Path) -> None:
    own = saved(tmp_path / "a" / "x" / "last.ckpt", run=began(1))
    saved(tmp_path / "a" / "b" / "x" / "checkpoints" / "last.ckpt", name="a/b", run=began(2), steps=5)
    assert found(tmp_path) == found(tmp_path, "auto") == own
    assert found(tmp_path, name="a/") == own
    saved(tmp_path / "c" / "x" / "last.ckpt", name="a")  # a folder that was copied under another name
    assert found(tmp_path, "auto", name="c") is None
    with pytest.raises(ConfigError, match=r"c has no last.ckpt of the name 'c' \(there are some of 'a'\)"):
        found(tmp_path, name="c")
    with pytest.raises(ConfigError, match="ckpt_path=gone: no such file"):
        found(tmp_path, "gone")


def test_the_latest_run_is_the_one_that_began_last_unless_another_goes_on_from_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runs = tmp_path / "a"
    saved(runs / "9" / "last.ckpt", run=began(1), steps=50)
    second = saved(runs / "1" / "last.ckpt", run=began(2), steps=7)
    with caplog.at_level(logging.INFO):
        assert found(tmp_path) == second
    assert f"goes on from {second}: step 7 of a run of 'a', which began at 2026-01-31T12:02" in caplog.text
    later = saved(runs / "0" / "last.ckpt", run=began(0, 2), steps=9)  # by a clock that was put back
    assert found(tmp_path) == later
    further = saved(runs / "5" / "last.ckpt", run=began(0, 2), steps=11)  # a copy that was taken later
    assert found(tmp_path) == further


def test_of_several_runs_the_same_training_goes_on(tmp_path: Path) -> None:
    own = saved(tmp_path / "a" / "0" / "last.ckpt", run=began(1), seed=0)
    other = saved(tmp_path / "a" / "1" / "last.ckpt", run=began(2), seed=1)
    assert found(tmp_path, seed=0) == own
    assert found(tmp_path, seed=2) == other, "which is refused as another training"


def test_runs_from_before_records_go_on_by_the_times_of_files(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old = saved(tmp_path / "a" / "0" / "last.ckpt", steps=3)
    saved(tmp_path / "a" / "1" / "last.ckpt", steps=5)
    os.utime(old, (2e9, 2e9))
    with caplog.at_level(logging.INFO):
        assert found(tmp_path) == old
    assert "the latest by the time of its file" in caplog.text
    new = saved(tmp_path / "a" / "2" / "last.ckpt", run=began(1))
    assert found(tmp_path) == new


def test_what_cannot_be_read_is_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cut = tmp_path / "a" / "1" / "last.ckpt"
    cut.parent.mkdir(parents=True)
    cut.write_bytes(b"PK")
    with pytest.raises(WeightsError, match=r"last\.ckpt"):
        found(tmp_path, "auto")
    other = saved(tmp_path / "a" / "0" / "last.ckpt")
    assert found(tmp_path) == other
    assert f"left out: {cut}" in caplog.text


def test_a_job_of_a_sweep_goes_on_from_itself_alone(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    for folder, run, seed in (("0", 1, 0), ("1", 1, 1), ("1_2", 2, 1), ("11", 9, 11)):
        saved(
            sweep / folder / "checkpoints" / "last.ckpt",
            run=began(run),
            seed=seed,
            run_dir=str(sweep / folder),
        )

    def job(folder: str, asked: str = "auto", **config: Any) -> str | None:
        wanted = {"ckpt_path": asked, "name": "a", "run_dir": str(sweep / folder), **config}
        path = find_checkpoint(wanted, swept=True)
        return path and path.parts[-3]

    assert job("1_3", seed=1) == "1_2"
    assert job("0_2", seed=1) == "1_2", "the values came in another order"
    assert job("1_3", seed=1, epochs=9) == "1_2", "its own number, with another length"
    assert job("2", seed=2) is None
    with pytest.raises(ConfigError, match=r"ckpt_path=last: .*sweep has no last.ckpt of this job"):
        job("2", "last", seed=2)


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


def test_curves_of_an_older_checkpoint_go_on_under_the_names_of_now() -> None:
    curves = Curves()
    before = ["train/loss", "train/neck_object", "train/classification", "val/AP", "val/AP_class/a/b"]
    curves.add(dict.fromkeys(before, 1.0), 0)
    renamed = Curves.from_plain(curves.to_plain(), partial(_current_name, losses=["neck_object"]))
    assert [list(row) for _, row in renamed] == [
        ["train/loss", "distill/neck_object", "train/classification", "val/AP", "val_AP_class/a/b"]
    ]


def test_a_checkpoint_from_before_a_setting_goes_on_with_what_it_stood_for(
    begun: Path, scenes: Path, teacher: Path, tmp_path: Path
) -> None:
    content = torch.load(begun, weights_only=True)
    for role in ("student", "teacher"):
        assert content["defeat"]["config"][role]["model"].pop("size_divisible") == 32
        assert content["defeat"]["config"][role]["model"].pop("roi_align") == "torchvision"
        content["defeat"]["config"][role].pop("precision")
    torch.save(content, tmp_path / "old.ckpt")
    build_run(resumed(tmp_path / "old.ckpt", tmp_path / "a", scenes, teacher))
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
