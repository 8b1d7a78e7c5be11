"""Decoding: every mode that image files come in becomes 8-bit RGB."""

from __future__ import annotations

import struct
import zlib
from os import PathLike

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from defeat.errors import DataError

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
"""What may be decoded. Pillow knows more, some of which start other programs (EPS runs Ghostscript)."""

_DECODING_ERRORS = (
    OSError,  # unreadable, unknown format, truncated
    SyntaxError,  # broken PNG and TIFF headers
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    EOFError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,  # raised where warnings are errors
)


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
    try:
        with Image.open(path, formats=FORMATS) as image:
            _check_pixels(image)
            array = _to_rgb(_as_expected(image, expected_size, path))
    except _DECODING_ERRORS as error:
        raise DataError(f"image {path} cannot be decoded: {_reason(error)}") from error
    return torch.from_numpy(array).permute(2, 0, 1).contiguous()


def read_size(path: str | PathLike[str]) -> tuple[int, int]:
    """(width, height) pixels as an image file's header gives them; raises like :func:`read_image`."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            return image.size
    except _DECODING_ERRORS as error:
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
    found, wanted = f"{image.width}x{image.height}", f"{expected[0]}x{expected[1]}"
    raise DataError(
        f"image {path} is {found} pixels, but its annotation says {wanted}, so its boxes would lie wrong; "
        "mend the annotation or put the right image there"
    )


def _to_rgb(image: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8."""
    if image.mode.startswith("I;16"):
        return _grey(np.asarray(image).astype(np.uint16) >> 8)
    if image.mode == "I":  # 16-bit pictures of formats where Pillow has no mode of that width
        return _grey(np.clip(np.asarray(image), 0, 65535) >> 8)
    if image.mode == "F":
        values = np.nan_to_num(np.asarray(image))
        return _grey(np.clip(values * 255 if values.max(initial=0) <= 1 else values, 0, 255).round())
    if image.mode in ("P", "PA"):  # straight to RGB warns where the palette holds transparency
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))


def _grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values.astype(np.uint8)[:, :, None], 3, axis=2)


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).replace("\n", " ") or type(error).__name__
