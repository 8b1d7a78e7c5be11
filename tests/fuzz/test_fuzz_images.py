"""Image files with anything wrong: a picture of the size that its header says, or one line."""

from __future__ import annotations

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from PIL import Image

from defeat.data import read_image
from defeat.data.images import read_header, read_size
from defeat.errors import DataError
from defeat.types import ExifRule
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
    upside_down, absurd = Image.Exif(), Image.Exif()
    upside_down[0x0112], absurd[0x0112] = 3, 9
    files: dict[str, tuple[Image.Image, str, dict[str, object]]] = {
        "jpeg": (rgb, "JPEG", {}),
        "jpeg progressive": (rgb, "JPEG", {"progressive": True}),
        "jpeg cmyk": (rgb.convert("CMYK"), "JPEG", {}),
        "jpeg exif": (rgb, "JPEG", {"exif": exif}),
        "jpeg upside down": (rgb, "JPEG", {"exif": upside_down}),
        "jpeg absurd exif": (rgb, "JPEG", {"exif": absurd}),
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


class Case(NamedTuple):
    name: str
    other: str
    text: list[ByteChange]
    expected: tuple[int, int] | None
    exif: ExifRule


NAMES = sorted(pictures())

cases = st.builds(
    Case,
    st.sampled_from(NAMES),
    st.sampled_from(NAMES),
    byte_changes,
    st.sampled_from([None, SIZE, SIZE[::-1], (21, 12)]),
    st.builds(ExifRule, st.booleans(), st.booleans()),
)


@sizes(quick=100, full=1500)
def test_changed_pictures(examples: int, tmp_path: Path, tally: Tally) -> None:
    files, path = pictures(), tmp_path / "picture.img"
    for name, data in files.items():
        path.write_bytes(data)
        assert read_image(path, SIZE).shape == (3, *SIZE[::-1]), name

    def check(case: Case) -> str:
        path.write_bytes(change_bytes(files[case.name], case.text, files[case.other]))
        try:
            picture = read_image(path, case.expected, case.exif)
        except DataError as error:
            return refused(error, str(path))
        header = read_header(path)
        width, height = read_size(path)
        assert header.orientation in range(1, 9)
        assert picture.dtype == torch.uint8
        assert picture.is_contiguous()
        assert picture.shape in ((3, height, width), (3, width, height))
        assert min(width, height) >= 1
        if case.expected is not None:
            assert picture.shape == (3, *case.expected[::-1])
        return "decoded"

    try_inputs("images", cases, check, examples, tally)
