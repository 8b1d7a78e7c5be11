"""defeat-report, on runs of defeat-train."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from defeat.cli import report
from defeat.config import compose_config
from defeat.run.train import train
from tests.helpers.console import Ended, logged
from tests.helpers.tiny import tiny, tiny_teacher


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    """Run the console script in this process."""

    def run(*words: str | Path) -> Ended:
        capfd.readouterr()
        monkeypatch.setattr("sys.argv", ["defeat-report", *map(str, words)])
        status = 0
        try:
            report.main()
        except SystemExit as end:
            status = int(end.code or 0)
        return Ended(status, *capfd.readouterr())

    return run


def test_runs_of_two_experiments(teacher: Path, scenes: Path, tmp_path: Path, reported) -> None:
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

    ended = reported(tmp_path / "runs", "--output", tmp_path / "report", "--resamples", "50", "--seed", "1")
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


def test_errors_are_one_line(tmp_path: Path, reported) -> None:
    assert f"{tmp_path / 'none'}: " in reported(tmp_path / "none").line
    assert "RUN" in reported().line
    assert "--resamples: " in reported(tmp_path, "--resamples", "0").line
    assert "--seed: -1 " in reported(tmp_path, "--seed=-1").line
    assert "--bseline" in reported(tmp_path, "--bseline", "x").line
    assert not Path("reports").exists()
