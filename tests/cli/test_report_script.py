"""defeat-report, on runs of defeat-train."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from defeat.config import compose_config
from defeat.run.train import train
from tests.helpers.console import Run, logged
from tests.helpers.tiny import tiny, tiny_teacher


def test_runs_of_two_experiments(teacher: Path, scenes: Path, tmp_path: Path, script: Run) -> None:
    more = ["student.model.box_score_thresh=0", "~logger.tensorboard"]
    for seed in (0, 1):
        folder = tmp_path / "runs" / "scenes_plain" / "sweep" / str(seed)
        train(
            compose_config(
                "train", ["+experiment=scenes_plain", *tiny(folder, scenes, f"seed={seed}", *more)]
            )
        )
    distilled = tmp_path / "runs" / "scenes" / "one"
    words = tiny(distilled, scenes, *more, *tiny_teacher(teacher))
    train(compose_config("train", ["+experiment=scenes", *words]))

    ended = script(
        "defeat-report",
        tmp_path / "runs",
        "--output",
        tmp_path / "report",
        "--resamples",
        "50",
        "--seed",
        "1",
    )
    assert (ended.status, ended.err) == (0, "")
    assert "baseline  1  scenes_plain\n" in ended.out
    assert "(50 resamples, seed 1)" in " ".join(ended.out.split())
    with (tmp_path / "report" / "runs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["group"], row["seed"]) for row in rows] == [
        ("scenes_plain", "0"),
        ("scenes_plain", "1"),
        ("scenes", "0"),
    ]
    for row in rows:
        ap50 = logged(Path(row["folder"]), "val/AP50")
        assert float(row["AP50"]) == pytest.approx(list(ap50.values())[-1], abs=1e-9)
        assert row["step"] == "2"
    markdown = (tmp_path / "report" / "report.md").read_text()
    assert "trained with different seeds: scenes_plain: 0, 1; scenes: 0" in markdown


def test_errors_are_one_line(tmp_path: Path, script: Run) -> None:
    assert f"{tmp_path / 'none'}: " in script("defeat-report", tmp_path / "none").line
    assert "no run is given" in script("defeat-report").line
    for word, option in (("run_dir=x", "--output x"), ("seed=1", "--seed 1"), ("trust=true", "--trust;")):
        line = script("defeat-report", tmp_path, word).line
        assert word in line
        assert option in line
        assert "argument" not in line
    assert "--resamples: " in script("defeat-report", tmp_path, "--resamples", "0").line
    assert "--seed: -1 " in script("defeat-report", tmp_path, "--seed=-1").line
    assert "--bseline" in script("defeat-report", tmp_path, "--bseline", "x").line
    assert not Path("reports").exists()
