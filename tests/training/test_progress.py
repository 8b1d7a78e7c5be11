"""The progress bar, and what it may read of a GPU."""

from __future__ import annotations

import io
import re
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch import callbacks as lightning_callbacks
from rich.console import Console

from defeat.config import compose_config
from defeat.run.evaluate import evaluate
from defeat.run.train import train
from defeat.run.trainer import build_trainer
from defeat.training.callbacks import progress
from defeat.training.callbacks.progress import ProgressBar, _free_to_read
from tests.helpers.tiny import tiny, tiny_config


@pytest.mark.parametrize(
    ("device", "step", "every", "free"),
    [("cuda", 10, 10, True), ("cuda", 11, 10, False), ("cuda", 10, 0, False), ("cpu", 11, 10, True)],
)
def test_the_bar_reads_a_gpus_losses_where_they_are_logged(
    device: str, step: int, every: int, free: bool
) -> None:
    trainer = cast(Trainer, SimpleNamespace(global_step=step, log_every_n_steps=every))
    assert _free_to_read(trainer, torch.device(device)) == free


def run(tmp_path: Path, scenes: Path, bar: ProgressBar) -> dict[str, float]:
    words = tiny(tmp_path, scenes, "~logger", "data.batch_size=2", steps=6)
    return train(tiny_config("scenes_plain", words), [bar]).metrics


def test_the_log_tells_the_steps_and_the_validations(
    scenes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "defeat.training.callbacks.progress")
    metrics = run(tmp_path, scenes, ProgressBar(seconds=0))
    lines = [r.getMessage() for r in caplog.records if r.name == "defeat.training.callbacks.progress"]
    steps = [line for line in lines if "validation" not in line]
    assert [re.match(r"epoch (\d)/2 step (\d)/6", line).groups() for line in steps] == [  # type: ignore[union-attr]
        ("1", "1"), ("1", "2"), ("1", "3"), ("1", "4"), ("2", "5"), ("2", "6")
    ]  # fmt: skip
    assert f"loss {metrics['train/loss']:.4g}, " in steps[-1]
    assert "0:00:00 left" in steps[-1]
    validations = [line for line in lines if "validation" in line]
    assert len(validations) == 3
    assert f"AP {metrics['val/AP']:.3f}, AP50 {metrics['val/AP50']:.3f}" in validations[-1]


def test_lines_of_the_log_are_a_time_apart(
    scenes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "defeat.training.callbacks.progress")
    run(tmp_path, scenes, ProgressBar(seconds=3600))
    assert sum("loss" in r.getMessage() for r in caplog.records if "progress" in r.name) == 1


def test_an_evaluation_shows_its_batches_on_a_terminal_alone(
    teacher: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def shown(*, terminal: bool) -> str:
        file = io.StringIO()
        console = Console(file=file, force_terminal=terminal, width=80, color_system=None)
        monkeypatch.setattr(progress, "Console", lambda: console)
        evaluate(compose_config("eval", [f"checkpoint={teacher}", "+data.val_batch_size=2", "run_dir=x"]))
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue())

    assert "validation: batch 2/2" in shown(terminal=True)
    assert shown(terminal=False) == capsys.readouterr().out == ""


@pytest.mark.parametrize(("word", "bars"), [("~callbacks.progress", []), ("seed=0", [ProgressBar])])
def test_a_run_without_a_bar_has_none_of_lightnings(word: str, bars: list[type]) -> None:
    config = compose_config("train", ["+experiment=scenes_plain", "trainer=cpu", "run_dir=x", word])
    callbacks = build_trainer(config).callbacks  # type: ignore[attr-defined]
    assert [type(c) for c in callbacks if isinstance(c, lightning_callbacks.ProgressBar)] == bars


def test_a_terminal_of_80_columns_shows_one_line(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = io.StringIO()
    console = Console(file=terminal, force_terminal=True, width=80, color_system=None)
    monkeypatch.setattr(progress, "Console", lambda: console)
    bar = ProgressBar()
    drawn = []
    monkeypatch.setattr(bar, "_line", lambda *given: drawn.append(line(*given)) or drawn[-1])  # type: ignore[func-returns-value]
    line = type(bar)._line.__get__(bar)
    metrics = run(tmp_path, scenes, bar)
    assert f"step 6/6 loss {metrics['train/loss']:.4g} AP {metrics['val/AP']:.3f}" in drawn[-1]
    assert max(map(len, drawn)) + 9 <= 80  # beside a bar of 8 columns
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    assert "validation: batch 1/1" in shown  # what stands there when a validation ends; steps may be too fast
    assert max(map(len, re.split(r"[\r\n]", shown))) <= 80
