from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console

from defeat.config import compose_config, text_override
from defeat.demo import SHIPPED_TEACHER, export_teacher, run_demo
from defeat.demo.demo_teacher import choose_teacher, main
from defeat.detectors import read_weights
from defeat.errors import ConfigError
from defeat.visual import side_by_side

QUICK = (
    *("data.train.images=16", "data.val.images=6", "~callbacks.progress", "trainer.log_every_n_steps=1"),
    *("data.batch_size=4", "preflight=off", "callbacks.measure.batches=1"),
    "callbacks.measure.adapter_steps=2",
    *("callbacks.charts=null", "callbacks.pictures=null"),
)
SMALL = f"overrides=[{','.join(map(repr, QUICK))}]"


def test_the_demo_leaves_table_pictures_curves_and_a_dashboard(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[int] = []

    def count(grid: Any, *others: Any) -> Any:
        shown.extend(len(boxes[0]["boxes"]) for _, boxes in grid)
        return side_by_side(grid, *others)

    monkeypatch.setattr("defeat.demo.results.side_by_side", count)
    tmp_path = tmp_path / "it's, [1] 100%"  # what Hydra's grammar does not take bare
    here = tmp_path / "now"
    folders = [text_override("output", tmp_path), text_override("run_dir", here)]
    words = [*folders, "steps=2", "pictures=3", SMALL]
    demo = run_demo(compose_config("demo", words), Console(width=100))
    assert [row.name for row in demo.rows] == ["teacher", "plain", "DeFeat"]
    teacher, plain, distilled = demo.rows
    assert teacher.evaluation.coco["AP50"] > 0.2, "the shipped teacher knows these scenes"
    assert plain.parameters == distilled.parameters < teacher.parameters
    assert (teacher.seconds, plain.seconds is None, distilled.seconds is None) == (None, False, False)
    annotations = json.loads((tmp_path / "scenes" / "annotations" / "val.json").read_text())["annotations"]
    objects = Counter(one["image_id"] for one in annotations).most_common(3)
    assert sorted(shown) == sorted(number for _, number in objects), "the fullest images are shown"
    lines = demo.table.read_text().splitlines()
    assert len(lines) == 5
    assert lines[2].startswith("| teacher | 0.")
    assert "DeFeat" in capsys.readouterr().out
    with Image.open(demo.detections) as picture, Image.open(demo.curves) as curves:
        assert picture.width > 4 * 256
        assert picture.height > 3 * 256
        assert curves.width > 800
    for name in ("plain", "DeFeat"):
        assert list((here / name / "tensorboard").glob("events.out.tfevents.*"))
    assert {p.name for p in (tmp_path / "scenes").iterdir()} == {"train", "val", "annotations"}


@pytest.mark.parametrize("name", ["results.md", "plain"])
def test_a_demo_does_not_write_over_another(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(ConfigError, match=f"{name} exists already: choose another folder by run_dir="):
        run_demo(compose_config("demo", [f"output={tmp_path}", f"run_dir={tmp_path}", SMALL]))
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_the_shipped_teacher_is_small_and_holds_tensors_alone() -> None:
    assert SHIPPED_TEACHER.stat().st_size < 10e6
    tensors = read_weights(SHIPPED_TEACHER).tensors
    assert {v.dtype for k, v in tensors.items() if "num_batches" not in k} == {torch.float16}


def test_a_teacher_is_trained_once(tmp_path: Path) -> None:
    runs = []

    def train() -> Path:
        runs.append(tmp_path / "last.pth")
        torch.save({"w": torch.ones(2)}, runs[-1])
        return runs[-1]

    first = choose_teacher("train", tmp_path, train)
    second = choose_teacher("train", tmp_path, train)
    assert first == second
    assert len(runs) == 1
    assert read_weights(first).tensors["w"].tolist() == [1, 1]


def test_a_given_teacher_must_exist(tmp_path: Path) -> None:
    def unused() -> Path:
        raise AssertionError("nothing is trained")

    with pytest.raises(ConfigError, match=r"teacher=gone\.pth: no such file"):
        choose_teacher("gone.pth", tmp_path, unused)
    (tmp_path / "mine.pth").touch()
    assert choose_teacher(str(tmp_path / "mine.pth"), tmp_path, unused) == tmp_path / "mine.pth"
    assert choose_teacher(None, tmp_path, unused) == SHIPPED_TEACHER


def test_export_keeps_values_to_half_precision(tmp_path: Path) -> None:
    torch.save({"w": torch.tensor([1.0, 1 / 3]), "n": torch.tensor(7)}, tmp_path / "a.pth")
    export_teacher(tmp_path / "a.pth", tmp_path / "b.safetensors")
    tensors = read_weights(tmp_path / "b.safetensors").tensors
    assert tensors["w"].tolist() == pytest.approx([1, 1 / 3], abs=2e-4)
    assert tensors["n"] == 7


@pytest.mark.slow
def test_the_command_that_makes_the_shipped_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "teacher.safetensors"
    words = ["--run-dir", tmp_path / "run", "--scenes", tmp_path / "scenes", "--output", output]
    shorter = ["trainer.max_steps=20", "trainer.val_check_interval=10", "data.train.images=64"]
    more = ["data.val.images=8", "~callbacks.progress", "callbacks.charts=null", "callbacks.pictures=null"]
    monkeypatch.setattr("sys.argv", ["teacher", *map(str, words), *shorter, *more])
    main()
    made, shipped = read_weights(output).tensors, read_weights(SHIPPED_TEACHER).tensors
    assert {k: v.shape for k, v in made.items()} == {k: v.shape for k, v in shipped.items()}
