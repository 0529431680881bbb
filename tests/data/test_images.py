"""Decoding and resizing: golden values, every kind of image, broken files, the spec, folders, reading in order."""

from __future__ import annotations

import io
import json
import os

import numpy as np
import pytest
from PIL import Image, ImageOps

from pycap.data import DataError, images, resize
from pycap.data.images import (
    ImageError,
    PreprocessSpec,
    centre_crops,
    decode_image,
    encode_jpeg,
    preview,
)
from pycap.data.resize import squash
from tests.data.fixtures import pattern, quadrants, truncate, write_jpeg

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def as_bytes(image: Image.Image, form: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def corners(pixels: np.ndarray) -> list[tuple[int, ...]]:
    """Top left, top right, bottom left, bottom right, two pixels in, rounded to 0 or 255."""
    near, far = 2, pixels.shape[0] - 3
    picked = [pixels[near, near], pixels[near, far], pixels[far, near], pixels[far, far]]
    return [tuple(int(v > 127) * 255 for v in p) for p in picked]


# -- the resize -------------------------------------------------------------------------------------------------------

# `pattern(7, 9, seed=3)` squashed to 4 x 4. Captions of trained models go wrong when these change.
GOLDEN = [
    [[26, 22, 113], [90, 22, 115], [164, 22, 117], [228, 22, 119]],
    [[26, 88, 114], [90, 88, 116], [164, 88, 118], [228, 88, 120]],
    [[26, 166, 116], [90, 166, 118], [164, 166, 120], [228, 166, 122]],
    [[26, 233, 117], [90, 233, 119], [164, 233, 121], [228, 233, 123]],
]


def test_golden_values_of_the_resize():
    pixels = decode_image(as_bytes(Image.fromarray(pattern(7, 9, seed=3))), 4)
    assert pixels.dtype == np.uint8
    assert pixels.tolist() == GOLDEN


def test_resize_is_an_antialiased_triangle_filter():
    """Against the filter's definition: weights max(0, 1 - |distance| / scale) about each target's centre, per axis."""
    source = pattern(23, 31, seed=5).astype(np.float64)
    size = 6

    def weights(length: int) -> np.ndarray:
        scale = length / size
        centres = (np.arange(size)[:, None] + 0.5) * scale
        w = np.maximum(0.0, 1.0 - np.abs(np.arange(length)[None] + 0.5 - centres) / scale)
        return w / w.sum(axis=1, keepdims=True)

    expected = np.einsum("ay,yxc,bx->abc", weights(23), source, weights(31))
    pixels = decode_image(as_bytes(Image.fromarray(source.astype(np.uint8))), size)
    assert np.abs(pixels - expected).max() < 1.5


def test_enlarging_and_equal_size():
    small = pattern(5, 5)
    assert decode_image(as_bytes(Image.fromarray(small)), 5).tolist() == small.tolist()
    assert decode_image(as_bytes(Image.fromarray(small)), 11).shape == (11, 11, 3)


def photograph_like(width: int, height: int) -> Image.Image:
    """Noise that is smooth at every scale from 256 pixels to 1, little weaker where it is finer; the colours weaker than
    the grey: reduced, it changes about as much as a photograph does.
    """
    rng = np.random.default_rng(1)
    total = np.zeros((height, width, 3))
    for cell in (256, 128, 64, 32, 16, 8, 4, 2, 1):
        coarse = rng.standard_normal((height // cell + 2, width // cell + 2, 3)).astype(np.float32)
        layers = [Image.fromarray(coarse[..., c]).resize((width, height), Image.Resampling.BICUBIC) for c in range(3)]
        total += cell**0.2 * np.stack(layers, axis=2)
    total = (total + total.mean(axis=2, keepdims=True)) / 2
    return Image.fromarray(np.clip(128 + 60 * (total - total.mean()) / total.std(), 0, 255).astype(np.uint8))


def text_like(width: int, height: int) -> Image.Image:
    """Lines of letters, black on white: what reductions change most."""
    rng = np.random.default_rng(0)
    page = np.full((height, width, 3), 255, np.uint8)
    for y in range(8, height - 12, 14):
        for x in range(8, width - 12, 7):
            page[y : y + 9, x : x + 6][rng.random((9, 6)) < (0.45 if rng.random() < 0.85 else 0)] = 0
    return Image.fromarray(page)


def reduction(image: Image.Image, size: int) -> np.ndarray:
    """Levels between the decoded JPEG of an image and the squash of all of the JPEG's pixels."""
    data = as_bytes(image, "JPEG", quality=90)
    full = np.empty((size, size, 3), np.uint8)
    with Image.open(io.BytesIO(data)) as whole:
        squash(whole.convert("RGB"), full)
    return np.abs(decode_image(data, size).astype(int) - full)


# 643 x 487: no multiple of 8, so that the decoder's last blocks reach over the edges.
@pytest.mark.parametrize("size", [121, 60, 30])
def test_reduced_jpegs_keep_within_the_stated_bound(size):
    """By 2, 4 and 8. The bound is decode_image's; looser rules more than double the difference."""
    levels = reduction(photograph_like(643, 487), size)
    assert 0 < levels.mean() < 1  # 0: the decoder did not reduce, and a large JPEG costs its full size
    assert np.quantile(levels, 0.999) <= 8


@pytest.mark.parametrize("size", [121, 60, 30])
def test_reduced_letters(size):
    levels = reduction(text_like(643, 487), size)
    assert levels.mean() < 3.5
    assert levels.max() <= 22


def test_jpegs_that_are_not_large_are_not_reduced():
    assert reduction(text_like(643, 487), 122).max() == 0


def test_reduced_jpegs_are_the_same_without_the_kernel(monkeypatch):
    data = as_bytes(photograph_like(643, 487), "JPEG", quality=90)
    there = [decode_image(data, size) for size in (121, 60, 30)]
    monkeypatch.setattr(resize, "_kernel", lambda: None)
    for expected in there:
        assert np.array_equal(decode_image(data, len(expected)), expected)


def test_bytes_and_path_give_the_same_pixels(tmp_path):
    path = write_jpeg(tmp_path / "a.jpg")
    assert decode_image(path, 16).tolist() == decode_image(path.read_bytes(), 16).tolist()


@pytest.mark.parametrize("orientation", [1, 6])
def test_pixels_go_where_the_caller_wants_them(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = as_bytes(quadrants(), "JPEG", exif=exif)
    room = np.full((3, 32, 32, 3), 9, np.uint8)
    returned = decode_image(data, 32, out=room[1])
    assert np.shares_memory(returned, room)
    assert np.array_equal(room[1], decode_image(data, 32))
    assert (room[[0, 2]] == 9).all()


# -- kinds of image ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_grey_scale(form):
    grey = Image.fromarray(pattern(32, 32)[..., 0])
    pixels = decode_image(as_bytes(grey, form), 16)
    assert pixels.shape == (16, 16, 3)
    assert (pixels == pixels[..., :1]).all()
    assert pixels[0, 0, 0] < 20
    assert pixels[0, -1, 0] > 235


def test_cmyk():
    pixels = decode_image(as_bytes(quadrants().convert("CMYK"), "JPEG", quality=95, subsampling=0), 32)
    assert corners(pixels) == [RED, GREEN, BLUE, WHITE]


def test_palette():
    image = quadrants().quantize(8)
    assert image.mode == "P"
    assert corners(decode_image(as_bytes(image), 32)) == [RED, GREEN, BLUE, WHITE]


def test_palette_with_transparency_is_laid_on_white():
    image = quadrants().quantize(8)
    red = image.getpixel((0, 0))
    assert corners(decode_image(as_bytes(image, transparency=red), 32)) == [WHITE, GREEN, BLUE, WHITE]


def test_rgba_is_laid_on_white_by_its_alpha():
    image = quadrants().convert("RGBA")
    image.paste((255, 0, 0, 0), (0, 0, 32, 32))
    image.paste((0, 0, 0, 51), (32, 0, 64, 32))
    pixels = decode_image(as_bytes(image), 32)
    assert pixels[3, 3].tolist() == [255, 255, 255]
    assert pixels[3, 28].tolist() == [204, 204, 204]
    assert corners(pixels)[2] == BLUE


def test_grey_with_alpha_and_one_bit():
    pixels = decode_image(as_bytes(Image.new("LA", (8, 8), (0, 0))), 4)
    assert (pixels == 255).all()
    one_bit = Image.new("1", (8, 8), 1)
    one_bit.paste(0, (0, 0, 4, 8))
    assert decode_image(as_bytes(one_bit), 8)[0, [0, 7], 0].tolist() == [0, 255]


def test_sixteen_bits_are_scaled_not_clipped():
    ramp = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (64, 1))
    pixels = decode_image(as_bytes(Image.fromarray(ramp)), 64)
    assert pixels[0, :, 0].tolist() == np.rint(ramp[0] / 257.0).astype(int).tolist()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "I;16", "CMYK", "1"])
def test_conversion_in_bands_changes_no_bit(monkeypatch, mode):
    rng = np.random.default_rng(3)
    if mode == "I;16":
        image = Image.fromarray(rng.integers(0, 65536, (41, 30), dtype=np.uint16))
    else:
        image = Image.fromarray(rng.integers(0, 256, (41, 30, 4), dtype=np.uint8))
        image = image.convert("RGB").quantize(16) if mode == "P" else image.convert(mode)
    options = {"transparency": 3} if mode == "P" else {}
    data = as_bytes(image, "TIFF" if mode == "CMYK" else "PNG", **options)
    whole = decode_image(data, 37)
    monkeypatch.setattr(images, "_BAND", 4 * 30 + 7)  # four rows, ten times, and one
    assert np.array_equal(decode_image(data, 37), whole)


def test_multi_picture_jpeg_gives_its_first_picture():
    data = as_bytes(quadrants(), "MPO", save_all=True, append_images=[Image.new("RGB", (64, 64))], quality=95)
    assert corners(decode_image(data, 32)) == [RED, GREEN, BLUE, WHITE]


@pytest.mark.parametrize("form", ["BMP", "GIF", "WEBP", "TIFF", "PPM"])
def test_other_formats(form):
    assert corners(decode_image(as_bytes(quadrants(), form), 32)) == [RED, GREEN, BLUE, WHITE]


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation, form):
    upright = quadrants()
    turn = images._UPRIGHT.get(orientation)
    # As a camera stores it: turned the other way about. Only the quarter turns are not their own inverse.
    inverse = {
        Image.Transpose.ROTATE_90: Image.Transpose.ROTATE_270,
        Image.Transpose.ROTATE_270: Image.Transpose.ROTATE_90,
    }
    stored = upright if turn is None else upright.transpose(inverse.get(turn, turn))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = as_bytes(stored, form, exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        assert corners(np.asarray(ImageOps.exif_transpose(image).convert("RGB"))) == [RED, GREEN, BLUE, WHITE]
    assert corners(decode_image(data, 32)) == [RED, GREEN, BLUE, WHITE]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff"])
def test_a_broken_exif_block_does_not_cost_the_image(exif):
    assert corners(decode_image(as_bytes(quadrants(), "JPEG", exif=exif), 32)) == [RED, GREEN, BLUE, WHITE]


# -- for people to look at --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_preview_is_small_upright_and_in_proportion(orientation, form):
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = quadrants().resize((300, 150))
    data = as_bytes(upright.rotate({1: 0, 3: 180, 6: 90, 8: -90}[orientation], expand=True), form, exif=exif)
    with Image.open(io.BytesIO(preview(data, 100))) as shown:
        assert (shown.format, shown.size, dict(shown.getexif())) == ("JPEG", (100, 50), {})
        assert corners(np.asarray(shown.crop((0, 0, 50, 50)))) == [RED, RED, BLUE, BLUE]
        assert corners(np.asarray(shown.crop((50, 0, 100, 50)))) == [GREEN, GREEN, WHITE, WHITE]


def test_a_preview_is_never_enlarged_and_shows_transparency_on_white():
    with Image.open(io.BytesIO(preview(as_bytes(Image.new("RGBA", (40, 9))), 100))) as shown:
        assert (shown.size, shown.getpixel((20, 4))) == ((40, 9), WHITE)


def test_a_preview_of_what_is_no_image():
    with pytest.raises(ImageError, match="not an image") as caught:
        preview(b"<html>404</html>", 16, name="x.jpg")
    assert caught.value.file == "x.jpg"


# -- files that cannot be used ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("size", [16, 128])
def test_truncated_jpeg(tmp_path, keep, size):
    path = truncate(write_jpeg(tmp_path / "cut.jpg", height=200, width=200), keep)
    with pytest.raises(ImageError, match="truncated") as caught:
        decode_image(path, size)
    assert caught.value.file == str(path)
    assert str(path) in str(caught.value)


def test_truncated_png(tmp_path):
    path = tmp_path / "cut.png"
    path.write_bytes(as_bytes(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))))
    with pytest.raises(ImageError, match=r"cut\.png"):
        decode_image(truncate(path, 0.7), 16)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not an image"),
        (b"<html>404</html>", "not an image"),
        (b"\xff\xd8\xff\xe0" + b"\0" * 40, "corrupt|not an image"),
    ],
)
def test_bytes_that_are_no_image(data, words):
    with pytest.raises(ImageError, match=words) as caught:
        decode_image(data, 16, name="x.jpg")
    assert caught.value.file == "x.jpg"


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(ImageError, match="no such file"):
        decode_image(tmp_path / "gone.jpg", 16)
    with pytest.raises(ImageError, match="cannot be read"):
        decode_image(tmp_path, 16)


