"""What Hydra brings: help, printing of configurations, sweeps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

from tests.helpers.console import Run, logged, only
from tests.helpers.tiny import tiny, tiny_teacher


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        (
            "defeat-train",
            ["bccd, coco, folder, scenes, voc0712", "scenes_plain, ", "ckpt_path=last", "seed=0"],
        ),
        ("defeat-eval", ["detector@student", "results=results.json", "split=val "]),
        ("defeat-demo", ["teacher=train"]),
    ],
)
def test_help(name: str, parts: list[str], script: Run, tmp_path: Path) -> None:
    ended = script(name, "--help")
    assert (ended.status, ended.err) == (0, "")
    assert [part for part in (f"{name} ", "Usage", "Keys", *parts) if part not in ended.out] == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("experiment", ["frcnn_r152_r50", "scenes"])
def test_the_configuration_is_printed_from_any_folder(experiment: str, script: Run, tmp_path: Path) -> None:
    ended = script("defeat-train", "--cfg", "job", f"+experiment={experiment}", "optim.optimizer.lr=0.5")
    assert ended.status == 0
    config = OmegaConf.create(ended.out)
    assert config.name == experiment
    assert config.optim.optimizer.lr == 0.5
    assert set(config.distiller.terms) >= {"neck", "head", "backbone"}
    assert config.teacher._target_ == "defeat.detectors.create_detector"
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_files_one_run_per_value(script: Run, scenes: Path, teacher: Path, tmp_path: Path) -> None:
    words = [w for w in tiny(tmp_path, scenes, *tiny_teacher(teacher)) if not w.startswith("run_dir")]
    sweep = [
        "-m",
        "+experiment=scenes",
        *words,
        "distiller.terms.neck.object_weight=1,2",
        "output_root=swept",
    ]
    ended = script("defeat-train", *sweep)
    assert ended.status == 0
    folder = only(tmp_path / "swept" / "sweeps")
    assert sorted(p.name for p in folder.iterdir() if p.is_dir()) == ["0", "1"]
    losses = []
    for run, weight in (("0", 1), ("1", 2)):
        assert OmegaConf.load(folder / run / "config.yaml").distiller.terms.neck.object_weight == weight
        assert json.loads((folder / run / "data.json").read_text())["splits"]["train"]["images"] == 8
        assert (folder / run / "environment.json").is_file()
        assert (folder / run / "checkpoints" / "last.ckpt").is_file()
        losses.append(logged(folder / run, "distill/neck_object")[0])
    assert losses[0] > 0
    assert losses[1] == pytest.approx(2 * losses[0], rel=1e-5)
    events = EventAccumulator(str(folder / "1" / "tensorboard"))
    events.Reload()
    content = events.SummaryMetadata(metadata.EXPERIMENT_TAG).plugin_data.content
    infos = metadata.parse_experiment_plugin_data(content).hparam_infos
    assert [info.name for info in infos if info.differs] == ["neck.object_weight"]


def test_a_sweep_names_the_job_that_failed(script: Run, scenes: Path, tmp_path: Path) -> None:
    words = [w for w in tiny(tmp_path, scenes, "~logger") if not w.startswith("run_dir")]
    ended = script("defeat-train", "-m", "+experiment=scenes_plain", *words, "data.repeat=1,0")
    assert ended.status == 1
    job, line = [line for line in ended.err.splitlines() if "rror" in line]
    assert "'data.repeat=0'" in job
    assert line == "error: repeat must be at least 1, got 0"
    assert "Traceback" not in ended.err + ended.out
    folder = only(tmp_path / "runs" / "sweeps")
    assert (folder / "0" / "checkpoints" / "last.ckpt").is_file()


def test_a_sweep_of_runs_of_several_processes_is_refused(script: Run, scenes: Path, tmp_path: Path) -> None:
    words = [w for w in tiny(tmp_path, scenes) if not w.startswith("run_dir=")]
    several = ["trainer.accelerator=cpu", "trainer.devices=2", "seed=1,2"]
    ended = script("defeat-train", "-m", "+experiment=scenes_plain", *words, *several)
    assert ended.status == 1
    assert "a sweep (-m) cannot start runs of several processes" in ended.err
