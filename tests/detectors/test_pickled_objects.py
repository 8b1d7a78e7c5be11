"""Weight files that hold more than tensors: arrays of numpy, and settings of well-known programs."""

from __future__ import annotations

import argparse
import pickle
import sys
from collections import OrderedDict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from defeat.detectors import read_weights
from defeat.detectors.weights import load_plain

ARRAYS: dict[str, Any] = {
    "plain": np.arange(12, dtype="f4").reshape(3, 4),
    "columns": np.asfortranarray(np.arange(24, dtype="f8").reshape(2, 3, 4)),
    "half": np.array([0.5, -2.0], dtype="f2"),
    "integers": np.array([[-1], [2**40]], dtype="i8"),
    "none": np.zeros((0, 3), dtype="f4"),
    "single": np.array(7.5, dtype="f4"),
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("renamed", [False, True], ids=["numpy 2", "numpy 1"])
def test_bare_pickles_of_arrays_become_tensors(protocol: int, renamed: bool, tmp_path: Path) -> None:
    content = {"model": OrderedDict(ARRAYS), "__author__": "someone", "scale": np.float32(2.5)}
    data = pickle.dumps(content, protocol=protocol)
    if renamed and protocol < 4:  # whose names have no length before them
        data = data.replace(b"numpy._core", b"numpy.core")
    (tmp_path / "model_final_0123ab.pkl").write_bytes(data)
    read = load_plain(tmp_path / "model_final_0123ab.pkl")
    assert (read["scale"], read["__author__"]) == (2.5, "someone")
    for name, array in ARRAYS.items():
        assert torch.equal(read["model"][name], torch.from_numpy(array.copy()))
    assert read_weights(tmp_path / "model_final_0123ab.pkl").tensors.keys() == ARRAYS.keys()


def test_arrays_of_what_torch_has_not_are_left_out(tmp_path: Path) -> None:
    odd = {"objects": np.array([None, 3]), "texts": np.array(["a"]), "big": np.array([1.0], dtype=">f4")}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({**odd, "w": np.ones(1, "f4")}, protocol=2))
    assert [name for name, value in load_plain(tmp_path / "a.pkl").items() if value is not None] == ["w"]


class HistoryBuffer:
    """As mmengine's: arrays, and statistics in a dict."""

    def __init__(self) -> None:
        self._log_history, self.count = np.array([1.0, 2.0]), np.int64(3)


@pytest.mark.parametrize("zipped", [True, False])
def test_settings_beside_the_weights_are_left_out(
    zipped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of torchvision's reference scripts, and of mmengine, which is not installed when the file is read."""
    module = ModuleType("mmengine.logging.history_buffer")
    with monkeypatch.context() as installed:
        for name in ("mmengine", "mmengine.logging", module.__name__):
            installed.setitem(sys.modules, name, module)
        installed.setattr(HistoryBuffer, "__module__", module.__name__)
        installed.setattr(module, "HistoryBuffer", HistoryBuffer, raising=False)
        content = {
            "state_dict": {"w": torch.ones(2)},
            "args": argparse.Namespace(lr=0.02, data_path=Path("x"), nested=argparse.Namespace(a=[1])),
            "message_hub": {"log_scalars": {"loss": HistoryBuffer()}, "scale": np.float64(0.5)},
            "means": np.zeros(3),
        }
        torch.save(content, tmp_path / "epoch_12.pth", _use_new_zipfile_serialization=zipped)
    assert "mmengine" not in sys.modules
    assert torch.equal(read_weights(tmp_path / "epoch_12.pth").tensors["w"], torch.ones(2))
    assert torch.equal(load_plain(tmp_path / "epoch_12.pth")["means"], torch.zeros(3, dtype=torch.float64))
