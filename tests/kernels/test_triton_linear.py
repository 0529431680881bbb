"""Dense layers on Triton kernels, beyond what the primitives' common cases reach: fused dropout, scales, kinds of weights."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

from pycap.backends import constant_weights, reference
from pycap.backends.weights import WeightCache
from pycap.device import bfloat16
from pycap.memory import poisoned

OP = "linear"

EPS = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}


@pytest.fixture
def linear(kernels):
    return kernels


@pytest.fixture
def rng():
    return np.random.default_rng(3)


def dtype_of(name):
    return bfloat16() if name == "bfloat16" else np.dtype(name)


def made(rng, dtype, *shape, scale=1.0):
    return (scale * rng.standard_normal(shape)).astype(dtype)


def exact(array, through=None):
    return (array if through is None else array.astype(through)).astype(np.float64)


def check(got, truth, terms=1):
    """Each value within one rounding of the result, and float32's errors of a sum of so many terms."""
    scale = np.abs(truth).max(initial=1e-30)
    error = np.abs(got.astype(np.float64) - truth)
    assert np.isfinite(got.astype(np.float64)).all()
    assert (error <= EPS[got.dtype.name] / 2 * np.abs(truth) + 2.0**-23 * (2 + terms**0.5) * scale).all(), error.max()


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("p", [0.0, 0.4])
@pytest.mark.parametrize("relu", [False, True])
def test_dropout_in_the_epilogue_is_the_primitive_after_it(linear, rng, name, p, relu):
    dtype = dtype_of(name)
    x, w, b = made(rng, dtype, 3, 7, 45), made(rng, "float32", 19, 45, scale=0.2), made(rng, "float32", 19)
    arguments = (p, 0xFEDCBA9876543210, 11, 4)
    y = np.full((3, 7, 19), np.nan, dtype)
    with poisoned():
        linear.linear_dropout_forward(y, x, w, b, relu, *arguments)
    full, dropped = np.empty((21, 19)), np.empty((3, 7, 19))
    reference.linear_forward(full, exact(x).reshape(21, 45), exact(w, dtype), exact(b), relu)
    reference.dropout(dropped, full.reshape(3, 7, 19), *arguments, 0.0)
    np.testing.assert_array_equal(y == 0, dropped == 0)
    check(y, dropped, 45)


def test_dropout_of_one_step_takes_matrices(linear, rng):
    x, w = made(rng, "float32", 5, 33), made(rng, "float32", 8, 33)
    flat, stacked = np.empty((5, 8), np.float32), np.empty((1, 5, 8), np.float32)
    linear.linear_dropout_forward(flat, x, w, None, True, 0.5, 9, 5, 0)
    linear.linear_dropout_forward(stacked, x[None], w, None, True, 0.5, 9, 5, 0)
    np.testing.assert_array_equal(flat, stacked[0])
    assert 0 < np.count_nonzero(flat) < np.count_nonzero(x @ w.T > 0)


def test_dropout_refuses_an_impossible_probability(linear):
    x = np.zeros((1, 1), np.float32)
    with pytest.raises(ValueError, match=r"p is 1\.0; it must be at least 0 and below 1"):
        linear.linear_dropout_forward(x, x, x, None, True, 1.0, 0, 1, 0)


def test_gradient_of_a_layer_with_relu_and_dropout(linear, rng):
    """y > 0 and a scale are all that its backward needs."""
    p, seed, total, offset = 0.25, 5, 6, 0
    x, w, b = made(rng, "float32", 6, 21), made(rng, "float32", 37, 21), made(rng, "float32", 37)
    dy, y = made(rng, "float32", 6, 37), np.empty((6, 37), np.float32)
    linear.linear_dropout_forward(y, x, w, b, True, p, seed, total, offset)
    dropped, z = np.empty((1, 6, 37)), np.empty((6, 37))
    reference.linear_forward(z, exact(x), exact(w), exact(b), True)
    reference.dropout(dropped, exact(dy)[None], p, seed, total, offset, 0.0)
    dz = dropped[0] * (z > 0)
    dx, dw, db = (np.full(s, np.nan, np.float32) for s in ((6, 21), (37, 21), (37,)))
    linear.backward_data(dx, dy, w, y, 1 / (1 - p), 0.0)
    linear.backward_weight(dw, db, dy, x, y, 1 / (1 - p), 0.0, 0.0)
    check(dx, dz @ exact(w), 37)
    check(dw, dz.T @ exact(x), 6)
    check(db, dz.sum(0), 6)


