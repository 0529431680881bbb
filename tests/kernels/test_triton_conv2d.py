"""Convolutions on Triton kernels, beyond the primitives' common cases: fused data gradient, splits, float16, NaN, tiles."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

from pycap.backends import reference
from pycap.device import bfloat16
from pycap.memory import poisoned
from pycap.testing.compare import TINY, TINY_BFLOAT16

OP = "conv2d"

# (N, H, W, C, K, R, S, stride, padding)
SHAPES = {
    "odd": (2, 7, 11, 17, 5, 3, 3, 1, 1),
    "row": (1, 1, 29, 16, 33, 3, 3, 1, 1),
    "two_column_tiles": (3, 6, 5, 33, 16, 3, 3, 1, 1),
    "stride_2": (3, 6, 5, 33, 6, 3, 3, 2, 1),
    "5x5": (2, 9, 7, 3, 17, 5, 5, 1, 2),
    "no_padding": (1, 9, 8, 16, 16, 3, 3, 1, 0),
    "many_pixel_tiles": (3, 13, 17, 16, 16, 3, 3, 1, 1),
    "batch0": (0, 6, 6, 16, 16, 3, 3, 1, 1),
}


@pytest.fixture
def conv2d(kernels):
    return kernels


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def normal(rng, dtype, *shape, scale=1.0):
    return (scale * rng.standard_normal(shape)).astype(dtype)


def exact(array):
    return None if array is None else array if array.dtype == np.uint8 else array.astype(np.float64)


def rule_of_two(got, plain, truth):
    """As in pycap.testing: at most twice the reference's own error, and some units in the last place of the largest value."""
    assert np.isfinite(got.astype(np.float64)).all()
    error, own = (np.abs(a.astype(np.float64) - truth).max(initial=0) for a in (got, plain))
    tiny = TINY if got.dtype == np.float32 else TINY_BFLOAT16
    assert error <= 2 * own + tiny * np.abs(truth).max(initial=0), (error, own)


