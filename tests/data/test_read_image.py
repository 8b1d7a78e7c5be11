from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from defeat.data import read_image
from defeat.errors import DataError

RAMP = np.arange(12 * 20, dtype=np.uint8).reshape(12, 20)
COLOURS = np.stack([RAMP, RAMP[::-1], 255 - RAMP], axis=-1)


def read(path: Path, image: Image.Image, **options: object) -> np.ndarray:
    """Save, read, and give (H, W, 3) back."""
    image.save(path, **options)
    tensor = read_image(path)
    assert tensor.dtype == torch.uint8
    assert tensor.shape == (3, image.height, image.width)
    assert tensor.is_contiguous()
    return tensor.permute(1, 2, 0).numpy()


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[:, :, None], 3, axis=2).astype(np.uint8)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "ppm", "webp"])
def test_rgb_in_every_lossless_format(tmp_path: Path, suffix: str) -> None:
    options = {"lossless": True} if suffix == "webp" else {}
    assert np.array_equal(read(tmp_path / f"a.{suffix}", Image.fromarray(COLOURS), **options), COLOURS)


def test_grey(tmp_path: Path) -> None:
    assert np.array_equal(read(tmp_path / "a.png", Image.fromarray(RAMP)), grey(RAMP))


def test_one_bit(tmp_path: Path) -> None:
    bits = RAMP % 3 == 0
    assert np.array_equal(read(tmp_path / "a.png", Image.fromarray(bits)), grey(bits * 255))


def test_transparency_is_dropped(tmp_path: Path) -> None:
    alpha = np.full_like(RAMP, 3)
    assert np.array_equal(read(tmp_path / "a.png", Image.fromarray(np.dstack([COLOURS, alpha]))), COLOURS)
    assert np.array_equal(read(tmp_path / "b.png", Image.fromarray(np.dstack([RAMP, alpha]))), grey(RAMP))


@pytest.mark.parametrize("transparency", [None, 1, b"\x00\x80\xff"])
def test_palette_with_and_without_transparency(tmp_path: Path, transparency: int | bytes | None) -> None:
    palette = np.array([[255, 0, 0], [0, 255, 0], [7, 8, 9]], dtype=np.uint8)
    image = Image.fromarray(RAMP % 3, mode=None).convert("L")
    image.putpalette(palette.tobytes())
    options = {} if transparency is None else {"transparency": transparency}
    assert np.array_equal(read(tmp_path / "a.png", image, **options), palette[RAMP % 3])


@pytest.mark.parametrize("format_", ["JPEG", "TIFF"])
def test_cmyk(tmp_path: Path, format_: str) -> None:
    image = Image.new("CMYK", (20, 12), (0, 255, 255, 0))  # red in ink
    result = read(tmp_path / "a.img", image, format=format_)
    assert np.abs(result.astype(int) - [255, 0, 0]).max() <= 3


def test_16_bit_png_keeps_its_upper_byte(tmp_path: Path) -> None:
    values = RAMP.astype(np.uint16) * 256 + 77
    path = tmp_path / "a.png"
    Image.fromarray(values).save(path)
    with Image.open(path) as stored:
        assert stored.mode == "I;16"
    assert np.array_equal(read_image(path).permute(1, 2, 0).numpy(), grey(RAMP))


def test_16_bit_big_endian_tiff(tmp_path: Path) -> None:
    values = RAMP.astype(np.uint16) * 256 + 77
    image = Image.frombytes("I;16B", (20, 12), values.astype(">u2").tobytes())
    assert np.array_equal(read(tmp_path / "a.tiff", image), grey(RAMP))


def test_32_bit_whole_numbers_are_taken_as_16_bit(tmp_path: Path) -> None:
    values = RAMP.astype(np.int32) * 256 + 77
    values[0, :2] = (-5, 70_000)
    expected = RAMP.copy()
    expected[0, :2] = (0, 255)
    assert np.array_equal(read(tmp_path / "a.tiff", Image.fromarray(values)), grey(expected))


def test_floats_are_taken_as_0_to_1_or_as_0_to_255(tmp_path: Path) -> None:
    assert np.array_equal(read(tmp_path / "a.tiff", Image.fromarray(RAMP / np.float32(255))), grey(RAMP))
    wide = RAMP.astype(np.float32)
    wide[0, :3] = (-3, np.nan, 300)
    expected = RAMP.copy()
    expected[0, :3] = (0, 0, 255)
    assert np.array_equal(read(tmp_path / "b.tiff", Image.fromarray(wide)), grey(expected))


def test_of_an_animation_the_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "a.gif")[:, 0, 0].tolist() == [255, 0, 0]


def test_of_a_camera_file_with_several_pictures_the_first(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (16, 8), colour) for colour in ("white", "black")]
    frames[0].save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "a.jpg").min() > 250


def turned(path: Path, orientation: int) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(COLOURS).save(path, exif=exif)
    return path


def test_exif_turns_only_where_the_annotation_asks_for_it(tmp_path: Path) -> None:
    path = turned(tmp_path / "a.png", 6)
    stored = torch.from_numpy(COLOURS).permute(2, 0, 1)
    assert torch.equal(read_image(path), stored)
    assert torch.equal(read_image(path, (20, 12)), stored)
    assert torch.equal(read_image(path, (12, 20)), stored.rot90(-1, (1, 2)))


def test_another_size_is_an_error_that_names_both(tmp_path: Path) -> None:
    path = turned(tmp_path / "a.png", 3)  # upside down: no turn helps
    with pytest.raises(DataError) as caught:
        read_image(path, (12, 20))
    assert f"image {path} is 20x12 pixels, but its annotation says 12x20" in str(caught.value)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jpg cannot be decoded: No such file"):
        read_image(tmp_path / "none.jpg")
    with pytest.raises(DataError, match=r"cannot be decoded"):
        read_image(tmp_path)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_truncated_files(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match="cannot be decoded"):
        read_image(path)


def test_a_format_that_would_start_another_program_is_not_known(tmp_path: Path) -> None:
    Image.fromarray(COLOURS).save(tmp_path / "a.eps")
    with pytest.raises(DataError, match=r"a\.eps cannot be decoded: cannot identify image file"):
        read_image(tmp_path / "a.eps")


@pytest.mark.parametrize("content", [b"", b"not a picture"])
def test_files_that_are_no_pictures(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.jpg cannot be decoded"):
        read_image(tmp_path / "a.jpg")


@pytest.mark.parametrize("limit", [239, 100])  # Pillow warns above its limit and raises above twice that
@pytest.mark.filterwarnings("ignore")
def test_decompression_bombs_are_refused_whatever_the_warning_filter(
    tmp_path: Path, monkeypatch, limit: int
) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(COLOURS).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(DataError, match=r"a\.png cannot be decoded: .*pixels"):
        read_image(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 240)
    read_image(path)


def test_a_bomb_is_refused_where_warnings_are_errors(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(COLOURS).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 239)
    with pytest.raises(DataError, match=r"a\.png cannot be decoded"):
        read_image(path)