def test_too_many_pixels(monkeypatch):
    data = as_bytes(Image.new("1", (9001, 9001)))
    with pytest.raises(ImageError, match="9001 x 9001 pixels are more than 80,000,000"):
        decode_image(data, 16)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ImageError, match="too many pixels"):
        decode_image(data, 16)


def test_what_phones_write_is_named(tmp_path):
    photo = b"\0\0\0\x24ftypheic" + bytes(100)
    (tmp_path / "IMG_0001.jpg").write_bytes(photo)
    for source in (photo, tmp_path / "IMG_0001.jpg"):
        with pytest.raises(ImageError, match="not an image of a known format .*, but HEIC or AVIF: save it as a JPEG$"):
            decode_image(source, 16)
    with pytest.raises(ImageError, match="or its header is corrupt$"):
        decode_image(b"ftypheic" + bytes(100), 16)


def test_encoders_that_run_programs_are_not_asked():
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    with pytest.raises(ImageError, match="not an image of a known format"):
        decode_image(eps, 16)


def test_jpeg_round_trip_is_close_and_repeatable():
    pixels = pattern(72, 72)
    data = encode_jpeg(pixels)
    assert data == encode_jpeg(pixels)
    again = decode_image(data, 72)
    assert np.abs(again[..., :2].astype(int) - pixels[..., :2]).mean() < 2


