"""Files made to do harm, by name: bombs, traps, ways out of the root, code in weights, the network."""

from __future__ import annotations

import io
import json
import os
import pickle
import socket
import struct
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torchvision.models import get_model_weights, list_models
from torchvision.models._api import Weights, WeightsEnum

import defeat.detectors.weights as weights
from defeat.cli.error_messages import explain
from defeat.config import compose_config, conf_dir, to_plain
from defeat.data import read_coco, read_image, read_voc
from defeat.detectors import create_detector, faster_rcnn, read_weights
from defeat.errors import DataError, DefeatError, WeightsError
from defeat.evaluation import read_results
from defeat.types import Annotations, Record
from tests.helpers.distillation import build_all, distillation
from tests.helpers.trials import MOST_MEMORY, forget_peak, peak_memory, refused, time_limit
from tests.helpers.weight_files import Code, packed, payloads, replaced, saved

CLASSES = ["dog", "cat"]


@pytest.fixture(autouse=True)
def _limits() -> Iterator[None]:
    """No test may wait, and none may take gigabytes."""
    forget_peak()
    before = peak_memory()
    with time_limit():
        yield
    assert peak_memory() - before < MOST_MEMORY // 8


def line(error: pytest.ExceptionInfo[DefeatError], *parts: str) -> str:
    return refused(error.value, *parts).removeprefix("refused: ")


