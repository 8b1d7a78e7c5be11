"""COCO JSON in its usual places: of COCO itself, of Roboflow, CVAT and Label Studio, beside a folder."""

from __future__ import annotations

import json
import mmap
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path

from defeat.data.coco import read_coco
from defeat.data.layouts.layout import Layout, Part, part_of
from defeat.data.paths import Folder
from defeat.errors import DataError
from defeat.io.safe_read import is_dir, open_regular
from defeat.io.text import few

_LISTS = tuple(re.compile(rb'"%s"\s*:\s*\[' % name) for name in (b"images", b"annotations", b"categories"))
_FILE_NAME = re.compile(rb'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")')
_LOOKED_UP = 20
"""File names by which the folder of the pictures is chosen."""

_FOLDERS = ("images", "Images", "JPEGImages", "img", "imgs", "data")


def find_coco(root: Path, from_segmentation: bool = False) -> Layout | None:
    """Recognise COCO files directly in a folder, in ``annotations`` and in folders called like a part.

    Args:
        root: the folder.
        from_segmentation: see :func:`~defeat.data.coco.read_coco`.

    Raises:
        DataError: which of several files is for what cannot be told.
    """
    files: dict[Part | None, list[Path]] = defaultdict(list)
    for path in _json_files(root):
        if _is_coco(path):
            files[part_of(path.stem) or part_of(str(path.parent.relative_to(root)))].append(path)
    if not files:
        return None
    unnamed = files.pop(None, [])
    chosen = {part: _only(root, part, paths) for part, paths in files.items() if part}
    if not chosen:
        chosen["train"] = _only(root, "train", unnamed)
    return Layout(
        "COCO JSON",
        {
            part: partial(
                read_coco,
                path.relative_to(root),
                _image_folder(root, path, part).relative_to(root),
                boxes_from_segmentation=from_segmentation,
            )
            for part, path in chosen.items()
        },
        {part: str(path.relative_to(root)) for part, path in chosen.items()},
    )


def _json_files(root: Path) -> Iterator[Path]:
    folders = [path for path in sorted(root.iterdir()) if is_dir(path)]
    kept = [path for path in folders if path.name.lower() in _ANNOTATIONS or part_of(path.name)]
    for folder in (root, *kept):
        yield from sorted(folder.glob("*.json"))


_ANNOTATIONS = ("annotations", "annotation", "labels", "json")


def _is_coco(path: Path) -> bool:
    """Tell whether a file holds COCO's three lists, without parsing it, which can take a minute."""
    try:
        with _mapped(path) as content:
            return (
                content[:64].lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{")
                and all(name.search(content) for name in _LISTS)
                and content.find(b'"segments_info"') < 0
            )
    except (OSError, ValueError):  # ValueError: it is empty
        return False


def _mapped(path: Path) -> mmap.mmap:
    with open_regular(path) as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _only(root: Path, part: Part, paths: list[Path]) -> Path:
    """Choose the file of a part; COCO's ``instances`` goes before its ``person_keypoints``."""
    instances = [path for path in paths if path.stem.startswith("instances")]
    wanted = instances if len(instances) == 1 else paths
    if len(wanted) > 1:
        names = few([str(path.relative_to(root)) for path in wanted])
        raise DataError(
            f"{root} holds {len(wanted)} COCO files for {part} ({names}): leave one there, name them like "
            "train.json and val.json, or use data=coco and data.train.annotation_file"
        )
    return wanted[0]


def _image_folder(root: Path, path: Path, part: Part) -> Path:
    """Choose the folder below the root in which most of a file's first pictures lie."""
    with _mapped(path) as content:
        names = [json.loads(found[1]) for found in islice(_FILE_NAME.finditer(content), _LOOKED_UP)]
    folders = list(dict.fromkeys(filter(is_dir, _candidates(root, path, part))))
    if not folders or not names:
        return path.parent
    return max(folders, key=lambda folder: _fitting(folder, names))  # the first of the best


def _candidates(root: Path, path: Path, part: Part) -> Iterator[Path]:
    stem = path.stem.removeprefix("instances_").removeprefix("_annotations").removesuffix(".coco")
    tops = [root, *(root / name for name in _FOLDERS)]
    words = [part, *(word for word in ("valid", "validation") if part == "val")]
    if path.parent != root and path.parent.name.lower() not in _ANNOTATIONS:
        yield from (path.parent, *(path.parent / name for name in _FOLDERS))
    for name in filter(None, (stem, *words)):
        yield from (top / name for top in tops)
        yield from (root / name / sub for sub in _FOLDERS)
    yield from (*tops[1:], root, path.parent)
    yield from (child for child in sorted(root.iterdir()) if not child.name.startswith("."))


def _fitting(folder: Path, names: list[str]) -> tuple[int, int]:
    """Count the names that lie in a folder, and those of them that are spelt like it."""
    files = Folder(folder)
    there = 0
    for name in names:
        try:
            files.locate(name)
        except DataError:
            continue
        there += 1
    return there, there - len(files.respelt)
