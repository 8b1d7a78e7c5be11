from __future__ import annotations

from pathlib import Path

import pytest
from tiny import tiny

from defeat.config import compose_config
from defeat.training.run import train


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of generated scenes, made by the first run that needs them."""
    return tmp_path_factory.mktemp("scenes")


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory, scenes: Path) -> Path:
    """Checkpoint of a tiny teacher with 16 pyramid channels where students have 8."""
    run_dir = tmp_path_factory.mktemp("teacher")
    overrides = tiny(run_dir, scenes, "student.model.fpn_channels=16", "~logger")
    train(compose_config("train", ["+experiment=scenes_teacher", *overrides]))
    return run_dir / "checkpoints" / "last.ckpt"
