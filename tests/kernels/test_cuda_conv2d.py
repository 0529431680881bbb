"""Convolutions on CUDA kernels: borders, tiles, epilogues, kinds of products, special values."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

from pycap import backends
from pycap.backends import reference
from pycap.device import bfloat16
from pycap.memory import poisoned
from pycap.testing import Case, compare
from pycap.testing.arguments import Beta, Grad, Out, Parameter, normal
from pycap.testing.compare import TINY, TINY_BFLOAT16
from pycap.testing.on_device import OnDevice

# (N, H, W, C, K). A block has 256 pixels by 64 channels, or 128 by 128; it sums over 64 channels at a time (float32: 32).
SHAPES = {
    "one_pixel": (2, 1, 1, 8, 8),
    "row": (1, 1, 29, 8, 64),
    "column": (3, 17, 1, 24, 8),
    "odd": (2, 7, 13, 16, 24),
    "tiles_of_pixels": (3, 13, 14, 8, 16),
    "blocks_of_channels": (1, 7, 6, 72, 64),
    "wide_tiles": (2, 13, 7, 8, 72),
    "wide_tiles_beside": (1, 5, 9, 16, 264),
    "narrow_tiles_beside": (1, 6, 5, 136, 136),
}
KINDS = {"tf32x3": np.float32, "tf32": np.float32, "bfloat16": bfloat16(), "float16": np.float16}


def dtype_of(name):
    return bfloat16() if name == "bfloat16" else np.dtype(name)


@pytest.fixture
def conv2d(cuda):
    """The module, for what is no primitive."""
    return OnDevice(importlib.import_module("pycap.backends.cuda.conv2d"))


@pytest.fixture
def rng():
    return np.random.default_rng(5)


@pytest.fixture
def kind(request):
    """The kind of products that a test is parametrised with; float32 products are set to it."""
    before = backends.float32_products()
    backends.set_float32_products("tf32" if request.param == "tf32" else "fp32")
    yield request.param
    backends.set_float32_products(before)


def filters(rng, k, c):
    return Parameter(normal(rng, k, 3, 3, c, scale=(9 * c) ** -0.5))


def gradient(rng, n, h, w, k, mask):
    """(dy, y, argmax) for mask "none", "relu" or "pool"."""
    if mask == "pool":
        h, w = h // 2, w // 2
    y = np.maximum(normal(rng, n, h, w, k), 0) if mask != "none" else None
    winners = rng.integers(0, 256, (n, h, w, -(-k // 4)), np.uint8) if mask == "pool" else None
    return normal(rng, n, h, w, k), y, winners


def masks(h, w):
    return ["none", "relu", "pool"] if min(h, w) > 1 else ["none", "relu"]


# By the rule of two ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("bias", [False, True])
def test_forward(cuda, called, name, dtype, bias):
    n, h, w, c, k = SHAPES[name]

    def build(rng):
        b = Parameter(normal(rng, k, scale=0.5)) if bias else None
        return [Out("y", (n, h, w, k)), normal(rng, n, h, w, c), filters(rng, k, c), b, 1, 1, bias]

    compare(Case("conv2d_forward", name, build), cuda, dtype_of(dtype))
    assert called == ["conv2d_forward"]


@pytest.mark.parametrize("name", [name for name, shape in SHAPES.items() if min(shape[1:3]) > 1])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("bias", [False, True])
def test_pooled(cuda, called, name, dtype, bias):
    n, h, w, c, k = SHAPES[name]
    shape = (n, h // 2, w // 2, k)

    def build(rng):
        b = Parameter(normal(rng, k, scale=0.5)) if bias else None
        # Of sums that nearly tie either may win: test_winners has sums that are exact.
        winners = Out("argmax", (*shape[:3], k // 4), "uint8", judge=lambda array, dtype: "")
        return [Out("y", shape), winners, normal(rng, n, h, w, c), filters(rng, k, c), b, 1, 1]

    compare(Case("conv2d_pool_forward", name, build), cuda, dtype_of(dtype))
    assert called == ["conv2d_forward_pool"]


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_data_gradient(cuda, called, name, dtype):
    n, h, w, c, k = SHAPES[name]
    for mask in masks(h, w):

        def build(rng, mask=mask):
            dy, y, argmax = gradient(rng, n, h, w, k, mask)
            dx = Grad("dx", (n, h, w, c), optional=False)
            return [dx, dy, filters(rng, k, c), y, argmax, 1, 1, Beta("dx")]

        compare(Case("conv2d_backward_data", f"{name}-{mask}", build), cuda, dtype_of(dtype))
    assert called == ["conv2d_turn_filters", "conv2d_backward_data"] * 3 * len(masks(h, w))  # three betas


def rule_of_two(got, plain, truth):
    """As in pycap.testing.compare."""
    assert np.isfinite(got.astype(np.float64)).all()
    error, own = (np.abs(a.astype(np.float64) - truth).max(initial=0) for a in (got, plain))
    tiny = TINY if got.dtype == np.float32 else TINY_BFLOAT16
    assert error <= 2 * own + tiny * np.abs(truth).max(initial=0), (error, own)


def exact(array):
    return None if array is None else array if array.dtype == np.uint8 else array.astype(np.float64)


def data_and_bias(db_below, dy, w, y, argmax, x, beta_b):
    """(dz_below, db_below): the data gradient, the mask of the ReLU below and the sum over pixels, one after the other."""
    dx = np.empty_like(x)
    reference.conv2d_backward_data(dx, dy, w, y, argmax, 1, 1, 0.0)
    dz = np.where(x > 0, dx, np.zeros_like(dx))
    db = dz.astype(w.dtype).sum((0, 1, 2))
    return dz, db if not beta_b else db + beta_b * db_below


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_data_gradient_through_the_relu_below(conv2d, called, rng, name, dtype):
    n, h, w, c, k = SHAPES[name]
    dtype = dtype_of(dtype)
    x = np.maximum(normal(rng, n, h, w, c), 0).astype(dtype)
    taps, old = filters(rng, k, c).array, normal(rng, c)
    for mask, beta in zip(masks(h, w), (0.0, 0.5, None), strict=False):
        dy, y, argmax = (
            a if a is None or a.dtype == np.uint8 else a.astype(dtype) for a in gradient(rng, n, h, w, k, mask)
        )
        dz, db = np.full(x.shape, np.nan, dtype), np.full(c, np.nan, np.float32) if not beta else old.copy()
        called.clear()
        with poisoned():
            conv2d.conv2d_backward_data_relu(
                dz, None if beta is None else db, dy, taps, y, argmax, x, 1, 1, beta or 0.0
            )
        assert called == ["conv2d_turn_filters", "conv2d_backward_data"]
        plain = data_and_bias(old, dy, taps, y, argmax, x, beta or 0.0)
        truth = data_and_bias(*map(exact, (old, dy, taps, y, argmax, x)), beta or 0.0)
        rule_of_two(dz, plain[0], truth[0])
        assert not dz[x == 0].any()
        if beta is not None:
            rule_of_two(db, plain[1], truth[1])


# Other kinds of products ----------------------------------------------------------------------------------------------


def sums(x, taps, dy):
    """(y, dx) in float64."""
    y, dx = np.empty(dy.shape), np.empty(x.shape)
    reference.conv2d_forward(y, x, taps, None, 1, 1, False)
    reference.conv2d_backward_data(dx, dy, taps, None, None, 1, 1, 0.0)
    return y, dx


@pytest.mark.parametrize("kind", ["tf32", "float16"], indirect=True)
@pytest.mark.parametrize("shape", [(2, 7, 9, 24, 72), (1, 9, 5, 72, 8)])
def test_errors_are_those_of_rounded_factors(cuda, called, rng, kind, shape):
    """Float16: its products are exact in float32. TensorFloat-32: factors have 11 significant bits.

    A sum of `terms` numbers in float32, in any order, errs by at most terms * 2**-24 of the sum of their absolute values
    (Higham's gamma; its second order is covered by 1.01), a product of two rounded factors by twice their rounding, and a
    result in float16 is rounded by 2**-11, or 2**-25 where it is subnormal.
    """
    n, h, w, c, k = shape
    dtype = KINDS[kind]
    x, dy = normal(rng, n, h, w, c).astype(dtype), normal(rng, n, h, w, k).astype(dtype)
    taps = normal(rng, k, 3, 3, c, scale=0.2).astype(dtype).astype(np.float32)  # rounded already: exact in float16
    y, dx = np.full(dy.shape, np.nan, dtype), np.full(x.shape, np.nan, dtype)
    with poisoned():
        cuda.conv2d_forward(y, x, taps, None, 1, 1, False)
        cuda.conv2d_backward_data(dx, dy, taps, None, None, 1, 1, 0.0)
    assert called == ["conv2d_forward", "conv2d_turn_filters", "conv2d_backward_data"]
    factors = [exact(a) for a in (x, taps, dy)]
    truths, sizes = sums(*factors), sums(*map(np.abs, factors))
    for got, truth, size, terms in zip((y, dx), truths, sizes, (9 * c, 9 * k), strict=True):
        error = np.abs(got.astype(np.float64) - truth)
        summed = 1.01 * terms * 2.0**-24 * size
        if kind == "float16":
            assert (error <= 1.01 * summed + np.maximum(2.0**-11 * np.abs(truth), 2.0**-25)).all()
        else:
            assert (error <= summed + 1.01 * 2 * 2.0**-11 * size).all()
            assert (error > summed).any()  # or they were three products each


# Special values and winners -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["odd", "tiles_of_pixels", "wide_tiles", "narrow_tiles_beside"])
@pytest.mark.parametrize("kind", ["tf32x3", "bfloat16", "float16"], indirect=True)
def test_winners(cuda, called, rng, name, kind):
    """On small integers sums are exact and ties are many: values and winners are the reference's."""
    n, h, w, c, k = SHAPES[name]
    x = rng.integers(-2, 3, (n, h, w, c)).astype(KINDS[kind])
    taps, b = rng.integers(-1, 2, (k, 3, 3, c)).astype(np.float32), rng.integers(-3, 4, k).astype(np.float32)
    y, argmax = np.full((n, h // 2, w // 2, k), np.nan, x.dtype), np.full((n, h // 2, w // 2, k // 4), 0xFF, np.uint8)
    cuda.conv2d_pool_forward(y, argmax, x, taps, b, 1, 1)
    assert called == ["conv2d_forward_pool"]
    expected, winners = np.empty(y.shape, np.float32), np.empty_like(argmax)
    reference.conv2d_pool_forward(expected, winners, x.astype(np.float32), taps, b, 1, 1)
    np.testing.assert_array_equal(y, expected.astype(x.dtype))
    np.testing.assert_array_equal(argmax, winners)


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("at", [(0, 3, 4), (0, 3, 7), (1, 0, 0), (1, 8, 7)])
def test_not_a_number_comes_through(cuda, called, rng, pool, at):
    """Through ReLU and maximum, to the outputs that see it and no others: a window over the border sees no neighbour."""
    x, w = normal(rng, 2, 9, 8, 8), normal(rng, 8, 3, 3, 8)
    x[at][1] = np.nan
    shape = (2, 4, 4, 8) if pool else (2, 9, 8, 8)
    y, expected = np.empty(shape, np.float32), np.empty(shape, np.float32)
    if pool:
        argmax, winners = np.empty((*shape[:3], 2), np.uint8), np.empty((*shape[:3], 2), np.uint8)
        cuda.conv2d_pool_forward(y, argmax, x, w, None, 1, 1)
        reference.conv2d_pool_forward(expected, winners, x, w, None, 1, 1)
        lost = np.isnan(expected).all(-1)
        np.testing.assert_array_equal(argmax[lost], winners[lost])
    else:
        cuda.conv2d_forward(y, x, w, None, 1, 1, True)
        reference.conv2d_forward(expected, x, w, None, 1, 1, True)
    assert len(called) == 1 and 0 < np.isnan(y).sum() <= 9 * 8
    np.testing.assert_array_equal(np.isnan(y), np.isnan(expected))


def test_gradients_below_a_dead_unit_may_be_anything(conv2d, called):
    """What is masked is not multiplied: an infinity there is no NaN."""
    x, dy = np.zeros((1, 1, 4, 4), np.float32), np.full((1, 1, 4, 4), 3, np.float32)
    x[0, 0, 2:], dy[0, 0, 0] = 1, np.inf  # which the first two pixels see
    w = np.zeros((4, 3, 3, 4), np.float32)
    w[:, 1, 1] = np.eye(4)
    dz, db = np.full_like(x, np.nan), np.full(4, np.nan, np.float32)
    conv2d.conv2d_backward_data_relu(dz, db, dy, w, None, None, x, 1, 1, 0.0)
    assert called[-1] == "conv2d_backward_data"
    assert dz[0, 0, :, 0].tolist() == [0, 0, 3, 3] and db.tolist() == [6] * 4