def gradient(rng, dtype, shape, relu, pool):
    """(dy, y, argmax) of a layer's output [N,P,Q,K]."""
    n, p, q, k = shape
    if pool:
        p, q = p // 2, q // 2
    y = np.maximum(normal(rng, dtype, n, p, q, k), 0).astype(dtype) if relu else None
    argmax = rng.integers(0, 256, (n, p, q, -(-k // 4)), np.uint8) if pool else None
    return normal(rng, dtype, n, p, q, k), y, argmax


def composition(db_below, dy, w, y, argmax, x, stride, padding, beta_b):
    """(dz_below, db_below): the data gradient, the mask of the ReLU below and the sum over pixels, one after the other."""
    dx = np.empty_like(x)
    reference.conv2d_backward_data(dx, dy, w, y, argmax, stride, padding, 0.0)
    dz = np.where(x > 0, dx, np.zeros_like(dx))
    db = dz.astype(w.dtype).sum((0, 1, 2))
    return dz, db if not beta_b else db + beta_b * db_below


# Data gradient with the ReLU below ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["float32", "bfloat16"])
@pytest.mark.parametrize(("relu", "pool"), [(False, False), (True, False), (True, True)])
def test_data_gradient_through_the_relu_below(conv2d, rng, shape, name, relu, pool):
    n, h, width, c, k, r, s, stride, padding = SHAPES[shape]
    dtype = bfloat16() if name == "bfloat16" else np.dtype(name)
    p, q = (h + 2 * padding - r) // stride + 1, (width + 2 * padding - s) // stride + 1
    x = np.maximum(normal(rng, dtype, n, h, width, c), 0).astype(dtype)
    w, old = normal(rng, np.float32, k, r, s, c, scale=0.2), normal(rng, np.float32, c)
    dy, y, argmax = gradient(rng, dtype, (n, p, q, k), relu, pool)
    rest = dy, w, y, argmax, x, stride, padding
    for beta in (0.0, 0.5, None):
        dz, db = np.full(x.shape, np.nan, dtype), np.full(c, np.nan, np.float32) if not beta else old.copy()
        with poisoned():
            conv2d.conv2d_backward_data_relu(dz, None if beta is None else db, *rest, beta or 0.0)
        plain = composition(old, *rest, beta or 0.0)
        truth = composition(exact(old), *map(exact, (dy, w, y, argmax, x)), stride, padding, beta or 0.0)
        rule_of_two(dz, plain[0], truth[0])
        assert not dz[x == 0].any()
        if beta is not None:
            rule_of_two(db, plain[1], truth[1])


def test_gradients_below_a_dead_unit_may_be_anything(conv2d):
    """What is masked is not multiplied: an infinity there is no NaN."""
    x = np.array([0.0, 1.0], np.float32).reshape(1, 1, 2, 1)
    dy, w = np.array([np.inf, 3.0], np.float32).reshape(1, 1, 2, 1), np.ones((1, 1, 1, 1), np.float32)
    dz, db = np.empty_like(x), np.empty(1, np.float32)
    conv2d.conv2d_backward_data_relu(dz, db, dy, w, None, None, x, 1, 0, 0.0)
    assert dz.ravel().tolist() == [0.0, 3.0] and db.tolist() == [3.0]


@pytest.mark.parametrize("wrong", ["dz_below", "db_below", "dy", "w", "y"])
def test_wrong_shapes_are_named(conv2d, wrong):
    shapes = {
        "dz_below": (1, 4, 4, 3), "db_below": (3,), "dy": (1, 4, 4, 5), "w": (5, 3, 3, 3), "y": (1, 4, 4, 5),
    }  # fmt: skip
    shapes[wrong] = (*shapes[wrong][:-1], 7)
    dz, db, dy, w, y = (np.zeros(shape, np.float32) for shape in shapes.values())
    with pytest.raises(ValueError, match=f"conv2d_backward_data_relu: {wrong} has shape .*7.*, expected"):
        conv2d.conv2d_backward_data_relu(dz, db, dy, w, y, None, np.zeros((1, 4, 4, 3), np.float32), 1, 1, 0.0)


# Splits of the weight gradient ----------------------------------------------------------------------------------------


@pytest.mark.triton
@pytest.mark.parametrize("c", [3, 20])
@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_splits_change_the_weight_gradient_by_rounding_alone(inside, rng, monkeypatch, c, beta):
    x, dy = normal(rng, np.float32, 3, 31, 29, c), normal(rng, np.float32, 3, 31, 29, 6)
    old = normal(rng, np.float32, 6, 3, 3, c)
    plain, truth = old.copy(), exact(old)
    reference.conv2d_backward_weight(plain, np.empty(6, np.float32), dy, x, None, None, 1, 1, beta, 0.0)
    reference.conv2d_backward_weight(truth, np.empty(6), exact(dy), exact(x), None, None, 1, 1, beta, 0.0)
    made = {}
    for splits in (1, 2, 4, 6):  # of six blocks of 512 pixels; four are made three, of two blocks
        monkeypatch.setattr(inside, "splits_to_fill", lambda tiles, steps, splits=splits: min(splits, steps))
        for _ in range(2):
            dw = old.copy() if beta else np.full_like(old, np.nan)
            with poisoned():
                inside.conv2d_backward_weight(dw, None, dy, x, None, None, 1, 1, beta, 0.0)
            rule_of_two(dw, plain, truth)
            np.testing.assert_array_equal(made.setdefault(splits, dw), dw)
    assert (made[1] != made[6]).any()  # or there were no several sums


@pytest.mark.triton
@pytest.mark.parametrize(("tiles", "steps"), [(1, 50176), (9, 50176), (36, 12544), (144, 196), (1, 1), (7, 0)])
def test_splits_fill_a_device(inside, monkeypatch, tiles, steps):
    monkeypatch.setattr(inside, "interpreting", lambda: False)
    splits = inside.splits_to_fill(tiles, steps)
    assert 1 <= splits <= max(steps, 1)
    waves = -(-splits * tiles // inside.MULTIPROCESSORS)
    assert waves <= 5
    if steps > 100:
        assert splits * tiles >= 0.85 * waves * inside.MULTIPROCESSORS  # 144 tiles can fill 0.87


# float16 --------------------------------------------------------------------------------------------------------------


def check_half(got, product, *factors, terms):
    """product(out, *factors) in float64 is the truth.

    Products of two float16 numbers have 22 significant bits: exact in float32. A sum of `terms` of them in float32,
    in any order, errs by at most terms * 2**-24 * the sum of their absolute values (Higham's gamma, but for its second
    order, which the factor 1.01 covers), and a result in float16 is rounded once: 2**-11 of its value, or 2**-25 where it
    is subnormal.
    """
    truth, size = np.empty(got.shape), np.empty(got.shape)
    product(truth, *map(exact, factors))
    product(size, *(np.abs(exact(f)) for f in factors))
    allowed = 1.01 * terms * 2.0**-24 * size
    if got.dtype == np.float16:
        allowed = 1.01 * allowed + np.maximum(2.0**-11 * np.abs(truth), 2.0**-25)
    error = np.abs(got.astype(np.float64) - truth)
    assert np.isfinite(got.astype(np.float64)).all() and (error <= allowed).all(), (error - allowed).max()


@pytest.mark.parametrize("c", [3, 20])
def test_float16(conv2d, rng, c):
    half = np.dtype(np.float16)
    x, dy = normal(rng, half, 2, 9, 7, c), normal(rng, half, 2, 9, 7, 18)
    w = normal(rng, half, 18, 3, 3, c, scale=0.2).astype(np.float32)  # float16 already: rounding it changes nothing
    y, dx = np.full((2, 9, 7, 18), np.nan, half), np.full(x.shape, np.nan, half)
    dw, db = np.full(w.shape, np.nan, np.float32), np.full(18, np.nan, np.float32)
    with poisoned():
        conv2d.conv2d_forward(y, x, w, None, 1, 1, False)
        conv2d.conv2d_backward_data(dx, dy, w, None, None, 1, 1, 0.0)
        conv2d.conv2d_backward_weight(dw, db, dy, x, None, None, 1, 1, 0.0, 0.0)

    def weight(out, dy, x):
        reference.conv2d_backward_weight(out, np.empty(18), dy, x, None, None, 1, 1, 0.0, 0.0)

    check_half(y, lambda out, x, w: reference.conv2d_forward(out, x, w, None, 1, 1, False), x, w, terms=9 * c)
    check_half(
        dx, lambda out, dy, w: reference.conv2d_backward_data(out, dy, w, None, None, 1, 1, 0.0), dy, w, terms=9 * 18
    )
    check_half(dw, weight, dy, x, terms=126)
    check_half(db, lambda out, dy: out.__setitem__(..., dy.sum((0, 1, 2))), dy, terms=126)


# Special values and winners -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("c", [3, 20])
@pytest.mark.parametrize("pool", [False, True])
def test_not_a_number_comes_through(conv2d, rng, c, pool):
    """Through ReLU and maximum, to the outputs that see it and no others; of two in a window the first wins."""
    x, w = normal(rng, np.float32, 2, 9, 8, c), normal(rng, np.float32, 5, 3, 3, c)
    x[0, 3, 4, 1] = np.nan
    shape = (2, 4, 4) if pool else (2, 9, 8)
    y, expected = np.empty((*shape, 5), np.float32), np.empty((*shape, 5), np.float32)
    if pool:
        argmax, winners = np.empty((*shape, 2), np.uint8), np.empty((*shape, 2), np.uint8)
        conv2d.conv2d_pool_forward(y, argmax, x, w, None, 1, 1)
        reference.conv2d_pool_forward(expected, winners, x, w, None, 1, 1)
        lost = np.isnan(expected).all(-1)
        np.testing.assert_array_equal(argmax[lost], winners[lost])
    else:
        conv2d.conv2d_forward(y, x, w, None, 1, 1, True)
        reference.conv2d_forward(expected, x, w, None, 1, 1, True)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(expected))
    assert 0 < np.isnan(y).sum() <= 9 * 5


@pytest.mark.parametrize("k", [1, 2, 3, 5, 7, 33])
@pytest.mark.parametrize("c", [3, 17])
def test_winners_in_two_bits(conv2d, rng, k, c):
    """On small integers sums are exact, and ties are many: values, winners and unused bits are the reference's."""
    x = rng.integers(-2, 3, (2, 7, 6, c)).astype(np.float32)
    w, b = rng.integers(-1, 2, (k, 3, 3, c)).astype(np.float32), rng.integers(-3, 4, k).astype(np.float32)
    made = []
    for backend in (conv2d, reference):
        y, argmax = np.full((2, 3, 3, k), np.nan, np.float32), np.full((2, 3, 3, -(-k // 4)), 0xFF, np.uint8)
        backend.conv2d_pool_forward(y, argmax, x, w, b, 1, 1)
        made.append((y, argmax))
    np.testing.assert_array_equal(made[0][0], made[1][0])
    np.testing.assert_array_equal(made[0][1], made[1][1])


# The tiles that GPUs get ----------------------------------------------------------------------------------------------


def _run(module, name, x, w, dy, y, argmax, old):
    """The outputs of what a kernel serves, on `module`."""
    like = np.full(dy.shape, np.nan, dy.dtype)
    if name == "conv2d.forward":
        module.conv2d_forward(like, x, w, None, 1, 1, True)
        return [like]
    if name == "conv2d.forward_pool":
        like, winners = np.full_like(y, np.nan), np.empty_like(argmax)
        module.conv2d_pool_forward(like, winners, x, w, None, 1, 1)
        return [like]
    if name == "conv2d.backward_data":
        dx = np.full(x.shape, np.nan, x.dtype)
        module.conv2d_backward_data(dx, dy, w, None, None, 1, 1, 0.0)
        return [dx]
    dw, db = old.copy(), np.empty(len(w), w.dtype)
    module.conv2d_backward_weight(dw, db, dy, x, None, None, 1, 1, 1.0, 0.0)
    return [dw, db]


@pytest.mark.triton
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
@pytest.mark.parametrize(
    "name", ["conv2d.forward", "conv2d.forward_pool", "conv2d.backward_data", "conv2d.backward_weight"]
)
def test_the_tiles_that_gpus_get(inside, rng, monkeypatch, name, arch):
    """Each row of the table for a GPU, on more than one tile each way; those of the interpreter are smaller."""
    launching = importlib.import_module("pycap.backends.triton.launching")
    seen = set()
    for row in launching.kernel_module("configs").ROWS[name].get(arch, ()):
        if tuple(row.blocks.items()) in seen:
            continue
        seen.add(tuple(row.blocks.items()))
        few = row.blocks.get("FLAT", False)
        c = 7 if few else row.blocks["BLOCK_K"] + 3
        k = (row.blocks["BLOCK_M"] if name == "conv2d.backward_weight" else row.blocks["BLOCK_N"]) + 5
        x, w = normal(rng, np.float32, 2, 10, 14, c), normal(rng, np.float32, k, 3, 3, c, scale=0.1)
        dy, y = normal(rng, np.float32, 2, 10, 14, k), np.zeros((2, 5, 7, k), np.float32)
        argmax, old = np.empty((2, 5, 7, -(-k // 4)), np.uint8), normal(rng, np.float32, *w.shape)
        arguments = x, w, dy, y, argmax, old
        with monkeypatch.context() as patch, poisoned():
            patch.setitem(launching.forced, name, row)
            got = _run(inside, name, *arguments)
        plain, truth = _run(reference, name, *arguments), _run(reference, name, *map(exact, arguments))
        for values in zip(got, plain, truth, strict=True):
            rule_of_two(*values)
    assert seen
