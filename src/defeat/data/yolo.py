"""YOLO: a text file with shares of width and height for each picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from defeat.data.error_policy import ErrorPolicy, OnError
from defeat.data.fields import FieldError, check_classes, unknown_class
from defeat.data.images import IMAGE_SUFFIXES, read_header
from defeat.data.paths import Folder, files_below, join
from defeat.data.records import BoxColumns, ImageRow, build_records
from defeat.errors import DataError
from defeat.io.safe_read import is_dir, is_file, read_regular
from defeat.io.text import counted, few, quote
from defeat.types import Annotations, Problem

_MOST = 2**24  # bytes of a label file
_BORDER = 0.01
"""Shares of the sides by which a number may be out of 0..1: rounding, and boxes drawn past the border."""

XYXY = tuple[float, float, float, float]


class _Line(NamedTuple):
    """One object: the number of its class, and its box as shares of width and height, xyxy."""

    number: int
    box: XYXY


def read_yolo(
    images: str | Sequence[str],
    names: Sequence[str],
    classes: Sequence[str] | None = None,
    on_error: OnError = "raise",
    root: str | PathLike[str] = ".",
    keypoints: bool = False,
) -> Annotations:
    """Read pictures with label files of YOLO; only the pictures' headers are read.

    The label file of ``images/a.jpg`` is ``labels/a.txt`` where that folder exists, else the one beside the
    picture. Without one, or with an empty one, a picture has no objects. A line is the number of a class,
    from 0 on, and x and y of the centre, width and height as shares of the picture's; or the corners of a
    polygon, around which the box is drawn; 4 numbers are a box beside polygons too. The shares are of the
    picture as its EXIF orientation shows it, which is how the tools that write this format show it. Boxes are
    clipped and dropped as :func:`~defeat.data.boxes.clean_boxes` says.

    Args:
        images: folders of pictures, with those below, or text files that list pictures, relative to the root.
        names: of the classes, in the order of their numbers.
        classes: names in the order of the labels; an object of any other class is an error. By default
            ``names``.
        on_error: ``raise`` or ``skip``: leave out pictures and lines that cannot be used.
        root: what the paths start from.
        keypoints: lines hold key points after the box, and no polygons.

    Returns:
        Annotations whose image ids are the pictures' paths below the root, and whose class ids are 1..K.

    Raises:
        DataError: naming the file and the line: no such picture, wrong numbers, unknown classes.
        ConfigError: the arguments make no sense.
    """
    base = join(root, ".", "root")
    places = [images] if isinstance(images, str) else list(images)
    policy = ErrorPolicy(f"{base} ({', '.join(places)})", on_error)
    known = check_classes(names)
    given = check_classes(classes) if classes is not None else known
    label_of = {name: label for label, name in enumerate(given, start=1)}
    labels = [label_of.get(name, 0) for name in known]
    rows, columns = _read_pictures(
        base, places, policy, keypoints, lambda line: _object(line, keypoints, labels, known, label_of)
    )
    policy.problems.extend(_orphan_problems(base, [str(row.image_id) for row in rows]))
    records = build_records(rows, columns, policy, "cxcywh")
    return Annotations(
        records,
        given,
        tuple(range(1, len(given) + 1)),
        policy.source,
        policy.report(),
        problems=tuple(policy.problems),
    )


def _read_pictures(
    base: Path,
    places: Sequence[str],
    policy: ErrorPolicy,
    keypoints: bool,
    parse: Callable[[str], tuple[XYXY, int]],
) -> tuple[list[ImageRow], BoxColumns]:
    """Read the usable pictures and their boxes; ``parse`` turns a line into a box, in shares, and a label."""
    folder = Folder(base)
    rows: list[ImageRow] = []
    columns = BoxColumns()
    listed = dict.fromkeys(name for place in places for name in _pictures(base, place, policy))
    lines_read = 0
    mixed: list[str] = []
    for name in listed:
        try:
            located = _by_end(folder, name)
            width, height = read_header(base / located).turned_size
            lines = _lines(base / label_file(base, located))
        except (FieldError, DataError) as error:
            policy.reject("images skipped", f"{policy.source}: {quote(name, 160)}: {error}")
            continue
        rows.append(ImageRow(located, base / located, width, height))
        lines_read += len(lines)
        if not keypoints and len({len(line.split()) > 5 for _, line in lines}) == 2:
            mixed.append(label_file(base, located))
        for number, line in lines:
            try:
                (x1, y1, x2, y2), label = parse(line)
            except FieldError as error:
                where = f"{base / label_file(base, located)}, line {number}"
                policy.reject("annotations skipped", f"{where}: {error}")
            else:
                columns.add(len(rows) - 1, (x1 * width, y1 * height, x2 * width, y2 * height), label, False)
    policy.stop({"images skipped": len(listed), "annotations skipped": lines_read})
    policy.respelt(folder.respelt)
    policy.problems.extend(_mixed_problems(mixed))
    return rows, columns


def _mixed_problems(files: Sequence[str]) -> Iterator[Problem]:
    """Tell of boxes beside polygons: Label Studio means boxes, Ultralytics reads polygons of two corners."""
    if files:
        yield Problem(
            f"{counted(len(files), 'label files')} with polygons and lines of 4 numbers ({few(files)}): "
            "these are read as boxes, centre and size; Ultralytics would read them as two corners",
            "if they are polygons of two corners, leave these lines out",
            severe=False,
        )


def _orphan_problems(base: Path, pictures: Sequence[str]) -> Iterator[Problem]:
    """Tell of label files without a picture, in folders of label files alone."""
    folders = {
        (PurePosixPath(label_file(base, name)).parent, PurePosixPath(name).parent) for name in pictures
    }
    orphans = [
        str(labels / file.name)
        for labels, images in sorted(folders)
        if labels != images
        for stems in [{path.stem.casefold() for path in (base / images).iterdir()}]
        for file in sorted((base / labels).glob("*.txt"))
        if file.name != "classes.txt" and file.stem.casefold() not in stems
    ]
    if orphans:
        yield Problem(
            f"{counted(len(orphans), 'labels')} without a picture ({few(orphans)})",
            "add the pictures, or see that both are called alike",
            severe=False,
        )


def label_file(root: Path, picture: str) -> str:
    """Return where the label file of a picture is expected, both relative to the root."""
    path = PurePosixPath(picture)
    folders = list(path.parts[:-1])
    for at in reversed(range(len(folders))):
        if folders[at].lower() == "images":
            mirrored = PurePosixPath(*folders[:at], "labels", *folders[at + 1 :])
            if is_dir(root / PurePosixPath(*folders[:at], "labels")):
                return str(mirrored / f"{path.stem}.txt")
    return str(path.with_suffix(".txt"))


def _pictures(root: Path, place: str, policy: ErrorPolicy) -> list[str]:
    """List the pictures of a folder or of a list, relative to the root where the list has them so."""
    if is_dir(root / place):
        prefix = "" if place == "." else f"{PurePosixPath(place)}/"
        names = [name for name in files_below(root / place) if name.lower().endswith(IMAGE_SUFFIXES)]
        return [f"{prefix}{name}" for name in names]
    try:
        lines = read_regular(root / place).decode("utf-8-sig").splitlines()
    except OSError as error:
        policy.fatal(f"{root / place} cannot be read: {error.strerror}")
    except UnicodeDecodeError as error:
        policy.fatal(f"the list {root / place} cannot be read: {error}")
    beside = PurePosixPath(place).parent
    names = [line.strip() for line in lines if line.strip()]
    # Ultralytics reads ./ as the folder of the list
    return [str(beside / name[2:]) if name.startswith("./") else name for name in names]


def _by_end(folder: Folder, name: str) -> str:
    """Look up a name without the folders in front that are of another machine, one after the other."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    for first in range(len(parts)):
        end = PurePosixPath(*parts[first:])
        if not end.is_absolute() and ".." not in end.parts and is_file(folder.root / end):
            return folder.locate(str(end))
    for first in range(len(parts) - 1):  # in any spelling
        try:
            return folder.locate(str(PurePosixPath(*parts[first + 1 :])))
        except DataError:
            continue
    return folder.locate(name)


