"""The pictures and videos that a user names: files, folders, patterns."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from defeat.data.images import IMAGE_SUFFIXES
from defeat.errors import DataError
from defeat.io.text import few

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")


class Source(NamedTuple):
    """A picture or a video."""

    path: Path
    name: Path
    """The path below the folder that was named, or the file's name: results are filed under it."""

    @property
    def is_video(self) -> bool:
        """A video by its suffix; everything else is tried as a picture."""
        return self.path.suffix.lower() in VIDEO_SUFFIXES


def find_sources(named: Sequence[str]) -> list[Source]:
    """List the files that the user named, each once, in the order of the words and of their names.

    Args:
        named: files, folders, whose pictures and videos are taken with those of all folders below, or
            patterns such as ``photos/*.jpg`` (``**`` for folders below).

    Raises:
        DataError: one of them does not exist or holds nothing to look at, or two files have the same name.
    """
    sources: dict[Path, Source] = {}
    for word in named:
        for source in _expand(word):
            sources.setdefault(source.path, source)
    names: dict[Path, Path] = {}
    for source in sources.values():
        other = names.setdefault(source.name, source.path)
        if other != source.path:
            raise DataError(
                f"{other} and {source.path} would be filed under one name: name the folder above both"
            )
    return list(sources.values())


def _expand(word: str) -> Iterator[Source]:
    path = Path(word).expanduser()
    if path.is_dir():
        files = [file for file in sorted(path.rglob("*")) if file.is_file() and _is_known(file)]
        if not files:
            raise DataError(f"source={word}: no picture and no video in this folder ({_suffixes()})")
        yield from (Source(file, file.relative_to(path)) for file in files)
    elif path.is_file():
        yield Source(path, Path(path.name))
    else:
        matches = [Path(m) for m in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207  # absolute patterns
        files = [match for match in matches if match.is_file()]
        if not files:
            raise DataError(f"source={word}: there is no such file or folder, and no file of this pattern")
        top = _common_folder(files)
        yield from (Source(file, file.relative_to(top)) for file in files)


def _common_folder(files: Sequence[Path]) -> Path:
    top = files[0].parent
    while not all(file.is_relative_to(top) for file in files):
        top = top.parent
    return top


def _is_known(file: Path) -> bool:
    return file.suffix.lower() in (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)


def _suffixes() -> str:
    return few([*IMAGE_SUFFIXES, *VIDEO_SUFFIXES], 20)
