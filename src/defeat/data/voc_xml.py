"""One Pascal VOC file: XML from strangers, parsed without entities, its fields checked."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from defeat.data.fields import FieldError, show


class VocObject(NamedTuple):
    """One ``object`` element."""

    name: str
    xyxy: tuple[float, float, float, float]
    """Our pixels: 0-based, right and lower border exclusive."""
    difficult: bool


class VocImage(NamedTuple):
    """One annotation file."""

    filename: str
    """As written; empty where there is none."""
    size: tuple[int, int] | None
    """(width, height) pixels; None where missing or 0x0."""
    objects: list[VocObject | FieldError]
    """In the file's order; an error, which names the object, where one cannot be used."""


def parse_voc(path: Path) -> VocImage:
    """Read one annotation file.

    Raises:
        FieldError: the file is missing, is no XML, declares entities or a document type, or its size is
            wrong.
    """
    try:
        root: Element = fromstring(path.read_bytes(), forbid_dtd=True)
    except OSError as error:
        raise FieldError(f"cannot be opened: {error.strerror}") from error
    except DefusedXmlException as error:
        raise FieldError(f"is refused: it declares a document type or entities ({error})") from error
    except (ParseError, ValueError, LookupError) as error:
        raise FieldError(f"is not valid XML: {error}") from error
    if root.tag != "annotation":
        raise FieldError(f"must hold an 'annotation' element, got {show(root.tag)}")
    objects = [_object_or_error(item, position) for position, item in enumerate(root.findall("object"))]
    return VocImage((root.findtext("filename") or "").strip(), _size(root), objects)


def _size(root: Element) -> tuple[int, int] | None:
    size = root.find("size")
    if size is None or size.find("width") is None or size.find("height") is None:
        return None
    width, height = (_number(size, key) for key in ("width", "height"))
    if width == 0 or height == 0:
        return None
    if width < 0 or height < 0 or width != int(width) or height != int(height):
        raise FieldError(f"size must be whole numbers of at least 0, got {width:g}x{height:g}")
    return int(width), int(height)


def _object_or_error(item: Element, position: int) -> VocObject | FieldError:
    try:
        return _object(item)
    except FieldError as error:
        name = (item.findtext("name") or "").strip()
        return FieldError(f"object[{position}]{f' ({name})' if name else ''}: {error}")


def _object(item: Element) -> VocObject:
    name = (item.findtext("name") or "").strip()
    if not name:
        raise FieldError("field 'name' is missing")
    difficult = (item.findtext("difficult") or "0").strip()
    if difficult not in ("0", "1"):
        raise FieldError(f"difficult must be 0 or 1, got {show(difficult)}")
    box = item.find("bndbox")  # a direct child only: body parts have boxes of their own
    if box is None:
        raise FieldError("field 'bndbox' is missing")
    return VocObject(name, _xyxy(box), difficult == "1")


def _xyxy(box: Element) -> tuple[float, float, float, float]:
    """VOC counts pixels from 1 and names the last one inside: 1-based and inclusive.

    By that rule xmin = xmax is one pixel wide, but no one draws such a box on purpose: it becomes a box
    without width, which the cleaning drops and counts.
    """
    x1, y1, x2, y2 = (_number(box, key) for key in ("xmin", "ymin", "xmax", "ymax"))
    if x2 <= x1 or y2 <= y1:
        return x1, y1, x1, y1
    return x1 - 1, y1 - 1, x2, y2


def _number(item: Element, key: str) -> float:
    written = item.findtext(key)
    if written is None:
        raise FieldError(f"field '{key}' is missing")
    try:
        value = float(written)
    except ValueError:
        value = math.nan
    if not abs(value) < 2**31:
        raise FieldError(f"{key} must be a finite number, got {show(written.strip())}")
    return value
