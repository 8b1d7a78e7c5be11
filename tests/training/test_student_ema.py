"""The average of the student's weights: the recurrence, what is saved, validated and resumed."""

from __future__ import annotations

import shlex
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

from defeat.config import compose_config
from defeat.detectors import read_weights
from defeat.errors import ConfigError
from defeat.evaluation.detections import read_detections
from defeat.run.evaluate import evaluate
from defeat.run.train import train
from defeat.training.callbacks.student_ema import StudentEMA, update_average
from tests.helpers.tiny import tiny, tiny_config, tiny_teacher


class KeepStudents(pl.Callback):
    """Copies of the raw student at the start and after each step."""

    def __init__(self) -> None:
        self.students: list[dict[str, Tensor]] = []

    def _keep(self, module: pl.LightningModule) -> None:
        self.students.append({k: v.clone() for k, v in module.student.state_dict().items()})  # type: ignore[operator,union-attr]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._keep(pl_module)
        self.callbacks = list(trainer.callbacks)  # type: ignore[attr-defined]

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: object) -> None:
        self._keep(pl_module)


def test_the_student_alone_is_averaged_saved_and_validated(
    scenes: Path, teacher: Path, tmp_path: Path
) -> None:
    keep = KeepStudents()
    more = ["callbacks=ema", "callbacks.ema.decay=0.3", "optim.optimizer.lr=1e-2", "distiller=neck"]
    words = tiny(tmp_path / "run", scenes, *tiny_teacher(teacher), *more, steps=4)
    outcome = train(tiny_config("scenes", words), [keep])
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    content = torch.load(last, weights_only=True)
    assert {key.split(".")[0] for key in content["current_model_state"]} == {"student"}
    assert not any(key.startswith("teacher.") for key in content["state_dict"])
    for name, start in keep.students[0].items():
        if not start.is_floating_point():
            continue
        average = start.double()
        for step, student in enumerate(keep.students[1:], start=1):
            decay = min(0.3, (1 + step) / (10 + step))
            average = decay * average + (1 - decay) * student[name].double()
        found = content["state_dict"][f"student.{name}"]
        torch.testing.assert_close(found.double(), average, rtol=1e-5, atol=1e-6)
        assert content["current_model_state"][f"student.{name}"].equal(keep.students[-1][name])
    averaged, raw = (read_weights(last, ema=ema).tensors for ema in (None, False))
    assert any(not averaged[name].equal(raw[name]) for name in raw)
    # an evaluation by itself gives the figures and scores that the validation has had under these names
    ema = next(c for c in keep.callbacks if isinstance(c, StudentEMA))
    assert ema._metrics is not None
    for averages, name, images in (
        (True, "val/AP", read_detections(tmp_path / "run" / "detections.safetensors").images),
        (False, "val/AP_raw", ema._metrics.computed),
    ):
        config = compose_config("eval", [f"checkpoint={last}", f"ema={averages}", f"run_dir={tmp_path}"])
        evaluated = evaluate(config)
        assert evaluated.evaluation.coco["AP"] == pytest.approx(outcome.metrics[name], abs=1e-7)
        assert sum(len(p["scores"]) for p in evaluated.predictions.values()) > 0
        for index, prediction in evaluated.predictions.items():
            expected = prediction["scores"].sort(descending=True).values
            assert images[index].scores.sort(descending=True).values.equal(expected)


def test_whole_numbers_are_copied_and_parameters_averaged() -> None:
    average, model = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    with torch.no_grad():
        model.weight.fill_(5.0)
        model.running_mean.fill_(8.0)  # type: ignore[union-attr]
        model.num_batches_tracked.fill_(7)  # type: ignore[union-attr]
    update_average(average, model, 0.75)
    assert average.weight.tolist() == [2.0, 2.0]  # 0.75 * 1 + 0.25 * 5
    assert average.running_mean.tolist() == [2.0, 2.0]  # type: ignore[union-attr]
    assert average.num_batches_tracked == 7


def test_a_run_that_averages_goes_on_with_its_average_alone(scenes: Path, tmp_path: Path) -> None:
    words = tiny(tmp_path / "a", scenes, "callbacks=ema", steps=1)
    train(tiny_config("scenes_plain", words))
    resumed = [f"ckpt_path={tmp_path}/a/checkpoints/last.ckpt"]
    with pytest.raises(ConfigError, match=r"callbacks\.ema\.decay 0\.999 -> None"):
        train(compose_config("train", ["+experiment=scenes_plain", *tiny(tmp_path / "b", scenes, *resumed)]))
    # without it, when forced, from the raw weights: an average leaves no trace in the training
    for name, more in (("forced", [*resumed, "force_resume=true"]), ("never", [])):
        train(compose_config("train", ["+experiment=scenes_plain", *tiny(tmp_path / name, scenes, *more)]))
    forced, never = (
        torch.load(tmp_path / name / "checkpoints/last.ckpt", weights_only=True)
        for name in ("forced", "never")
    )
    assert forced["global_step"] == never["global_step"] == 2
    assert forced["state_dict"].keys() == never["state_dict"].keys()
    assert all(forced["state_dict"][name].equal(value) for name, value in never["state_dict"].items())
    assert "current_model_state" not in forced


def test_a_training_without_gain_stops_and_says_what_to_do(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from defeat.run.summary import print_summary

    more = [
        "callbacks=early_stopping",
        "callbacks.early_stopping.patience=1",
        "callbacks.early_stopping.min_delta=1",
    ]
    words = tiny(tmp_path / "my run", scenes, *more, steps=20)
    outcome = train(tiny_config("scenes_plain", words))
    # the first validation has an AP, the second one none that is higher by 1
    assert (outcome.steps, outcome.stopped_early) == (4, True)
    print_summary(outcome)
    shown = capsys.readouterr().out
    assert "stopped early" in shown
    (line,) = (line for line in shown.splitlines() if "defeat-eval" in line)
    *_, word = shlex.split(line)  # as a shell reads it
    composed = compose_config("eval", [word, "run_dir=x"])
    assert composed.checkpoint == f"{tmp_path}/my run/checkpoints/best.ckpt"
