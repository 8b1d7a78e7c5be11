"""One Pascal VOC file: XML from strangers, parsed without entities, its fields checked."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from defeat.data.fields import MOST_PIXELS, FieldError
from defeat.io.safe_read import read_regular
from defeat.io.text import quote

_LARGEST = 2**24  # bytes: 50,000 objects; a picture has dozens, and a parsed tree takes 30 times its text


class VocObject(NamedTuple):
    """One ``object`` element."""

    name: str
    xyxy: tuple[float, float, float, float]
    """Pixels, 0-based; the right and lower border are exclusive."""
    difficult: bool


class VocImage(NamedTuple):
    """One annotation file."""

    filename: str
    """The name as written; empty where there is none."""
    size: tuple[int, int] | None
    """(width, height) pixels; None where missing or 0x0."""
    objects: list[VocObject | FieldError]
    """The objects in the file's order; in the place of one that cannot be used, an error that names it."""


def parse_voc(path: Path) -> VocImage:
    """Read one annotation file.

    Raises:
        FieldError: the file is missing, is no XML, declares entities or a document type, its size is wrong,
            or it has objects where none are looked for.
    """
    try:
        root: Element = fromstring(read_regular(path, _LARGEST), forbid_dtd=True)
    except OSError as error:
        raise FieldError(f"cannot be opened: {error.strerror}") from error
    except DefusedXmlException as error:
        raise FieldError(f"is refused: it declares a document type or entities ({error})") from error
    except (ParseError, ValueError, LookupError) as error:
        raise FieldError(f"is not valid XML: {error}") from error
    if root.tag != "annotation":
        raise FieldError(f"must hold an 'annotation' element, got {quote(root.tag)}")
    elements = root.findall("object")
    elsewhere = sum(_local_name(item) == "object" for item in root.iter()) - len(elements)
    if elsewhere:
        raise FieldError(f"{elsewhere} 'object' elements lie elsewhere than directly in 'annotation'")
    objects = [_object_or_error(item, position) for position, item in enumerate(elements)]
    return VocImage((root.findtext("filename") or "").strip(), _size(root), objects)


def _local_name(item: Element) -> str:
    """The tag without its namespace, in lower case."""
    return item.tag.rpartition("}")[2].lower() if isinstance(item.tag, str) else ""


def _only(item: Element, key: str) -> Element | None:
    """Return the child of that name; two of them would contradict each other."""
    children = item.findall(key)
    if len(children) > 1:
        raise FieldError(f"field '{key}' is given {len(children)} times")
    return children[0] if children else None


def _text(item: Element, key: str) -> str | None:
    """Return the text of the child of that name, without space around it; None where there is none."""
    child = _only(item, key)
    return None if child is None else (child.text or "").strip()


def _size(root: Element) -> tuple[int, int] | None:
    size = _only(root, "size")
    if size is None or size.find("width") is None or size.find("height") is None:
        return None
    width, height = (_number(size, key) for key in ("width", "height"))
    if width == 0 or height == 0:
        return None
    if width < 0 or height < 0 or width != int(width) or height != int(height):
        raise FieldError(f"size must be whole numbers of at least 0, got {width:g}x{height:g}")
    if max(width, height) > MOST_PIXELS:
        raise FieldError(f"size must be at most {MOST_PIXELS} a side, got {width:g}x{height:g}")
    return int(width), int(height)


def _object_or_error(item: Element, position: int) -> VocObject | FieldError:
    try:
        return _object(item)
    except FieldError as error:
        name = (item.findtext("name") or "").strip()
        return FieldError(f"object[{position}]{f' ({name[:60]})' if name else ''}: {error}")


def _object(item: Element) -> VocObject:
    name = _text(item, "name")
    if not name:
        raise FieldError("field 'name' is missing")
    difficult = _text(item, "difficult") or "0"
    if difficult not in ("0", "1"):
        raise FieldError(f"difficult must be 0 or 1, got {quote(difficult)}")
    box = _only(item, "bndbox")  # a direct child only: body parts have boxes of their own
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
    written = _text(item, key)
    if written is None:
        raise FieldError(f"field '{key}' is missing")
    try:
        value = float(written)
    except ValueError:
        value = math.nan
    if not abs(value) < 2**31:
        raise FieldError(f"{key} must be a finite number, got {quote(written)}")
    return value
