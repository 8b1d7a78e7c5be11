"""COCO JSON: ids with gaps, crowds as regions to ignore, every field checked."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from defeat.data.coco_boxes import read_boxes, where
from defeat.data.coco_rows import PlainRows, with_box, without_outline
from defeat.data.error_policy import ErrorPolicy, OnError
from defeat.data.fields import MOST_PIXELS, FieldError, check_classes, text, whole
from defeat.data.images import read_size
from defeat.data.paths import Folder, check_relative, join
from defeat.data.records import ImageRow, build_records
from defeat.errors import DataError
from defeat.io.safe_read import is_dir, load_json
from defeat.io.text import quote
from defeat.types import Annotations, Problem


def read_coco(
    annotation_file: str | PathLike[str],
    image_root: str | PathLike[str] | None,
    classes: Sequence[str] | None = None,
    on_error: OnError = "raise",
    root: str | PathLike[str] = ".",
    boxes_from_segmentation: bool = False,
) -> Annotations:
    """Read the annotations of a COCO file (``instances_*.json``); images are looked up, not opened.

    Labels are 1..K in the order of ``classes``, by name. Boxes with ``iscrowd`` or ``ignore`` come with
    ``ignore`` set. Images without boxes stay. Boxes are clipped to their image; degenerate ones and those
    outside are dropped; one warning says how many. With ``on_error="skip"`` an image that cannot be used is
    left out with its boxes, and an annotation that cannot be used is left out alone.

    Args:
        annotation_file: the JSON file.
        image_root: folder that ``file_name`` starts from and must not leave; None where the annotations alone
            are wanted, to judge a results file, and no image need be there.
        classes: names in the order of the labels, for instance those of the training split; an annotation of
            any other class is an error. By default the file's categories sorted by id. A class that the file
            does not list gets a free id after its largest.
        on_error: ``raise`` or ``skip``.
        root: what the two paths start from.
        boxes_from_segmentation: give an annotation that has an outline (polygons or RLE) but no ``bbox`` the
            box around it.

    Raises:
        DataError: naming file and record: missing or wrong fields, unknown classes or images, missing image
            files, paths outside the root; always for a file that is no COCO JSON and for ids given twice.
        ConfigError: ``classes``, ``on_error`` or a path make no sense.
    """
    file = join(root, annotation_file, "annotation_file")
    folder = None if image_root is None else join(root, image_root, "image_root")
    policy = ErrorPolicy(str(file), on_error)
    names = None if classes is None else check_classes(classes)
    content, plain = _load(file, policy, with_box if boxes_from_segmentation else without_outline)
    by_id = _categories(content, plain, policy)
    if names is None:
        names = tuple(by_id[category] for category in sorted(by_id))
    images, positions = _images(content, folder, policy)
    _tell_of_lvis(content["images"], policy)
    label_of = {name: label for label, name in enumerate(names, start=1)}
    columns = read_boxes(content["annotations"], plain, by_id, label_of, positions, policy)
    records = build_records(images, columns, policy)
    return Annotations(
        records,
        names,
        _class_ids(by_id, names),
        policy.source,
        policy.report(),
        problems=tuple(policy.problems),
    )


def _load(
    path: Path, policy: ErrorPolicy, prepare: Callable[[dict[str, Any]], dict[str, Any]]
) -> tuple[dict[str, Any], PlainRows]:
    """Parse the file; plain annotations are taken out of it, and ``PACKED`` stands in the place of each."""
    plain = PlainRows(prepare)
    content = _parse(path, plain.take, policy)
    if not plain.are_all_in(content):  # the like of annotations somewhere else in the file
        plain = PlainRows()
        content = _parse(path, prepare, policy)
    if not isinstance(content, dict):
        policy.fatal(f"must hold an object with images, annotations and categories, got {quote(content)}")
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            policy.fatal(
                f"must hold a list '{key}', got {quote(content.get(key))}; is it a COCO instances file?"
            )
    return content, plain


def _parse(path: Path, hook: Callable[[dict[str, Any]], object], policy: ErrorPolicy) -> object:
    try:
        return load_json(path, hook)
    except OSError as error:
        policy.fatal(f"cannot be opened: {error.strerror}; check the path of the annotation file")
    except ValueError as error:
        policy.fatal(f"is not valid JSON: {error}")


def _categories(content: dict[str, Any], plain: PlainRows, policy: ErrorPolicy) -> dict[int, str]:
    """Return the names by category id. Nothing can be skipped here: a label must mean one thing.

    Of two categories of one name that which owns no annotation is left out, such as Roboflow's root category.
    """
    by_id: dict[int, str] = {}
    id_of: dict[str, int] = {}
    for position, item in enumerate(content["categories"]):
        try:
            category, name = whole(item, "id"), text(item, "name")
        except FieldError as error:
            policy.fatal(f"{where('categories', position, item)}: {error}")
        if category in by_id:
            policy.fatal(f"{where('categories', position, item)}: id {category} is given twice")
        by_id[category] = name
        other = id_of.setdefault(name, category)
        if other != category:
            used = _used_categories(content["annotations"], plain)
            if {category, other} <= used:
                policy.fatal(f"{where('categories', position, item)}: name {quote(name)} is given twice")
            id_of[name], unused = (category, other) if category in used else (other, category)
            del by_id[unused]
            policy.add({"categories left out, without annotations and named like another": 1})
    if not by_id:
        policy.fatal("its list 'categories' is empty; the classes come from there")
    return by_id


def _used_categories(annotations: list[object], plain: PlainRows) -> set[float]:
    odd = [item.get("category_id") for item in annotations if isinstance(item, dict)]
    return {*plain.columns()["category_id"].tolist(), *(one for one in odd if isinstance(one, int | float))}


def _class_ids(by_id: dict[int, str], names: tuple[str, ...]) -> tuple[int, ...]:
    ids = {name: category for category, name in by_id.items()}
    free = itertools.count(max(by_id) + 1)
    return tuple(ids[name] if name in ids else next(free) for name in names)


def _images(
    content: dict[str, Any], root: Path | None, policy: ErrorPolicy
) -> tuple[list[ImageRow], dict[int, int | None]]:
    """Return rows of the usable images, and each row's position by image id; None for an image left out."""
    if root is not None and not is_dir(root):
        policy.fatal(f"its image folder {root} does not exist; check image_root (null: annotations alone)")
    _refuse_same_ids(content["images"], policy)
    folder = None if root is None else Folder(root, _file_names(content["images"]))
    prefix = "" if root is None else f"{root}/"
    rows: list[ImageRow] = []
    positions: dict[int, int | None] = {}
    for position, item in enumerate(content["images"]):
        try:
            image_id = whole(item, "id")
            positions[image_id] = None
            name = text(item, "file_name")
            if folder is None:
                check_relative(Path(policy.source).parent, name)
            else:
                name = folder.locate(name)
            if root is not None and _lacks_size(item):
                width, height = read_size(root / name)
                policy.add({"sizes read from pictures": 1})
            else:
                width, height = (whole(item, side, 1, MOST_PIXELS) for side in ("width", "height"))
            rows.append(ImageRow(image_id, f"{prefix}{name}", width, height))
        except (FieldError, DataError) as error:
            policy.reject("images skipped", f"{policy.source}: {where('images', position, item)}: {error}")
        else:
            positions[image_id] = len(rows) - 1
    policy.stop({"images skipped": len(content["images"])})
    if folder is not None:
        policy.respelt(folder.respelt)
    return rows, positions


