"""Convolutions on CUDA kernels, around the kernels: who serves, kept filters, the same bits on every GPU, refusals."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

from pycap.backends import constant_weights
from pycap.backends.cuda import native
from pycap.backends.triton import launching
from pycap.backends.weights import WeightCache
from pycap.device import address, bfloat16
from pycap.testing.arguments import normal
from pycap.testing.on_device import OnDevice


@pytest.fixture
def conv2d(cuda):
    """The module, for what is no primitive."""
    return OnDevice(importlib.import_module("pycap.backends.cuda.conv2d"))


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def filters(rng, k, c):
    return normal(rng, k, 3, 3, c, scale=(9 * c) ** -0.5)


def run_all(conv2d, x, w, b, dy):
    """Every output of every kernel."""
    n, h, width, c = x.shape
    k = len(w)
    y, dx = np.full(dy.shape, np.nan, x.dtype), np.full(x.shape, np.nan, x.dtype)
    pooled, argmax = (
        np.full((n, h // 2, width // 2, k), np.nan, x.dtype),
        np.empty((n, h // 2, width // 2, k // 4), np.uint8),
    )
    below, db = np.full(x.shape, np.nan, x.dtype), np.full(c, np.nan, np.float32)
    conv2d.conv2d_forward(y, x, w, b, 1, 1, True)
    conv2d.conv2d_pool_forward(pooled, argmax, x, w, b, 1, 1)
    conv2d.conv2d_backward_data(dx, dy, w, None, None, 1, 1, 0.0)
    conv2d.conv2d_backward_data_relu(below, db, dy, w, None, None, x, 1, 1, 0.0)
    return y, pooled, argmax, dx, below, db


@pytest.mark.emu
@pytest.mark.parametrize("dtype", [np.dtype(np.float32), bfloat16()], ids=str)
@pytest.mark.parametrize("shape", [(2, 6, 13, 72, 8), (1, 13, 14, 72, 136)])
def test_the_same_bits_on_every_gpu_in_whatever_order(conv2d, rng, dtype, shape):
    """Of how many stages the pipeline has, and of when copies land, results know nothing."""
    if not native.emulated():
        pytest.skip("GPUs of other sizes")
    n, h, width, c, k = shape
    x, dy = normal(rng, n, h, width, c).astype(dtype), normal(rng, n, h, width, k).astype(dtype)
    w, b = filters(rng, k, c), normal(rng, k)
    module = native.module()
    before = module.gpu()
    made = []
    try:
        for seed, kilobytes in enumerate((227, 163, 99)):
            module.set_gpu(before[0], before[1], kilobytes * 1024)
            module.set_seed(seed)
            made.append(run_all(conv2d, x, w, b, dy))
    finally:
        module.set_gpu(*before)
    for other in made[1:]:
        for first, again in zip(made[0], other, strict=True):
            assert np.isfinite(first.astype(np.float32)).all()
            np.testing.assert_array_equal(first, again)


@pytest.mark.emu
def test_filters_are_turned_once_while_they_are_constant(cuda, called, rng):
    if not native.emulated():
        pytest.skip("the cache goes by addresses, and on a GPU each call gets a copy of w")
    module = importlib.import_module("pycap.backends.cuda.conv2d")
    dy, w = normal(rng, 1, 5, 6, 8).astype(bfloat16()), filters(rng, 8, 16)
    made = [np.full((1, 5, 6, 16), np.nan, dy.dtype) for _ in range(3)]
    assert all(address(a) % 16 == 0 for a in (dy, w, *made))
    with constant_weights(WeightCache()):
        for dx in made[:2]:
            module.conv2d_backward_data(dx, dy, w, None, None, 1, 1, 0.0)
    module.conv2d_backward_data(made[2], dy, w, None, None, 1, 1, 0.0)
    turn, multiply = "conv2d_turn_filters", "conv2d_backward_data"
    assert called == [turn, multiply, multiply, turn, multiply]
    for dx in made:
        assert np.isfinite(dx.astype(np.float32)).all()
        np.testing.assert_array_equal(dx, made[0])


@pytest.mark.parametrize(
    ("n", "c", "k", "size", "stride", "padding", "offset"),
    [
        (1, 3, 8, 3, 1, 1, 0), (1, 8, 12, 3, 1, 1, 0), (1, 8, 8, 1, 1, 1, 0), (1, 8, 8, 3, 2, 1, 0), (1, 8, 8, 3, 1, 0, 0),
        (1, 8, 8, 3, 1, 1, 1), (0, 8, 8, 3, 1, 1, 0),
    ],
)  # fmt: skip
def test_what_the_kernels_do_not_take_is_tritons(cuda, called, rng, n, c, k, size, stride, padding, offset):
    """Few channels, other filters, strides and paddings, arrays at odd addresses, and nothing at all."""
    x, w = normal(rng, n, 6, 5, c).astype(bfloat16()), normal(rng, k, size, size, c)
    p, q = ((m + 2 * padding - size) // stride + 1 for m in (6, 5))
    dy, dtype = normal(rng, n, p, q, k).astype(x.dtype), x.dtype
    made = []
    for backend in ("cuda", "triton"):
        module = OnDevice(importlib.import_module(f"pycap.backends.{backend}.conv2d"), offset)
        y, pooled = np.full((n, p, q, k), np.nan, dtype), np.full((n, p // 2, q // 2, k), np.nan, dtype)
        dx, dz, db = np.full(x.shape, np.nan, dtype), np.full(x.shape, np.nan, dtype), np.full(c, np.nan, np.float32)
        argmax = np.full((n, p // 2, q // 2, -(-k // 4)), 0xFF, np.uint8)
        module.conv2d_forward(y, x, w, None, stride, padding, False)
        module.conv2d_pool_forward(pooled, argmax, x, w, None, stride, padding)
        module.conv2d_backward_data(dx, dy, w, None, None, stride, padding, 0.0)
        module.conv2d_backward_data_relu(dz, db, dy, w, None, None, x, stride, padding, 0.0)
        made.append((y, pooled, argmax, dx, dz, db))
    assert not called
    for ours, theirs in zip(*made, strict=True):
        assert np.isfinite(ours.astype(np.float32)).all()
        np.testing.assert_array_equal(ours, theirs)


def test_the_table_prefers_another_form_unless_cuda_was_asked_for(cuda, called, rng, monkeypatch):
    monkeypatch.setattr(native, "asked", lambda: False)
    x, w = normal(rng, 1, 4, 4, 8), filters(rng, 8, 8)
    for form in ("portable", "cuda"):
        monkeypatch.setitem(launching.forced, "conv2d.form", launching.Row({"FORM": form}))
        y = np.full((1, 4, 4, 8), np.nan, np.float32)
        cuda.conv2d_forward(y, x, w, None, 1, 1, False)
        assert np.isfinite(y).all()
        assert called == ([] if form == "portable" else ["conv2d_forward"])


@pytest.mark.parametrize("wrong", ["dz_below", "db_below", "dy", "w", "y"])
def test_wrong_shapes_are_named(conv2d, wrong):
    shapes = {
        "dz_below": (1, 4, 4, 8), "db_below": (8,), "dy": (1, 4, 4, 16), "w": (16, 3, 3, 8), "y": (1, 4, 4, 16),
    }  # fmt: skip
    shapes[wrong] = (*shapes[wrong][:-1], 4)
    dz, db, dy, w, y = (np.zeros(shape, np.float32) for shape in shapes.values())
    with pytest.raises(ValueError, match=f"conv2d_backward_data_relu: {wrong} has shape .*4.*, expected"):
        conv2d.conv2d_backward_data_relu(dz, db, dy, w, y, None, np.zeros((1, 4, 4, 8), np.float32), 1, 1, 0.0)


def test_wrong_shapes_are_named_forward(cuda):
    x, w, y = (np.zeros(shape, np.float32) for shape in ((1, 4, 4, 8), (16, 3, 3, 8), (1, 4, 4, 16)))
    argmax = np.zeros((1, 2, 2, 4), np.uint8)
    with pytest.raises(ValueError, match="conv2d_forward: y has shape"):
        cuda.conv2d_forward(y[:, 1:], x, w, None, 1, 1, False)
    with pytest.raises(ValueError, match="conv2d_forward: b has shape"):
        cuda.conv2d_forward(y, x, w, np.zeros(8, np.float32), 1, 1, False)
    with pytest.raises(ValueError, match="conv2d_pool_forward: argmax has shape"):
        cuda.conv2d_pool_forward(y[:, :2, :2], argmax[..., 1:], x, w, None, 1, 1)


@pytest.mark.emu
def test_what_the_compiled_functions_refuse(cuda):
    if not native.emulated():
        pytest.skip("without a kernel")
    nothing = [None] * 4
    with pytest.raises(ValueError, match="conv2d_forward: 12 and 8 channels must be multiples of 8"):
        native.call("conv2d_forward", *nothing, 1, 3, 3, 12, 8, False, 2)
    with pytest.raises(ValueError, match="conv2d_forward: 1 images of 0 x 3 pixels"):
        native.call("conv2d_forward", *nothing, 1, 0, 3, 8, 8, False, 2)
    with pytest.raises(ValueError, match="more pixels or weights than 32 bits count"):
        native.call("conv2d_forward_pool", *nothing, None, 1 << 11, 1 << 10, 1 << 10, 8, 8, 2)
    with pytest.raises(ValueError, match="products: 4 is none of 0"):
        native.call("conv2d_forward", *nothing, 1, 3, 3, 8, 8, False, 4)
    with pytest.raises(ValueError, match="with below, beta must be 0"):
        native.call("conv2d_backward_data", *nothing, np.zeros(8, np.float32), 1, 3, 3, 8, 8, 1.0, 0)
