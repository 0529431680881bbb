"""linear: definition, gradients, shared weights, refusals."""

from __future__ import annotations

import numpy as np
import pytest

from pycap import backends, ops
from pycap.autograd import Tensor
from pycap.backends import reference
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
