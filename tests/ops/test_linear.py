"""linear: definition, gradients, shared weights, refusals."""

from __future__ import annotations

import numpy as np
import pytest

from pycap import backends, ops
from pycap.autograd import Tensor
from pycap.backends import reference
from pycap.device import bfloat16
from pycap.testing import compare_op, gradcheck
from tests import naive

SHAPES = [(1, 1, 1), (3, 4, 5), (7, 13, 11), (2, 1, 17), (0, 3, 2)]  # (M, I, O)


def draw(m, i, o, bias=True):
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((m, i)), rng.standard_normal((o, i)) / i**0.5]
    return arrays + ([rng.standard_normal(o)] if bias else [])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_reference_is_the_definition(shape, relu, bias):
    x, w, *b = draw(*shape, bias=bias)
    b = b[0] if bias else None
    y = np.full((shape[0], shape[2]), np.nan)
    reference.linear_forward(y, x, w, b, relu)
    np.testing.assert_allclose(y, naive.linear(x, w, b, relu), rtol=1e-12, atol=1e-12)


@pytest.mark.gradcheck
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_gradient(shape, relu, bias):
    gradcheck(lambda *t: ops.linear(*t, relu=relu), *draw(*shape, bias=bias))


@pytest.mark.gradcheck
def test_gradient_of_a_weight_used_by_several_layers():
    x, w, b = draw(3, 4, 4)
    gradcheck(lambda x, w, b: ops.linear(ops.linear(ops.linear(x, w, b, relu=True), w, relu=True), w, b), x, w, b)


@pytest.mark.gradcheck
def test_gradient_of_an_activation_with_several_consumers():
    x, w, b = draw(3, 4, 4)

    def network(x, w, b):
        h = ops.linear(x, w, b)
        return ops.linear(h, w, relu=True), ops.linear(h, w), h * h, ops.dropout(h, 0.5, 3)

    gradcheck(network, x, w, b)


@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 13, 11), (33, 17, 31), (2, 64, 65)], ids=str)
@pytest.mark.parametrize("relu", [False, True])
def test_backend(backend, shape, relu):
    compare_op(lambda x, w, b: ops.linear(x * 1.0, w, b, relu=relu), *draw(*shape), backend=backend)


# Rows for one and for several tiles, with and without a rest; inputs beyond those that are summed at a time.
NARROW = [(9, 1, 1), (16, 32, 16), (33, 40, 17), (50, 1100, 70), (130, 66, 600)]


@pytest.mark.parametrize("shape", NARROW, ids=str)
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_bfloat16_is_exact_where_numbers_are(backend, shape, relu, beta):
    """Of small integers all products and sums are exact in float32: results are the exact ones, rounded once where they are
    bfloat16, bit for bit, whatever is summed in which order; a term that is left out or counted twice shows."""
    m, i, o = shape
    rng = np.random.default_rng(m)
    x, dy, dx = (rng.integers(-3, 4, s).astype(bfloat16()) for s in ((m, i), (m, o), (m, i)))
    w, b, dw, db = (rng.integers(-3, 4, s).astype(np.float32) for s in ((o, i), (o,), (o, i), (o,)))
    xd, dyd, dxd, wd, bd, dwd, dbd = (a.astype(np.float64) for a in (x, dy, dx, w, b, dw, db))
    y = np.maximum(xd @ wd.T + bd, 0) if relu else xd @ wd.T + bd
    made = np.empty((m, o), bfloat16())
    with backends.use(backend):
        kernels, cache = backends.kernels, backends.WeightCache()
        kernels.linear_forward(made, x, w, b, relu)
        rounded = np.empty_like(made)
        with backends.constant_weights(cache):
            kernels.linear_forward(rounded, x, w, b, relu)
        d = dyd * (y > 0) if relu else dyd
        kernels.linear_backward_data(dx, dy, w, made if relu else None, beta)
        kernels.linear_backward_weight(dw, db, dy, x, made if relu else None, beta, beta)
    for got, exact in ((made, y), (rounded, y), (dx, beta * dxd + d @ wd)):
        assert np.abs(exact).max() < 2**23  # and halves of it: exact in float32
        assert got.tobytes() == (exact.astype(np.float32) + np.float32(0)).astype(bfloat16()).tobytes()
    np.testing.assert_array_equal(dw, beta * dwd + d.T @ xd)
    np.testing.assert_array_equal(db, beta * dbd + d.sum(0))


@pytest.mark.parametrize("shape", NARROW, ids=str)
def test_bfloat16_errs_by_its_roundings_only(backend, shape):
    """Element by element: a weight and a result are rounded by 2^-8 at most, each product and sum by 2^-24."""
    m, i, o = shape
    x, w, b = draw(m, i, o)
    x, dy = x.astype(bfloat16()), draw(m, o, 1)[0].astype(bfloat16())
    w, b = w.astype(np.float32), b.astype(np.float32)
    xd, dyd, wd, bd = (a.astype(np.float64) for a in (x, dy, w, b))
    y, dx, dw = np.empty((m, o), bfloat16()), np.empty((m, i), bfloat16()), np.empty((o, i), np.float32)
    with backends.use(backend):
        backends.kernels.linear_forward(y, x, w, b, False)
        backends.kernels.linear_backward_data(dx, dy, w, None, 0.0)
        backends.kernels.linear_backward_weight(dw, None, dy, x, None, 0.0, 0.0)
    for got, exact, terms, depth, narrow in (
        (y, xd @ wd.T + bd, np.abs(xd) @ np.abs(wd).T + np.abs(bd), i + 1, 2.0**-8),
        (dx, dyd @ wd, np.abs(dyd) @ np.abs(wd), o, 2.0**-8),
        (dw, dyd.T @ xd, np.abs(dyd).T @ np.abs(xd), m, 0.0),
    ):
        bound = (narrow + (depth + 1) * 2.0**-24) * terms
        bound += narrow * (np.abs(exact) + bound)
        assert (np.abs(got.astype(np.float64) - exact) <= bound).all()


def test_relu_passes_nan_on_and_clamps_minus_infinity(backend):
    x, w = np.array([[np.nan], [-np.inf], [1.0]], np.float32), np.ones((3, 1), np.float32)
    with backends.use(backend):
        y = ops.linear(Tensor(x), Tensor(w), relu=True).data
    assert np.isnan(y[0]).all()
    np.testing.assert_array_equal(y[1:, 0], [0, 1])


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((3, 4), (5, 3), (5,)), r"x \(3, 4\).*w \(5, 3\)"),
        (((4,), (5, 4), (5,)), r"not \[M,I\]"),
        (((3, 4), (5, 4), (1,)), r"b \(1,\) is not \[O\] = \(5,\)"),
        (((3, 4), (5, 4), (4,)), r"b \(4,\)"),
    ],
)
def test_refuses(backend, shapes, message):
    with backends.use(backend), pytest.raises(ValueError, match=message):
        ops.linear(*(Tensor(np.zeros(s, np.float32)) for s in shapes))
