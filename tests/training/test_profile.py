from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.profilers import SimpleProfiler
from lightning.pytorch.strategies import Strategy
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data._utils.fetch import _MapDatasetFetcher
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import resnet18

from defeat import timing
from defeat.config import build, compose_config
from defeat.detectors.compiled_backbone import CompiledModule
from defeat.distill import Distiller
from defeat.errors import ConfigError
from defeat.run.train import Outcome, train
from defeat.timing import PHASES, CudaClock, HostClock, Phase, Recorder
from defeat.training import module as training_module
from defeat.training.callbacks.profile import WARM_UP, CountFlops, Profile, ProfileSteps, _is_compiled
from defeat.training.module import DetectionModule
from tests.helpers.tiny import tiny, tiny_config, tiny_teacher

LONG = ("trainer.val_check_interval=100", "trainer.check_val_every_n_epoch=null")
"""No validation."""

PROFILED = ("callbacks=profile", "callbacks.profile.steps=2")


def run(
    folder: Path,
    scenes: Path,
    *more: str,
    teacher: Path | None = None,
    steps: int = WARM_UP + 4,
    callbacks: Sequence[Callback] = (),
) -> Outcome:
    pair = tiny_teacher(teacher) if teacher else []
    words = tiny(folder, scenes, *pair, *LONG, *more, steps=steps)
    experiment = "scenes" if teacher else "scenes_plain"
    return train(tiny_config(experiment, words), callbacks)


def state(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)  # type: ignore[no-any-return]


def scalars(folder: Path) -> dict[str, float]:
    """Of the row of the CSV log that holds the profile."""
    with (folder / "csv" / "metrics.csv").open() as file:
        found = [row for row in csv.DictReader(file) if row.get("profile/step_ms")]
    assert len(found) == 1
    return {k: float(v) for k, v in found[0].items() if k.startswith(("profile/", "step")) and v}


def table(folder: Path) -> dict[str, list[str]]:
    """Cells of profile.md by the part's name."""
    lines = (folder / "profile.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert cells[0] == ["part", "mean ms", "median ms", "share"]
    return {row[0]: row[1:] for row in cells[2:]}


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory, scenes: Path, teacher: Path) -> Path:
    """Run folder of a distilled run of 9 steps, of which 2 are timed."""
    folder = tmp_path_factory.mktemp("profiled")
    run(folder, scenes, *PROFILED, teacher=teacher)
    return folder


def test_table_scalars_and_text_are_there_with_every_part(profiled: Path) -> None:
    rows, logged = table(profiled), scalars(profiled)
    assert list(rows) == [*PHASES, "step"]
    assert all(logged[f"profile/{name}_ms"] > 0 for name in PHASES)
    assert sum(logged[f"profile/{name}_ms"] for name in PHASES) == pytest.approx(logged["profile/step_ms"])
    assert logged["step"] == WARM_UP + 1  # the second step that is timed, counted from 0
    assert logged["profile/images_per_s"] == pytest.approx(4e3 / logged["profile/step_ms"])
    assert rows["step"][2] == "100.0 %"
    text = (profiled / "profile.md").read_text()
    assert "2 timed after 5 others" in text
    assert re.search(r"images/s; [\d.]+ GiB resident memory of the process; [\d.]+ TFLOP a batch \(", text)
    events = EventAccumulator(str(profiled / "tensorboard"))
    events.Reload()
    assert events.Scalars("profile/teacher_ms")[0].value == pytest.approx(logged["profile/teacher_ms"])
    assert events.Tensors("profile/text_summary")[0].tensor_proto.string_val[0].decode() == text


def test_a_profiled_run_is_the_unprofiled_one_to_the_bit(
    profiled: Path, scenes: Path, teacher: Path, tmp_path: Path
) -> None:
    run(tmp_path, scenes, teacher=teacher)
    assert not (tmp_path / "profile.md").exists()
    ours, theirs = state(profiled), state(tmp_path)
    assert ours["global_step"] == theirs["global_step"] == WARM_UP + 4
    torch.testing.assert_close(ours["state_dict"], theirs["state_dict"], rtol=0, atol=0)
    torch.testing.assert_close(ours["optimizer_states"], theirs["optimizer_states"], rtol=0, atol=0)


