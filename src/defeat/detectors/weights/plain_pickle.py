"""Unpickling of tensors, arrays and plain containers alone, which runs no code."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from defeat.detectors.weights.bare_pickle import is_bare_pickle, load_arrays
from defeat.detectors.weights.pickled_objects import (
    ARRAYS,
    SETTINGS,
    LeftOut,
    PickledArray,
    arrays_to_tensors,
    refuse_global,
)
from defeat.errors import WeightsError
from defeat.io.text import one_line, quote


def load_plain(path: Path, *, mapped: bool = False) -> Any:
    """Unpickle a file of tensors and plain containers; raises like :func:`read_weights`.

    numpy arrays become tensors. Settings of well-known programs beside the weights, such as the
    ``argparse.Namespace`` of torchvision's reference scripts, are left out. Any other class or function that
    the file names is an error.

    Args:
        path: the file, of ``torch.save``, or a bare pickle such as those of detectron2's model zoo.
        mapped: leave tensors on the disk until they are used.
    """
    _refuse_packed(path)
    if is_bare_pickle(path):
        return load_arrays(path)
    stand_ins = [(stand_in, name) for name, stand_in in ARRAYS.items()]
    stand_ins += [(LeftOut, name) for name in SETTINGS]
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([*stand_ins, PickledArray]):
            # Of a newer pickle protocol: such a file is refused or read all the same.
            warnings.simplefilter("ignore", UserWarning)
            return arrays_to_tensors(torch.load(path, map_location="cpu", weights_only=True, mmap=mapped))
    except pickle.UnpicklingError as error:
        if named := re.search(r"GLOBAL (\S+)", str(error)):
            raise refuse_global(path, quote(named[1])) from error
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