# Pictures


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of one bit a pixel, with further chunks before its data."""
    rows = zlib.compress(bytes(min(((width + 7) // 8 + 1) * height, 2**24)), 9)
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    framed = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in ((b"IHDR", header), *chunks, (b"IDAT", rows), (b"IEND", b""))
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def tiff(width: int, height: int, **more: int) -> bytes:
    tags = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: 100} | {
        int(tag): value for tag, value in more.items()
    }
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)


def webp(width: int, height: int) -> bytes:
    """An animation whose canvas is claimed to be that large, with one frame of 8x8."""
    Image.new("RGB", (8, 8)).save(buffer := io.BytesIO(), "WEBP", lossless=True)
    sides = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    frame = bytes(6) + struct.pack("<I", 7)[:3] * 2 + bytes(4) + buffer.getvalue()[12:]
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes([2, 0, 0, 0]) + sides
    body += b"ANIM" + struct.pack("<I", 6) + bytes(6) + b"ANMF" + struct.pack("<I", len(frame)) + frame
    return b"RIFF" + struct.pack("<I", len(body)) + body


def jpeg(width: int, height: int) -> bytes:
    Image.new("RGB", (8, 8)).save(buffer := io.BytesIO(), "JPEG")
    data = buffer.getvalue()
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def bmp(width: int, height: int) -> bytes:
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + info


BOMBS = {
    "png": png(50_000, 50_000),
    "png just over the limit": png(9500, 9500),
    "png of 2**31 - 1": png(2**31 - 1, 2**31 - 1),
    "png with a text of 1 GiB": png(8, 8, (b"zTXt", b"a\0\0" + zlib.compress(bytes(2**26), 9))),
    "png with a profile of 64 MiB": png(8, 8, (b"iCCP", b"a\0\0" + zlib.compress(bytes(2**26), 9))),
    "gif": b"GIF89a"
    + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0)
    + b",\0\0\0\0\xff\xff\xff\xff\0\2\2\x4c\1\0;",
    "tiff": tiff(2**31, 2**31),
    "tiff of 2**32 - 1": tiff(2**32 - 1, 1),
    "tiff of many samples": tiff(8, 8, **{"277": 2**31}),
    "bmp": bmp(2**31 - 1, 2**31 - 1),
    "bmp of negative sides": bmp(-(2**31), -5),
    "ppm": b"P6 100000 100000 255\n",
    "ppm of a googol": b"P6 1" + b"0" * 100 + b" 5 255\n",
    "webp": webp(16383, 16383),
    "webp of 2**24": webp(2**24, 2**24),
    "jpeg": jpeg(65535, 65535),
}


@pytest.mark.filterwarnings("ignore")  # Pillow only warns up to twice its limit, and users see no error then
@pytest.mark.parametrize("name", BOMBS)
def test_pictures_of_absurd_sizes(name: str, tmp_path: Path) -> None:
    path = tmp_path / "bomb.img"
    path.write_bytes(BOMBS[name])
    with pytest.raises(DataError) as caught:
        read_image(path)
    line(caught, str(path), "cannot be decoded: ")


def test_a_picture_file_too_large_for_any_picture(tmp_path: Path) -> None:
    path = tmp_path / "sparse.png"
    with path.open("wb") as file:
        file.write(
            png(8, 8)[:33] + struct.pack(">I", 2**31 - 1) + b"aaAa"
        )  # a chunk that would be read whole
        file.truncate(2**31)
    with pytest.raises(DataError) as caught:
        read_image(path)
    assert "2147483648 bytes are more than such a file can have" in line(caught, str(path))


# Files that are no files


def trap(path: Path, kind: str) -> Path:
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "loop":
            path.symlink_to(path.name)
        case "link to a pipe":
            os.mkfifo(path.with_name("pipe"))
            path.symlink_to("pipe")
        case "socket":
            path.symlink_to(path.with_name("listening"))
            server = socket.socket(socket.AF_UNIX)
            server.bind(os.path.relpath(path.with_name("listening")))
            server.close()
        case device:
            path.symlink_to(device)
    return path


TRAPS = ("pipe", "folder", "loop", "link to a pipe", "socket", "/dev/zero", "/dev/full", "/dev/random")


@pytest.fixture
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # names of sockets are short


@pytest.mark.usefixtures("_here")
@pytest.mark.parametrize("kind", TRAPS)
@pytest.mark.parametrize(
    "read",
    [
        read_image,
        lambda path: read_coco(path, None),
        lambda path: read_results(path, TRUTH),
        read_weights,
    ],
    ids=["read_image", "read_coco", "read_results", "read_weights"],
)
def test_files_that_would_be_waited_for_or_never_end(
    read: Callable[[Path], object], kind: str, tmp_path: Path
) -> None:
    path = trap(tmp_path / "trap", kind)
    with pytest.raises(DefeatError) as caught:
        read(path)
    line(caught, str(path))


COCO: dict[str, Any] = {
    "images": [{"id": 7, "file_name": "a.jpg", "width": 60, "height": 40}],
    "annotations": [{"id": 1, "image_id": 7, "category_id": 3, "bbox": [1, 1, 4, 4]}],
    "categories": [{"id": 3, "name": "cat"}],
}


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """A root with ``a.json`` and ``images/a.jpg``, a file beside the pictures and a link to it."""
    (tmp_path / "images").mkdir()
    Image.new("RGB", (60, 40)).save(tmp_path / "images" / "a.jpg")
    Image.new("RGB", (60, 40)).save(tmp_path / "secret.jpg")
    (tmp_path / "a.json").write_text(json.dumps(COCO))
    return tmp_path


def read_named(root: Path, name: str) -> Annotations:
    content = {**COCO, "images": [{**COCO["images"][0], "file_name": name}]}
    (root / "a.json").write_text(json.dumps(content))
    return read_coco("a.json", "images", root=root)


@pytest.mark.usefixtures("_here")
@pytest.mark.parametrize("kind", TRAPS)
def test_pictures_that_are_traps_are_refused_before_training(kind: str, coco: Path) -> None:
    trap(coco / "images" / "trap.jpg", kind)
    with pytest.raises(DataError) as caught:
        read_named(coco, "trap.jpg")
    line(caught, "a.json: images[0] (id 7): ", "'trap.jpg'")


@pytest.mark.parametrize(
    "name",
    [
        "../secret.jpg",
        "x/../../secret.jpg",
        "/etc/passwd",
        "//host/share",
        "C:\\secret.jpg",
        "C:secret.jpg",
        "..\\secret.jpg",
        "link.jpg",
        "up/secret.jpg",
        "a\0.jpg",
        "\ud800/a.jpg",
        "a/" * 50_000,
        "a" * 100_000,
        "\n/../a.jpg",
        "~root/x.jpg",
        "${oc.env:HOME}",
    ],
    ids=lambda name: ascii(name)[:20],
)
def test_names_that_lead_out_of_the_root_or_nowhere(name: str, coco: Path) -> None:
    (coco / "images" / "link.jpg").symlink_to(coco / "secret.jpg")
    (coco / "images" / "up").symlink_to(coco)
    with pytest.raises(DataError) as caught:
        read_named(coco, name)
    line(caught, "a.json: images[0] (id 7): ")


# JSON


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"[" * 10**6, "nested too deep"),
        (b'{"a":' * 10**6, "nested too deep"),
        (b'{"images": [' + b"1" * 10**6 + b"]}", "a whole number of thousands of digits"),
        (
            b'{"images": [], "annotations": [1], "annotations": [], "categories": []}',
            "key 'annotations' is given twice",
        ),
        (b"\xff\xfe" + "{}".encode("utf-16-le"), "is not valid JSON"),
        (b"\0" * 1000, "is not valid JSON"),
    ],
    ids=["lists", "objects", "digits", "twins", "utf-16", "zeros"],
)
def test_json_made_to_break_its_readers(text: bytes, reason: str, coco: Path) -> None:
    (coco / "a.json").write_bytes(text)
    with pytest.raises(DataError) as caught:
        read_coco("a.json", "images", root=coco)
    assert reason in line(caught, "a.json")
    with pytest.raises(DataError) as caught:
        read_results(coco / "a.json", TRUTH)
    assert reason.removeprefix("is ").replace("valid", "a").replace(" JSON", " JSON file") in line(
        caught, "a.json"
    )


@pytest.mark.parametrize(
    "number", ["1e400", "-1e400", "NaN", "Infinity", "1" + "0" * 4000, "9007199254740993"]
)
@pytest.mark.parametrize("field", ["bbox", "image_id", "category_id", "area", "iscrowd"])
def test_numbers_beyond_all_others(number: str, field: str, coco: Path) -> None:
    value = [0, 0, "N", 5] if field == "bbox" else "N"
    content = {**COCO, "annotations": [{**COCO["annotations"][0], field: value}]}
    (coco / "a.json").write_text(json.dumps(content).replace('"N"', number))
    with pytest.raises(DataError) as caught:
        read_coco("a.json", "images", root=coco)
    line(caught, "a.json: annotations[0] (id 1): ", field)


@pytest.mark.parametrize("side", [2**24 + 1, 2**53, 10**30])
def test_images_that_no_float_can_measure(side: int, coco: Path) -> None:
    content = {**COCO, "images": [{**COCO["images"][0], "width": side}]}
    (coco / "a.json").write_text(json.dumps(content))
    with pytest.raises(DataError) as caught:
        read_coco("a.json", "images", root=coco)
    line(caught, "a.json: images[0] (id 7): width must be a whole number of at ")


def test_many_classes_take_no_quadratic_time(coco: Path) -> None:
    names = [f"class {n}" for n in range(50_000)]
    categories = [{"id": n, "name": name} for n, name in enumerate(names)]
    (coco / "a.json").write_text(json.dumps({**COCO, "categories": categories}))
    assert read_coco("a.json", "images", root=coco).classes == tuple(names)
    asked = [*(f"new {n}" for n in range(50_000)), "class 3"]
    assert len(set(read_coco("a.json", "images", asked, root=coco).class_ids)) == len(asked)


TRUTH = Annotations(
    [Record(1, Path("a.jpg"), 9, 9, np.zeros((0, 4), np.float32), np.zeros(0, np.int64), *[np.zeros(0)] * 2)],
    ("a",),
    (1,),
    "a.json",
    {},
)
RESULT = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 5, 5], "score": 0.5}


@pytest.mark.parametrize(
    "change",
    [
        {"image_id": True},  # equals 1 in Python
        {"category_id": True},
        {"bbox": [0, 0, 10**400, 5]},
        {"bbox": [1e308, 0, 1e308, 5]},  # ends at infinity
        {"score": 10**400},
        {"score": [[0.5]] * 1000},
    ],
    ids=lambda change: str(change)[:30],
)
def test_results_of_odd_values(change: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps([RESULT, {**RESULT, **change}]))
    with pytest.raises(DataError) as caught:
        read_results(path, TRUTH)
    line(caught, f"{path}: entry 1: ")


def test_results_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps([RESULT]).encode())
    assert len(read_results(path, TRUTH)[0]["boxes"]) == 1


# XML


LAUGHS = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 30))
XML = {
    "billion laughs": f'<!DOCTYPE x [<!ENTITY l0 "lol">{LAUGHS}]><annotation>&l29;</annotation>',
    "quadratic": f'<!DOCTYPE x [<!ENTITY a "{"a" * 10**6}">]><annotation>{"&a;" * 10**5}</annotation>',
    "external entity": '<!DOCTYPE x [<!ENTITY f SYSTEM "file:///etc/passwd">]><annotation>&f;</annotation>',
    "endless entity": '<!DOCTYPE x [<!ENTITY f SYSTEM "file:///dev/zero">]><annotation>&f;</annotation>',
    "parameter entity": '<!DOCTYPE x [<!ENTITY % p SYSTEM "http://127.0.0.1:9/x.dtd"> %p;]><annotation/>',
    "document type": '<!DOCTYPE annotation SYSTEM "http://127.0.0.1:9/voc.dtd"><annotation/>',
    "seventeen megabytes": f"<annotation>{'<a/>' * (2**24 // 4 + 10)}</annotation>",
    "wrapped objects": "<annotation><objects><object/></objects></annotation>",
    "two sizes": "<annotation><size/><size/></annotation>",
    "a side of 2**30": "<annotation><size><width>1073741824</width><height>4</height></size></annotation>",
}


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (tmp_path / folder).mkdir(parents=True)
    Image.new("RGB", (60, 40)).save(tmp_path / "JPEGImages" / "a.jpg")
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("a\n")
    return tmp_path


@pytest.mark.parametrize("name", XML)
def test_xml_made_to_break_its_readers(name: str, voc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _forbid_network(monkeypatch)
    (voc / "Annotations" / "a.xml").write_text(XML[name])
    with pytest.raises(DataError) as caught:
        read_voc(voc, "train", ["cat"])
    line(caught, f"{voc / 'Annotations' / 'a.xml'}: ")


def test_xml_a_hundred_thousand_deep(voc: Path) -> None:
    (voc / "Annotations" / "a.xml").write_text(f"<annotation>{'<a>' * 10**5}{'</a>' * 10**5}</annotation>")
    assert len(read_voc(voc, "train", ["cat"]).records) == 1


@pytest.mark.usefixtures("_here")
@pytest.mark.parametrize("kind", TRAPS)
@pytest.mark.parametrize("name", ["Annotations/t.xml", "JPEGImages/t.jpg", "ImageSets/Main/t.txt"])
def test_traps_in_a_voc_folder(kind: str, name: str, voc: Path) -> None:
    trap(voc / name, kind)
    if not name.endswith("txt"):
        (voc / "ImageSets" / "Main" / "t.txt").write_text("t\n")
    if name.endswith("jpg"):
        (voc / "Annotations" / "t.xml").write_text("<annotation/>")
    with pytest.raises(DataError) as caught:
        read_voc(voc, "t", ["cat"])
    line(caught, "t.txt" if name.endswith("txt") else "t.xml: ")


def test_names_of_lists_that_no_file_can_have(voc: Path) -> None:
    for name in ("a\0b", "a" * 5000, "\ud800"):
        with pytest.raises(DataError) as caught:
            read_voc(voc, name, ["cat"])
        line(caught, "cannot be read")


# Weights


@pytest.mark.parametrize("which", range(27))
def test_pickles_that_run_code_do_not(which: int, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    codes = payloads(mark)
    assert len(codes) == 27
    sound = saved({"w": torch.zeros(2)})
    for name, data in (("a.pth", codes[which]), ("b.ckpt", replaced(sound, codes[which]))):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(WeightsError) as caught:
            read_weights(tmp_path / name)
        line(caught, name)
    assert not mark.exists()


def test_the_payloads_would_run_where_nothing_refused_them(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    for code in (payloads(mark)[0], payloads(mark)[4], payloads(mark)[-1]):
        pickle.loads(code)
        assert mark.exists()
        mark.unlink()


def test_a_compressed_weight_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(io.BytesIO(saved({"w": torch.zeros(2**24)}))) as archive:
        entries = [(name, archive.read(name)) for name in archive.namelist()]
    path.write_bytes(packed(entries, zipfile.ZIP_DEFLATED))
    assert path.stat().st_size < 2**18
    with pytest.raises(WeightsError) as caught:
        read_weights(path)
    assert "it is compressed" in line(caught, str(path))


@pytest.mark.parametrize("length", [2**60, 2**64 - 1, 10**9, 0, 7])
def test_a_safetensors_header_that_lies(length: int, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"w": torch.zeros(3)}, path)
    path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])
    with pytest.raises(WeightsError) as caught:
        read_weights(path)
    line(caught, str(path))


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
    with pytest.raises(WeightsError) as caught:
        read_weights(path)
    assert reason in line(caught, str(path), "'roi.weight'")


def checkpoint(path: Path, config: object) -> Path:
    torch.save(
        {"state_dict": {"student.w": torch.zeros(1)}, "defeat": {"classes": ["a"], "config": config}}, path
    )
    return path


def laughs(depth: int = 60) -> list[Any]:
    """One list in two places of a list, and so on: 2**60 values in 60 lists."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value, value]
    return value


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"data": laughs()}, "larger than that of any run"),
        ({"data": laughs(20)}, "larger than that of any run"),
        ({"data": {"root": "${oc.env:HOME}"}}, "'${oc.env:HOME}', which no run writes"),
        ({"data": torch.zeros(1)}, "holds a Tensor"),
        (None, "it is damaged"),
    ],
    ids=["deep", "wide", "interpolation", "tensor", "none"],
)
def test_configurations_in_checkpoints_that_no_run_wrote(config: object, reason: str, tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "a.ckpt", config)
    with pytest.raises(WeightsError) as caught:
        read_weights(path)
    assert reason in line(caught, str(path))


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "defeat.config.os.system",  # a module leads on to all that it imports
        "defeat.detectors.weights.pickle.loads",
        "defeat.config.instantiate",
        "torchvision.models.detection.faster_rcnn.nn.Module",
        "torchvision.models.detection._utils",
        "torchvision.transforms.v2.functional",
        "torch.load",
        "torch.hub.load",
        5,
    ],
)
def test_what_a_checkpoint_wants_built_is_not_built_but_ours(target: object, tmp_path: Path) -> None:
    nested = {
        "_target_": "defeat.detectors.create_detector",
        "model": {"_target_": target, "command": "true"},
    }
    file = read_weights(
        checkpoint(tmp_path / "a.ckpt", {"student": nested, "data": {"list": [{"_target_": target}]}})
    )
    for key in ("student", "data"):
        with pytest.raises(WeightsError) as caught:
            file.node(key, f"{key}=<name>")
        line(caught, "a.ckpt", f"{key} to be built by", f"give {key}=<name>")


