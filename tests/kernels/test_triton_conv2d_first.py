"""The first convolution from bytes, against `preprocess` and then `conv2d` of the reference."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

from pycap.backends import reference
from pycap.device import bfloat16
from pycap.memory import poisoned
from pycap.testing.compare import TINY, TINY_BFLOAT16

OP = "conv2d_first"

# (N, H, W, P, Q, K)
SHAPES = {
    "vgg": (2, 13, 15, 9, 11, 64),
    "odd": (3, 9, 8, 7, 5, 7),
    "whole_images": (2, 6, 7, 6, 7, 17),
    "one_pixel": (2, 4, 5, 1, 1, 3),
    "row": (1, 3, 40, 1, 37, 16),
    "column": (2, 23, 3, 19, 1, 5),
    "batch0": (0, 8, 8, 6, 6, 16),
}
#: Half a unit in the last place, as a part of the number: of float16 at least (2**-11 at most), of bfloat16 at most.
HALF = {"float32": 0.0, "float16": 2.0**-12, "bfloat16": TINY_BFLOAT16}


@pytest.fixture
def first(kernels):
    return kernels


@pytest.fixture
def rng():
    return np.random.default_rng(17)


def images(rng, n, h, width, p, q):
    """(x, crops, scale, shift); of the images some are mirrored, the first window is the upper left, the last the lower
    right."""
    x = rng.integers(0, 256, (n, h, width, 3), np.uint8)
    crops = np.stack([rng.integers(0, m + 1, n) for m in (h - p, width - q, 1)], -1).astype(np.int32)
    if n > 1:
        crops[0], crops[-1] = (0, 0, 0), (h - p, width - q, 1)
    scale, shift = np.array([0.017, 0.018, 0.016], np.float32), np.array([-2.1, -1.9, -1.7], np.float32)
    return x, crops, scale, shift


def parameters(rng, k):
    return (0.2 * rng.standard_normal((k, 3, 3, 3))).astype(np.float32), rng.standard_normal(k).astype(np.float32)


def wide(array):
    return None if array is None else array.astype(np.float64)


def normalised(data, p, q, dtype):
    x, crops, scale, shift = data
    pixels = np.empty((len(x), p, q, 3), np.float32)
    reference.preprocess(pixels, x, crops, scale, shift)
    return pixels.astype(dtype)


def rule_of_two(got, plain, truth):
    """As in pycap.testing: at most twice the reference's own error, and some units in the last place of the largest value."""
    assert np.isfinite(got.astype(np.float64)).all()
    error, own = (np.abs(a.astype(np.float64) - truth).max(initial=0) for a in (got, plain))
    assert error <= 2 * own + (TINY + HALF[got.dtype.name]) * np.abs(truth).max(initial=0), (error, own)


def dtype_of(name):
    return bfloat16() if name == "bfloat16" else np.dtype(name)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(("biased", "relu"), [(True, True), (False, False)])
def test_forward_is_preprocess_then_conv2d(first, rng, shape, name, biased, relu):
    n, h, width, p, q, k = SHAPES[shape]
    dtype, data = dtype_of(name), images(rng, n, h, width, p, q)
    w, b = parameters(rng, k)
    b = b if biased else None
    y = np.full((n, p, q, k), np.nan, dtype)
    with poisoned():
        first.conv2d_first_forward(y, *data, w, b, relu)
    pixels, rounded = normalised(data, p, q, dtype), w.astype(dtype).astype(np.float32)
    plain, truth = np.empty(y.shape, np.float32), np.empty(y.shape)
    reference.conv2d_forward(plain, pixels.astype(np.float32), rounded, b, 1, 1, relu)
    reference.conv2d_forward(truth, wide(pixels), wide(rounded), wide(b), 1, 1, relu)
    rule_of_two(y, plain.astype(dtype), truth)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("relu", [False, True])