def _lines(file: Path) -> list[tuple[int, str]]:
    """Return the lines of a label file that are not blank, each with its number from 1 on."""
    try:
        content = read_regular(file, _MOST).decode("utf-8-sig")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise FieldError(f"its label file {file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise FieldError(f"its label file {file} cannot be read: {error}") from error
    return [(n, line) for n, line in enumerate(content.splitlines(), start=1) if line.strip()]


def _parse(line: str, keypoints: bool) -> _Line:
    words = line.split()
    try:
        number, *values = map(float, words)
    except ValueError:
        raise FieldError(f"must be numbers, a class and x, y, width, height, got {quote(line)}") from None
    is_box = len(values) == 4 or (keypoints and len(values) > 4)
    if not is_box and (len(values) < 6 or len(values) % 2):
        raise FieldError(
            f"must have 5 numbers, a class and x, y, width, height, or a class and at least 3 corners, "
            f"got {len(words)}: {quote(line)}"
        )
    shares = values[:4] if is_box else values
    if not number.is_integer() or number < 0:
        raise FieldError(f"the class must be a whole number from 0 on, got {quote(words[0])}")
    if not all(-_BORDER <= value <= 1 + _BORDER for value in shares):
        raise FieldError(f"numbers must be shares of width and height in 0..1, got {quote(line)}")
    if is_box:
        x, y, width, height = shares
        return _Line(int(number), (x - width / 2, y - height / 2, x + width / 2, y + height / 2))
    xs, ys = shares[0::2], shares[1::2]
    return _Line(int(number), (min(xs), min(ys), max(xs), max(ys)))


def _object(
    line: str, keypoints: bool, labels: Sequence[int], names: Sequence[str], known: dict[str, int]
) -> tuple[XYXY, int]:
    """Return the box of a line, xyxy in shares of width and height, and its label."""
    number, box = _parse(line, keypoints)
    if number >= len(names):
        raise FieldError(f"class {number} is not among the {len(names)} that the data set names, from 0 on")
    if not labels[number]:
        raise unknown_class(names[number], known)
    return box, labels[number]
