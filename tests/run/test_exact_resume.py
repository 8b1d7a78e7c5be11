"""A run that is stopped and resumed is the run that was never stopped, bit for bit."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from defeat.run.train import train
from defeat.training import callbacks
from defeat.training.callbacks.exact_resume import move_step_counts
from tests.helpers.tiny import tiny, tiny_config, tiny_teacher

VARIANTS = {
    "validation every 2 of 5 steps": ["trainer.max_steps=12"],
    "validation across epochs": [
        "trainer.max_steps=12",
        "trainer.check_val_every_n_epoch=null",
        "trainer.val_check_interval=3",
    ],
    "by epochs": [
        "trainer.max_steps=-1",
        "trainer.max_epochs=2",
        "trainer.val_check_interval=null",
        "optim=sgd_1x",
        "optim.optimizer.lr=1e-4",
    ],
    "accumulated gradients": [
        "trainer.max_steps=8",
        "trainer.accumulate_grad_batches=2",
        "data.batch_size=2",
        "data.repeat=2",
        "trainer.gradient_clip_val=1.0",
    ],
    "mixed precision, moving statistics, averaged weights": [
        "trainer.max_steps=7",
        "trainer.precision=bf16-mixed",
        "student.model.norm=batch",
        "callbacks=[ema,early_stopping]",
    ],
}

SHORT = {  # each into an epoch after the first, or to the third step
    "validation across epochs": ["trainer.max_steps=7"],
    "by epochs": [],
    "accumulated gradients": ["trainer.max_steps=4"],
    "mixed precision, moving statistics, averaged weights": ["trainer.max_steps=6"],
}
"""Variants and their ends in the fast suite, which has the first variant distilled."""

SCHEDULE = "distiller.schedule._target_=defeat.distill.schedules.up_down"

PLACES = ("run_dir", "path", "folder", "save_dir", "default_root_dir", "ckpt_path")
"""Keys of checkpoints that say where something lies."""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of generated scenes with more images than those of all tests."""
    return tmp_path_factory.mktemp("images")


class KeepAll(pl.Callback):
    """Keep a copy of every checkpoint that the run writes for resuming."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder.mkdir()
        self.kept: list[Path] = []
        save = callbacks.LastCheckpoint._save

        def keep(
            last: callbacks.LastCheckpoint, trainer: pl.Trainer, *, validation_due: bool = False
        ) -> None:
            before = last._saved
            save(last, trainer, validation_due=validation_due)
            if last._saved != before:
                copy = (
                    folder
                    / f"{len(self.kept):02}_step{trainer.global_step}{'_due' if validation_due else ''}.ckpt"
                )
                self.kept.append(Path(shutil.copy(last.path, copy)))

        monkeypatch.setattr(callbacks.LastCheckpoint, "_save", keep)
        self.restore = lambda: monkeypatch.setattr(callbacks.LastCheckpoint, "_save", save)


def differences(a: Any, b: Any, path: str = "") -> Iterator[str]:
    """Paths at which two checkpoints differ, but for where they lie."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in a.keys() | b.keys():
            if not any(word in str(key) for word in PLACES):
                yield from differences(a.get(key), b.get(key), f"{path}/{key}")
    elif isinstance(a, list | tuple) and isinstance(b, list | tuple):
        if len(a) != len(b):
            yield f"{path}: {len(a)} and {len(b)} entries"
        for i, (x, y) in enumerate(zip(a, b, strict=False)):
            yield from differences(x, y, f"{path}/{i}")
    elif isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        if not torch.equal(a, b):
            yield f"{path}: tensors"
    elif a != b:
        yield f"{path}: {a!r} and {b!r}"


def final(run_dir: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    content["callbacks"] = {
        name: {k: v for k, v in state.items() if k != "best_k_models"}  # scores by path
        for name, state in content["callbacks"].items()
    }
    del content["defeat"]["run"]  # by which runs are told apart
    curves = content["curves"]
    for names in curves["names"]:  # speeds are not repeated
        names[:] = [name for name in names if name != "train/images_per_s"]
    return {**content, "curves": {**curves, "values": None}}


def rows(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "csv" / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if k != "train/images_per_s"} for row in csv.DictReader(file)]


def words_of(variant: str, run_dir: Path, images: Path, *more: str) -> list[str]:
    common = ["data.train.images=20", "callbacks.last.every_n_steps=1"]
    return tiny(run_dir, images, *common, *VARIANTS[variant], *more)