def test_gradients_are_those_of_conv2d_on_normalised_images(first, rng, shape, name, relu):
    n, h, width, p, q, k = SHAPES[shape]
    dtype, data = dtype_of(name), images(rng, n, h, width, p, q)
    old_w, old_b = parameters(rng, k)
    dy = rng.standard_normal((n, p, q, k)).astype(dtype)
    y = np.maximum(rng.standard_normal(dy.shape), 0).astype(dtype) if relu else None
    pixels = normalised(data, p, q, dtype)
    for beta_w, beta_b in ((0.0, 0.0), (1.0, 0.5), (0.5, 0.0), (0.0, None)):
        dw = old_w.copy() if beta_w else np.full_like(old_w, np.nan)
        db = old_b.copy() if beta_b else np.full_like(old_b, np.nan)
        with poisoned():
            first.conv2d_first_backward_weight(dw, None if beta_b is None else db, dy, y, *data, beta_w, beta_b or 0.0)
        made = []
        for form in (lambda a: None if a is None else a.astype(np.float32), wide):
            made.append((form(old_w).copy(), form(old_b).copy()))
            rest = form(dy), form(pixels), form(y), None
            reference.conv2d_backward_weight(*made[-1], *rest, 1, 1, beta_w, beta_b or 0.0)
        (plain_w, plain_b), (truth_w, truth_b) = made
        rule_of_two(dw, plain_w, truth_w)
        if beta_b is not None:
            rule_of_two(db, plain_b, truth_b)
        else:
            assert np.isnan(db).all()


@pytest.mark.triton
def test_splits_change_the_gradients_by_rounding_alone(inside, rng, monkeypatch):
    n, h, width, p, q, k = 2, 15, 16, 13, 14, 18
    data, dy = images(rng, n, h, width, p, q), rng.standard_normal((n, p, q, k)).astype(np.float32)
    pixels, (w, b) = normalised(data, p, q, np.float32), parameters(rng, k)
    plain, truth = (w.copy(), b.copy()), (wide(w), wide(b))
    reference.conv2d_backward_weight(*plain, dy, pixels, None, None, 1, 1, 0.0, 0.0)
    reference.conv2d_backward_weight(*truth, wide(dy), wide(pixels), None, None, 1, 1, 0.0, 0.0)
    made = {}
    for splits in (1, 2, 4, 6):  # of six blocks of 64 pixels; four are made three, of two blocks
        monkeypatch.setattr(inside, "splits_to_fill", lambda tiles, steps, splits=splits: min(splits, steps))
        for _ in range(2):
            got = np.full_like(w, np.nan), np.full_like(b, np.nan)
            with poisoned():
                inside.conv2d_first_backward_weight(*got, dy, None, *data, 0.0, 0.0)
            for values in zip(got, plain, truth, strict=True):
                rule_of_two(*values)
            for one, other in zip(made.setdefault(splits, got), got, strict=True):
                np.testing.assert_array_equal(one, other)
    assert (made[1][0] != made[6][0]).any()  # or there were no several sums


def test_padding_is_zero_where_images_go_on(first):
    """Of a window in the midst of an image, the pixels around it do not count, nor does the shift there."""
    x, crops = np.full((1, 9, 9, 3), 200, np.uint8), np.array([[3, 3, 0]], np.int32)
    scale, shift = np.full(3, 2.0, np.float32), np.full(3, -399.0, np.float32)  # every pixel is 1
    y, w = np.empty((1, 3, 3, 1), np.float32), np.ones((1, 3, 3, 3), np.float32)
    first.conv2d_first_forward(y, x, crops, scale, shift, w, None, False)
    assert y[0, :, :, 0].tolist() == [[12, 18, 12], [18, 27, 18], [12, 18, 12]]


def test_pixels_and_filters_are_rounded_before_the_product(first):
    """1 + 2**-9 is 1 in bfloat16, and 256 times it 256."""
    x, crops, above = np.ones((1, 1, 1, 3), np.uint8), np.zeros((1, 3), np.int32), np.float32(1 + 2.0**-9)
    images = x, crops, np.full(3, above), np.zeros(3, np.float32)
    w, dw = np.zeros((1, 3, 3, 3), np.float32), np.empty((1, 3, 3, 3), np.float32)
    w[0, 1, 1, 0] = 256 * above
    y, dy = np.ones((1, 1, 1, 1), bfloat16()), np.full((1, 1, 1, 1), 256, bfloat16())
    first.conv2d_first_forward(y, *images, w, np.array([-256], np.float32), False)
    first.conv2d_first_backward_weight(dw, None, dy, None, *images, 0.0, 0.0)
    assert y.item() == 0 and dw[0, 1, 1].tolist() == [256, 256, 256]


def test_not_a_number_comes_through_relu(first):
    x, crops = np.zeros((1, 3, 3, 3), np.uint8), np.zeros((1, 3), np.int32)
    y, w = np.empty((1, 3, 3, 2), np.float32), np.zeros((2, 3, 3, 3), np.float32)
    w[1, 1, 1, 0] = np.nan
    first.conv2d_first_forward(y, x, crops, np.ones(3, np.float32), np.ones(3, np.float32), w, None, True)
    assert np.isnan(y[..., 1]).all() and not y[..., 0].any()


