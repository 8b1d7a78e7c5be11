"""Unpickling of tensors and plain containers alone, which runs no code."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from defeat.errors import WeightsError
from defeat.io.text import one_line


def load_plain(path: Path, *, mapped: bool = False) -> Any:
    """Unpickle a file of tensors and plain containers; raises like :func:`read_weights`.

    Args:
        path: the file.
        mapped: leave tensors on the disk until they are used.
    """
    _refuse_packed(path)
    try:
        with warnings.catch_warnings():
            # Of a newer pickle protocol: such a file is refused or read all the same.
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} refused: it is damaged, or holds more than tensors and plain containers and could run "
            "code on loading; save its state_dict alone and use that file"
        ) from error
    except Exception as error:  # nearly any: the pickle calls torch with whatever arguments it holds
        raise WeightsError(f"{path} is not a readable weight file: {first_line(error)}") from error


def _refuse_packed(path: Path) -> None:
    """``torch.save`` never compresses; a file that does can unpack to any size."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except Exception:  # no zip, as files of torch before 1.6, or a damaged one: torch says so
        return
    packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    if packed or sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise WeightsError(f"{path} refused: it is compressed, which torch.save does not do; save it anew")


def first_line(error: BaseException) -> str:
    """Return the first line of what another library says, short enough for a message."""
    return one_line((str(error).splitlines() or [type(error).__name__])[0], 200)
