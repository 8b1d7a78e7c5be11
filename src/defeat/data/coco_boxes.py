"""The boxes of COCO JSON's annotations: plain ones at once, the others one by one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defeat.data.coco_rows import OUTLINE_ALONE, PACKED, PlainRows, unpacked
from defeat.data.error_policy import ErrorPolicy
from defeat.data.fields import FieldError, field, is_finite, unknown_class, whole
from defeat.data.records import BoxColumns
from defeat.io.text import quote

_UNKNOWN, _NONE = -1, -2

_BOX = np.dtype(
    [
        ("owner", np.int64),
        ("xyxy", np.float64, 4),
        ("label", np.int64),
        ("ignore", np.bool_),
        ("area", np.float64),
    ]
)


def read_boxes(
    annotations: list[object],
    plain: PlainRows,
    by_id: dict[int, str],
    label_of: dict[str, int],
    positions: dict[int, int | None],
    policy: ErrorPolicy,
) -> BoxColumns:
    """Collect the boxes of all usable annotations: plain ones at once, the others one by one."""
    rows = plain.columns()
    owner = _look_up(rows["image_id"], positions)
    label = _look_up(rows["category_id"], {key: label_of.get(name) for key, name in by_id.items()})
    sound = (owner >= 0) & (label >= 0)
    wrong = ~sound & (owner != _NONE)  # boxes of an image that was left out were counted there

    odd = np.array([item is not PACKED for item in annotations], dtype=np.bool_)
    place = np.flatnonzero(~odd)
    for at, row in zip(place[wrong].tolist(), rows[wrong], strict=True):
        annotations[at] = unpacked(row)
        odd[at] = True

    boxes = np.zeros(len(annotations), dtype=_BOX)
    boxes["owner"] = _NONE
    boxes[place[sound]] = _plain_boxes(rows[sound], owner[sound], label[sound])
    for at in np.flatnonzero(odd).tolist():
        item = annotations[at]
        try:
            image = _owner(item, positions)
            if image is not None:
                boxes[at] = (image, _xyxy(item), _label(item, by_id, label_of), _ignored(item), _area(item))
        except FieldError as error:
            policy.reject(
                "annotations skipped", f"{policy.source}: {where('annotations', at, item)}: {error}"
            )
    policy.stop({"annotations skipped": len(annotations)})
    used = boxes[boxes["owner"] >= 0]
    columns = BoxColumns()
    columns.extend(*(used[name] for name in _BOX.names or ()))
    return columns


def _look_up(keys: NDArray[np.int64], table: Mapping[int, int | None]) -> NDArray[np.int64]:
    """Look up (N,) keys; ``_UNKNOWN`` is for a key that the table lacks, ``_NONE`` for a value of None."""
    known = np.array(sorted(table), dtype=np.int64)
    values = np.array([_NONE if (value := table[key]) is None else value for key in known.tolist()], np.int64)
    at = np.searchsorted(known, keys)
    is_known = np.append(known, 0)[at] == keys
    return np.where(is_known & (at < len(known)), np.append(values, 0)[at], _UNKNOWN)


def _plain_boxes(
    rows: NDArray[np.void], owner: NDArray[np.int64], label: NDArray[np.int64]
) -> NDArray[np.void]:
    boxes = np.empty(len(rows), dtype=_BOX)
    boxes["owner"], boxes["label"] = owner, label
    boxes["xyxy"] = rows["bbox"]
    boxes["xyxy"][:, 2:] += rows["bbox"][:, :2]
    boxes["ignore"], boxes["area"] = rows["ignore"], rows["area"]
    return boxes


def _owner(item: object, positions: dict[int, int | None]) -> int | None:
    image_id = whole(item, "image_id")
    if image_id not in positions:
        raise FieldError(f"image_id {image_id} is not among the file's images")
    return positions[image_id]


def _xyxy(item: object) -> tuple[float, float, float, float]:
    if isinstance(item, dict) and item.get(OUTLINE_ALONE):
        raise FieldError("it has a segmentation and no bbox: data.boxes_from_segmentation=true makes one")
    box = field(item, "bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_finite, box)):
        raise FieldError(f"bbox must be 4 finite numbers x, y, width, height, got {quote(box)}")
    x, y, width, height = box
    return x, y, x + width, y + height


def _label(item: object, by_id: dict[int, str], label_of: dict[str, int]) -> int:
    category = whole(item, "category_id")
    if category not in by_id:
        raise FieldError(f"category_id {category} is not among the file's categories")
    if by_id[category] not in label_of:
        raise unknown_class(by_id[category], label_of)
    return label_of[by_id[category]]


def _ignored(item: Any) -> bool:
    """Tell whether a box is a region to ignore: a crowd, or one that other tools mark by ``ignore``."""
    for name in ("iscrowd", "ignore"):
        if item.get(name, 0) not in (0, 1):
            raise FieldError(f"{name} must be 0 or 1, got {quote(item[name])}")
    return any(item.get(name, 0) for name in ("iscrowd", "ignore"))


def _area(item: Any) -> float:
    area = item.get("area")
    if area is None:
        return float("nan")
    if not is_finite(area) or area < 0:
        raise FieldError(f"area must be a finite number of at least 0, got {quote(area)}")
    return area


def where(group: str, position: int, item: object) -> str:
    """Name a record of the file by its position and its id, for messages."""
    given = item.get("id") if isinstance(item, dict) else None
    return f"{group}[{position}]" if given is None else f"{group}[{position}] (id {quote(given)})"
