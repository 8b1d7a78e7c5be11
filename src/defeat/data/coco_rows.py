"""Annotations of a COCO file in 65 bytes each, packed while the file is parsed.

Nearly all annotations are as they should be. As objects 860,000 of them take 500 MB, and to check them one by
one afterwards takes half as long as to parse them. What is odd in any way, right or wrong, is left as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from struct import Struct
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask

from defeat.data.fields import is_finite

OUTLINE_ALONE = "_outline_alone"
"""Key that marks an annotation which had an outline, and no box."""

IDS = ("id", "image_id", "category_id")

_ROW = np.dtype([*((name, "=i8") for name in IDS), ("bbox", "=f8", 4), ("area", "=f8"), ("ignore", "=i1")])
_AS_BYTES = Struct("=3q5db")


class _Packed:
    """Stands in the parsed file in the place of an annotation that was packed."""


PACKED: Final = _Packed()


class PlainRows:
    """The annotations that were packed, in the order of the file.

    Args:
        prepare: changes an object in place before it is looked at.
    """

    def __init__(self, prepare: Callable[[dict[str, Any]], object] | None = None) -> None:
        self._bytes = bytearray()
        self._prepare = prepare or without_outline

    def take(self, item: dict[str, Any]) -> object:
        """Pack an object, if it is a plain annotation; for :func:`defeat.io.safe_read.load_json`."""
        self._prepare(item)
        packed = _pack(item) if "bbox" in item else None
        if packed is None:
            return item
        self._bytes += packed
        return PACKED

    def are_all_in(self, content: object) -> bool:
        """Tell whether all that were packed stand in the list of annotations, one after the other."""
        listed = content.get("annotations") if isinstance(content, dict) else None
        count = listed.count(PACKED) if isinstance(listed, list) else 0
        return count * _ROW.itemsize == len(self._bytes)

    def columns(self) -> NDArray[np.void]:
        """Return (N,) rows: int64 ids, ``bbox`` 4 float64, ``area`` float64 or NaN, ``ignore`` int8."""
        return np.frombuffer(self._bytes, dtype=_ROW)


def without_outline(item: dict[str, Any]) -> dict[str, Any]:
    """Drop the outline, which is nine tenths of COCO and which no detector here uses."""
    if item.pop("segmentation", None) and not item.get("bbox"):
        item[OUTLINE_ALONE] = True
    return item


def with_box(item: dict[str, Any]) -> dict[str, Any]:
    """Put the box around an outline in the place of a missing one, and drop the outline."""
    outline = item.get("segmentation")
    if outline and not item.get("bbox"):
        box = _box_around(outline)
        if box is not None:
            item["bbox"] = box
            del item["segmentation"]
    return without_outline(item)


def _box_around(outline: Any) -> list[float] | None:
    """Return x, y, width, height around polygons or a run-length code; None for what is neither."""
    try:
        if isinstance(outline, dict):
            rle = outline
            if isinstance(outline["counts"], list):
                rle = mask.frPyObjects(outline, *outline["size"])
            return [float(value) for value in mask.toBbox(rle)]
        points = np.array([value for polygon in outline for value in polygon], dtype=np.float64)  # (2 P,)
        if not len(points) or len(points) % 2 or not np.isfinite(points).all():
            return None
        low, high = points.reshape(-1, 2).min(axis=0), points.reshape(-1, 2).max(axis=0)  # (2,) each
        return [*low.tolist(), *(high - low).tolist()]
    except (ValueError, TypeError, KeyError, IndexError):
        return None


def unpacked(row: np.void) -> dict[str, Any]:
    """Turn a row back into the annotation that was packed."""
    ids = {name: int(row[name]) for name in IDS}
    area = None if math.isnan(row["area"]) else float(row["area"])
    return {**ids, "bbox": row["bbox"].tolist(), "area": area, "ignore": int(row["ignore"])}


def _pack(item: dict[str, Any]) -> bytes | None:
    """Return the bytes of a row; None for whatever has to be looked at more closely."""
    box, area = item["bbox"], item.get("area")
    crowd, ignored = item.get("iscrowd", 0), item.get("ignore", 0)
    if type(box) is not list or len(box) != 4 or not type(crowd) is type(ignored) is int:
        return None
    if not (0 <= crowd <= 1 and 0 <= ignored <= 1):
        return None
    annotation, image, category = item.get("id"), item.get("image_id"), item.get("category_id")
    if not (type(annotation) is type(image) is type(category) is int):
        return None
    if not (is_finite(annotation) and is_finite(image) and is_finite(category)):
        return None
    x, y, width, height = box
    if not (is_finite(x) and is_finite(y) and is_finite(width) and is_finite(height)):
        return None
    if area is None:
        area = math.nan
    elif not is_finite(area) or area < 0:
        return None
    return _AS_BYTES.pack(annotation, image, category, x, y, width, height, area, crowd | ignored)
