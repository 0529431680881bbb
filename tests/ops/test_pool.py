"""maxpool: definition, ties, gradients, refusals."""

from __future__ import annotations

import numpy as np
import pytest

from pycap import backends, ops
from pycap.autograd import Tensor
from pycap.backends import reference
from pycap.testing import compare_op, gradcheck
from tests import naive

SHAPES = [(1, 2, 2, 1), (2, 5, 7, 3), (1, 6, 3, 17), (3, 3, 4, 4), (0, 4, 4, 2), (1, 2, 9, 5)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_reference_is_the_definition(shape):
    rng = np.random.default_rng(0)
    for x in (rng.standard_normal(shape), rng.integers(-1, 2, shape).astype(float), np.full(shape, -3.0)):
        expected, winners = naive.maxpool(x)
        y, argmax = np.full(expected.shape, np.nan), np.full(winners.shape, 99, np.uint8)
        reference.maxpool_forward(y, argmax, x)
        np.testing.assert_array_equal(y, expected)
        np.testing.assert_array_equal(argmax, winners)
        dy, dx = rng.standard_normal(y.shape), np.full(shape, np.nan)
        reference.maxpool_backward(dx, dy, argmax, 0.0)
        np.testing.assert_array_equal(dx, naive.maxpool_backward(dy, winners, shape))


@pytest.mark.gradcheck
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradient(shape):
    x = np.random.default_rng(0).standard_normal(shape)
    gradcheck(ops.maxpool, x)
    if shape[0]:
        gradcheck(lambda x: ops.sum(ops.maxpool(x * 2.0)) + ops.sum(ops.maxpool(x) * ops.maxpool(x)), x)


@pytest.mark.parametrize("shape", [s for s in SHAPES if s[0]], ids=str)
def test_backend(backend, shape):
    compare_op(lambda x: ops.maxpool(x * 1.0), np.random.default_rng(0).standard_normal(shape), backend=backend)


def test_the_first_of_equals_gets_the_whole_gradient(backend):
    x = Tensor(np.full((1, 4, 2, 5), 2.0, np.float32), requires_grad=True)
    with backends.use(backend):
        ops.maxpool(x).backward()
    expected = np.zeros((1, 4, 2, 5))
    expected[0, ::2, 0] = 1
    np.testing.assert_array_equal(x.grad, expected)


def test_negative_values_and_infinities(backend):
    x = np.array([[-np.inf, -5.0], [-np.inf, -7.0]], np.float32).reshape(1, 2, 2, 1)
    with backends.use(backend):
        assert ops.maxpool(Tensor(x)).data.item() == -5.0


@pytest.mark.parametrize("shape", [(1, 1, 4, 2), (1, 4, 1, 2), (4, 4, 2)])
def test_refuses(shape):
    with pytest.raises(ValueError, match="H and W of at least 2"):
        ops.maxpool(Tensor(np.zeros(shape, np.float32)))