@pytest.mark.parametrize("way", ["few rows", "many rows", "cached", "given"])
def test_weights_of_another_type_are_rounded_once(linear, rng, monkeypatch, way):
    dtype = dtype_of("bfloat16")
    monkeypatch.setattr("pycap.backends.triton.linear.MANY_ROWS", 1 if way == "many rows" else 257)
    monkeypatch.setattr("pycap.backends.triton.linear.PROGRAMS", 64)  # with partial sums beside the rounded weights
    x, w, dy = made(rng, dtype, 9, 90), made(rng, "float32", 17, 90), made(rng, dtype, 9, 17)
    y, dx = np.full((9, 17), np.nan, dtype), np.full((9, 90), np.nan, dtype)
    passed, cache = w.astype(dtype) if way == "given" else w, WeightCache()
    with poisoned(), constant_weights(cache if way == "cached" else None):
        linear.linear_forward(y, x, passed, None, False)
        linear.linear_backward_data(dx, dy, passed, None, 0.0)
    check(y, exact(x) @ exact(w, dtype).T, 90)
    check(dx, exact(dy) @ exact(w, dtype), 17)
    assert (cache.nbytes > 0) == (way == "cached")


@pytest.mark.parametrize("o", [16, 33, 48])
def test_rows_of_whole_and_of_broken_blocks(linear, rng, o):
    """Whole ones are stored by 16 bytes."""
    x, w, b = made(rng, "float32", 21, 20), made(rng, "float32", o, 20), made(rng, "float32", o)
    y = np.full((21, o), np.nan, np.float32)
    linear.linear_forward(y, x, w, b, False)
    check(y, exact(x) @ exact(w).T + exact(b), 20)


@pytest.mark.parametrize("scale", [0.5, -3.0])
@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_scale_is_applied_to_the_gradient_alone(linear, rng, scale, beta):
    dy, x, w = made(rng, "float32", 18, 35), made(rng, "float32", 18, 20), made(rng, "float32", 35, 20)
    old = [made(rng, "float32", *s) for s in ((18, 20), (35, 20), (35,))]
    dx, dw, db = (a.copy() for a in old)
    linear.backward_data(dx, dy, w, None, scale, beta)
    linear.backward_weight(dw, db, dy, x, None, scale, beta, beta)
    check(dx, beta * exact(old[0]) + scale * (exact(dy) @ exact(w)), 35)
    check(dw, beta * exact(old[1]) + scale * (exact(dy).T @ exact(x)), 18)
    check(db, beta * exact(old[2]) + scale * exact(dy).sum(0), 18)


@pytest.mark.triton
def test_the_bias_gradient_alone_is_a_column_of_tiles(inside, rng, monkeypatch):
    grids, launch = [], type(inside._weight).__call__

    def watch(kernel, grid, *arguments, **constants):
        grids.append(grid)
        launch(kernel, grid, *arguments, **constants)

    monkeypatch.setattr(type(inside._weight), "__call__", watch)
    dy, x = made(rng, "float32", 5, 33), made(rng, "float32", 5, 70)
    db = np.empty(33, np.float32)
    inside.backward_weight(None, db, dy, x, None, 1.0, 0.0, 0.0)
    check(db, exact(dy).sum(0), 5)
    inside.backward_weight(None, None, dy, x, None, 1.0, 0.0, 0.0)
    assert grids == [(3, 1, 1)]


