"""Sound inputs made unsound: changes to a tree of values and changes to bytes, drawn by hypothesis."""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from hypothesis import strategies as st

_RAW, _TWIN = "\ue001", "\ue002"  # stand for what Python's own JSON writer cannot write


def raw(token: str) -> str:
    """A token that stands in the JSON as it is, such as 1e400."""
    return f"{_RAW}{token}{_RAW}"


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


NUMBERS: list[Any] = [
    0, 1, -1, 2, 7, 3, 18, 0.5, -0.0, 1e-9, 59.999, 60, 61, -1e9, 1e9, 2**24, 2**24 + 1, 2**31, 2**53,
    2**63, -(2**63), 2**64, 10**30, 1e300, math.nan, math.inf, -math.inf,
    raw("1e400"), raw("-1e400"), raw("1e-400"), raw("9" * 400), raw("9" * 5000),
]  # fmt: skip

STRINGS = [
    "", " ", "x", "1", "nan", "None", "a.jpg", "cat", "zebra", "a\0b.jpg", "\ud800", "a/\ud83d/b.jpg",
    "é.jpg", "\n", "a\nb", "\x1b[31m", "\u202ea.jpg", "a" * 300, "a" * 5000, "a/" * 3000, "../secret.jpg",
    "sub/../../x",
    "/etc/passwd", "/dev/zero", "C:\\x.jpg", "\\\\host\\x", "~root", "link.jpg", "loop.jpg", "pipe.jpg",
    "folder", "folder/../a.jpg", "up/secret.jpg", "${oc.env:HOME}", ".", "..", "./a.jpg", "a.jpg/x", "A.JPG",
    "%61.jpg", "images/a.jpg", "folder\\c.jpg", "FOLDER/C.jpg", "C:\\me\\d.jpg", "?d=b.png",
    "%2e%2e/secret.jpg",
]  # fmt: skip

OTHERS: list[Any] = [None, True, False, [], {}, [[]], [None], {"id": 1}, [1, 2, 3, 4], "twins", nested(400)]

odd: st.SearchStrategy[Any] = st.sampled_from(NUMBERS) | st.sampled_from(STRINGS) | st.sampled_from(OTHERS)
"""Values that do not belong where they are put, or just so."""


class Change(NamedTuple):
    """One change to a tree: what is done, to which of its nodes, and with what."""

    kind: str
    node: int
    value: Any


KINDS = ("put", "put", "put", "drop", "double", "wrap", "list", "swap", "reverse", "twin", "rename")

changes = st.lists(
    st.builds(Change, st.sampled_from(KINDS), st.integers(0, 10**6), odd), min_size=1, max_size=4
)


def change_tree(tree: Any, drawn: list[Change]) -> Any:
    """A changed copy of lists and dicts."""
    root = [copy.deepcopy(tree)]
    for change in drawn:
        places = list(_places(root))
        if not places:
            break
        _apply(change, *places[change.node % len(places)], places)
    return root[0] if root else None


def _places(container: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) of a tree, from the outside in, down to a depth where changes still matter."""
    todo = [container]
    while todo:
        this = todo.pop(0)
        for key in list(this) if isinstance(this, dict) else range(len(this)):
            yield this, key
            if isinstance(this[key], list | dict) and this[key]:
                todo.append(this[key])
        if len(todo) > 200:
            return


def _apply(change: Change, container: Any, key: Any, places: list[tuple[Any, Any]]) -> None:
    value = container[key]
    match change.kind:
        case "put":
            container[key] = copy.deepcopy(change.value)
        case "drop":
            del container[key]
        case "double" if isinstance(container, list):
            container.insert(key, copy.deepcopy(value))
        case "wrap":
            container[key] = {"inner": value}
        case "list":
            container[key] = [value, copy.deepcopy(change.value)]
        case "swap":
            other, there = places[(change.node * 31 + 7) % len(places)]
            container[key], other[there] = copy.deepcopy(other[there]), copy.deepcopy(value)
        case "reverse" if isinstance(value, list):
            value.reverse()
        case "twin" if isinstance(container, dict):
            container[f"{key}{_TWIN}"] = copy.deepcopy(change.value)
        case "rename" if isinstance(container, dict):
            container[str(change.value)] = container.pop(key)


def to_json(tree: Any) -> bytes:
    """The tree as JSON, with raw tokens and keys given twice as they were asked for."""
    text = json.dumps(tree, ensure_ascii=False).replace(_TWIN, "")
    text = re.sub(f'"?{_RAW}([^{_RAW}"]*){_RAW}"?', r"\1", text)
    # half characters as their escapes: JSON can spell them, UTF-8 cannot
    return re.sub("[\ud800-\udfff]", lambda m: f"\\u{ord(m[0]):04x}", text).encode()


class ByteChange(NamedTuple):
    """One change to bytes at a position that is taken modulo their length."""

    kind: str
    position: int
    length: int
    content: bytes


BYTE_KINDS = ("truncate", "flip", "flip", "insert", "delete", "repeat", "overwrite", "overwrite", "splice")

byte_changes = st.lists(
    st.builds(
        ByteChange,
        st.sampled_from(BYTE_KINDS),
        # what matters lies at the beginning of most files, and for a zip at the end
        st.integers(0, 80) | st.integers(0, 10**6) | st.integers(-80, -1),
        st.integers(1, 64),
        st.binary(min_size=1, max_size=8)
        | st.sampled_from(
            [b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\xff" * 8, b"\0"]
        ),
    ),
    min_size=1,
    max_size=5,
)


def change_bytes(data: bytes, drawn: list[ByteChange], other: bytes = b"") -> bytes:
    """Changed bytes; ``splice`` goes on with those of another input."""
    for kind, position, length, content in drawn:
        if not data:
            return data
        at = position % len(data)
        match kind:
            case "truncate":
                data = data[:at]
            case "flip":
                data = data[:at] + bytes([data[at] ^ (1 << length % 8)]) + data[at + 1 :]
            case "insert":
                data = data[:at] + content + data[at:]
            case "delete":
                data = data[:at] + data[at + length :]
            case "repeat":
                data = data[:at] + data[at : at + length] * 3 + data[at + length :]
            case "overwrite":
                data = data[:at] + content + data[at + len(content) :]
            case "splice":
                data = data[:at] + other[min(at, len(other)) :]
    return data
