"""docs/adding-a-detector.md, docs/adding-a-data-format.md: their files are written, their commands typed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.console import Run

DOCS = Path(__file__).resolve().parents[2] / "docs"
BLOCK = re.compile(r"(?:^`(?P<path>[^`\n]+)`:\n\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.M | re.S)
SHORT = [
    *(
        "trainer=cpu",
        "trainer.max_steps=1",
        "trainer.check_val_every_n_epoch=null",
        "trainer.limit_val_batches=1",
    ),
    *("trainer.val_check_interval=1", "trainer.log_every_n_steps=1", "~logger", "data.batch_size=2"),
    *("data.num_workers=0", "callbacks.measure=null", "preflight=off", "run_dir=run"),
]


def write_files(page: str, folder: Path) -> list[str]:
    """Write the files that a page shows, and return its commands."""
    blocks = list(BLOCK.finditer((DOCS / page).read_text(encoding="utf-8")))
    for block in blocks:
        if block["path"]:
            (folder / block["path"]).parent.mkdir(parents=True, exist_ok=True)
            (folder / block["path"]).write_text(block["text"], encoding="utf-8")
        else:
            assert block["language"] == "sh"
    return [line for block in blocks if not block["path"] for line in block["text"].splitlines()]


@pytest.fixture
def type_command(script: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Type a command of a page in the folder of its files, with further words."""

    def type_command(line: str, *more: str) -> None:
        python_path, name, *words = shlex.split(line)
        assert python_path == "PYTHONPATH=."
        monkeypatch.syspath_prepend(tmp_path)
        ended = script(name, *words, *more)
        assert ended.status == 0, ended.err

    return type_command


@pytest.mark.slow
def test_a_detector_of_ones_own_is_taught(
    type_command: Callable[..., None], tmp_path: Path, scenes: Path
) -> None:
    *_, taught = write_files("adding-a-detector.md", tmp_path)
    few = ["data.train.images=4", "data.val.images=2", "data.val_batch_size=2", f"data.root={scenes}"]
    type_command(taught, *SHORT, *few)
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()


def test_a_data_format_of_ones_own_is_read(type_command: Callable[..., None], tmp_path: Path) -> None:
    (command,) = write_files("adding-a-data-format.md", tmp_path)
    (tmp_path / "pictures").mkdir()
    rows = ["file,x1,y1,x2,y2,class"]
    for i in range(4):
        pixels = np.random.default_rng(i).integers(0, 255, (64, 96, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{i}.png")
        rows += [f"{i}.png,10,10,40,30,cat", f"{i}.png,50,20,120,60,dog"]  # the dog passes the right border
    for split in ("train", "val"):
        (tmp_path / "pictures" / f"{split}.csv").write_text("\n".join(rows))
    tiny = ("backbone=resnet10", "fpn_channels=8", "min_size=64", "max_size=64", "box_head_channels=16")
    small = [*(f"student.model.{word}" for word in tiny), "student.backbone_weights=null"]
    type_command(command, *SHORT, *small)
    data = (tmp_path / "run" / "data.json").read_text()
    assert '"cat"' in data
    assert '"dog"' in data
