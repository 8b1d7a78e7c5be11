"""Stand-ins for what other programs pickle beside tensors: nothing of theirs is imported or called.

numpy arrays become tensors, by their bytes; all else that is known here is read and left out. Each stand-in
is registered under the full name that stands in the file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from defeat.errors import WeightsError

_DTYPES = {
    "f2": torch.float16,
    "f4": torch.float32,
    "f8": torch.float64,
    "i1": torch.int8,
    "i2": torch.int16,
    "i4": torch.int32,
    "i8": torch.int64,
    "u1": torch.uint8,
    "b1": torch.bool,
}
"""numpy's codes of numbers, which give the size of one in bytes."""

_DEPTH = 5
"""How deep arrays may lie in a file's dicts; a pickle can hold a dict that contains itself."""


class LeftOut:
    """Stands for an object that is of no use here, such as the settings of a training."""

    def __new__(cls, *arguments: object, **options: object) -> LeftOut:
        """Take any arguments, since pickles call the object's own class with them."""
        return super().__new__(cls)

    def __init__(self, *arguments: object, **options: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


class PickledDtype:
    """Stands for ``numpy.dtype``: the kind and size of an array's numbers."""

    def __init__(self, code: object, *flags: object) -> None:
        found = re.fullmatch(r"[<|=]?([fiub]\d)", code) if isinstance(code, str) else None
        self.dtype = _DTYPES.get(found[1]) if found else None
        """None for objects, texts and numbers that torch does not have, which are left out."""

    def __setstate__(self, state: object) -> None:
        if isinstance(state, tuple) and len(state) > 1 and state[1] == ">":  # big-endian
            self.dtype = None


class PickledArray:
    """Stands for ``numpy.ndarray``, whose state is its version, shape, dtype, memory order and bytes."""

    def __init__(self, *arguments: object) -> None:
        self.tensor: Tensor | None = None
        """None where it holds no numbers that torch has."""

    def __setstate__(self, state: object) -> None:
        if isinstance(state, tuple) and len(state) == 5:
            _, shape, dtype, fortran, data = state
            self.tensor = _to_tensor(data, dtype, shape, fortran=fortran is True)


def _array(data: object, dtype: object, shape: object, order: object = "C") -> PickledArray:
    """Stand for numpy's ``_frombuffer``, by which newer pickle protocols write arrays."""
    array = PickledArray()
    array.tensor = _to_tensor(data, dtype, shape, fortran=order == "F")
    return array


def _number(dtype: object, data: object = b"") -> float | None:
    """Stand for numpy's ``scalar``."""
    tensor = _to_tensor(data, dtype, (), fortran=False)
    return None if tensor is None else float(tensor)


def _to_bytes(text: object, encoding: object = "latin1") -> bytes:
    """Stand for ``_codecs.encode``, by which old protocols write bytes as text."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise ValueError("bytes are written in another encoding than Latin-1")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """Stand for ``bytes``, by whose call old protocols write none."""
    return b""


def _to_tensor(data: object, dtype: object, shape: object, *, fortran: bool) -> Tensor | None:
    if isinstance(data, str):
        data = _to_bytes(data)
    if not isinstance(dtype, PickledDtype) or dtype.dtype is None or not isinstance(data, bytes | bytearray):
        return None
    if not isinstance(shape, tuple) or not all(type(side) is int and side >= 0 for side in shape):
        raise ValueError("an array has no shape")
    if math.prod(shape) * dtype.dtype.itemsize != len(data):
        raise ValueError("an array has another number of bytes than its shape says")
    if not data:
        return torch.empty(shape, dtype=dtype.dtype)
    numbers = torch.frombuffer(bytearray(data), dtype=dtype.dtype)
    if fortran:
        return numbers.reshape(shape[::-1]).permute(*range(len(shape) - 1, -1, -1)).contiguous()
    return numbers.reshape(shape)


ARRAYS: Mapping[str, Any] = {
    "numpy.dtype": PickledDtype,
    "numpy.ndarray": PickledArray,
    **{
        f"numpy.{core}.{name}": stand_in
        for core in ("core", "_core")
        for name, stand_in in (
            ("multiarray._reconstruct", PickledArray),
            ("multiarray.scalar", _number),
            ("numeric._frombuffer", _array),
        )
    },
    "_codecs.encode": _to_bytes,
    "__builtin__.bytes": _no_bytes,
    "builtins.bytes": _no_bytes,
}
"""What writes numpy arrays, numbers and dtypes into a pickle, under the module names of numpy 1 and 2."""

SETTINGS = (
    "argparse.Namespace",  # torchvision's reference scripts
    "easydict.EasyDict",
    "mmengine.logging.history_buffer.HistoryBuffer",
    "mmengine.config.config.ConfigDict",
    "mmengine.config.config.Config",
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata",
    "omegaconf.nodes.AnyNode",
    "pathlib.Path",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    "pathlib._local.PosixPath",
    "typing.Any",
)
"""Classes of settings and records that training programs save beside the weights."""


def arrays_to_tensors(content: Any, depth: int = _DEPTH) -> Any:
    """Put tensors in the place of the arrays in a file's dicts; what holds no numbers is None."""
    if isinstance(content, PickledArray):
        return content.tensor
    if type(content) is dict and depth:
        return {key: arrays_to_tensors(value, depth - 1) for key, value in content.items()}
    return content


def refuse_global(path: object, name: str) -> WeightsError:
    """Return the error about a pickle that names a class or a function which is not read here."""
    return WeightsError(
        f"{path} refused: it holds more than tensors and plain containers, {name}, and could run code on "
        "loading; save its state_dict alone and use that file"
    )
