"""Image files with anything wrong: a picture of the size that its header says, or one line."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from PIL import Image

from defeat.data import read_image
from defeat.data.images import read_size
from defeat.errors import DataError
from tests.helpers.mutations import ByteChange, byte_changes, change_bytes
from tests.helpers.trials import Tally, refused, sizes, try_inputs

pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow's remarks on damaged files, as a user has them

SIZE = (20, 12)


def pictures() -> dict[str, bytes]:
    """A small file of every format and of every mode that is decoded in a way of its own."""
    ramp = np.arange(SIZE[0] * SIZE[1], dtype=np.uint8).reshape(SIZE[::-1])
    rgb = Image.fromarray(np.stack([ramp, ramp[::-1], 255 - ramp], axis=-1))
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a text"
    exif.get_ifd(0x8769)[0x9003] = "2020:01:01 00:00:00"
    files: dict[str, tuple[Image.Image, str, dict[str, object]]] = {
        "jpeg": (rgb, "JPEG", {}),
        "jpeg progressive": (rgb, "JPEG", {"progressive": True}),
        "jpeg cmyk": (rgb.convert("CMYK"), "JPEG", {}),
        "jpeg exif": (rgb, "JPEG", {"exif": exif}),
        "mpo": (rgb, "MPO", {"save_all": True, "append_images": [rgb]}),
        "png": (rgb, "PNG", {}),
        "png exif": (rgb, "PNG", {"exif": exif}),
        "png 16": (Image.fromarray(ramp.astype(np.uint16) * 256), "PNG", {}),
        "png palette": (rgb.quantize(16), "PNG", {"transparency": b"\x00\x80"}),
        "bmp": (rgb, "BMP", {}),
        "gif": (rgb.quantize(8), "GIF", {"save_all": True, "append_images": [rgb.quantize(4)]}),
        "tiff": (rgb, "TIFF", {}),
        "tiff deflate": (rgb, "TIFF", {"compression": "tiff_deflate"}),
        "tiff lzw": (rgb, "TIFF", {"compression": "tiff_lzw"}),
        "tiff float": (Image.fromarray(ramp.astype(np.float32)), "TIFF", {}),
        "webp": (rgb, "WEBP", {"exif": exif}),
        "webp animation": (rgb, "WEBP", {"save_all": True, "append_images": [rgb.rotate(180)]}),
        "ppm": (rgb, "PPM", {}),
        "pgm 16": (Image.fromarray(ramp.astype(np.uint16) * 256), "PPM", {}),
        "pfm": (Image.fromarray(ramp.astype(np.float32)), "PPM", {}),
    }
    saved = {}
    for name, (image, format_, options) in files.items():
        image.save(buffer := io.BytesIO(), format_, **options)
        saved[name] = buffer.getvalue()
    return saved


class Inner(NamedTuple):
    """A change to what checksums or structure protect: a chunk of a PNG, an entry of a TIFF or of EXIF."""

    which: int
    field: int
    value: int


class Case(NamedTuple):
    name: str
    other: str
    inner: list[Inner]
    text: list[ByteChange]
    expected: tuple[int, int] | None


NAMES = sorted(pictures())

numbers = st.sampled_from([0, 1, 2, 3, 7, 255, 256, 65535, 2**16, 2**31 - 1, 2**31, 2**32 - 1]) | st.integers(
    0, 2**32 - 1
)
cases = st.builds(
    Case,
    st.sampled_from(NAMES),
    st.sampled_from(NAMES),
    st.lists(st.builds(Inner, st.integers(0, 40), st.integers(0, 3), numbers), max_size=3),
    st.just([]) | byte_changes,
    st.sampled_from([None, SIZE, SIZE[::-1], (21, 12)]),
)


@sizes(quick=200, full=1500)
def test_changed_pictures(examples: int, tmp_path: Path, tally: Tally) -> None:
    files, path = pictures(), tmp_path / "picture.img"
    for name, data in files.items():
        path.write_bytes(data)
        assert read_image(path, SIZE).shape == (3, *SIZE[::-1]), name

    def check(case: Case) -> str:
        data = files[case.name]
        for inner in case.inner:
            data = change_inside(data, inner)
        path.write_bytes(change_bytes(data, case.text, files[case.other]))
        try:
            picture = read_image(path, case.expected)
        except DataError as error:
            return refused(error, str(path))
        width, height = read_size(path)
        assert picture.dtype == torch.uint8
        assert picture.is_contiguous()
        assert picture.shape in ((3, height, width), (3, width, height))
        assert min(width, height) >= 1
        if case.expected is not None:
            assert picture.shape == (3, *case.expected[::-1])
        return "decoded"

    try_inputs("images", cases, check, examples, tally)


def change_inside(data: bytes, inner: Inner) -> bytes:
    for magic, change in CHANGES.items():
        if data.startswith(magic):
            return change(data, inner)
    return data


def change_png(data: bytes, inner: Inner) -> bytes:
    """Overwrite 4 bytes of a chunk, and give it the right checksum again."""
    chunks, at = [], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    if not chunks:
        return data
    which = inner.which % len(chunks)
    kind, body = chunks[which]
    start = inner.field * 4
    chunks[which] = kind, body[:start] + struct.pack(">I", inner.value) + body[start + 4 :]
    framed = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )
    return data[:8] + b"".join(framed)


def change_tiff(data: bytes, inner: Inner) -> bytes:
    """Overwrite the tag, type, count or value of an entry of the first directory."""
    (directory,) = struct.unpack("<I", data[4:8])
    (entries,) = struct.unpack("<H", data[directory : directory + 2].ljust(2, b"\0"))
    at = directory + 2 + 12 * (inner.which % max(entries, 1)) + (0, 2, 4, 8)[inner.field]
    value = struct.pack("<H", inner.value % 2**16) if inner.field < 2 else struct.pack("<I", inner.value)
    return data[:at] + value + data[at + len(value) :]


def change_after(mark: bytes) -> Callable[[bytes, Inner], bytes]:
    """Overwrite bytes soon after a mark, such as that of EXIF."""

    def change(data: bytes, inner: Inner) -> bytes:
        found = data.find(mark)
        if found < 0:
            return data
        at = found + len(mark) + inner.which * 2
        value = struct.pack("<I", inner.value)[: inner.field + 1]
        return data[:at] + value + data[at + len(value) :]

    return change


CHANGES: dict[bytes, Callable[[bytes, Inner], bytes]] = {
    b"\x89PNG": change_png,
    b"II*\0": change_tiff,
    b"\xff\xd8": change_after(b"Exif\0\0"),
    b"RIFF": change_after(b"EXIF"),
    b"GIF": change_after(b"GIF89a"),
    b"BM": change_after(b"BM"),
    b"P6": change_after(b"P6"),
}