@pytest.mark.triton
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_the_tiles_that_gpus_get(inside, rng, monkeypatch, arch):
    """Each row of the table for a GPU, on more than one tile; those of the interpreter are smaller."""
    launching = importlib.import_module("pycap.backends.triton.launching")
    table = launching.kernel_module("configs").ROWS
    m, i, o = 131, 140, 150
    x, w, b, dy = (made(rng, "float32", *s) for s in ((m, i), (o, i), (o,), (m, o)))
    old = made(rng, "float32", o, i)
    for name in ("linear.forward", "linear.backward_data", "linear.backward_weight"):
        for row in table[name].get(arch, ()):
            monkeypatch.setitem(launching.forced, name, row)
            y, dx, dw, db = (np.full(a.shape, np.nan, np.float32) for a in (dy, x, w, b))
            if name == "linear.forward":
                inside.linear_forward(y, x, w, b, True)
                check(y, np.maximum(exact(x) @ exact(w).T + exact(b), 0), i)
            elif name == "linear.backward_data":
                inside.linear_backward_data(dx, dy, w, None, 0.0)
                check(dx, exact(dy) @ exact(w), o)
            else:
                dw[...] = old
                inside.linear_backward_weight(dw, db, dy, x, None, 1.0, 0.0)
                check(dw, exact(old) + exact(dy).T @ exact(x), m)
                check(db, exact(dy).sum(0), m)


@pytest.mark.triton
@pytest.mark.parametrize(
    ("tiles", "inner", "block"),
    [(1, 1009, 16), (32, 25088, 32), (32, 4096, 64), (1, 1, 16), (500, 4096, 64), (3, 0, 16)],
)
def test_parts_cover_the_inner_dimension(inside, monkeypatch, tiles, inner, block):
    monkeypatch.setattr(inside, "PROGRAMS", 264)
    monkeypatch.setattr(inside, "LEAST", 4)
    parts, share = inside.split(tiles, inner, block)
    assert share % block == 0
    assert (parts - 1) * share < max(inner, 1) <= parts * share
    assert parts == 1 or (parts * tiles <= 264 and share >= 4 * block)
    assert parts > 1 or tiles > 132 or inner < 8 * block


def test_not_a_number_comes_through_relu(linear):
    x = np.array([[np.nan], [-1.0], [2.0]], np.float32)
    w = np.ones((1, 1), np.float32)
    y = np.empty((3, 1), np.float32)
    linear.linear_forward(y, x, w, None, True)
    np.testing.assert_array_equal(y, [[np.nan], [0.0], [2.0]])


def test_a_masked_gradient_is_not_multiplied(linear):
    """Where y is 0, dy may be anything."""
    dy, y = np.array([[np.inf, 1.0]], np.float32), np.array([[0.0, 1.0]], np.float32)
    w, x = np.ones((2, 1), np.float32), np.ones((1, 1), np.float32)
    dx, dw, db = np.empty((1, 1), np.float32), np.empty((2, 1), np.float32), np.empty(2, np.float32)
    linear.linear_backward_data(dx, dy, w, y, 0.0)
    linear.linear_backward_weight(dw, db, dy, x, y, 0.0, 0.0)
    assert dx.tolist() == [[1.0]] and dw.tolist() == [[0.0], [1.0]] and db.tolist() == [0.0, 1.0]


@pytest.mark.parametrize("name", ["linear_forward", "linear_backward_data", "linear_backward_weight"])
def test_wrong_shapes_and_types_are_named(linear, name):
    def zeros(*shape):
        return np.zeros(shape, np.float32)

    def arguments(x=4, b=3, y=3):
        return {
            "linear_forward": (zeros(2, y), zeros(2, x), zeros(3, 4), zeros(b), False),
            "linear_backward_data": (zeros(2, x), zeros(2, b), zeros(3, 4), zeros(2, y), 0.0),
            "linear_backward_weight": (zeros(3, 4), zeros(b), zeros(2, 3), zeros(2, x), zeros(2, y), 0.0, 0.0),
        }[name]

    for wrong in ({"x": 5}, {"b": 2}, {"y": 4}):
        with pytest.raises(ValueError, match=f"{name}: .* has shape .*, expected"):
            getattr(linear, name)(*arguments(**wrong))
    out, *rest = arguments()
    with pytest.raises(TypeError, match="float64"):
        getattr(linear, name)(out.astype(np.float64), *rest)
