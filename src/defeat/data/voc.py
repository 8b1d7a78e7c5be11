"""Pascal VOC: XML beside ImageSets, several roots joined into one data set."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import Any

from defeat.data.error_policy import ErrorPolicy, OnError
from defeat.data.fields import FieldError, check_classes, unknown_class
from defeat.data.images import IMAGE_SUFFIXES, read_header
from defeat.data.paths import Folder, files_below, join
from defeat.data.records import BoxColumns, ImageRow, build_records
from defeat.data.voc_lists import ImageList, list_images, open_lists, xml_files
from defeat.data.voc_xml import VocImage, VocObject, parse_voc
from defeat.errors import ConfigError, DataError
from defeat.io.text import cut, few, quote
from defeat.types import Annotations, Problem

PathOrPaths = str | PathLike[str] | Sequence[str | PathLike[str]]


def read_voc(
    roots: PathOrPaths,
    image_set: str | Sequence[str] | None,
    classes: Sequence[str] | None = None,
    on_error: OnError = "raise",
    root: str | PathLike[str] = ".",
    annotations: str = "Annotations",
    images: str = "JPEGImages",
) -> Annotations:
    """Read one or several VOC folders, for instance 2007 and 2012 ``trainval``, as one data set.

    A picture is the file in ``JPEGImages`` named like its XML file, whatever the case of name and suffix;
    failing that, the one that ``filename`` names. VOC's 1-based, inclusive boxes become 0-based and
    exclusive. ``difficult`` objects come with ``ignore`` set. A size of 0x0 is replaced by that of the
    picture's header. Boxes are clipped to their image; degenerate ones and those outside are dropped; one
    warning says how many. With ``on_error="skip"`` a file that cannot be used is left out, and an object that
    cannot be used is left out alone.

    Args:
        roots: folders with ``Annotations``, ``ImageSets/Main`` and ``JPEGImages``.
        image_set: name of the list in ``ImageSets/Main``, without ``.txt``; or one name for each root; None
            takes every XML file, and asks for no list.
        classes: names in the order of the labels; any other name is an error. By default those found, sorted.
        on_error: ``raise`` or ``skip``.
        root: what the paths start from.
        annotations: folder of the XML files in each root; ``.`` is the root itself.
        images: folder of the pictures in each root, ``.`` where they lie beside the XML files.

    Returns:
        Annotations whose image ids are the names in the lists, and whose class ids are 1..K.

    Raises:
        DataError: naming file and object: missing or wrong fields, unknown classes, missing pictures, paths
            outside ``JPEGImages``; always for a missing list and for a name that the joined lists hold twice.
        ConfigError: the arguments make no sense.
    """
    pairs = [(join(root, folder, "roots"), name) for folder, name in _pair(roots, image_set)]
    policy = ErrorPolicy(_source(pairs), on_error)
    listed = list_images(open_lists(pairs, annotations, images, policy), policy)
    given = () if classes is None else check_classes(classes)
    label_of = {name: label for label, name in enumerate(given, start=1)}
    rows, columns = _read_files(listed, label_of, not given, policy)
    if not label_of:
        policy.fatal("holds no object, and the classes come from there; give classes")
    names = given or _sort_labels(columns, label_of)
    if image_set is None:
        for folder, _ in pairs:
            used = {Path(row.path) for row in rows}
            policy.problems.extend(_unannotated_problems(folder, annotations, images, used))
    records = build_records(rows, columns, policy, "xyxy")
    return Annotations(
        records,
        names,
        tuple(range(1, len(names) + 1)),
        policy.source,
        policy.report(),
        problems=tuple(policy.problems),
    )


def _source(pairs: Sequence[tuple[Path, str | None]]) -> str:
    lists: dict[Path, list[str]] = {}
    for folder, name in pairs:
        lists.setdefault(folder, []).append(name or "all XML files")
    return " + ".join(f"{folder} ({few(names)})" for folder, names in lists.items())


def _read_files(
    listed: dict[str, ImageList], label_of: dict[str, int], grows: bool, policy: ErrorPolicy
) -> tuple[list[ImageRow], BoxColumns]:
    """Read the usable images and their boxes; where it grows, ``label_of`` takes in each new name."""
    rows: list[ImageRow] = []
    columns = BoxColumns()
    objects = 0
    for stem, root in listed.items():
        file = root.annotations.root / cut(f"{stem}.xml", 100)  # until it is known, for messages
        try:
            located = root.annotations.locate(f"{stem}.xml")
            file = root.annotations.root / located
            image = parse_voc(file)
            row = _row(str(PurePosixPath(located).with_suffix("")), stem, image, root.images)
        except (FieldError, DataError) as error:
            policy.reject("images skipped", f"{file}: {error}")
            continue
        rows.append(row)
        objects += len(image.objects)
        for position, item in enumerate(image.objects):
            try:
                columns.add(len(rows) - 1, *_checked(item, position, label_of, grows))
            except FieldError as error:
                policy.reject("annotations skipped", f"{file}: {error}")
    policy.stop({"images skipped": len(listed), "annotations skipped": objects})
    for root in dict.fromkeys(listed.values()):
        policy.respelt(root.annotations.respelt | root.images.respelt)
    return rows, columns


def _checked(
    item: VocObject | FieldError, position: int, label_of: dict[str, int], grows: bool
) -> tuple[tuple[float, float, float, float], int, bool]:
    """Return the box of an object, its label, and whether to ignore it."""
    if isinstance(item, FieldError):
        raise item
    if grows:
        label_of.setdefault(item.name, len(label_of) + 1)
    elif item.name not in label_of:
        raise FieldError(f"object[{position}]: {unknown_class(item.name, label_of)}")
    return item.xyxy, label_of[item.name], item.difficult


def _pair(
    roots: PathOrPaths, image_set: str | Sequence[str] | None
) -> list[tuple[str | PathLike[str], str | None]]:
    for value, called in ((roots, "roots"), (image_set, "image_set")):
        if not isinstance(value, str | PathLike | Sequence) and (value is not None or called == "roots"):
            raise ConfigError(f"{called} must be a name or a list of names, got {quote(value)}")
    paths = [roots] if isinstance(roots, str | PathLike) else list(roots)
    one = image_set is None or isinstance(image_set, str)
    names: list[Any] = [image_set] * len(paths) if one else list(image_set or ())
    if not paths or len(names) != len(paths):
        raise ConfigError(
            f"{len(paths)} VOC roots with {len(names)} image sets: give one name, or one for each root"
        )
    return list(zip(paths, names, strict=True))


def _unannotated_problems(root: Path, annotations: str, images: str, used: set[Path]) -> Iterator[Problem]:
    """Tell of pictures without an XML file; those of other parts have theirs further up or beside."""
    top = next(iter(PurePosixPath(annotations).parts), ".")
    annotated = {PurePosixPath(name).stem.casefold() for name in xml_files(root / top)}
    pictures = [name for name in files_below(root / images) if name.lower().endswith(IMAGE_SUFFIXES)]
    without = [
        name
        for name in pictures
        if PurePosixPath(name).stem.casefold() not in annotated and root / images / name not in used
    ]
    if without:
        yield Problem(
            f"{len(without)} of {len(pictures)} pictures in {root / images} have no XML file "
            f"({few(without)}) and are left out",
            "a picture without objects needs an XML file without object",
            severe=False,
        )


def _row(stem: str, image_id: str, image: VocImage, images: Folder) -> ImageRow:
    path = _find_image(stem, image.filename, images)
    width, height = image.size or _size_around(image, path)
    return ImageRow(image_id, path, width, height)


def _size_around(image: VocImage, path: Path) -> tuple[int, int]:
    """Return the size of a picture by its header, turned as EXIF says where the boxes fit into that alone."""
    header = read_header(path)
    corners = [item.xyxy[2:] for item in image.objects if isinstance(item, VocObject)]
    sizes = header.size, header.turned_size
    around = [size for size in sizes if all(x <= size[0] and y <= size[1] for x, y in corners)]
    return around[0] if around else header.size


def _find_image(stem: str, filename: str, images: Folder) -> Path:
    by_stem = _any_case(stem, images)
    if by_stem is not None:
        return images.find(by_stem)
    if filename:
        return images.find(filename)
    raise DataError(f"no picture {quote(stem)} ({', '.join(IMAGE_SUFFIXES)}) in {images.root}")


def _any_case(stem: str, images: Folder) -> str | None:
    """Choose the image: best spelt like the stem, then in any case; then in the order of the suffixes."""
    matches = [name for name in images.alike(stem) if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES]
    return min(matches, key=lambda name: _rank(name, stem), default=None)


def _rank(name: str, stem: str) -> tuple[bool, int, str]:
    path = PurePosixPath(name)
    return str(path.with_suffix("")) != stem, IMAGE_SUFFIXES.index(path.suffix.lower()), name


def _sort_labels(columns: BoxColumns, label_of: dict[str, int]) -> tuple[str, ...]:
    """Number the classes by name instead of by first appearance, so that the lists' order does not matter."""
    names = tuple(sorted(label_of))
    new = {label_of[name]: label for label, name in enumerate(names, start=1)}
    columns.label = array("q", (new[label] for label in columns.label))
    return names
