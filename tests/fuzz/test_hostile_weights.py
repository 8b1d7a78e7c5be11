"""Weight files made to do harm: code in pickles and configurations, bombs, and the network."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torchvision.models import get_model_weights, list_models
from torchvision.models._api import Weights, WeightsEnum

from defeat.config import compose_config, to_plain
from defeat.detectors import create_detector, faster_rcnn, read_weights
from defeat.detectors.weights import torchvision_weights
from defeat.detectors.weights.pickled_objects import PickledArray, _to_bytes
from defeat.errors import WeightsError
from tests.helpers.limits import bounded, forbid_network
from tests.helpers.narrow import NARROW
from tests.helpers.trials import refused
from tests.helpers.weight_files import Code, packed, payloads, replaced, saved


@pytest.fixture(autouse=True)
def _bounded() -> Iterator[None]:
    with bounded():
        yield


def raises(name: Any, *parts: str, **options: Any) -> None:
    """Check that reading weights ends in an error of one line that has the parts."""
    with pytest.raises(WeightsError) as caught:
        read_weights(name, **options)
    refused(caught.value, *parts)


# Code


def test_pickles_that_run_code_do_not(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    sound = saved({"w": torch.zeros(2)})
    for code in payloads(mark):
        bare = code if code.startswith(b"\x80") else b"\x80\x02" + code
        for name, data in (("a.pth", code), ("b.ckpt", replaced(sound, code)), ("c.pkl", bare)):
            (tmp_path / name).write_bytes(data)
            raises(tmp_path / name, name)
    assert not mark.exists()


def test_the_payloads_would_run_where_nothing_refused_them(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    for code in (payloads(mark)[0], payloads(mark)[4], payloads(mark)[-1]):
        pickle.loads(code)
        assert mark.exists()
        mark.unlink()


def pickled(*operations: bytes) -> bytes:
    """A pickle written by hand, of protocol 2."""
    return b"\x80\x02" + b"".join(operations) + b"."


BYTES = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
"""An array without a state."""

DTYPE = b"cnumpy\ndtype\n(U\x02f4K\x00K\x01tR"


@pytest.mark.parametrize(
    "data",
    [
        pickled(
            b"c_codecs\nencode\n}(X\x0c\x00\x00\x00__defaults__U\x01xub"
        ),  # sets an attribute of a function
        pickled(b"cnumpy\nndarray\n}(X\x0c\x00\x00\x00__setstate__U\x01xub"),  # and of a class
        pickled(b"c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00zip\x86R"),  # packs, or unpacks
        pickled(b"cnumpy\nload\nU\x01x\x85R"),
        pickled(b"cnumpy.core.multiarray\nfromfile\nU\x01x\x85R"),
        pickled(BYTES, b"(K\x01J\xff\xff\xff\x7f\x85", DTYPE, b"\x89U\x04abcdtb"),  # 2**31 numbers of 4 bytes
        pickled(BYTES, b"(K\x01J\xff\xff\xff\xff\x85", DTYPE, b"\x89U\x04abcdtb"),  # -1 of them
        pickled(b"}r\xff\xff\xff\x7f"),  # remembers its 2**31st object
        pickled(b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7f"),  # a text of 2**63 bytes
        pickled(b"\x82\x01"),  # Python's registry of extensions
        pickled(b"U\x01xQ"),  # an object that another file holds
        pickled(b"(cos\nsystem\no"),
        pickled(b"(U\x04trueios\nsystem\n"),
    ],
)
def test_bare_pickles_that_do_more_than_hold_arrays(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "model_final.pkl").write_bytes(data)
    before = _to_bytes.__defaults__, vars(PickledArray).copy()
    raises(tmp_path / "model_final.pkl", "model_final.pkl")
    assert (_to_bytes.__defaults__, vars(PickledArray).copy()) == before


def test_a_refused_class_or_function_is_named(tmp_path: Path) -> None:
    """A file of tensors with code beside them: what it would call is told."""
    mark = tmp_path / "mark"
    content = {"model": {"w": np.zeros(2, "f4")}, "x": Code(Path.touch, mark)}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content, protocol=2))
    torch.save({"model": {"w": torch.zeros(2)}, "hook": Code(getattr, Path, "touch")}, tmp_path / "b.pth")
    raises(tmp_path / "a.pkl", "a.pkl", "getattr", "save its state_dict alone")
    raises(tmp_path / "b.pth", "b.pth", "getattr", "save its state_dict alone")
    assert not mark.exists()


def checkpoint(path: Path, config: object) -> Path:
    content = {"state_dict": {"student.w": torch.zeros(1)}, "defeat": {"classes": ["a"], "config": config}}
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "defeat.config.os.system",  # a module leads on to all that it imports
        "defeat.detectors.weights.plain_pickle.pickle.loads",
        "defeat.config.instantiate",
        "torchvision.models.detection.faster_rcnn.nn.Module",
        "torch.hub.load",
        5,
    ],
)
def test_what_a_checkpoint_wants_built_is_not_built_but_ours(target: object, tmp_path: Path) -> None:
    model = {"_target_": target, "command": "true"}
    student = {"_target_": "defeat.detectors.create_detector", "model": model}
    config = {"student": student, "data": {"list": [{"_target_": target}]}}
    file = read_weights(checkpoint(tmp_path / "a.ckpt", config))
    for key in ("student", "data"):
        with pytest.raises(WeightsError) as caught:
            file.node(key, f"{key}=<name>")
        refused(caught.value, "a.ckpt", key, f"{key}=<name>")


def test_what_runs_write_may_be_built(tmp_path: Path) -> None:
    open_to_all = {"_target_": "torchvision.models.detection.ssd300_vgg16", "_partial_": True}
    flip = {"_target_": "torchvision.transforms.v2.ColorJitter", "hue": 0.1}
    config = {"student": {"_target_": "defeat.detectors.create_detector", "model": open_to_all}, "data": flip}
    file = read_weights(checkpoint(tmp_path / "a.ckpt", config))
    assert (file.node("student", ""), file.node("data", "")) == (config["student"], config["data"])
    assert file.node("teacher", "") is None
    for data in ("coco", "voc0712", "scenes", "bccd"):
        plain = to_plain(compose_config("train", [f"data={data}", "data.root=x", "run_dir=x"]))
        file = read_weights(checkpoint(tmp_path / "a.ckpt", plain))
        assert file.node("data", "") == plain["data"]
        assert file.node("student", "") == plain["student"]


# Bombs, and what no detector can take


def laughs(depth: int) -> list[Any]:
    """One list in two places of a list, and so on: 2**60 values in 60 lists."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value, value]
    return value


