from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest

from defeat.training.run import Run
from tests.helpers.built_runs import built_run


@pytest.fixture(scope="package")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of scenes of the teacher's size."""
    return tmp_path_factory.mktemp("pictures")


@pytest.fixture(scope="package")
def healthy(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Run:
    """The distilled run of the scenes, with nothing wrong. Shared: change copies alone."""
    return built_run(tmp_path_factory.mktemp("healthy"), pictures)


@pytest.fixture
def built(healthy: Run) -> Run:
    """The same, for one test to spoil."""
    return deepcopy(healthy)