def check_all(
    experiment: str,
    variant: str,
    every: int,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *more: str,
) -> int:
    """Resume from every so-manieth checkpoint of a run and compare; the number of those resumed from."""
    keeper = KeepAll(tmp_path / "kept", monkeypatch)
    words = words_of(variant, tmp_path / "whole", images, *more)
    train(tiny_config(experiment, words))
    keeper.restore()
    whole, curves = final(tmp_path / "whole"), rows(tmp_path / "whole")
    *begun, _ = keeper.kept  # the last one is of the end
    for checkpoint in begun[::-every][::-1]:
        run_dir = tmp_path / checkpoint.stem
        words = words_of(variant, run_dir, images, *more, f"ckpt_path={checkpoint}")
        train(tiny_config(experiment, words))
        assert list(differences(whole, final(run_dir))) == [], checkpoint.stem
        assert rows(run_dir) == curves, checkpoint.stem
        assert (run_dir / "checkpoints" / "best.ckpt").is_file()
    return len(begun[::-every])


@pytest.mark.parametrize(("variant", "end"), SHORT.items())
def test_resumed_is_uninterrupted(
    variant: str, end: list[str], images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert check_all("scenes_plain", variant, 5, images, tmp_path, monkeypatch, *end) >= 2


def test_places_are_counted_in_whole_steps_and_whole_epochs(images: Path, tmp_path: Path) -> None:
    """A validation before the third batch's step is done; and an end of 5 steps, which are an epoch."""
    more = ["data.batch_size=2", "trainer.accumulate_grad_batches=2", "data.train.images=20", "~logger"]
    third = ["trainer.check_val_every_n_epoch=1", "trainer.val_check_interval=0.3"]
    words = tiny(tmp_path, images, *more, *third, steps=5)
    train(tiny_config("scenes_plain", words))
    best, last = (
        torch.load(tmp_path / "checkpoints" / f"{name}.ckpt", weights_only=True)["place"]
        for name in ("best", "last")
    )
    assert best == {"epoch": 0, "batches": 3, "steps": 1, "validation_due": False}
    assert last == {"epoch": 1, "batches": 0, "steps": 5, "validation_due": False}


def test_a_distilled_run_keeps_its_schedule(
    images: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = [*tiny_teacher(teacher), SCHEDULE, "distiller=neck", "trainer.max_steps=7"]
    variant = "validation every 2 of 5 steps"
    assert check_all("scenes", variant, 4, images, tmp_path, monkeypatch, *more) == 3
    assert list(tmp_path.glob("[0-9]*_due")), "one of the places is where a validation is due"


def test_every_step_draws_other_random_numbers_and_a_seed_the_same(scenes: Path, tmp_path: Path) -> None:
    class Watch(pl.Callback):
        def __init__(self) -> None:
            self.seeds: list[int] = []

        def on_before_zero_grad(self, *args: Any) -> None:
            self.seeds.append(torch.initial_seed())

    found = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        watch = Watch()
        words = words_of("by epochs", tmp_path / name, scenes, "data.train.images=8", f"seed={seed}")
        train(tiny_config("scenes_plain", words), [watch])
        assert len(watch.seeds) == len(set(watch.seeds)) == 4
        found.append(watch.seeds)
    assert found[0] == found[1]
    assert not set(found[0]) & set(found[2])


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_resumed_from_any_step_is_uninterrupted(
    variant: str,
    images: Path,
    teacher: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    more = [*tiny_teacher(teacher), "distiller.terms.head.proposals=teacher", SCHEDULE]
    count = check_all("scenes", variant, 1, images, tmp_path, monkeypatch, *more)
    with capsys.disabled():
        print(f"\n{variant}: resumed from {count} places, each bit-equal")


@pytest.mark.slow
def test_workers_change_nothing(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variant = "validation every 2 of 5 steps"
    for name, workers in (("none", 0), ("two", 2)):
        words = words_of(variant, tmp_path / name, images, f"data.num_workers={workers}")
        train(tiny_config("scenes_plain", words))
    assert rows(tmp_path / "none") == rows(tmp_path / "two")
    assert check_all("scenes_plain", variant, 4, images, tmp_path, monkeypatch, "data.num_workers=2")


@pytest.mark.parametrize("fused", [True, None])
def test_counted_steps_lie_where_the_optimiser_reads_them(fused: bool | None) -> None:
    """Loading a state leaves them where its settings wanted them, which a forced resume may change."""
    parameter = torch.nn.Parameter(torch.zeros(2, device="meta"))
    optimizer = torch.optim.AdamW([parameter])
    optimizer.param_groups[0]["fused"] = fused
    optimizer.state[parameter] = {"step": torch.tensor(3.0), "exp_avg": torch.zeros(2, device="meta")}
    move_step_counts(optimizer)
    assert optimizer.state[parameter]["step"].device.type == ("meta" if fused else "cpu")
