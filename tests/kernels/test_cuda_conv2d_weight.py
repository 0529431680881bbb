"""The weight gradient on CUDA kernels: borders, tiles, splits, masks, kinds of products, what goes to Triton instead."""

from __future__ import annotations

import importlib
from functools import partial

import numpy as np
import pytest

from pycap import backends
from pycap.backends import reference
from pycap.backends.cuda import native
from pycap.device import bfloat16
from pycap.testing import Case, compare
from pycap.testing.arguments import Beta, Grad, normal
from pycap.testing.on_device import OnDevice

# (N, H, W, C, K). A block has 64 filters, 64 channels and, of the columns of all images, strips of 32 (float32: 16).
SHAPES = {
    "batch0": (0, 4, 4, 8, 8),
    "one_pixel": (2, 1, 1, 8, 8),
    "row": (1, 1, 29, 8, 64),
    "column": (3, 17, 1, 24, 8),
    "odd": (2, 5, 7, 16, 24),
    "strips_across_images": (3, 4, 14, 16, 16),
    "wider_than_a_strip": (2, 3, 37, 8, 16),
    "two_tiles_of_channels": (1, 6, 5, 72, 64),
    "two_tiles_of_filters": (2, 3, 6, 64, 72),
}


@pytest.fixture(params=[1, 7])
def multiprocessors(request, cuda):
    """The emulated GPU's; a GPU has its own."""
    if not native.emulated():
        if request.param > 1:
            pytest.skip("a GPU has as many multiprocessors as it has")
        yield None
        return
    module = native.module()
    before = module.gpu()
    module.set_gpu(request.param, *before[1:])
    yield request.param
    module.set_gpu(*before)