def test_what_runs_write_may_be_built(tmp_path: Path) -> None:
    open_to_all = {"_target_": "torchvision.models.detection.ssd300_vgg16", "_partial_": True}
    flip = {"_target_": "torchvision.transforms.v2.ColorJitter", "hue": 0.1}
    config = {"student": {"_target_": "defeat.detectors.create_detector", "model": open_to_all}, "data": flip}
    file = read_weights(checkpoint(tmp_path / "a.ckpt", config))
    assert (file.node("student", ""), file.node("data", "")) == (config["student"], config["data"])
    assert file.node("teacher", "") is None
    for data in ("coco", "voc0712", "scenes", "bccd"):
        words = [f"data={data}", "data.root=x", "run_dir=x"]
        plain = to_plain(compose_config("train", words))
        file = read_weights(checkpoint(tmp_path / "a.ckpt", plain))
        assert file.node("data", "") == plain["data"]
        assert file.node("student", "") == plain["student"]
    assert (conf_dir() / "train.yaml").is_file()


# Command lines


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["distiller.schedule._partial_=1"],
            "distiller.schedule: Instantiation: _partial_ flag must be a bool",
        ),
        (["data=3", "quite=1"], "data=3 is no choice of data: there are "),
        (["preflight=[a,null]"], "preflight=[a,null] is no choice of preflight: there are "),
        (["++data.x='a\nb\x1b[31m'"], "++data.x='a b\\x1b[31m': DetectionDataModule.__init__() got an"),
        (["student.model.aspect_ratios.x=1"], ""),
        (["data.val=teacher"], "data.val=teacher: a group of keys is expected, not text ("),
        (["data.train.annotation_file=true"], "annotation_file must be a path, got True"),
        (
            ["optim.optimizer.weight_decay={}"],
            "optim.optimizer.weight_decay={}: a number is expected, not a group of",
        ),
        (["teacher.weights=5"], ""),
    ],
)
def test_words_that_once_ended_in_a_traceback(
    words: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    base = distillation(tmp_path)
    with pytest.raises(Exception) as caught:  # noqa: PT011 - any, of which explain() makes a line
        build_all(compose_config("train", [*base, *words]))
    told = explain(caught.value, "train", [*base, *words])
    assert told is not None
    assert told.isprintable()
    assert told.startswith(line), told


# The network


def _forbid_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> NoReturn:
        pytest.fail(f"the network was touched: {arguments}")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, fail)
    monkeypatch.setattr(socket, "getaddrinfo", fail)
    monkeypatch.setattr(socket, "create_connection", fail)
    monkeypatch.setattr(urllib.request, "urlopen", fail)
    monkeypatch.setattr(torch.hub, "urlopen", fail)


