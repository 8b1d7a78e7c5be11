"""Checked access to the fields of an annotation; messages say what was expected and what stands there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TypeGuard

from defeat.errors import ConfigError
from defeat.io.text import few, quote

_NUMBERS = (int, float)  # and not bool, which isinstance would let pass
_LARGEST = 2**53  # whole numbers up to here are exact in every language that writes JSON

MOST_PIXELS = 2**24
"""The longest side of an image: up to here float32, which boxes are kept in, is exact to the pixel."""


class FieldError(ValueError):
    """A field is missing or wrong; whoever reads the file adds which file and record."""


def field(item: object, name: str) -> object:
    """Return ``item[name]``; raise :class:`FieldError` if the item is no object or has no such field."""
    if not isinstance(item, dict):
        raise FieldError(f"must be an object with fields, got {quote(item)}")
    if name not in item:
        raise FieldError(f"field '{name}' is missing")
    value: object = item[name]
    return value


def whole(item: object, name: str, least: int = -_LARGEST, most: int = _LARGEST) -> int:
    """Return a whole number from ``least`` to ``most``; 640.0 counts as one, True and "640" do not."""
    value = field(item, name)
    if type(value) is int and least <= value <= most:  # nearly always, and quick
        return value
    if is_finite(value) and value == int(value) and least <= value <= most:
        return int(value)
    bound = f" of at least {least}" if least > -_LARGEST else ""
    if most < _LARGEST and is_finite(value) and value > most:
        bound = f" of at most {most}"
    raise FieldError(f"{name} must be a whole number{bound}, got {quote(value)}")


def text(item: object, name: str) -> str:
    """Return a string that is not empty."""
    value = field(item, name)
    if isinstance(value, str) and value.strip():
        return value
    raise FieldError(f"{name} must be a text that is not empty, got {quote(value)}")


def is_finite(value: object) -> TypeGuard[float]:
    """Tell whether a value is a finite number, no bool, of a size that pixels and ids can have."""
    # a comparison, for math.isfinite fails on a whole number that no float can hold; it is false for NaN
    return type(value) in _NUMBERS and -_LARGEST <= value <= _LARGEST  # type: ignore[operator]


def unknown_class(name: str, known: Iterable[str]) -> FieldError:
    """Make the error of a class that is not among those asked for."""
    names = [name[:30] for name in known]
    return FieldError(
        f"class {quote(name)} is not among the {len(names)} classes asked for ({few(names, 5)})"
    )


def check_classes(classes: Sequence[str]) -> tuple[str, ...]:
    """Return class names as a tuple; raise :class:`ConfigError` for none at all and for one given twice."""
    if isinstance(classes, str) or not classes or not all(isinstance(name, str) for name in classes):
        raise ConfigError(f"classes must be a list of names, got {quote(classes)}")
    twice = sorted(name for name, count in Counter(classes).items() if count > 1)
    if twice:
        raise ConfigError(f"classes names {', '.join(twice[:5])} twice; each name stands for one label")
    return tuple(classes)