def test_a_plain_run_has_neither_teacher_nor_losses(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, scenes, *PROFILED)
    assert list(table(tmp_path)) == ["data", "student", "backward", "optimizer", "other", "step"]
    shown = capsys.readouterr().out
    assert "Training step, 2 timed after 5 others" in shown
    assert re.search(r"^ *optimizer +[\d.]+ +[\d.]+ +[\d.]+ % *$", shown, re.M)


class Work(Callback):
    """Lets a clock go on by a given time wherever a training comes by, and by no other."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.time = 0.0
        self.steps: list[dict[Phase, float]] = []
        monkeypatch.setattr(HostClock, "now", lambda clock: self.time)
        monkeypatch.setattr(Profile, "words", lambda profile: self.note(profile))
        places = [
            (_MapDatasetFetcher, "fetch", 16),
            (Strategy, "batch_to_device", 32),
            (training_module, "to_unit_range", 64),
            (Distiller, "term_losses", 128),
            (DetectionModule, "backward", 256),
            (torch.optim.AdamW, "step", 512),
            (DetectionModule, "_log_losses", 1024),
            (DetectionModule, "validation_step", 1e6),
        ]
        for owner, name, seconds in places:
            monkeypatch.setattr(owner, name, self.slow(getattr(owner, name), seconds))

    def note(self, profile: Profile) -> str:
        self.steps = profile.steps
        return ""

    def slow(self, function: Any, seconds: float) -> Any:
        def slowed(*args: Any, **kwargs: Any) -> Any:
            self.time += seconds
            return function(*args, **kwargs)

        return slowed

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, DetectionModule)
        if pl_module.teacher is not None:
            backbone = pl_module.teacher.get_submodule("detector.backbone")
            backbone.register_forward_pre_hook(lambda *_: self.slow(lambda: None, 2048)())

    def on_train_batch_start(self, *_: Any) -> None:
        self.time += 1

    def on_before_zero_grad(self, *_: Any) -> None:
        self.time += 2

    def on_after_backward(self, *_: Any) -> None:
        self.time += 4

    def on_train_batch_end(self, *_: Any) -> None:
        self.time += 8


DATA, OTHER = 16 + 32, 1 + 2 + 4 + 8 + 1024


def test_every_moment_of_a_step_goes_to_the_right_part(
    scenes: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Work(monkeypatch)
    run(tmp_path, scenes, *PROFILED, teacher=teacher, callbacks=[work])
    step = {
        "data": DATA,
        "student": 64,
        "teacher": 2048,
        "losses": 128,
        "backward": 256,
        "optimizer": 512,
        "other": OTHER,
    }
    assert work.steps == [step, step]


def test_of_accumulated_batches_the_last_takes_the_optimizers_time(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Work(monkeypatch)
    more = (*PROFILED, "trainer.accumulate_grad_batches=2", "~logger")
    run(tmp_path, scenes, *more, steps=4, callbacks=[work])
    last = {"data": DATA, "student": 64, "backward": 256, "optimizer": 512, "other": OTHER - 2}
    first = last | {"optimizer": 0, "other": OTHER}  # gradients are set to zero before the first
    assert work.steps == [last, first]


def test_neither_a_validation_nor_the_step_after_it_counts(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Work(monkeypatch)
    more = ("callbacks=profile", "callbacks.profile.steps=3", "trainer.val_check_interval=2", "~logger")
    run(tmp_path, scenes, *more, steps=12, callbacks=[work])
    step = {"data": DATA, "student": 64, "backward": 256, "optimizer": 512, "other": OTHER}
    assert work.steps == [step] * 3


@pytest.mark.parametrize(("steps", "timed"), [(WARM_UP + 2, 2), (WARM_UP, 0)])
def test_a_training_that_is_too_short_reports_what_there_is(
    steps: int, timed: int, scenes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(tmp_path, scenes, "callbacks=profile", "callbacks.profile.steps=20", "~logger", steps=steps)
    assert (
        f"callbacks.profile.steps=20: the training ended after {steps} steps; {timed} of them are timed"
        in caplog.text
    )
    assert (tmp_path / "profile.md").exists() == (timed > 0)
    if timed:
        assert "2 timed after 5 others" in (tmp_path / "profile.md").read_text()
    assert timing._mark is None


@pytest.mark.parametrize("value", ["0", "-3", "abc", "1.5", "true"])
def test_a_number_that_makes_no_sense_is_refused(value: str) -> None:
    config = compose_config("train", ["callbacks=profile", f"callbacks.profile.steps={value}", "run_dir=x"])
    with pytest.raises(ConfigError, match=r"^callbacks.profile.steps must be the number of steps to time"):
        build(config.callbacks.profile)


def test_a_setting_that_the_trainer_does_not_know_is_named() -> None:
    config = compose_config("train", ["+trainer.profil=3", "run_dir=x"])
    with pytest.raises(ConfigError, match=r"^trainer: .*unexpected keyword argument 'profil'$"):
        build(config.trainer)


class Spy(Callback):
    """Keeps the trainer, and breaks a step."""

    def __init__(self, broken: int = -1) -> None:
        self.broken = broken
        self.trainer: Any = None

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self.trainer = trainer

    def on_after_backward(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.broken:
            raise RuntimeError("broken")


def test_lightnings_own_profiler_goes_on_as_if_alone(scenes: Path, tmp_path: Path) -> None:
    spy = Spy()
    run(
        tmp_path,
        scenes,
        "callbacks=profile",
        "callbacks.profile.steps=2",
        "+trainer.profiler=simple",
        "~logger",
        callbacks=[spy],
    )
    assert isinstance(spy.trainer.profiler, SimpleProfiler)
    durations = spy.trainer.profiler.recorded_durations
    for name in ("run_training_batch", "[Strategy]SingleDeviceStrategy.backward"):
        assert len(durations[name]) == WARM_UP + 4
    assert not spy.trainer.profiler.current_actions


@pytest.mark.parametrize("broken", [0, WARM_UP + 1])
def test_a_training_that_fails_leaves_nothing_behind(broken: int, scenes: Path, tmp_path: Path) -> None:
    spy = Spy(broken)
    with pytest.raises(RuntimeError, match="broken"):
        run(
            tmp_path,
            scenes,
            "callbacks=profile",
            "callbacks.profile.steps=2",
            "+trainer.profiler=simple",
            "~logger",
            callbacks=[spy],
        )
    assert timing._mark is None
    assert isinstance(spy.trainer.profiler, SimpleProfiler)
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None


def fake_trainer(device: str, *, first: bool) -> Trainer:
    strategy = SimpleNamespace(root_device=torch.device(device))
    return cast(Trainer, SimpleNamespace(is_global_zero=first, strategy=strategy))


def test_the_first_process_alone_times_and_on_cuda_by_events(tmp_path: Path) -> None:
    module = LightningModule()
    first, other = ProfileSteps(2, str(tmp_path)), ProfileSteps(2, str(tmp_path))
    first.on_train_start(fake_trainer("cuda", first=True), module)
    other.on_train_start(fake_trainer("cuda", first=False), module)
    assert isinstance(first._recorder, Recorder)
    assert isinstance(first._recorder._clock, CudaClock)
    assert other._recorder is None


def test_operations_are_those_that_torch_counts() -> None:
    network, images = resnet18(num_classes=4), torch.rand(2, 3, 64, 64)
    with FlopCounterMode(display=False) as theirs:
        network(images).sum().backward()
    with CountFlops() as ours:
        network(images).sum().backward()
    assert ours.flops == theirs.get_total_flops() > 0


def test_a_compiled_network_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        torch, "compile", lambda function, **_: function
    )  # the real one takes seconds to load
    plain, called, forward = (nn.Sequential(nn.Linear(2, 2)) for _ in range(3))
    called[0].compile()
    forward[0] = CompiledModule(forward[0], "default", "inductor")
    assert [_is_compiled(network) for network in (plain, called, forward)] == [False, True, True]
