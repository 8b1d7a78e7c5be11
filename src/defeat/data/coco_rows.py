"""Annotations of a COCO file in 65 bytes each, packed while the file is parsed.

Nearly all annotations are as they should be. As objects 860,000 of them take 500 MB, and to check them one by
one afterwards takes half as long as to parse them. What is odd in any way, right or wrong, is left as it is.
"""

from __future__ import annotations

import math
from struct import Struct
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from defeat.data.fields import is_finite

IDS = ("id", "image_id", "category_id")

_ROW = np.dtype([*((name, "=i8") for name in IDS), ("bbox", "=f8", 4), ("area", "=f8"), ("ignore", "=i1")])
_AS_BYTES = Struct("=3q5db")


class _Packed:
    """Stands in the parsed file in the place of an annotation that was packed."""


PACKED: Final = _Packed()


class PlainRows:
    """The annotations that were packed, in the order of the file."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def take(self, item: dict[str, Any]) -> object:
        """Pack an object, if it is a plain annotation; for :func:`defeat.io.safe_read.load_json`."""
        without_outline(item)
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
    item.pop("segmentation", None)
    return item


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
