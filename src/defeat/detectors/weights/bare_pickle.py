"""Bare pickles of numpy arrays, as detectron2's model zoo has them, without torch's container."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, ClassVar

from defeat.detectors.weights.pickled_objects import ARRAYS, PickledArray, arrays_to_tensors, refuse_global
from defeat.errors import WeightsError
from defeat.io.text import one_line, quote

_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""The number with which files of torch before 1.6 begin, pickled."""


def is_bare_pickle(path: Path) -> bool:
    """Tell whether a file begins like a pickle that is not torch's, protocol 2 or later."""
    try:
        with path.open("rb") as file:
            start = file.read(len(_TORCH))
    except OSError:  # torch says why it cannot be read
        return False
    return start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05" and start != _TORCH


def load_arrays(path: Path) -> Any:
    """Unpickle dicts and lists of arrays, numbers and texts; raises like :func:`load_plain`."""
    try:
        with path.open("rb") as file:
            return arrays_to_tensors(_ArrayUnpickler(file, encoding="latin1").load())
    except _RefusedGlobalError as refused:
        raise refuse_global(path, quote(str(refused))) from None
    except Exception as error:  # nearly any, as the bytes are
        reason = one_line((str(error).splitlines() or [type(error).__name__])[0], 200)
        raise WeightsError(f"{path} is not a readable weight file: {reason}") from error


class _RefusedGlobalError(pickle.UnpicklingError):
    """Carries the name of what is not read."""


class _ArrayUnpickler(pickle._Unpickler):
    """Knows arrays and ordered dicts, and nothing else; written in Python, so that the table can be changed.

    Python's own unpickler sets attributes of any object, functions and classes too (BUILD).
    """

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in of what a pickle names; everything that it calls passes through here."""
        full = f"{module}.{name}"
        if full == "collections.OrderedDict":
            return dict
        if full not in ARRAYS:
            raise _RefusedGlobalError(full)
        return ARRAYS[full]

    def _build(self) -> None:
        state = self.stack.pop()  # type: ignore[attr-defined]
        target = self.stack[-1]  # type: ignore[attr-defined]
        if type(target) is dict:  # attributes of an ordered dict, such as the versions in a state_dict
            return
        if not isinstance(target, PickledArray | ARRAYS["numpy.dtype"]):
            raise pickle.UnpicklingError(f"it sets the state of a {type(target).__name__}")
        target.__setstate__(state)

    dispatch[pickle.BUILD[0]] = _build
