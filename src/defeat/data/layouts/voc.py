"""Pascal VOC's XML files: beside image sets, in a folder of their own, beside the pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from defeat.data.images import IMAGE_SUFFIXES
from defeat.data.layouts.layout import Layout, Part, Reader, part_of
from defeat.data.paths import files_below
from defeat.data.voc import read_voc
from defeat.data.voc_lists import is_of_one_class, xml_files
from defeat.errors import DataError
from defeat.io.safe_read import is_dir, open_regular
from defeat.io.text import few

_ANNOTATIONS = ("Annotations", "annotations", "xml", "labels")
_IMAGES = ("JPEGImages", "images", "Images", "img", "imgs")


def find_voc(root: Path) -> Layout | None:
    """Recognise XML files of Pascal VOC in a folder, or in folders of it that are called like a part.

    Raises:
        DataError: which of several image sets is for training cannot be told.
    """
    found = dict(_parts(root, ".")) or dict(_divided(root))
    if not found:
        return None
    return Layout(
        "Pascal VOC",
        {part: reader for part, (_, reader) in found.items()},
        {part: place for part, (place, _) in found.items()},
    )


def _divided(root: Path) -> Iterator[tuple[Part, tuple[str, Reader]]]:
    for folder in sorted(filter(is_dir, root.iterdir())):
        part = part_of(folder.name)
        whole = dict(_parts(folder, folder.name)) if part else {}
        if part and len(whole) == 1:
            yield part, next(iter(whole.values()))


def _parts(root: Path, below: str) -> Iterator[tuple[Part, tuple[str, Reader]]]:
    """Yield the parts of one folder, whose path below the data set's root the readers are given."""
    annotations = next((name for name in _ANNOTATIONS if _has_voc(root / name)), None)
    if annotations is None:
        yield from _beside(root, below)
        return
    images = next((name for name in _IMAGES if is_dir(root / name)), ".")
    folders = [path.name for path in sorted((root / annotations).iterdir()) if is_dir(path)]
    subfolders: dict[Part, str] = {part: name for name in folders if (part := part_of(name))}
    image_sets = _image_sets(root)
    for part, names in image_sets.items():
        read = partial(read_voc, [below] * len(names), names, annotations=annotations, images=images)
        yield part, (str(Path(below, "ImageSets/Main", few([f"{name}.txt" for name in names]))), read)
    if image_sets:
        return
    for part, name in (subfolders or {"train": "."}).items():
        place = str(Path(annotations, name))
        pictures = str(Path(images, name)) if is_dir(root / images / name) else images
        read = partial(read_voc, below, None, annotations=place, images=pictures)
        yield part, (str(Path(below, place)), read)


def _beside(root: Path, below: str) -> Iterator[tuple[Part, tuple[str, Reader]]]:
    for folder in (".", *_IMAGES):
        if any(is_dir(root / folder / name) and part_of(name) for name in _names(root / folder)):
            continue  # divided further down
        if _has_voc(root / folder) and _has_picture_beside(root / folder):
            place = str(Path(below, folder))
            yield "train", (place, partial(read_voc, below, None, annotations=folder, images=folder))
            return


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()] if is_dir(folder) else []


def _has_voc(folder: Path) -> bool:
    """Tell whether the first XML file below a folder is one of Pascal VOC."""
    first = next(iter(xml_files(folder)), None) if is_dir(folder) else None
    if first is None:
        return False
    try:
        with open_regular(folder / first) as file:
            return b"<annotation>" in (start := file.read(4096)) or b"<annotation " in start
    except OSError:
        return True  # told when it is read


def _has_picture_beside(folder: Path) -> bool:
    """Tell whether the first XML file lies beside the picture that is called like it."""
    first = folder / xml_files(folder)[0]
    beside = {name.lower() for name in _names(first.parent)}
    return any(f"{first.stem}{suffix}".lower() in beside for suffix in IMAGE_SUFFIXES)


def _image_sets(root: Path) -> dict[Part, list[str]]:
    """Return the names of the lists of each part: the one of all classes, or else all of single classes."""
    folder = root / "ImageSets" / "Main"
    lists = [Path(name).stem for name in files_below(folder) if name.endswith(".txt")]
    sets = [name for name in lists if not any(name.endswith(f"_{other}") for other in lists)]
    of_classes = [name for name in sets if is_of_one_class(folder / f"{name}.txt")]
    if sets == of_classes:
        return _by_part(of_classes)
    sets = [name for name in sets if name not in of_classes]
    chosen = {part: names[:1] for part, names in _by_part(sets).items()}
    if not chosen and len(sets) > 1:
        raise DataError(
            f"{root}: which of the lists in ImageSets/Main is for training cannot be told ({few(sets)}): "
            "call them train.txt and val.txt, or use data=voc0712 and data.train.image_set"
        )
    return chosen or {"train": sets}


def _by_part(sets: Sequence[str]) -> dict[Part, list[str]]:
    """Sort lists by the part that their names stand for; ``trainval`` counts where nothing is ``train``."""
    chosen: dict[Part, list[str]] = {}
    for name in sets:
        if part := part_of(name):
            chosen.setdefault(part, []).append(name)
    both = [name for name in sets if name.rpartition("_")[2] == "trainval"]
    return chosen if "train" in chosen or not both else {**chosen, "train": both}