def enum_names() -> list[str]:
    return [str(entry) for model in list_models(torchvision.models) for entry in get_model_weights(model)]


def test_no_weights_of_torchvision_are_fetched_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _forbid_network(monkeypatch)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    names = enum_names()
    assert len(names) > 100
    for name in names:
        with pytest.raises(WeightsError) as caught:
            read_weights(name)
        line(caught, name, "downloads are off: set download=true")
    assert not (tmp_path / "hub").exists()


def test_every_file_of_torchvision_has_its_checksum_in_its_name() -> None:
    urls = {entry.url for model in list_models(torchvision.models) for entry in get_model_weights(model)}
    assert all(weights._checksum(url.rpartition("/")[2]) for url in urls), urls


class Planted(WeightsEnum):
    """Weights whose file lies in the cache already, where its checksum has not been compared yet."""

    ONE = Weights(url="http://127.0.0.1:9/planted-0123abcd.pth", transforms=None, meta={})


@pytest.mark.parametrize("download", [False, True])
def test_a_file_in_the_cache_is_neither_trusted_nor_run(
    download: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _forbid_network(monkeypatch)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(weights, "get_weight", lambda name: Planted.ONE)
    (tmp_path / "checkpoints").mkdir()
    mark = tmp_path / "mark"
    torch.save(
        {"w": torch.zeros(1), "x": Code(Path.touch, mark)}, tmp_path / "checkpoints" / "planted-0123abcd.pth"
    )
    with pytest.raises(WeightsError) as caught:
        read_weights("Planted.ONE", download=download)
    assert "has another checksum than its name says: delete it" in line(caught, "planted-0123abcd.pth")
    monkeypatch.setattr(
        weights, "_checksum", lambda name: None
    )  # even a file with the right one runs nothing
    with pytest.raises(WeightsError, match="could run code"):
        read_weights("Planted.ONE", download=download)
    assert not mark.exists()


def test_building_our_detectors_touches_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _forbid_network(monkeypatch)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    made = create_detector(lambda num_classes: faster_rcnn(num_classes, backbone="resnet10"), CLASSES)
    assert isinstance(made.model, nn.Module)


@pytest.mark.parametrize("name", ["", " ", "~nosuchuser/x.pth", "a" * 5000, "a\0b", "x\n.pth", 5, ["a"], {}])
def test_names_of_weights_that_can_name_nothing(name: Any) -> None:
    with pytest.raises(WeightsError) as caught:
        read_weights(name)
    line(caught)
