"""The last lines of a command are commands to copy: each is run, or composed, as a shell would have it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from defeat.config import compose_config
from tests.helpers.console import Run
from tests.helpers.layouts import TRAIN, VAL, yolo


def next_words(out: str, label: str) -> list[str]:
    """The words of the one line that begins with a label."""
    (line,) = [line for line in out.splitlines() if line.startswith(f"{label} ")]
    return shlex.split(line.removeprefix(label))


@pytest.mark.parametrize("lists", [None, "other lists"])
def test_from_a_divided_folder_to_its_training(lists: str | None, tmp_path: Path, script: Run) -> None:
    root = tmp_path / "my photos (1)"
    yolo(root / "labels", root / "images", TRAIN | VAL)
    (root / "classes.txt").write_text("cat\ndog\n")
    more = [f"run_dir={root / lists}"] if lists else []
    divided = script("defeat-data", "split", root, "fractions=[0.6,0.4]", "seed=3", *more)
    assert divided.status == 0, divided.err
    checked = script(*next_words(divided.out, "check"), "run_dir=checked")
    counts = json.loads(Path("checked/check.json").read_text())["splits"]
    names = [line for line in (root / (lists or "splits") / "train.txt").read_text().splitlines() if line]
    assert counts["train"]["images"] == len(names)
    program, *words = next_words(checked.out, "train")
    config = compose_config("train", [*words, "run_dir=x"])
    assert (program, config.name, config.data.root) == ("defeat-train", "own_teacher", str(root))
    assert config.data.split == (lists or "auto")
