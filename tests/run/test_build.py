"""A run is built without being trained, and what cannot be trained is refused before anything is read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from defeat.config import compose_config
from defeat.data import DetectionDataModule
from defeat.errors import ConfigError
from defeat.run.build import build_run
from defeat.run.trainer import build_trainer
from defeat.training.run import Run
from tests.helpers.tiny import tiny, tiny_config, tiny_teacher


def run_of(experiment: str, words: list[str], *, swept: bool = False) -> Run:
    return build_run(tiny_config(experiment, words), swept=swept)


def test_building_trains_nothing_and_writes_nothing(scenes: Path, teacher: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = [*tiny(folder, scenes, *tiny_teacher(teacher)), "preflight=default"]
    run, again = (run_of("scenes", words) for _ in range(2))
    assert not folder.exists()
    assert run.trainer.global_step == 0
    assert run.distillation is not None
    assert run.distillation.distiller is run.module.distiller
    assert run.config == run.module.provenance["config"]
    for name, value in run.module.state_dict().items():
        assert torch.equal(value, again.module.state_dict()[name]), name


UNREAD = [
    (["trainer.precision=16-true"], "take 16-mixed"),
    (["+trainer.overfit_batches=1"], "use data.limit_train"),
    (["trainer.accumulate_grad_batches=2", "trainer.val_check_interval=3"], "is no multiple of"),
    (["seed=-1"], "seed=-1 must be"),
    (["+callbacks.find._target_=lightning.pytorch.callbacks.LearningRateFinder"], "callbacks.find: .* sweep"),
    (["callbacks.checkpoint.monitor=val/AP_50"], "callbacks.checkpoint.monitor=val/AP_50 is none of"),
    (["callbacks=profile", "callbacks.profile.steps=0"], "callbacks.profile.steps must be"),
    (["callbacks.nonfinite.action=ignore"], "neither stop nor skip"),
    (["callbacks.measure.batches=0"], "batches must be at least 1"),
    (["ckpt_path=gone.ckpt"], "ckpt_path=gone.ckpt: no such file"),
    (["ckpt_path=auto", "callbacks.resume=null"], "cannot be resumed without callbacks.resume"),
    (["student.compile=default"], "for teachers alone"),
    (["distiller=defeat"], "a distiller is chosen but no teacher"),
]


@pytest.mark.parametrize(("more", "message"), UNREAD, ids=lambda value: str(value)[:40])
def test_mistakes_are_refused_before_any_data_is_read(
    more: list[str], message: str, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DetectionDataModule, "setup", lambda *_: pytest.fail("data is read"))
    words = [word for word in tiny(tmp_path, scenes) if not word.startswith("callbacks.measure")]
    with pytest.raises(ConfigError, match=message):
        run_of("scenes_plain", [*words, *more])


def test_a_job_of_a_sweep_has_one_process(scenes: Path, tmp_path: Path) -> None:
    words = tiny(tmp_path, scenes, "~logger", "trainer.accelerator=cpu", "trainer.devices=2")
    with pytest.raises(ConfigError, match=r"a sweep .* cannot start runs of several processes"):
        run_of("scenes_plain", words, swept=True)


CALLBACKS = compose_config("train", ["callbacks=profile", "trainer=cpu", "run_dir=x"])


@pytest.mark.parametrize("name", list(CALLBACKS.callbacks))
def test_each_callback_can_be_left_out_by_its_key(name: str) -> None:
    kind = CALLBACKS.callbacks[name]._target_.rpartition(".")[2]
    without = CALLBACKS.copy()
    without.callbacks[name] = None
    for config, there in ((CALLBACKS, True), (without, False)):
        kinds = [type(callback).__name__ for callback in build_trainer(config).callbacks]  # type: ignore[attr-defined]
        assert (kind in kinds) == there
