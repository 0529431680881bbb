"""The first convolution from bytes on CUDA kernels, against `preprocess` and then `conv2d` of the reference."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

from pycap import backends
from pycap.backends import reference
from pycap.backends.cuda import native
from pycap.device import bfloat16
from pycap.memory import poisoned
from pycap.testing.compare import TINY, TINY_BFLOAT16
from pycap.testing.on_device import OnDevice

# (N, H, W, P, Q, K). A tile is 8 rows by 32 columns of the output, and 64 filters (float32: 32).
SHAPES = {
    "batch0": (0, 8, 8, 6, 6, 16),
    "one_pixel": (2, 4, 5, 1, 1, 8),
    "vgg": (2, 13, 15, 9, 11, 64),
    "row": (1, 3, 70, 1, 67, 16),
    "column": (2, 23, 3, 19, 1, 24),
    "whole_images": (3, 8, 32, 8, 32, 8),
    "two_tiles_of_filters": (1, 10, 35, 9, 33, 72),
    "many_tiles": (7, 18, 41, 17, 35, 8),
}
#: Half a unit in the last place, as a part of the number: of float16 at least (2**-11 at most), of bfloat16 at most.
HALF = {"float32": 0.0, "float16": 2.0**-12, "bfloat16": TINY_BFLOAT16}
DTYPES = ["float32", "bfloat16", "float16"]


@pytest.fixture
def first(cuda):
    """They are no primitives, so the backend does not list them."""
    return OnDevice(importlib.import_module("pycap.backends.cuda.conv2d_first"))


@pytest.fixture
def rng():
    return np.random.default_rng(17)


@pytest.fixture(params=[1, 132])
def multiprocessors(request, cuda):
    """The emulated GPU's: one has fewer blocks at a time than there are many tiles, so that blocks take several."""
    if not native.emulated():
        if request.param == 1:
            pytest.skip("a GPU has as many multiprocessors as it has")
        yield
        return
    module = native.module()
    before = module.gpu()
    module.set_gpu(request.param, *before[1:])
    yield
    module.set_gpu(*before)


def dtype_of(name):
    return bfloat16() if name == "bfloat16" else np.dtype(name)


def images(rng, n, h, width, p, q):
    """(x, crops, scale, shift); of the images some are mirrored, the first window is the upper left, the last the lower
    right."""
    x = rng.integers(0, 256, (n, h, width, 3), np.uint8)
    crops = np.stack([rng.integers(0, m + 1, n) for m in (h - p, width - q, 1)], -1).astype(np.int32)
    if n > 1:
        crops[0], crops[-1] = (0, 0, 0), (h - p, width - q, 1)
    return x, crops, np.array([0.017, 0.018, 0.016], np.float32), np.array([-2.1, -1.9, -1.7], np.float32)


def parameters(rng, k):
    return (0.2 * rng.standard_normal((k, 3, 3, 3))).astype(np.float32), rng.standard_normal(k).astype(np.float32)


def normalised(data, p, q, dtype):
    x, crops, scale, shift = data
    pixels = np.empty((len(x), p, q, 3), np.float32)
    reference.preprocess(pixels, x, crops, scale, shift)
    return pixels.astype(dtype)


def wide(array):
    return None if array is None else array.astype(np.float64)


def rule_of_two(got, plain, truth, slack=0.0):
    """As in pycap.testing: at most twice the reference's own error, and some units in the last place of the largest value."""
    assert np.isfinite(got.astype(np.float64)).all()
    error, own = (np.abs(a.astype(np.float64) - truth).max(initial=0) for a in (got, plain))
    assert error <= 2 * own + (TINY + HALF[got.dtype.name] + slack) * np.abs(truth).max(initial=0), (error, own)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize(("biased", "relu"), [(True, True), (False, False)])
def test_forward_is_preprocess_then_conv2d(first, called, multiprocessors, rng, shape, name, biased, relu):
    n, h, width, p, q, k = SHAPES[shape]
    dtype, data = dtype_of(name), images(rng, n, h, width, p, q)
    w, b = parameters(rng, k)
    b = b if biased else None
    y = np.full((n, p, q, k), np.nan, dtype)
    with poisoned():
        first.conv2d_first_forward(y, *data, w, b, relu)
    assert called == ["conv2d_first_forward"]
    pixels, rounded = normalised(data, p, q, dtype), w.astype(dtype).astype(np.float32)
    plain, truth = np.empty(y.shape, np.float32), np.empty(y.shape)
    reference.conv2d_forward(plain, pixels.astype(np.float32), rounded, b, 1, 1, relu)
    reference.conv2d_forward(truth, wide(pixels), wide(rounded), wide(b), 1, 1, relu)
    rule_of_two(y, plain.astype(dtype), truth)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("relu", [False, True])