def _lacks_size(item: dict[str, Any]) -> bool:
    """Tell whether a tool has not written the size: CVAT and Label Studio may leave it out, or write 0."""
    return not (item.get("width") or item.get("height"))


def _file_names(images: list[object]) -> set[str]:
    names = (item.get("file_name") for item in images if isinstance(item, dict))
    return {name for name in names if isinstance(name, str)}


def _tell_of_lvis(images: list[object], policy: ErrorPolicy) -> None:
    fields = ("neg_category_ids", "not_exhaustive_category_ids")
    if any(isinstance(item, dict) and any(item.get(name) for name in fields) for item in images):
        policy.problems.append(
            Problem(
                f"the images are annotated like LVIS ({fields[0]}, {fields[1]}): not all of their objects "
                "are, so that COCO's figures count right detections as wrong and are not LVIS's own",
                "compare runs by them, or give the detections (save_results=true) to the LVIS API",
                severe=False,
            )
        )


def _refuse_same_ids(images: list[object], policy: ErrorPolicy) -> None:
    """Refuse an id given twice whatever ``on_error`` says: the annotations could mean either image."""
    ids: set[int] = set()
    for position, item in enumerate(images):
        try:
            image_id = whole(item, "id")
        except FieldError:  # rejected alone, later
            continue
        if image_id in ids:
            policy.fatal(f"{where('images', position, item)}: id {image_id} is given twice")
        ids.add(image_id)
