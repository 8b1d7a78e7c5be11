"""A data set that is one part: divided by class, the same way each time, and as recorded afterwards."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from defeat.cli.data import split
from defeat.config import compose_config
from defeat.data import folder_data
from defeat.data.stratify import stratify
from defeat.errors import ConfigError, DataError
from defeat.run.build import build_run
from defeat.run.evaluate import evaluate
from defeat.run.provenance import describe_data
from tests.helpers import layouts
from tests.helpers.layouts import Boxes


def pictures(count: int) -> Boxes:
    """Every picture has a dog, each fourth a cat beside it."""
    dog, cat = ("dog", 8, 10, 40, 50), ("cat", 0, 5, 16, 25)
    return {f"p{i}": [dog, cat] if i % 4 == 0 else [dog] for i in range(count)}


def stems(root: Path, part: str, **settings: object) -> list[str]:
    data = folder_data(str(root), **settings)  # type: ignore[arg-type]
    return [record.path.stem for record in data.read(part).records]  # type: ignore[arg-type]


def test_each_class_has_its_share_where_chance_would_give_it_none() -> None:
    rng = np.random.default_rng(0)
    rates = np.array([0.9, 0.3, 0.05, 0.02])
    present = (rng.random((1000, 4)) < rates).astype(np.int64)
    present[:10], present[:10, 3] = 0, 1  # a rare class, on pictures without any other
    part = stratify(present, np.ones(1000, dtype=np.int64), [0.7, 0.2, 0.1], seed=0)
    for number, share in enumerate((0.7, 0.2, 0.1)):
        assert (part == number).sum() == pytest.approx(1000 * share, abs=3)
        assert present[part == number].sum(axis=0) == pytest.approx(present.sum(axis=0) * share, abs=3)
    assert (part == stratify(present, np.ones(1000, dtype=np.int64), [0.7, 0.2, 0.1], seed=0)).all()
    assert (part != stratify(present, np.ones(1000, dtype=np.int64), [0.7, 0.2, 0.1], seed=1)).any()


def test_no_part_is_empty() -> None:
    part = stratify(np.ones((3, 1), dtype=np.int64), np.ones(3, dtype=np.int64), [0.9, 0.05, 0.05], seed=0)
    assert sorted(part.tolist()) == [0, 1, 2]


def test_equal_pictures_stay_on_one_side(tmp_path: Path) -> None:
    boxes = pictures(12)
    layouts.yolo(tmp_path / "labels", tmp_path / "images", boxes)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    copies = [tmp_path / f"images/p{i}.jpg" for i in (1, 2, 5, 6)]
    for path in copies:
        path.write_bytes(copies[0].read_bytes())
    sides = set()
    for seed in range(5):
        val = set(stems(tmp_path, "val", split_fractions=[0.5, 0.5], split_seed=seed))
        assert abs(len(val) - 6) <= 1
        sides.add(len(val & {path.stem for path in copies}))
    assert sides == {0, 4}


def test_lists_are_written_and_then_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "set"
    layouts.coco(root / "result.json", root / "images", pictures(20))
    before = sorted(root.rglob("*"))
    words = [f"data.root={root}", "fractions=[0.5,0.25,0.25]", "seed=3"]
    split(compose_config("data_split", words))
    assert "20" not in capsys.readouterr().out.split("all")[1].split("\n")[0]
    assert [path for path in sorted(root.rglob("*")) if path.parent.name != "splits"] == sorted(
        [*before, root / "splits"]
    )
    lists = {part: (root / f"splits/{part}.txt").read_text().split() for part in ("train", "val", "test")}
    assert {part: len(names) for part, names in lists.items()} == {"train": 10, "val": 5, "test": 5}
    assert sorted(name for names in lists.values() for name in names) == sorted(
        f"images/p{i}.jpg" for i in range(20)
    )
    for part, names in lists.items():
        assert [f"images/{stem}.jpg" for stem in stems(root, part)] == names
    (root / "splits").rename(root / "mine")
    (root / "mine/test.txt").unlink()
    (root / "mine/val.txt").write_text("images/p1.jpg\nimages/gone.jpg\n")
    (root / "mine/train.txt").write_text("images/p0.jpg\nimages/p2.jpg\n")
    assert stems(root, "val", split="mine") == ["p1"]
    (root / "mine/train.txt").write_text("images/p0.jpg\nimages/p1.jpg\n")
    with pytest.raises(DataError, match=r"images/p1\.jpg stands in the lists for train and val"):
        folder_data(str(root), split="mine")
    with pytest.raises(ConfigError, match="neither auto nor a folder of lists"):
        folder_data(str(root), split="nowhere")
    with pytest.raises(ConfigError, match="two or three shares that make up 1"):
        folder_data(str(root), split_fractions=[0.8, 0.1])


def test_what_has_a_validation_part_is_not_divided_again(tmp_path: Path) -> None:
    for part in ("train", "val"):
        layouts.voc(tmp_path / part, tmp_path / part, pictures(4))
    with pytest.raises(DataError, match=r"is divided already: train \(train\), val \(val\)"):
        split(compose_config("data_split", [f"data.root={tmp_path}"]))


def test_a_checkpoint_is_evaluated_on_its_own_division_wherever_the_data_lie(tmp_path: Path) -> None:
    root, moved = tmp_path / "set", tmp_path / "moved"
    layouts.voc(root / "Annotations", root / "images", pictures(8))
    words = ["detector@student=scenes_student", "data=folder", f"data.root={root}", "data.num_workers=0"]
    run = build_run(compose_config("train", [*words, "trainer=cpu", f"run_dir={tmp_path / 'run'}"]))
    divided = run.module.provenance["divided"]
    assert json.loads(json.dumps(describe_data(run.data)["divided"])) == divided
    assert [len(names) for names in divided.values()] == [6, 2]
    checkpoint = {"state_dict": run.module.state_dict()}
    run.module.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "x.ckpt")
    root.rename(moved)
    layouts.voc(moved / "Annotations", moved / "images", {f"new{i}": [] for i in range(9)})
    settings = [f"checkpoint={tmp_path / 'x.ckpt'}", f"data.root={moved}", f"run_dir={tmp_path / 'eval'}"]
    for data in ([], ["data=folder", "data.split_seed=7"]):
        evaluated = evaluate(compose_config("eval", [*settings, "trainer=cpu", *data]))
        names = [record.path.relative_to(moved).as_posix() for record in evaluated.annotations.records]
        assert names == divided["val"]


def test_a_recorded_division_of_other_pictures_is_told_and_given_lists_are_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    layouts.voc(tmp_path / "Annotations", tmp_path / "images", pictures(8))
    (tmp_path / "mine").mkdir()
    for part, stem in (("train", "p0"), ("val", "p1")):
        (tmp_path / f"mine/{part}.txt").write_text(f"images/{stem}.jpg\n")
    division = folder_data(str(tmp_path), split="mine").division
    assert division is not None
    division.take_if_there({"train": ["images/p1.jpg", "images/p2.jpg"], "val": ["images/p0.jpg"]})
    assert division.lists == {"train": ["images/p0.jpg"], "val": ["images/p1.jpg"]}
    assert "1 of its val pictures were trained on (images/p1.jpg)" in caplog.text
    data = folder_data(str(tmp_path))
    assert data.splits == ("train", "val")
    assert data.division is not None
    data.division.take_if_there(
        {part: [f"images/p{i}.jpg"] for i, part in enumerate(("train", "val", "test"))}
    )
    assert data.splits == ("train", "val", "test")
    assert [record.path.stem for record in data.read("test").records] == ["p2"]
    division = folder_data(str(tmp_path)).division
    assert division is not None
    division.take_if_there({"train": ["images/p1.jpg", "x.jpg", "y.jpg"], "val": ["z.jpg"]})
    assert division.lists is None
    assert "1 of the 4 pictures that the checkpoint knows are there" in caplog.text