def test_jpegs_are_the_same_where_files_in_memory_are_not_to_be_had(monkeypatch):
    pixels = np.random.default_rng(3).integers(0, 256, (72, 72, 3), dtype=np.uint8)  # some 15 kB
    there = encode_jpeg(pixels)
    monkeypatch.delattr(os, "memfd_create", raising=False)
    assert encode_jpeg(pixels) == there
    expected = io.BytesIO()
    Image.fromarray(pixels).save(expected, "JPEG", quality=95, subsampling=0)
    assert there == expected.getvalue()


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="the system does not list open files there")
def test_encoding_leaves_no_file_open():
    def opened() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = opened()
    for _ in range(3):
        encode_jpeg(pattern(16, 16))
    assert opened() == before


# -- the spec ---------------------------------------------------------------------------------------------------------


def test_spec_round_trip_through_json():
    spec = PreprocessSpec(72, 64, mean=(1, 2, 3), std=(4.5, 5, 6))
    again = PreprocessSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert again == spec
    assert again.mean == (1.0, 2.0, 3.0)
    assert hash(again) == hash(spec)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"crop": 300}, "crop 300 does not fit in resize 256"),
        ({"resize": 0}, "resize is 0"),
        ({"resize": 256.0}, "resize is 256.0"),
        ({"mode": "letterbox"}, "mode is 'letterbox'"),
        ({"interpolation": "nearest"}, "interpolation is 'nearest'"),
        ({"channels": "BGR"}, "channels is 'BGR'"),
        ({"mean": (1, 2)}, "mean is"),
        ({"mean": None}, "mean is None"),
        ({"std": (1, 0, 1)}, "std is"),
        ({"std": (1, float("nan"), 1)}, "std is"),
    ],
)
def test_spec_refuses(values, words):
    with pytest.raises(DataError, match=words):
        PreprocessSpec.from_dict(PreprocessSpec().to_dict() | values)


def test_spec_refuses_missing_and_unknown_keys():
    good = PreprocessSpec().to_dict()
    with pytest.raises(DataError, match="the keys must be resize, crop"):
        PreprocessSpec.from_dict(good | {"colour": "RGB"})
    good.pop("mean")
    with pytest.raises(DataError, match="take it from the checkpoint"):
        PreprocessSpec.from_dict(good)


def test_centre_crops():
    crops = centre_crops(PreprocessSpec(73, 64), 3)
    assert crops.dtype == np.int32
    assert crops.tolist() == [[4, 4, 0]] * 3
