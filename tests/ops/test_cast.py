"""cast: rounding to nearest and back, gradients in each side's dtype, beta rounded once, special values."""

from __future__ import annotations

import numpy as np
import pytest

from pycap import backends, ops
from pycap.autograd import Tensor
from pycap.device import activation_dtype, bfloat16, is_bfloat16
from tests import naive

SHAPES = [(), (1,), (17,), (3, 5, 7), (0, 4), (33, 31), (70_001,)]


@pytest.fixture(params=["narrow", "widen"])
def dtypes(request):
    """(from, to)."""
    single = np.dtype(np.float32)
    return (single, bfloat16()) if request.param == "narrow" else (bfloat16(), single)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_both_directions_are_the_definition(backend, dtypes, shape):
    start, end = dtypes
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32).astype(start)
    with backends.use(backend):
        y = ops.cast(Tensor(x), end)
    assert y.dtype == end and y.shape == shape
    values = x.astype(np.float32)
    expected = naive.round_to_bfloat16(values) if end == bfloat16() else values
    np.testing.assert_array_equal(y.data.astype(np.float32), expected)


def test_special_values(backend):
    ties = [1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, 2**-133 * 1.5]  # to even; the last is a denormal number
    x = np.array([np.inf, -np.inf, np.nan, -np.nan, 0.0, -0.0, 3.4e38, 1e-40, *ties, *np.arange(30)], np.float32)
    x.view(np.uint32)[2] = 0x7F800001  # a NaN whose upper half alone would be infinity
    with backends.use(backend):
        y = ops.cast(Tensor(x), bfloat16()).data.astype(np.float32)
        back = ops.cast(ops.cast(Tensor(x), bfloat16()), np.float32).data
    np.testing.assert_array_equal(y[:2], [np.inf, -np.inf])
    assert np.isnan(y[2:4]).all() and np.signbit(y[5]) and not np.signbit(y[4])
    assert y[6] == np.inf  # above the largest bfloat16 by more than half a unit
    np.testing.assert_array_equal(y[8:11], [1.0, 1 + 2**-6, -1.0])
    np.testing.assert_array_equal(y[6:], naive.round_to_bfloat16(x[6:]))
    np.testing.assert_array_equal(back, y)


def test_gradients_come_back_in_the_inputs_dtype(backend, dtypes):
    start, end = dtypes
    rng = np.random.default_rng(0)
    x = Tensor(rng.standard_normal((5, 7)).astype(np.float32).astype(start), requires_grad=True)
    dy = rng.standard_normal((5, 7)).astype(np.float32)
    with backends.use(backend):
        ops.cast(x, end).backward(dy.astype(end))
        assert x.grad.dtype == start
        once = dy.astype(end).astype(np.float32).astype(start)
        np.testing.assert_array_equal(x.grad, once)
        ops.cast(x, end).backward(dy.astype(end))  # the leaf's gradient is fresh: added, in float32, and rounded once
    both = once.astype(np.float32) + dy.astype(end).astype(np.float32)
    np.testing.assert_array_equal(x.grad, both.astype(start))


def test_what_has_the_dtype_already_stays_the_same_tensor():
    x = Tensor(np.ones(3, np.float32), requires_grad=True)
    assert ops.cast(x, np.float32) is x
    narrow = ops.cast(x, bfloat16())
    assert ops.cast(narrow, bfloat16()) is narrow


def test_refuses_other_dtypes():
    if backends.available("cpp"):
        pytest.skip(f"backend cpp: {backends.available('cpp')}")
    with backends.use("cpp"), pytest.raises(TypeError, match="y must be float32, got float64"):
        ops.cast(Tensor(np.ones(3, np.float32)), np.float64)
    from pycap.backends import cpp

    with pytest.raises(ValueError, match=r"cast: y must have shape \(3,\), got \(4,\)"):
        cpp.cast(np.zeros(4, np.float32), np.ones(3, bfloat16()), 0.0)


def test_precisions():
    assert activation_dtype("fp32") == np.float32 and activation_dtype("bf16") == bfloat16()
    with pytest.raises(ValueError, match="'fp16' is unknown; choose from fp32, tf32, bf16"):
        activation_dtype("fp16")
    assert is_bfloat16(np.zeros(1, bfloat16()))
    assert not any(map(is_bfloat16, (None, 1.0, np.zeros(1, np.float16), np.zeros(1, "V2"), np.zeros(1, np.uint16))))
