"""Settings of Lightning's trainer: what makes no sense names its key, what does is taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from omegaconf import DictConfig, OmegaConf

from defeat.config import build, compose_config
from defeat.errors import ConfigError
from defeat.run.check_trainer import check_trainer, check_trainer_settings
from defeat.run.train import train
from tests.helpers.tiny import tiny, tiny_config


@pytest.fixture(scope="module")
def composed() -> DictConfig:
    return compose_config("train", ["+experiment=scenes_plain", "trainer=cpu", "run_dir=x"])


def changed(composed: DictConfig, **settings: Any) -> DictConfig:
    config = composed.copy()
    for key, value in settings.items():
        OmegaConf.update(config, f"trainer.{key}", value, force_add=True, merge=False)
    check_trainer_settings(config)
    trainer = build(config.trainer, logger=False, enable_checkpointing=False)
    check_trainer(trainer, swept=False, scheduled=True)
    assert isinstance(trainer, pl.Trainer)
    return config


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("accumulate_grad_batches", [0, -1, None, "x"]),
        ("barebones", [True]),
        ("check_val_every_n_epoch", [0, -1]),
        ("deterministic", ["always"]),
        ("enable_checkpointing", [False]),
        ("enable_progress_bar", [False]),
        ("gradient_clip_val", [-1, "x"]),
        ("limit_train_batches", [0, 0.0, -1, "x"]),
        ("limit_val_batches", [-1, "x"]),
        ("log_every_n_steps", [-1]),
        ("logger", [True, False]),
        ("max_steps", [-2, None]),
        ("max_time", [5, {"foo": 2}]),
        ("min_epochs", [-1, "x"]),
        ("num_sanity_val_steps", [-2]),
        ("overfit_batches", [2, 0.5]),
        ("plugins", ["x"]),
        ("strategy", ["ddp_spawn", "ddp_notebook", "fsdp", "deepspeed_stage_2"]),
        ("val_check_interval", [0, {"foo": 2}]),
    ],
)
def test_what_makes_no_sense_names_its_key(key: str, values: list[Any], composed: DictConfig) -> None:
    for value in values:
        with pytest.raises(ConfigError, match=rf"trainer\.{key}"):
            changed(composed, **{key: value})


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("check_val_every_n_epoch", [2, None]),
        ("deterministic", [True, False, "warn", None]),
        ("devices", [1, "1", "auto"]),
        ("enable_progress_bar", [True]),
        ("fast_dev_run", [True, False, 2]),
        ("gradient_clip_val", [0, 0.5, None]),
        ("limit_train_batches", [1, 0.5, None]),
        ("limit_val_batches", [0, 0.0, 1, 0.5]),
        ("log_every_n_steps", [0, 1, None]),
        ("max_epochs", [-1, None]),
        ("max_time", ["00:00:05:00", {"minutes": 5}]),
        ("min_epochs", [1]),
        ("num_sanity_val_steps", [-1, 0, 2, None]),
        ("overfit_batches", [0]),
        ("precision", ["bf16-mixed", 64, "32"]),
        ("profiler", ["simple", None]),
        ("val_check_interval", [1, "00:00:05:00", {"minutes": 5}]),
    ],
)
def test_what_lightning_documents_is_taken(key: str, values: list[Any], composed: DictConfig) -> None:
    for value in values:
        changed(composed, **{key: value})


def test_a_training_has_a_length(composed: DictConfig) -> None:
    with pytest.raises(ConfigError, match=r"trainer.max_epochs nor trainer.max_steps .*trainer.max_time"):
        changed(composed, max_epochs=-1, max_steps=-1, max_time="00:00:00:05")


def test_validations_by_time_do_not_fall_into_a_step(composed: DictConfig) -> None:
    with pytest.raises(ConfigError, match="middle of a step"):
        changed(composed, val_check_interval="00:00:00:05", accumulate_grad_batches=2)


def test_a_sanity_check_and_no_logged_losses_go_with_the_progress_bar(scenes: Path, tmp_path: Path) -> None:
    words = [word for word in tiny(tmp_path / "run", scenes) if word != "callbacks.progress=null"]
    words += ["trainer.num_sanity_val_steps=1", "trainer.log_every_n_steps=0", "+trainer.max_time={hours: 1}"]
    outcome = train(tiny_config("scenes_plain", words))
    assert outcome.steps == 2
    assert outcome.best is not None
