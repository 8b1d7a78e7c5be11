from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from console import Ended, Run
from hydra.core.global_hydra import GlobalHydra
from tiny import tiny

from defeat.cli import demo, evaluate, train
from defeat.config import compose_config
from defeat.training.run import train as run_training

MAINS = {"defeat-train": train.main, "defeat-eval": evaluate.main, "defeat-demo": demo.main}


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run folders go where the test is, and the environment decides nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)


@pytest.fixture(autouse=True)
def _logging() -> Iterator[None]:
    """Hydra configures logging for the process: put it back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    for handler in set(root.handlers) - set(handlers):
        handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a console script in this process, as its executable would."""

    def run(name: str, *words: str) -> Ended:
        capfd.readouterr()
        monkeypatch.setattr("sys.argv", [name, *words])
        status = 0
        try:
            MAINS[name]()
        except SystemExit as end:
            status = int(end.code or 0)
        finally:
            GlobalHydra.instance().clear()
        return Ended(status, *capfd.readouterr())

    return run


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of generated scenes, made by the first run that needs them."""
    return tmp_path_factory.mktemp("scenes")


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory, scenes: Path) -> Path:
    """Checkpoint of a tiny teacher."""
    run_dir = tmp_path_factory.mktemp("teacher")
    overrides = tiny(run_dir, scenes, "student.model.fpn_channels=16", "~logger", steps=1)
    run_training(compose_config("train", ["+experiment=scenes_teacher", *overrides]))
    return run_dir / "checkpoints" / "last.ckpt"