@pytest.mark.parametrize(
    "config",
    [
        {"data": laughs(60)},
        {"data": laughs(20)},
        {"data": {"root": "${oc.env:HOME}"}},
        {"data": torch.zeros(1)},
        None,
    ],
    ids=["deep", "wide", "interpolation", "tensor", "none"],
)
def test_configurations_in_checkpoints_that_no_run_wrote(config: object, tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "a.ckpt", config)
    raises(path, str(path), "its configuration")


def test_a_compressed_weight_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(io.BytesIO(saved({"w": torch.zeros(2**24)}))) as archive:
        entries = [(name, archive.read(name)) for name in archive.namelist()]
    path.write_bytes(packed(entries, zipfile.ZIP_DEFLATED))
    assert path.stat().st_size < 2**18
    raises(path, str(path), "it is compressed")


@pytest.mark.parametrize("length", [2**64 - 1, 10**9, 7])
def test_a_safetensors_header_that_lies(length: int, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"w": torch.zeros(3)}, path)
    path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])
    raises(path, str(path))


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (torch.zeros(1).expand(2**20, 2**20), "claims 1048576x1048576 numbers"),
        (torch.tensor([1.0, torch.nan]), "not finite"),
        (torch.tensor([1.0, -torch.inf]), "not finite"),
        (torch.zeros(3, dtype=torch.complex64), "no plain tensor"),
        (torch.zeros(3).to_sparse(), "no plain tensor"),
    ],
    ids=["expanded", "nan", "inf", "complex", "sparse"],
)
def test_tensors_that_no_detector_can_take(tensor: torch.Tensor, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"roi.weight": tensor}, path)
    raises(path, str(path), "'roi.weight'", reason)


@pytest.mark.parametrize("name", ["", " ", "~nosuchuser/x.pth", "a" * 5000, "a\0b", "x\n.pth", 5, ["a"], {}])
def test_names_of_weights_that_can_name_nothing(name: Any) -> None:
    raises(name)


# The network


def test_no_weights_of_torchvision_are_fetched_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_network(monkeypatch)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    entries = [entry for model in list_models(torchvision.models) for entry in get_model_weights(model)]
    assert len(entries) > 100
    assert all(torchvision_weights.checksum(entry.url.rpartition("/")[2]) for entry in entries)
    for entry in entries:
        raises(str(entry), str(entry), "download=true")
    create_detector(lambda num_classes: faster_rcnn(num_classes, backbone=NARROW), ["dog"])
    assert not (tmp_path / "hub").exists()


class Planted(WeightsEnum):
    """Weights whose file lies in the cache already, where its checksum has not been compared yet."""

    ONE = Weights(url="http://127.0.0.1:9/planted-0123abcd.pth", transforms=None, meta={})


@pytest.mark.parametrize("download", [False, True])
def test_a_file_in_the_cache_is_neither_trusted_nor_run(
    download: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_network(monkeypatch)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torchvision_weights, "get_weight", lambda name: Planted.ONE)
    path, mark = tmp_path / "checkpoints" / "planted-0123abcd.pth", tmp_path / "mark"
    path.parent.mkdir()
    torch.save({"w": torch.zeros(1), "x": Code(Path.touch, mark)}, path)
    raises("Planted.ONE", path.name, "checksum", download=download)
    # even a file with the right one runs nothing
    monkeypatch.setattr(torchvision_weights, "checksum", lambda name: None)
    raises("Planted.ONE", "could run code", download=download)
    assert not mark.exists()
