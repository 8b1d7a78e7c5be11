"""Files, folders and patterns that a user names."""

from __future__ import annotations

from pathlib import Path

import pytest

from defeat.errors import DataError
from defeat.predict import find_sources


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("b.jpg", "a.PNG", "notes.txt", "more/a.jpg", "more/clip.MP4"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "photos"


def names(*words: object) -> list[str]:
    return [source.name.as_posix() for source in find_sources([str(word) for word in words])]


def test_a_folder_is_all_its_pictures_and_videos(photos: Path):
    assert names(photos) == ["a.PNG", "b.jpg", "more/a.jpg", "more/clip.MP4"]
    assert [source.is_video for source in find_sources([str(photos)])] == [False, False, False, True]


def test_patterns_and_files(photos: Path):
    assert names(photos / "*.jpg") == ["b.jpg"]
    assert names(photos / "**" / "*.jpg") == ["b.jpg", "more/a.jpg"]
    assert names(photos / "notes.txt") == ["notes.txt"]  # named by itself, it is tried
    assert names(photos / "b.jpg", photos / "*.jpg") == ["b.jpg"]  # once


def test_a_name_with_the_signs_of_patterns_is_a_file(photos: Path):
    (photos / "x[1].jpg").touch()
    assert names(photos / "x[1].jpg") == ["x[1].jpg"]


def test_home_is_expanded(photos: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(photos.parent))
    assert len(names("~/photos")) == 4


def test_nothing_there_and_two_of_one_name(photos: Path, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no such file"):
        names(photos / "missing.jpg")
    with pytest.raises(DataError, match="no picture"):
        names(tmp_path / "empty")
    (photos / "more" / "b.jpg").touch()
    with pytest.raises(DataError, match="one name"):
        names(photos / "b.jpg", photos / "more" / "b.jpg")
