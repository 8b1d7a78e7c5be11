"""Decoding: every mode that image files come in becomes 8-bit RGB."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from typing import NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from defeat.errors import DataError
from defeat.io.safe_read import open_regular
from defeat.io.text import one_line
from defeat.types import ExifRule

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
"""The formats that are decoded. Pillow knows more; some start other programs (EPS runs Ghostscript)."""

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
"""What the names of pictures end with, in lower case; a picture is looked for in this order."""

AS_STORED = ExifRule()
"""Pictures are turned only where only the turned one has the annotated size."""

_TRANSPOSING = 5
"""From this EXIF orientation on width and height change places."""

_LARGEST = 2**30  # bytes; the most pixels that may be decoded take less in any format


class Header(NamedTuple):
    """What an image file says about itself before its pixels."""

    size: tuple[int, int]
    """(width, height) pixels, as stored."""
    orientation: int
    """1..8, as EXIF numbers them; 1 where none is given or it makes no sense."""

    @property
    def turned_size(self) -> tuple[int, int]:
        """The size after turning the picture as its orientation says."""
        return self.size[::-1] if self.orientation >= _TRANSPOSING else self.size


def read_image(
    path: str | PathLike[str], expected_size: tuple[int, int] | None = None, exif: ExifRule = AS_STORED
) -> Tensor:
    """Decode an image file to RGB.

    Transparency is dropped, as OpenCV and torchvision do. 16-bit grey keeps its upper 8 bits. Float grey is
    taken as 0..1 if nothing in it is larger, else as 0..255. Of an animation the first frame is taken.

    Args:
        path: a JPEG, PNG, BMP, GIF, TIFF, WebP or PPM file.
        expected_size: (width, height) pixels that the annotation gives.
        exif: decides whether the picture is turned as its EXIF orientation says. By default it is where only
            the turned one has the expected size; else it stays as stored, as COCO's boxes suppose.

    Returns:
        (3, H, W) uint8, contiguous.

    Raises:
        DataError: the file cannot be decoded, is absurdly large, or has another size; the message names the
            file.
    """
    with _opened(path) as image:
        return to_rgb_tensor(_as_expected(image, expected_size, exif, path))


def to_rgb_tensor(image: Image.Image) -> Tensor:
    """Convert an image of any mode to a (3, H, W) uint8 RGB tensor, by the rules of :func:`read_image`."""
    return torch.from_numpy(_to_planes(image))


def read_header(path: str | PathLike[str]) -> Header:
    """Read size and orientation without decoding the pixels; raises like :func:`read_image`."""
    with _opened(path) as image:
        return Header(image.size, _orientation(image))


def read_size(path: str | PathLike[str]) -> tuple[int, int]:
    """Return (width, height) in pixels, as stored; raises like :func:`read_image`."""
    return read_header(path).size


@contextmanager
def _opened(path: str | PathLike[str]) -> Iterator[Image.Image]:
    """Open an image; whatever goes wrong within is an error of its file, and is raised as one."""
    try:
        with open_regular(path, _LARGEST) as file, Image.open(file, formats=FORMATS) as image:
            _check_pixels(image)
            yield image
    except DataError:
        raise
    except Exception as error:  # nearly any: Pillow's parsers stumble over damaged bytes in many ways
        raise DataError(f"image {path} cannot be decoded: {_reason(error)}") from error


def _check_pixels(image: Image.Image) -> None:
    """Pillow only warns below twice its limit, and warning filters cannot be changed safely among threads."""
    pixels = image.width * image.height
    if Image.MAX_IMAGE_PIXELS is not None and pixels > Image.MAX_IMAGE_PIXELS:
        limit = f"PIL.Image.MAX_IMAGE_PIXELS = {Image.MAX_IMAGE_PIXELS}"
        raise Image.DecompressionBombError(f"{image.width}x{image.height} pixels are more than {limit}")


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation; Pillow turns a TIFF by itself, of which it is a proper part."""
    if image.format == "TIFF":
        return 1
    try:
        # of the base class: that of PNG decodes the whole picture where no EXIF data come before the pixels
        orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged in any of many ways
        return 1
    return orientation if orientation in range(2, 9) else 1


def _as_expected(
    image: Image.Image, expected: tuple[int, int] | None, exif: ExifRule, path: str | PathLike[str]
) -> Image.Image:
    size = image.size
    if not exif.apply and (image.size == expected or expected is None):
        return image
    header = Header(size, _orientation(image))
    if turns(header, expected, exif):
        image, size = ImageOps.exif_transpose(image), header.turned_size
    if expected is None or size == expected:
        return image
    actual, wanted = f"{size[0]}x{size[1]}", f"{expected[0]}x{expected[1]}"
    raise DataError(
        f"image {path} is {actual} pixels, but its annotation says {wanted}, so its boxes would lie wrong; "
        f"correct the annotation or put the right image there{_told(header, exif)}"
    )


def turns(header: Header, expected: tuple[int, int] | None, exif: ExifRule) -> bool:
    """Tell whether a picture is turned as its orientation says; never where it says nothing."""
    if header.orientation == 1:
        return False
    if exif.by_size and header.size != header.turned_size and expected in (header.size, header.turned_size):
        return expected == header.turned_size
    return exif.apply


def _told(header: Header, exif: ExifRule) -> str:
    if exif.by_size or header.orientation == 1:
        return ""
    return f" (EXIF orientation {header.orientation}; data.exif={'apply' if exif.apply else 'ignore'})"


def _to_planes(image: Image.Image) -> np.ndarray:
    """Return (3, H, W) uint8; works in place where it can, for the largest image takes 360 MB a copy."""
    if image.mode.startswith("I;16"):
        return _grey(np.asarray(image).astype(np.uint16) >> 8)
    if image.mode == "I":  # 16-bit pictures of formats where Pillow has no mode of that width
        values = np.clip(np.asarray(image), 0, 65535)
        values >>= 8
        return _grey(values)
    if image.mode == "F":
        values = np.nan_to_num(np.array(image), copy=False)
        if values.max(initial=0) <= 1:
            values *= 255
        return _grey(np.clip(values, 0, 255, out=values).round(out=values))
    if image.mode in ("P", "PA"):  # straight to RGB warns where the palette holds transparency
        image = image.convert("RGBA")
    if image.mode != "RGB":
        image = image.convert("RGB")
    planes = np.empty((3, image.height, image.width), dtype=np.uint8)
    # Pillow takes colours apart several times faster than NumPy turns pixels into planes
    for plane, colour in zip(planes.reshape(3, -1), "RGB", strict=True):
        plane[:] = np.frombuffer(image.tobytes("raw", colour), dtype=np.uint8)
    return planes


def _grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values.astype(np.uint8)[None], 3, axis=0)


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"cannot identify image file, which must be one of {', '.join(FORMATS)}"
    if isinstance(error, MemoryError):
        return "it takes more memory than there is"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return one_line(str(error), 200) or type(error).__name__