def test_gradients_are_those_of_conv2d_on_normalised_images(first, called, multiprocessors, rng, shape, name, relu):
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
    assert called.count("conv2d_first_weight") == 4


def test_factors_of_tensorfloat_32(first, called, rng):
    """One product each, of factors of 11 significant bits: errors of up to 2**-10 of the products' sizes, and seen."""
    n, h, width, p, q, k = 1, 6, 9, 5, 8, 36
    data, (w, b) = images(rng, n, h, width, p, q), parameters(rng, k)
    dy, y = rng.standard_normal((n, p, q, k)).astype(np.float32), np.empty((n, p, q, k), np.float32)
    dw, db = np.empty_like(w), np.empty_like(b)
    before = backends.float32_products()
    backends.set_float32_products("tf32")
    try:
        first.conv2d_first_forward(y, *data, w, None, False)
        first.conv2d_first_backward_weight(dw, db, dy, None, *data, 0.0, 0.0)
    finally:
        backends.set_float32_products(before)
    assert called == ["conv2d_first_forward", "conv2d_first_weight"]
    pixels = wide(normalised(data, p, q, np.float32))
    made = []
    for form in (wide, lambda a: np.abs(wide(a))):
        outputs = np.empty(y.shape), np.empty(w.shape), np.empty(b.shape)
        reference.conv2d_forward(outputs[0], form(pixels), form(w), None, 1, 1, False)
        reference.conv2d_backward_weight(*outputs[1:], form(dy), form(pixels), None, None, 1, 1, 0.0, 0.0)
        made.append(outputs)
    for got, truth, size in zip((y, dw), *(outputs[:2] for outputs in made), strict=True):
        error = np.abs(got - truth)
        assert (error <= 1.01 * 2.0**-10 * size).all()
        assert (error > 2.0**-16 * size).any()  # or they were three products each
    np.testing.assert_allclose(db, made[0][2], rtol=0, atol=2.0**-18 * made[1][2].max())  # which has no products


@pytest.mark.parametrize("flip", [0, 1])
def test_padding_is_zero_where_images_go_on(first, called, flip):
    """Of a window in the midst of an image, the pixels around it do not count, nor does the shift there."""
    x, crops = np.full((1, 9, 9, 3), 200, np.uint8), np.array([[3, 3, flip]], np.int32)
    scale, shift = np.full(3, 2.0, np.float32), np.full(3, -399.0, np.float32)  # every pixel is 1
    y, w = np.empty((1, 3, 3, 4), np.float32), np.ones((4, 3, 3, 3), np.float32)
    first.conv2d_first_forward(y, x, crops, scale, shift, w, None, False)
    for k in range(4):
        assert y[0, :, :, k].tolist() == [[12, 18, 12], [18, 27, 18], [12, 18, 12]]
    assert called == ["conv2d_first_forward"]


def test_pixels_and_filters_are_rounded_before_the_product(first, called):
    """1 + 2**-9 is 1 in bfloat16, and 256 times it 256."""
    x, crops, above = np.ones((1, 1, 1, 3), np.uint8), np.zeros((1, 3), np.int32), np.float32(1 + 2.0**-9)
    data = x, crops, np.full(3, above), np.zeros(3, np.float32)
    w, dw = np.zeros((8, 3, 3, 3), np.float32), np.empty((8, 3, 3, 3), np.float32)
    w[0, 1, 1, 0] = 256 * above
    y, dy = np.ones((1, 1, 1, 8), bfloat16()), np.full((1, 1, 1, 8), 256, bfloat16())
    first.conv2d_first_forward(y, *data, w, np.full(8, -256, np.float32), False)
    first.conv2d_first_backward_weight(dw, None, dy, None, *data, 0.0, 0.0)
    assert y[0, 0, 0].tolist() == [0] + 7 * [-256] and dw[0, 1, 1].tolist() == [256, 256, 256]
    assert called == ["conv2d_first_forward", "conv2d_first_weight"]


def test_not_a_number(first, called):
    """Comes through the ReLU to the outputs of its filter and no others; where y is one, dy does not count."""
    x, crops = np.ones((1, 3, 3, 3), np.uint8), np.zeros((1, 3), np.int32)
    data = x, crops, np.ones(3, np.float32), np.ones(3, np.float32)
    y, w = np.empty((1, 3, 3, 8), bfloat16()), np.ones((8, 3, 3, 3), np.float32)
    w[1, 1, 1, 0] = np.nan
    first.conv2d_first_forward(y, *data, w, None, True)
    assert np.isnan(y[..., 1].astype(np.float32)).all() and np.isfinite(y[..., 2:].astype(np.float32)).all()
    dw, db = np.empty((8, 3, 3, 3), np.float32), np.empty(8, np.float32)
    first.conv2d_first_backward_weight(dw, db, np.ones_like(y), y, *data, 0.0, 0.0)
    assert db.tolist() == [9, 0, 9, 9, 9, 9, 9, 9] and not dw[1].any() and (dw[0] > 0).all()
    assert called == ["conv2d_first_forward", "conv2d_first_weight"]


