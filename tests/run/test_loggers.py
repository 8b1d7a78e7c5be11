"""Runs in W&B (offline) and MLflow (files), read back and compared with what TensorBoard and CSV got."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from defeat.config import build, compose_config
from defeat.errors import ConfigError
from defeat.run.build import build_run
from defeat.run.train import Outcome, train
from defeat.training.loggers import MLflow, TensorBoard, trackers
from tests.helpers import wandb_files
from tests.helpers.tiny import tiny, tiny_teacher

if TYPE_CHECKING:  # which takes two seconds
    import mlflow


@pytest.fixture(scope="module", autouse=True)
def _environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_TRACKING_URI", "WANDB_MODE", "WANDB_PROJECT", "WANDB_ENTITY"):
            patch.delenv(name, raising=False)
        patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # and put back what the logger sets
        yield


def words(place: Path, folder: str, scenes: Path, *more: str, steps: int) -> list[str]:
    services = ["logger=[default,wandb,mlflow]", f"output_root={place}"]
    return [*tiny(place / folder, scenes, *services, *more, pictured=True, steps=steps)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("services")


@pytest.fixture(scope="module")
def first(place: Path, scenes: Path, teacher: Path) -> Outcome:
    """A distilled run of two steps."""
    more = [*tiny_teacher(teacher), "callbacks.pictures.images=1"]
    return train(compose_config("train", ["+experiment=scenes", *words(place, "a", scenes, *more, steps=2)]))


@pytest.fixture(scope="module")
def second(first: Outcome, place: Path, scenes: Path, teacher: Path) -> Outcome:
    """The same run gone on with, to four steps."""
    more = [*tiny_teacher(teacher), f"ckpt_path={last(first)}", "callbacks.pictures=null"]
    return train(compose_config("train", ["+experiment=scenes", *words(place, "b", scenes, *more, steps=4)]))


def last(outcome: Outcome) -> Path:
    return outcome.run_dir / "checkpoints" / "last.ckpt"


def logged(run_dir: Path) -> dict[str, dict[int, float]]:
    """Values of metrics.csv by tag and step."""
    values: dict[str, dict[int, float]] = {}
    with (run_dir / "csv" / "metrics.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            for tag in row.keys() - {"step"}:
                if row[tag]:
                    values.setdefault(tag, {})[int(row["step"])] = float(row[tag])
    return values


def wandb_file(run_dir: Path) -> Path:
    (file,) = run_dir.glob("wandb/offline-run-*/run-*.wandb")
    return file


def wandb_values(run_dir: Path, tag: str) -> list[tuple[int, float]]:
    rows = wandb_files.history(wandb_file(run_dir))
    return [(row["trainer/global_step"], row[tag]) for row in rows if tag in row]


def client(place: Path, folder: str = "mlruns") -> mlflow.MlflowClient:
    from mlflow import MlflowClient

    return MlflowClient(f"file:{place}/{folder}")


def runs(place: Path) -> list[mlflow.entities.Run]:
    experiment = client(place).get_experiment_by_name("defeat")
    return list(client(place).search_runs([experiment.experiment_id]))


def pictures(run_dir: Path) -> set[str]:
    board = EventAccumulator(str(run_dir / "tensorboard"))
    board.Reload()
    return {*board.Tags()["images"]}


def test_both_have_every_value_of_every_scalar(first: Outcome, place: Path) -> None:
    values = logged(first.run_dir)
    assert {"train/loss", "distill/neck_object", "val/AP", "lr-AdamW"} <= values.keys()
    (run,) = runs(place)
    for tag, curve in values.items():
        history = client(place).get_metric_history(run.info.run_id, tag)
        assert {metric.step: metric.value for metric in history} == pytest.approx(curve, nan_ok=True), tag
        assert dict(wandb_values(first.run_dir, tag)) == pytest.approx(curve, nan_ok=True), tag


def test_both_show_the_pictures_and_texts_of_tensorboard(first: Outcome, place: Path) -> None:
    tags = pictures(first.run_dir) | {"PR_all_classes", "PR_each_class"}  # drawn, where nothing draws them
    assert {"confusion", "detections/1", "differences_neck/1"} <= tags
    rows = wandb_files.history(wandb_file(first.run_dir))
    assert {
        key.removesuffix("/_type") for row in rows for key in row if row[key] == "images/separated"
    } == tags
    (run,) = runs(place)
    artifacts = Path(run.info.artifact_uri.removeprefix("file://"))
    shown = {file.name.partition("+step+2")[0] for file in (artifacts / "images").iterdir()}
    assert shown == {tag.replace("/", "~") for tag in tags}
    text = (artifacts / "run" / "2 teacher.md").read_text()
    assert "SHA-256" in text
    (table,) = wandb_file(first.run_dir).parent.glob("files/media/table/run/2 teacher*.json")
    assert json.loads(table.read_text())["data"] == [[text]]


def test_both_have_the_hyperparameters(first: Outcome, place: Path) -> None:
    shown = wandb_files.config(wandb_file(first.run_dir))
    assert (shown["neck.background_weight"], shown["trainer.max_steps"]) == (16.0, 2)
    (run,) = runs(place)
    assert {key: str(value) for key, value in shown.items()} == run.data.params


def test_a_resumed_run_goes_on_in_the_same_runs(first: Outcome, second: Outcome, place: Path) -> None:
    (run,) = runs(place)
    assert run.info.status == "FINISHED"
    assert run.data.params["trainer.max_steps"] == "2"  # which nobody can change
    assert run.data.tags["resumed.trainer.max_steps"] == "4"
    before, after = wandb_file(first.run_dir), wandb_file(second.run_dir)
    assert before.name == after.name  # has the id
    rows = [row["_step"] for file in (before, after) for row in wandb_files.history(file)]
    assert rows == sorted(set(rows))
    values = logged(second.run_dir)
    del values["epoch"]  # which rows of the training and of the validation have at the same step
    for tag, curve in values.items():
        history = client(place).get_metric_history(run.info.run_id, tag)
        assert [metric.step for metric in history] == sorted(curve), tag  # none twice
        again = wandb_values(
            second.run_dir, tag
        )  # all of it, whatever of the first file a kill would have spared
        assert [step for step, _ in again] == sorted(curve), tag
        assert dict(again) == pytest.approx(curve, nan_ok=True), tag


def test_in_another_place_a_resumed_run_begins_with_the_curves_so_far(
    first: Outcome, place: Path, scenes: Path, teacher: Path
) -> None:
    elsewhere = ["logger.wandb.project=other", f"logger.mlflow.tracking_uri=file:{place}/others"]
    more = [*tiny_teacher(teacher), f"ckpt_path={last(first)}", "callbacks.pictures=null", *elsewhere]
    third = train(compose_config("train", ["+experiment=scenes", *words(place, "c", scenes, *more, steps=3)]))
    assert wandb_file(third.run_dir).name != wandb_file(first.run_dir).name
    assert [step for step, _ in wandb_values(third.run_dir, "train/loss")] == [0, 1, 2]
    there = client(place, "others")
    experiment = there.get_experiment_by_name("defeat")
    (run,) = there.search_runs([experiment.experiment_id])
    assert [m.step for m in there.get_metric_history(run.info.run_id, "train/loss")] == [0, 1, 2]
    for viewer, word in zip(third.viewers, ("tensorboard", "wandb sync", "mlflow ui"), strict=True):
        assert word in viewer


def test_another_training_is_another_run(first: Outcome, place: Path, scenes: Path, teacher: Path) -> None:
    more = [*tiny_teacher(teacher), f"ckpt_path={last(first)}", "force_resume=true", "seed=1"]
    run = build_run(
        compose_config("train", ["+experiment=scenes", *words(place, "d", scenes, *more, steps=3)])
    )
    assert [tracker.service_run() for tracker in trackers(run.trainer)] == [None] * 3


def test_mlflow_keeps_the_curves_of_all_classes_apart(place: Path) -> None:
    logger = MLflow(run_dir="x", save_dir="x", tracking_uri=f"file:{place}/names", experiment_name="names")
    names = ("птица", "人 (sitting)", "a+b", "a*b", "..", "", "a/../b", "x/", "w" * 400)
    logger.log_metrics({f"val_AP_class/{name}": float(at) for at, name in enumerate(names)}, step=3)
    logger.show_hyperparameters({"detector@student": "frcnn_r18"}, [])
    logger.finalize("failed")
    run = logger.experiment.get_run(logger.run_id)
    assert sorted(run.data.metrics.values()) == list(range(len(names)))
    assert run.data.metrics["val_AP_class/птица"] == 0
    assert run.data.metrics["val_AP_class/人 _sitting_"] == 1
    assert run.data.params == {"detector_student": "frcnn_r18"}
    assert run.info.status == "FAILED"


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_extra_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"lightning.pytorch.loggers.{name}._{name.upper()}_AVAILABLE", False)
    node = compose_config(
        "train", [f"logger={name}", f"run_dir={tmp_path}", f"output_root={tmp_path}"]
    ).logger[name]
    with pytest.raises(ConfigError, match=rf"^logger={name} needs an extra: pip install 'defeat\[{name}\]'$"):
        build(node)


def test_other_processes_tell_nobody(tmp_path: Path) -> None:
    board = TensorBoard(tmp_path)
    for first, told in ((True, [board]), (False, [])):
        trainer = SimpleNamespace(is_global_zero=first, loggers=[board, CSVLogger(tmp_path)])
        assert trackers(cast(Trainer, trainer)) == told
