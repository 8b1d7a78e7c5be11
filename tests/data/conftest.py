from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.data_sets import CocoFiles, VocFiles


@pytest.fixture
def coco(tmp_path: Path) -> CocoFiles:
    return CocoFiles(tmp_path / "coco")


@pytest.fixture
def voc(tmp_path: Path) -> VocFiles:
    return VocFiles(tmp_path / "VOC2007")


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real data beside the checkout; no part of the project."""
    folder = Path(__file__).parents[2].parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("real data (shared/data beside the checkout) is absent")
    return folder
