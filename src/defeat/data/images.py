"""Decoding: every mode that image files come in becomes 8-bit RGB."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from defeat.errors import DataError
from defeat.io.safe_read import open_regular
from defeat.io.text import one_line

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
"""The formats that are decoded. Pillow knows more; some start other programs (EPS runs Ghostscript)."""

_LARGEST = 2**30  # bytes; the most pixels that may be decoded take less in any format


def read_image(path: str | PathLike[str], expected_size: tuple[int, int] | None = None) -> Tensor:
    """Decode an image file to RGB.

    Transparency is dropped, as OpenCV and torchvision do. 16-bit grey keeps its upper 8 bits. Float grey is
    taken as 0..1 if nothing in it is larger, else as 0..255. Of an animation the first frame is taken.

    Args:
        path: a JPEG, PNG, BMP, GIF, TIFF, WebP or PPM file.
        expected_size: (width, height) pixels that the annotation gives. Where only the picture turned as its
            EXIF orientation says has that size, it is turned; else it stays as stored, as COCO's boxes
            suppose.

    Returns:
        (3, H, W) uint8, contiguous.

    Raises:
        DataError: the file cannot be decoded, is absurdly large, or has another size; the message names the
            file.
    """
    with _opened(path) as image:
        return torch.from_numpy(_to_planes(_as_expected(image, expected_size, path)))


def read_size(path: str | PathLike[str]) -> tuple[int, int]:
    """Return (width, height) in pixels from an image file's header; raises like :func:`read_image`."""
    with _opened(path) as image:
        return image.size


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


def _as_expected(
    image: Image.Image, expected: tuple[int, int] | None, path: str | PathLike[str]
) -> Image.Image:
    if expected is None or image.size == expected:
        return image
    turned = ImageOps.exif_transpose(image)
    if turned.size == expected:
        return turned
    actual, wanted = f"{image.width}x{image.height}", f"{expected[0]}x{expected[1]}"
    raise DataError(
        f"image {path} is {actual} pixels, but its annotation says {wanted}, so its boxes would lie wrong; "
        "correct the annotation or put the right image there"
    )


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
