"""The squash: bit for bit Pillow's two passes at many sizes, with the kernel and without it."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from pycap.data import resize
from pycap.data.resize import squash

BILINEAR = Image.Resampling.BILINEAR
# (width, height): photographs, squares, tall and wide, primes, fewer pixels than a vector holds.
SIZES = [(640, 480), (375, 500), (500, 375), (427, 640), (256, 256), (256, 97), (97, 256), (64, 64), (333, 211)]
SIZES += [(1, 1), (1, 7), (7, 1), (2, 3), (9, 7), (31, 5), (1999, 33), (33, 1499), (3, 3001), (3001, 3)]
OUTS = [1, 2, 3, 5, 16, 63, 64, 224, 256]


@pytest.fixture
def kernel():
    if resize._kernel() is None:
        pytest.skip("pycap._cpu is not built, or this CPU lacks AVX2")


def noise(width: int, height: int, seed: int = 0) -> np.ndarray:
    """uint8 [height, width, 3]; with an odd seed only the extremes, which is where sums could overflow."""
    drawn = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return np.where(drawn > 127, 255, 0).astype(np.uint8) if seed % 2 else drawn


def two_passes(image: Image.Image, side: int) -> np.ndarray:
    """Rows first, whatever order this Pillow would choose."""
    return np.asarray(image.resize((side, image.height), BILINEAR).resize((side, side), BILINEAR))


def squashed(pixels: np.ndarray, side: int) -> np.ndarray:
    """The squash, into the middle of an array whose other bytes must stay as they were."""
    room = np.full((side + 2, side, 3), 77, np.uint8)
    squash(Image.fromarray(pixels), room[1:-1])
    assert (room[[0, -1]] == 77).all()
    return room[1:-1]


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_the_kernel_gives_pillows_bits(kernel, monkeypatch, width, height):
    monkeypatch.setattr(resize.Image.Image, "resize", None)  # it is the kernel that answers
    found = {(side, seed): squashed(noise(width, height, seed), side) for side in OUTS for seed in (0, 1)}
    monkeypatch.undo()
    for (side, seed), pixels in found.items():
        expected = two_passes(Image.fromarray(noise(width, height, seed)), side)
        assert np.array_equal(pixels, expected), f"{width}x{height} to {side}"


def test_the_kernel_gives_pillows_bits_at_any_size(kernel):
    rng = np.random.default_rng(7)
    for number in range(150):
        width, height, side = (int(n) for n in rng.integers(1, 300, 3))
        pixels = noise(width, height, number)
        expected = two_passes(Image.fromarray(pixels), side)
        assert np.array_equal(squashed(pixels, side), expected), f"{width}x{height} to {side}"


def test_a_picture_may_end_inside_the_last_column_and_row(kernel, monkeypatch):
    """As it does where a JPEG's sides are no multiples of the reduction."""
    rng = np.random.default_rng(3)
    for number in range(40):
        width, height, side = (int(n) for n in rng.integers(2, 300, 3))
        wide, high = width - int(rng.integers(0, 8)) / 8, height - int(rng.integers(0, 8)) / 8
        image = Image.fromarray(noise(width, height, number))
        rows = image.resize((side, height), BILINEAR, box=(0, 0, wide, height))
        expected = np.asarray(rows.resize((side, side), BILINEAR, box=(0, 0, side, high)))
        for there in (resize._kernel(), None):
            monkeypatch.setattr(resize, "_kernel", lambda there=there: there)
            out = np.empty((side, side, 3), np.uint8)
            squash(image, out, (wide, high))
            assert np.array_equal(out, expected), f"{wide}x{high} to {side}"
        monkeypatch.undo()


def test_pillow_stands_in_where_there_is_no_kernel(monkeypatch):
    pixels = noise(83, 301)
    with_kernel = squashed(pixels, 64)
    monkeypatch.setattr(resize, "_kernel", lambda: None)
    assert np.array_equal(squashed(pixels, 64), with_kernel)


def test_rows_come_first_whatever_pillow_prefers():
    """Of tall images Pillow 13 would take the columns first."""
    image = Image.fromarray(noise(60, 900))
    expected = two_passes(image, 32)
    columns_first = np.asarray(image.resize((60, 32), BILINEAR).resize((32, 32), BILINEAR))
    assert not np.array_equal(expected, columns_first)
    assert np.array_equal(squashed(np.asarray(image), 32), expected)


def test_images_that_pillow_keeps_in_pieces(kernel):
    before = Image.core.get_block_size()
    Image.core.set_block_size(1 << 16)
    try:
        image = Image.new("RGB", (200, 300))
        image.paste(Image.fromarray(noise(200, 300)))
    finally:
        Image.core.set_block_size(before)
    assert resize._memory(image) is None
    out = np.empty((64, 64, 3), np.uint8)
    squash(image, out)
    assert np.array_equal(out, two_passes(image, 64))


def test_images_whose_rows_pillow_aligns(kernel):
    before = Image.core.get_alignment()
    Image.core.set_alignment(64)
    try:
        image = Image.new("RGB", (201, 100))
        image.paste(Image.fromarray(noise(201, 100)))
        out = np.empty((64, 64, 3), np.uint8)
        squash(image, out)
        assert np.array_equal(out, two_passes(image, 64))
    finally:
        Image.core.set_alignment(before)


def test_the_kernel_refuses_what_it_cannot_read(kernel):
    call = resize._kernel()
    image = Image.fromarray(noise(8, 6))
    out = np.empty((4, 4, 3), np.uint8)
    with pytest.raises(ValueError, match="pixels are not 7x8, in one piece: 48"):
        call(out, image.__arrow_c_array__(), 7, 8, 7, 8)
    with pytest.raises(ValueError, match="of four bytes, as Pillow holds RGB"):
        call(out, image.convert("L").__arrow_c_array__(), 6, 8, 6, 8)
    with pytest.raises(ValueError, match="must be a pair of Arrow capsules, and this is no arrow_schema"):
        call(out, (1, 2), 6, 8, 6, 8)
    with pytest.raises(ValueError, match=r"sides must lie in 1\.\.65535, got 0"):
        call(out[:0], image.__arrow_c_array__(), 6, 8, 6, 8)
    with pytest.raises(TypeError, match="out must be uint8"):
        call(out.astype(np.float32), image.__arrow_c_array__(), 6, 8, 6, 8)
    with pytest.raises(ValueError, match="C-contiguous"):
        call(out[:, ::2], image.__arrow_c_array__(), 6, 8, 6, 8)
    with pytest.raises(ValueError, match=r"must end in the last row and column, got 6\.0+x7\.0+ of \(6, 8\)"):
        call(out, image.__arrow_c_array__(), 6, 8, 6, 7)
