"""Pascal VOC's lists of images, of all classes or of one, and the names in them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from defeat.data.error_policy import ErrorPolicy
from defeat.data.images import IMAGE_SUFFIXES
from defeat.data.paths import Folder, files_below
from defeat.errors import DataError
from defeat.io.safe_read import is_dir, read_regular
from defeat.io.text import quote

_OF_A_CLASS = re.compile(r"(.*\S)\s+(-1|0|1)")
"""A line of the list of one class: the name, and whether the image holds an object of it."""


class ImageList(NamedTuple):
    """One VOC folder and the list of it that is read."""

    annotations: Folder
    images: Folder
    list_file: Path | None
    """None where all XML files are read."""

    def shares_images_with(self, other: ImageList) -> bool:
        """Tell whether both are lists of single classes of one folder, which name the same images."""
        files = self.list_file, other.list_file
        return files[0] != files[1] and all(file and is_of_one_class(file) for file in files)


def open_lists(
    pairs: Sequence[tuple[Path, str | None]], annotations: str, images: str, policy: ErrorPolicy
) -> list[ImageList]:
    """Open the list of each root that is named, or its folder of XML files; a folder is listed once."""
    folders: dict[Path, Folder] = {}
    for root, _ in pairs:
        for name in (annotations, images):
            if not is_dir(root / name):
                policy.fatal(
                    f"{root} has no folder {name}; a VOC root holds Annotations, ImageSets and JPEGImages"
                )
            folders.setdefault(root / name, Folder(root / name))
    files = [root / "ImageSets" / "Main" / f"{name}.txt" if name else None for root, name in pairs]
    return [
        ImageList(folders[root / annotations], folders[root / images], file)
        for (root, _), file in zip(pairs, files, strict=True)
    ]


def list_images(roots: Sequence[ImageList], policy: ErrorPolicy) -> dict[str, ImageList]:
    """Return the list of each image name, in their order.

    A name given twice is an error, unless two lists of single classes of one folder give it.
    """
    listed: dict[str, ImageList] = {}
    for root in roots:
        for stem in _names(root, policy):
            if stem in listed and root.shares_images_with(listed[stem]):
                continue
            if stem in listed:
                policy.fatal(
                    f"{quote(stem)} stands twice: in {listed[stem].list_file} and in {root.list_file}"
                )
            listed[stem] = root
            root.annotations.names.add(f"{stem}.xml")
    if not listed:
        policy.fatal(
            "; ".join(
                f"{root.list_file or f'{root.annotations.root} (*.xml)'} lists no image" for root in roots
            )
        )
    return listed


def _names(root: ImageList, policy: ErrorPolicy) -> list[str]:
    """Read the names in a list, which may hold blanks; the list of one class has a second column.

    Where all names end like such a column, the reading is taken by which more of them are annotated.
    """
    if root.list_file is None:
        return [str(PurePosixPath(name).with_suffix("")) for name in xml_files(root.annotations.root)]
    try:
        lines = read_regular(root.list_file).decode("utf-8-sig").splitlines()
    except OSError as error:
        policy.fatal(f"the list {root.list_file} cannot be read: {error.strerror}")
    except UnicodeDecodeError as error:
        policy.fatal(f"the list {root.list_file} cannot be read: {error}")
    lines = [line.strip() for line in lines if line.strip()]
    names = [_stem(line, root.annotations) for line in lines]
    columns = [_OF_A_CLASS.fullmatch(line) for line in lines]
    if not all(columns):
        return names
    first = [_stem(column[1], root.annotations) for column in columns if column]
    return max(names, first, key=lambda column: sum(_is_annotated(name, root.annotations) for name in column))


def is_of_one_class(file: Path) -> bool:
    """Tell whether a file is the list of one class, as ``cat_train.txt``: each name with -1, 0 or 1.

    An image of -1 holds no object of the class, and is an image of the part all the same.
    """
    _, _, part = file.stem.rpartition("_")
    if part not in ("train", "val", "trainval", "test") or part == file.stem:
        return False
    try:
        lines = read_regular(file).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError):  # told when it is read
        return False
    named = [line.strip() for line in lines if line.strip()]
    return bool(named) and all(map(_OF_A_CLASS.fullmatch, named))


def xml_files(folder: Path) -> list[str]:
    """List the XML files below a folder, sorted, relative to it."""
    return [name for name in files_below(folder) if name.lower().endswith(".xml")]


def _is_annotated(stem: str, annotations: Folder) -> bool:
    try:
        return any(PurePosixPath(name).suffix == ".xml" for name in annotations.alike(stem))
    except DataError:
        return False


def _stem(name: str, annotations: Folder) -> str:
    """Return the stem of a name in a list.

    Some lists give the name of the picture or of the XML file itself, and CVAT quotes names with blanks.
    """
    if name[:1] == name[-1:] == '"' and len(name) > 2 and not _is_annotated(name, annotations):
        name = name[1:-1]
    path = PurePosixPath(name)
    is_file = path.suffix.lower() in (*IMAGE_SUFFIXES, ".xml") and not _is_annotated(name, annotations)
    return name[: -len(path.suffix)] if is_file else name
