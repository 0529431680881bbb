"""Broadcasting arithmetic and shape operations: values against NumPy, gradients, operators, layouts."""

from __future__ import annotations

import numpy as np
import pytest

from pycap import backends, ops
from pycap.autograd import Tensor
from pycap.testing import compare_op, gradcheck


def draw(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(s) for s in shapes]


BROADCASTS = [
    ((3, 4), (3, 4)), ((3, 4), (4,)), ((4,), (3, 4)), ((3, 1), (1, 4)), ((2, 3, 4), (3, 1)), ((3, 4), ()), ((), (3, 4)),
    ((), ()), ((1,), (5,)), ((1, 1), (1, 1)), ((2, 1, 4), (1, 3, 1)), ((0, 3), (3,)), ((1, 3), (0, 3)),
]  # fmt: skip


@pytest.mark.gradcheck
@pytest.mark.parametrize(("a", "b"), BROADCASTS, ids=str)
@pytest.mark.parametrize("op", [ops.add, ops.mul])
def test_gradient_of_broadcasts(op, a, b):
    gradcheck(op, *draw(a, b))


@pytest.mark.parametrize(("a", "b"), BROADCASTS, ids=str)
def test_values_of_broadcasts(a, b):
    x, y = draw(a, b)
    np.testing.assert_array_equal(ops.add(Tensor(x), Tensor(y)).data, x + y)
    np.testing.assert_array_equal(ops.mul(Tensor(x), Tensor(y)).data, x * y)


PRODUCTS = [
    ((3, 4), (4, 5)), ((1, 1), (1, 1)), ((2, 3, 4), (2, 4, 5)), ((2, 3, 4), (4, 5)), ((3, 4), (2, 4, 5)),
    ((2, 1, 3, 4), (5, 4, 2)), ((0, 4), (4, 3)), ((3, 0), (0, 2)),
]  # fmt: skip


@pytest.mark.gradcheck
@pytest.mark.parametrize(("a", "b"), PRODUCTS, ids=str)
def test_gradient_of_matmul(a, b):
    gradcheck(ops.matmul, *draw(a, b))
    np.testing.assert_array_equal(ops.matmul(*map(Tensor, draw(a, b))).data, np.matmul(*draw(a, b)))


REDUCTIONS = [(None, False), (None, True), (0, False), (1, True), (-1, False), ((0, 2), False), ((0, 1, 2), True)]


@pytest.mark.gradcheck
@pytest.mark.parametrize(("axis", "keepdims"), REDUCTIONS)
@pytest.mark.parametrize("op", [ops.sum, ops.mean])
def test_gradient_of_reductions(op, axis, keepdims):
    (x,) = draw((3, 4, 5))
    gradcheck(lambda x: op(x, axis, keepdims), x)
    gradcheck(lambda x: op(x * x, axis, keepdims), x)
    expected = getattr(np, op.__name__)(x, axis, keepdims=keepdims)
    got = op(Tensor(x), axis, keepdims).data
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=1e-12)


KEYS = [
    0, -1, slice(None), slice(1, 3), slice(None, None, 2), slice(None, None, -1), slice(2, 2), None, ...,
    (1, 2), (slice(None), 1), (slice(None), slice(1, 4)), (..., -1),
    (slice(0, 2), None, slice(None), ..., 0), (0, 0, 0),
]  # fmt: skip


@pytest.mark.gradcheck
@pytest.mark.parametrize("key", KEYS, ids=str)
def test_gradient_of_getitem(key):
    (x,) = draw((3, 4, 5))
    gradcheck(lambda x: x[key], x)
    gradcheck(lambda x: ops.sum((x * 2.0)[key]) + ops.sum(x[key] * x[key]) + ops.sum(x), x)
    got = Tensor(x)[key].data
    np.testing.assert_array_equal(got, x[key])
    assert got.flags.c_contiguous


@pytest.mark.gradcheck
def test_gradient_of_overlapping_slices_of_one_activation():
    (x,) = draw((6, 3))

    def windows(x):
        y = x * 1.0
        return y[0:4] * y[2:6]

    gradcheck(windows, x)


