"""What every test can use."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from defeat.warning_filters import IGNORED

# Extras that some of the tests need: the others are collected without them.
EXTRAS = {
    "optuna": "cli/test_search.py",
    "nbformat": "test_notebooks.py",
    "mlflow": "run/test_loggers.py",
    "wandb": "run/test_loggers.py",
}

collect_ignore = [path for package, path in EXTRAS.items() if find_spec(package) is None]

# Each pytest process (xdist starts one a core) computes on one core. torch reads this when it is imported,
# which the fixtures leave to themselves: the process that hands out the tests needs none of it.
os.environ["OMP_NUM_THREADS"] = "1"

SHARED = Path(__file__).resolve().parents[1].parent / "shared"


def pytest_configure(config: pytest.Config) -> None:
    """Let warnings be errors but for those that the program ignores."""
    for pattern in IGNORED:
        config.addinivalue_line("filterwarnings", f"ignore:{pattern}")


def pytest_collection_finish() -> None:
    """Spare the garbage collector what imports and collection made: a tenth of the time goes into that."""
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)


def pytest_unconfigure() -> None:
    """Let go of it, which libraries look for at the end."""
    gc.unfreeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a GPU where there is none."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a GPU")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and weights beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip("needs the real data in ../shared")
    return SHARED


@pytest.fixture(autouse=True)
def _seed() -> None:
    import torch

    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _without_waiting_for_the_disk() -> Iterator[None]:
    """No test cuts the power: a run waits a tenth of its time until its files would outlast that."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _quick_hydra() -> Iterator[None]:
    from tests.helpers.quick_hydra import quick_hydra

    with quick_hydra():
        yield


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of generated scenes, made by the first run that needs them."""
    return tmp_path_factory.mktemp("scenes")


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory, scenes: Path) -> Path:
    """Checkpoint of a tiny teacher with 16 pyramid channels where students have 8."""
    from defeat.config import compose_config
    from defeat.run.train import train
    from tests.helpers.tiny import tiny

    run_dir = tmp_path_factory.mktemp("teacher")
    overrides = tiny(run_dir, scenes, "student.model.fpn_channels=16", "~logger")
    train(compose_config("train", ["+experiment=scenes_teacher", *overrides]))
    return run_dir / "checkpoints" / "last.ckpt"