def case(name, mask):
    """As the registry of cases makes them, but without the slack that Winograd's algorithm needs."""
    n, h, w, c, k = SHAPES[name]

    def build(rng):
        p, q = (h // 2, w // 2) if mask == "pool" else (h, w)
        y = np.maximum(normal(rng, n, p, q, k), 0) if mask != "none" else None
        winners = rng.integers(0, 256, (n, p, q, -(-k // 4)), np.uint8) if mask == "pool" else None
        dw, db = Grad("dw", (k, 3, 3, c), optional=False, role="parameter"), Grad("db", (k,), role="parameter")
        dy, x = normal(rng, n, p, q, k), normal(rng, n, h, w, c)
        return [dw, db, dy, x, y, winners, 1, 1, Beta("dw"), Beta("db")]

    return Case("conv2d_backward_weight", f"{name}-{mask}", build)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_against_the_reference(cuda, called, multiprocessors, name, dtype):
    """The rule of two for each beta, with and without db, with one sum and, on seven multiprocessors, several."""
    _, h, w, *_ = SHAPES[name]
    masks = ["none", "relu"] + (["pool"] if min(h, w) > 1 else [])
    for mask in masks:
        compare(case(name, mask), cuda, bfloat16() if dtype == "bfloat16" else np.float32)
    assert called.count("conv2d_weight") == 5 * len(masks)
    if multiprocessors:
        of = 2 if dtype == "bfloat16" else 0
        splits = native.module().conv2d_weight_splits(of, *SHAPES[name])
        assert splits == 1 or multiprocessors > 1
        assert splits > 1 or multiprocessors == 1 or name in ("batch0", "one_pixel", "row")


def arrays(rng, dtype, n, h, w, c, k):
    """(dy, x, dw, db) with outputs of NaN."""
    dy, x = normal(rng, n, h, w, k).astype(dtype), normal(rng, n, h, w, c).astype(dtype)
    return dy, x, np.full((k, 3, 3, c), np.nan, np.float32), np.full(k, np.nan, np.float32)


def exact(dy, x, k, c):
    """(dw, db) in float64, and what they are of the absolute values: the sums' sizes."""
    made = []
    for f in (lambda a: a.astype(np.float64), lambda a: np.abs(a.astype(np.float64))):
        dw, db = np.empty((k, 3, 3, c)), np.empty(k)
        reference.conv2d_backward_weight(dw, db, f(dy), f(x), None, None, 1, 1, 0.0, 0.0)
        made.append((dw, db))
    return made


def within(got, truth, size, terms, factors=0.0):
    """Whether each sum errs by no more than rounding explains.

    A sum of `terms` numbers in float32, in any order, errs by at most terms * 2**-24 of the sum of their absolute values
    (Higham's gamma; its second order is covered by 1.01), a product of factors that were rounded by `factors` relatively
    by twice that.
    """
    return bool((np.abs(got - truth) <= 1.01 * (terms * 2.0**-24 + 2 * factors) * size).all())


def test_float16(cuda, called):
    """Its products are exact in float32."""
    shape = n, h, w, c, k = 2, 6, 9, 24, 72
    dy, x, dw, db = arrays(np.random.default_rng(2), np.float16, *shape)
    cuda.conv2d_backward_weight(dw, db, dy, x, None, None, 1, 1, 0.0, 0.0)
    assert called == ["conv2d_weight"]
    (truth, truth_b), (size, size_b) = exact(dy, x, k, c)
    assert within(dw, truth, size, n * h * w) and within(db, truth_b, size_b, n * h * w)


def test_factors_of_tensorfloat_32(cuda, called):
    """One product each: factors have 11 significant bits, and the bias, which has no products, is as exact as ever."""
    shape = n, h, w, c, k = 1, 7, 6, 8, 12
    dy, x, dw, db = arrays(np.random.default_rng(3), np.float32, *shape)
    before = backends.float32_products()
    backends.set_float32_products("tf32")
    try:
        cuda.conv2d_backward_weight(dw, db, dy, x, None, None, 1, 1, 0.0, 0.0)
    finally:
        backends.set_float32_products(before)
    assert called == ["conv2d_weight"]
    (truth, truth_b), (size, size_b) = exact(dy, x, k, c)
    assert within(dw, truth, size, n * h * w, 2.0**-11) and within(db, truth_b, size_b, n * h * w)
    assert not within(dw, truth, size, n * h * w)  # or they were three products each


@pytest.mark.emu
@pytest.mark.parametrize("splits", [1, 2, 3, 8])
def test_the_same_bits_in_whatever_order_blocks_run(cuda, splits):
    """8 splits of 3 strips by 2 pairs of rows: more than there are."""
    if not native.emulated():
        pytest.skip("the emulation's order")
    n, h, w, c, k = 2, 4, 35, 8, 8
    dy, x, _, _ = arrays(np.random.default_rng(4), bfloat16(), n, h, w, c, k)
    made = []
    for seed in range(3):
        native.module().set_seed(seed)
        dw, db = np.full((k, 3, 3, c), np.nan, np.float32), np.full(k, np.nan, np.float32)
        partials, sums = np.full((splits, *dw.shape), np.nan, np.float32), np.full((splits, k), np.nan, np.float32)
        weight = partial(
            native.call, "conv2d_weight", dw, db, partials, sums, dy, x, 2, n, h, w, c, k, splits, 0.0, 0.0
        )
        if splits > 6:
            with pytest.raises(ValueError, match="conv2d_weight: 8 splits of the pixels; ask conv2d_weight_splits"):
                weight()
            return
        weight()
        assert np.isnan(partials).all() == (splits == 1)
        made.append((dw, db))
    for dw, db in made:
        np.testing.assert_array_equal(dw, made[0][0])
        np.testing.assert_array_equal(db, made[0][1])
    (truth, truth_b), (size, size_b) = exact(dy, x, k, c)
    assert within(dw, truth, size, n * h * w) and within(db, truth_b, size_b, n * h * w)


@pytest.mark.parametrize(
    ("c", "k", "filters", "stride", "padding"),
    [(3, 8, 3, 1, 1), (8, 12, 3, 1, 1), (8, 8, 1, 1, 1), (8, 8, 3, 2, 1), (8, 8, 3, 1, 0)],
)
def test_what_the_kernel_does_not_take_is_tritons(cuda, called, c, k, filters, stride, padding):
    rng, dtype = np.random.default_rng(6), bfloat16()
    x = normal(rng, 1, 6, 5, c).astype(dtype)
    p, q = ((m + 2 * padding - filters) // stride + 1 for m in (6, 5))
    dy, dw = normal(rng, 1, p, q, k).astype(dtype), np.full((k, filters, filters, c), np.nan, np.float32)
    cuda.conv2d_backward_weight(dw, None, dy, x, None, None, stride, padding, 0.0, 0.0)
    assert not called
    truth, size = np.empty(dw.shape), np.empty(dw.shape)
    for out, f in ((truth, lambda a: a), (size, np.abs)):
        factors = (f(a.astype(np.float64)) for a in (dy, x))
        reference.conv2d_backward_weight(out, None, *factors, None, None, stride, padding, 0.0, 0.0)
    assert within(dw, truth, size, p * q)


def test_unaligned_arrays_are_tritons(cuda, called):
    dy, x, dw, db = arrays(np.random.default_rng(8), np.float32, 1, 3, 4, 8, 8)
    unaligned = OnDevice(importlib.import_module("pycap.backends.cuda"), offset=1)
    unaligned.conv2d_backward_weight(dw, db, dy, x, None, None, 1, 1, 0.0, 0.0)
    assert not called
    (truth, truth_b), (size, size_b) = exact(dy, x, 8, 8)
    assert within(dw, truth, size, 12, 2.0**-22) and within(db, truth_b, size_b, 12)


def test_shapes_are_checked(cuda):
    dy, x, dw, db = arrays(np.random.default_rng(7), np.float32, 1, 3, 3, 8, 8)
    with pytest.raises(ValueError, match="conv2d_backward_weight: dy has shape"):
        cuda.conv2d_backward_weight(dw, db, dy[:, 1:], x, None, None, 1, 1, 0.0, 0.0)
    with pytest.raises(ValueError, match="conv2d_backward_weight: db has shape"):
        cuda.conv2d_backward_weight(dw, db[1:], dy, x, None, None, 1, 1, 0.0, 0.0)


@pytest.mark.emu
def test_channels_in_parts_of_16_bytes_are_refused(cuda):
    if not native.emulated():
        pytest.skip("without a kernel")
    with pytest.raises(ValueError, match="conv2d_weight: 12 channels and 8 filters must be multiples of 8"):
        native.call("conv2d_weight", None, None, None, None, None, None, 2, 1, 3, 3, 12, 8, 1, 0.0, 0.0)
    with pytest.raises(ValueError, match="products: 4 is none of 0"):
        native.call("conv2d_weight", None, None, None, None, None, None, 4, 1, 3, 3, 8, 8, 1, 0.0, 0.0)


@pytest.mark.emu
@pytest.mark.parametrize("here", [108, 132])
def test_splits_fill_the_gpu(cuda, here):
    """VGG16's layers at batch 64: all multiprocessors at work nine tenths of the time, and at most four waves of blocks."""
    if not native.emulated():
        pytest.skip("GPUs of other sizes")
    module = native.module()
    before = module.gpu()
    module.set_gpu(here, *before[1:])
    try:
        for size, c, k in [
            (224, 64, 64),
            (112, 64, 128),
            (112, 128, 128),
            (56, 256, 256),
            (28, 512, 512),
            (14, 512, 512),
        ]:
            splits = module.conv2d_weight_splits(2, 64, size, size, c, k)
            blocks, steps = splits * (c // 64) * (k // 64), -(-64 * (size + 1) // 32) * (size // 2)
            waves = -(-blocks // here)
            assert waves <= 4 and splits <= steps
            assert blocks * steps / splits >= 0.9 * waves * here * -(-steps // splits), (size, c, k, splits)
    finally:
        module.set_gpu(*before)