@pytest.mark.gradcheck
@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_gradient_of_concatenate(axis):
    shapes = [[2, 3, 4] for _ in range(3)]
    for i, shape in enumerate(shapes):
        shape[axis] = i + 1
    arrays = draw(*map(tuple, shapes))
    gradcheck(lambda *t: ops.concatenate(t, axis), *arrays)
    gradcheck(lambda a, b, c: ops.concatenate([a, b * 2.0, a, c * a[:1, :1, :1]], axis), *arrays)
    np.testing.assert_array_equal(ops.concatenate([Tensor(a) for a in arrays], axis).data, np.concatenate(arrays, axis))


@pytest.mark.gradcheck
@pytest.mark.parametrize("shape", [(12,), (4, 3), (2, -1), (1, 3, 4, 1), (-1,)])
def test_gradient_of_reshape(shape):
    (x,) = draw((3, 4))
    gradcheck(lambda x: ops.reshape(x, shape), x)
    gradcheck(lambda x: (x * x).reshape(*shape) + (x * x).reshape(shape), x)
    np.testing.assert_array_equal(ops.reshape(Tensor(x), shape).data, x.reshape(shape))


@pytest.mark.gradcheck
def test_gradient_of_reshape_of_an_activation_used_twice():
    """The reshaped gradient is a view of another's array: adding into it must not reach that other."""
    (x, y) = draw((3, 4), (12,))

    def network(x, y):
        a, b = x * 1.0, y * 1.0
        flat = a.reshape(12) + b  # b and a's view share one gradient array
        return (flat, ops.sum(a * a), ops.sum(b * b))

    gradcheck(network, x, y)


@pytest.mark.gradcheck
def test_gradient_of_several_outputs_of_mixed_shapes():
    x, w = draw((3, 4), (4, 4))
    gradcheck(lambda x, w: (x @ w, ops.sum(x), (w + x[0])[1:, ::2], ops.mean(w * w, 0)), x, w)


def test_operators_with_numbers_and_arrays():
    x = Tensor(np.array([1.0, 2.0], np.float32), requires_grad=True)
    array = np.array([3.0, 4.0], np.float32)
    for result, expected in (
        (x + 1, [2, 3]), (1 + x, [2, 3]), (x * 2.5, [2.5, 5]), (2.5 * x, [2.5, 5]), (x + array, [4, 6]),
        (array + x, [4, 6]), (array * x, [3, 8]), (x * array, [3, 8]),
    ):  # fmt: skip
        assert isinstance(result, Tensor) and result.requires_grad
        assert result.dtype == np.float32
        np.testing.assert_array_equal(result.data, expected)
    (array * x + array).backward()
    np.testing.assert_array_equal(x.grad, array)


def test_python_numbers_keep_float32():
    x = Tensor(np.ones((3, 3), np.float32), requires_grad=True)
    y = ops.mean((x * 0.1 + 2) @ x) * 3.0 + 1
    assert y.dtype == np.float32
    y.backward()
    assert x.grad.dtype == np.float32


def test_refusals():
    x = Tensor(np.ones((3, 4)), requires_grad=True)
    with pytest.raises(TypeError, match=r"\[0, 1\].*gather rows with embedding"):
        x[[0, 1]]
    with pytest.raises(TypeError, match="gather rows with embedding"):
        x[np.array([True, False, True])]
    with pytest.raises(ValueError, match=r"matmul takes matrices.*\(4,\)"):
        x @ Tensor(np.ones(4))
    with pytest.raises(ValueError):
        x + Tensor(np.ones(5))
    with pytest.raises(ValueError):
        ops.concatenate([x, Tensor(np.ones((3, 5)))], 0)


def test_pieces_of_arrays_reach_kernels_contiguous(backend):
    """Slices forward and pieces of a concatenation backward are strided views: kernels must not see them so."""
    x, w, v = draw((5, 6), (4, 3), (7, 4))

    def network(x, w, v):
        left, right = ops.linear(x[:, :3], w), ops.linear(x[:, ::2], w, relu=True)
        return ops.linear(ops.concatenate([left, right], 1)[:, 2:6], v)

    compare_op(network, x, w, v, backend=backend)


def test_transposed_user_arrays_are_handled_or_refused_by_name(backend):
    x = np.arange(6, dtype=np.float32).reshape(3, 2).T
    w = np.ones((4, 3), np.float32)
    with backends.use(backend):
        try:
            y = ops.linear(Tensor(x), Tensor(w))
        except ValueError as error:
            assert "linear_forward: x must be C-contiguous" in str(error)
        else:
            np.testing.assert_array_equal(y.data, x @ w.T)