@pytest.mark.triton
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_the_tiles_that_gpus_get(inside, rng, monkeypatch, arch):
    """Each row of the table for a GPU, on more than one tile each way; those of the interpreter are smaller."""
    launching = importlib.import_module("pycap.backends.triton.launching")
    table = launching.kernel_module("configs").ROWS
    n, h, width, p, q, k = 2, 15, 17, 11, 13, 69
    data, (w, b) = images(rng, n, h, width, p, q), parameters(rng, k)
    pixels, dy = normalised(data, p, q, np.float32), rng.standard_normal((n, p, q, k)).astype(np.float32)
    for row in table["conv2d_first.forward"].get(arch, ()):
        monkeypatch.setitem(launching.forced, "conv2d_first.forward", row)
        y, plain, truth = np.full_like(dy, np.nan), np.empty_like(dy), np.empty(dy.shape)
        inside.conv2d_first_forward(y, *data, w, b, True)
        reference.conv2d_forward(plain, pixels, w, b, 1, 1, True)
        reference.conv2d_forward(truth, wide(pixels), wide(w), wide(b), 1, 1, True)
        rule_of_two(y, plain, truth)
    for row in table["conv2d_first.backward_weight"].get(arch, ()):
        monkeypatch.setitem(launching.forced, "conv2d_first.backward_weight", row)
        got, plain, truth = [np.full_like(w, np.nan), np.full_like(b, np.nan)], (w.copy(), b.copy()), (wide(w), wide(b))
        inside.conv2d_first_backward_weight(*got, dy, y, *data, 0.0, 0.0)
        reference.conv2d_backward_weight(*plain, dy, pixels, y, None, 1, 1, 0.0, 0.0)
        reference.conv2d_backward_weight(*truth, wide(dy), wide(pixels), wide(y), None, 1, 1, 0.0, 0.0)
        for values in zip(got, plain, truth, strict=True):
            rule_of_two(*values)


@pytest.mark.parametrize("wrong", ["y", "x", "crops", "scale", "shift", "w", "b"])
def test_wrong_shapes_are_named(first, wrong):
    shapes = {
        "y": (2, 4, 4, 5), "x": (2, 6, 6, 3), "crops": (2, 3), "scale": (3,), "shift": (3,), "w": (5, 3, 3, 3), "b": (5,),
    }  # fmt: skip
    shapes[wrong] = (7, *shapes[wrong][1:]) if wrong in ("y", "b", "w", "crops") else (*shapes[wrong][:-1], 4)
    types = {"x": np.uint8, "crops": np.int32}
    arrays = [np.zeros(shape, types.get(name, np.float32)) for name, shape in shapes.items()]
    with pytest.raises(ValueError, match=f"conv2d_first_forward: {wrong} has shape .*, expected"):
        first.conv2d_first_forward(*arrays, True)


def test_wrong_gradients_and_windows_are_named(first, rng):
    data = images(rng, 1, 4, 4, 4, 4)
    w, b = parameters(rng, 5)
    dy = np.zeros((1, 4, 4, 5), np.float32)
    with pytest.raises(ValueError, match=r"conv2d_first_backward_weight: db has shape \(4,\), expected \(5,\)"):
        first.conv2d_first_backward_weight(w, b[:4], dy, None, *data, 0.0, 0.0)
    with pytest.raises(ValueError, match="conv2d_first_backward_weight: y has shape"):
        first.conv2d_first_backward_weight(w, b, dy, dy[:, :3].copy(), *data, 0.0, 0.0)
    with pytest.raises(ValueError, match="conv2d_first_forward: windows of 5x4 do not fit images of 4x4"):
        first.conv2d_first_forward(np.zeros((1, 5, 4, 5), np.float32), *data, w, b, True)
    with pytest.raises(ValueError, match="conv2d_first_backward_weight: dw has shape"):
        first.conv2d_first_backward_weight(w[:4], b, dy, None, *data, 0.0, 0.0)
    with pytest.raises(ValueError, match="conv2d_first_backward_weight: dy has shape"):
        first.conv2d_first_backward_weight(w, b, np.concatenate([dy, dy]), None, *data, 0.0, 0.0)
    with pytest.raises(TypeError, match="conv2d_first_forward: y must be float32, bfloat16 or float16, got float64"):
        first.conv2d_first_forward(dy.astype(np.float64), *data, w, b, True)