@pytest.mark.emu
@pytest.mark.parametrize("name", DTYPES)
def test_splits_change_the_gradients_by_rounding_alone(first, rng, name):
    """And in whatever order blocks run, the same splits give the same bits."""
    if not native.emulated():
        pytest.skip("the emulation's order")
    n, h, width, p, q, k = 2, 11, 37, 11, 36, 8
    dtype, data = dtype_of(name), images(rng, n, h, width, p, q)
    dy = rng.standard_normal((n, p, q, k)).astype(dtype)
    pixels, made = normalised(data, p, q, dtype), {}
    plain, truth = (np.empty((k, 3, 3, 3), t) for t in (np.float32, np.float64))
    reference.conv2d_backward_weight(
        plain, None, dy.astype(np.float32), pixels.astype(np.float32), None, None, 1, 1, 0, 0
    )
    reference.conv2d_backward_weight(truth, None, wide(dy), wide(pixels), None, None, 1, 1, 0.0, 0.0)
    for splits in (1, 3, 8, 9):  # of eight tiles
        for seed in (1, 2):
            native.module().set_seed(seed)
            dw, partials = np.full_like(plain, np.nan), np.full((splits, *plain.shape), np.nan, np.float32)
            of = {"float32": 0, "bfloat16": 2, "float16": 3}[name]
            native.call(
                "conv2d_first_weight",
                dw,
                None,
                partials,
                None,
                dy,
                None,
                *data,
                of,
                n,
                h,
                width,
                k,
                p,
                q,
                splits,
                0.0,
                0.0,
            )
            rule_of_two(dw, plain, truth)
            np.testing.assert_array_equal(made.setdefault(splits, dw), dw)
    assert (made[1] != made[8]).any()
    np.testing.assert_array_equal(made[8], made[9])  # the ninth has nothing to add


@pytest.mark.parametrize(("name", "k", "offset"), [("float32", 6, 0), ("bfloat16", 12, 0), ("float32", 8, 1)])
def test_parts_of_16_bytes_are_tritons(cuda, called, rng, name, k, offset):
    first = OnDevice(importlib.import_module("pycap.backends.cuda.conv2d_first"), offset)
    n, h, width, p, q = 1, 5, 6, 4, 5
    dtype, data, (w, b) = dtype_of(name), images(rng, n, h, width, p, q), parameters(rng, k)
    y, dw = np.full((n, p, q, k), np.nan, dtype), np.full_like(w, np.nan)
    first.conv2d_first_forward(y, *data, w, b, True)
    first.conv2d_first_backward_weight(dw, None, np.ones_like(y), None, *data, 0.0, 0.0)
    assert not called and np.isfinite(y.astype(np.float32)).all() and np.isfinite(dw).all()


def test_arguments_are_checked(first, rng):
    data, (w, b) = images(rng, 1, 5, 6, 4, 5), parameters(rng, 8)
    y = np.empty((1, 4, 5, 8), np.float32)
    with pytest.raises(ValueError, match="conv2d_first_forward: w has shape"):
        first.conv2d_first_forward(y, *data, w[:4], b, True)
    with pytest.raises(ValueError, match="conv2d_first_forward: b has shape"):
        first.conv2d_first_forward(y, *data, w, b[:4], True)
    with pytest.raises(ValueError, match="conv2d_first_backward_weight: y has shape"):
        first.conv2d_first_backward_weight(w, b, y, y[:, 1:], *data, 0.0, 0.0)
    with pytest.raises(ValueError, match="windows of 9x5 do not fit images of 5x6"):
        first.conv2d_first_forward(np.empty((1, 9, 5, 8), np.float32), *data, w, b, True)


@pytest.mark.emu
@pytest.mark.parametrize(
    ("k", "p", "splits", "message"),
    [
        (12, 3, 1, "12 filters must be a multiple of 8"),
        (8, 9, 1, "windows of 9x3 do not fit images of 3x3"),
        (8, 3, 0, "0 splits; ask conv2d_first_splits"),
    ],
)
def test_what_kernels_do_not_take_is_refused(first, k, p, splits, message):
    if not native.emulated():
        pytest.skip("without a kernel")
    nothing, sizes = [None] * 10, (2, 1, 3, 3, k, p, 3)
    with pytest.raises(ValueError, match=message):
        native.call("conv2d_first_weight", *nothing, *sizes, splits, 0.0, 0.0)
    if splits:
        with pytest.raises(ValueError, match=message):
            native.call("conv2d_first_forward", *nothing[:7], *sizes, True)
