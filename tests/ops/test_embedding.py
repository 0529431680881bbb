"""embedding: definition, gradients, refusals (its rows over several steps: tests/test_autograd.py)."""

from __future__ import annotations

import numpy as np
import pytest

from pycap import backends, memory, ops
from pycap.autograd import Tensor
from pycap.backends import kernels, reference
from pycap.device import bfloat16
from pycap.testing import compare_op, gradcheck
from tests import naive


def table_and_ids(v, e, shape, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((v, e)), rng.integers(0, v, shape).astype(np.int32)


SHAPES = [(5, 3, (7,)), (1, 1, (1,)), (4, 2, (3, 2)), (3, 5, (2, 2, 2)), (6, 4, (0,)), (2, 3, ())]


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize(("v", "e", "shape"), SHAPES)
def test_reference_is_the_definition(v, e, shape, gaps):
    table, ids = table_and_ids(v, e, shape)
    flat = ids.reshape(-1)
    if gaps:
        flat[::2] = -1
    y = np.full((flat.size, e), np.nan)
    reference.embedding_forward(y, table, flat)
    np.testing.assert_array_equal(y, naive.embedding(table, flat))
    dy = np.random.default_rng(1).standard_normal(y.shape)
    for beta in (0.0, 1.0, 0.5):
        held = np.random.default_rng(2).standard_normal(table.shape)
        dtable = held.copy()
        reference.embedding_backward(dtable, dy, flat, None, beta)
        np.testing.assert_allclose(dtable, naive.embedding_backward(held, dy, flat, beta), rtol=1e-12, atol=1e-12)


@pytest.mark.gradcheck
@pytest.mark.parametrize(("v", "e", "shape"), SHAPES)
def test_gradient(v, e, shape):
    table, ids = table_and_ids(v, e, shape)
    gradcheck(lambda t: ops.embedding(t, ids), table)
    ids.reshape(-1)[::2] = -1
    gradcheck(lambda t: ops.embedding(t, ids, trusted=True), table)


@pytest.mark.parametrize(("v", "e", "shape"), SHAPES)
def test_rows_of_the_table_in_the_shape_of_the_ids(backend, v, e, shape):
    table, ids = table_and_ids(v, e, shape)
    table = table.astype(np.float32)
    with backends.use(backend):
        np.testing.assert_array_equal(ops.embedding(Tensor(table), ids).data, table[ids].reshape(*shape, e))
        if ids.ndim > 1:
            np.testing.assert_array_equal(ops.embedding(Tensor(table), ids.T).data, table[ids.T])


@pytest.mark.gradcheck
def test_gradient_of_two_lookups_in_one_table():
    table, ids = table_and_ids(5, 3, (4,))
    other = np.array([4, 4, 0], np.int32)
    gradcheck(lambda t: (ops.embedding(t, ids), ops.embedding(t, other), t * t), table)


@pytest.mark.gradcheck
def test_gradient_of_tied_weights():
    table, ids = table_and_ids(6, 3, (4,))
    targets = np.array([1, 0, 5, 2], np.int32)

    def network(t, b):
        return ops.linear_cross_entropy(ops.embedding(t, ids), t, b, targets)

    gradcheck(network, table, np.random.default_rng(1).standard_normal(6))


@pytest.mark.parametrize(("v", "e", "shape"), [(11, 13, (23,)), (3, 33, (97,)), (5, 64, (4, 3))])
def test_backend(backend, v, e, shape):
    table, ids = table_and_ids(v, e, shape)
    compare_op(lambda t: ops.embedding(t, ids), table, backend=backend)
    compare_op(lambda t: ops.embedding(t * 1.0, ids) * ops.embedding(t, ids), table, backend=backend)


def test_rows_over_steps_on_every_backend(backend):
    """The clearing of the rows of the step before is the kernel's: the gradient equals a dense one, step after step."""
    table = Tensor(np.zeros((9, 5), np.float32), requires_grad=True)
    with backends.use(backend):
        for step in range(6):
            ids = np.random.default_rng(step).integers(0, 9, step).astype(np.int32)
            ops.embedding(table, ids).backward()
            expected = np.bincount(ids, minlength=9).astype(np.float32)
            np.testing.assert_array_equal(table.grad, np.repeat(expected[:, None], 5, 1))
            table.fresh = False


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_no_row_is_neither_read_nor_written(backend, beta, dtype):
    """-1 as an index would be the last row: it holds NaN, and then -0.0, of which adding a zero would take the sign."""
    dtype = bfloat16() if dtype == "bfloat16" else np.dtype(dtype)
    ids = np.array([-1, 1, -1, 0, 1, -1], np.int32)
    table, dy = np.ones((3, 4), dtype), np.ones((6, 4), dtype)
    table[2] = dy[ids < 0] = np.nan
    y, dtable = np.full((6, 4), np.nan, dtype), np.full((3, 4), -0.0, dtype)
    with backends.use(backend), memory.poisoned():
        kernels.embedding_forward(y, table, ids)
        kernels.embedding_backward(dtable, dy, ids, np.array([0], np.int32), beta)
    np.testing.assert_array_equal(y[:, 0], [0, 1, 0, 1, 1, 0])
    np.testing.assert_array_equal(dtable[:, 0], [1, 2, 0])
    assert np.signbit(dtable[2]).all()


@pytest.mark.parametrize("m", [0, 3])
def test_a_table_without_rows_has_no_row_for_anybody(backend, m):
    y, empty, none = np.full((m, 5), np.nan, np.float32), np.zeros((0, 5), np.float32), np.full(m, -1, np.int32)
    with backends.use(backend):
        kernels.embedding_forward(y, empty, none)
        kernels.embedding_backward(empty, np.ones((m, 5), np.float32), none, None, 0.0)
    assert not y.any()


def test_trusted_ids_over_steps_on_every_backend(backend):
    """Nothing is noted of them: a step after another may have filled any row, and every row is written anew."""
    table = Tensor(np.full((9, 5), 3, np.float32), requires_grad=True)
    with backends.use(backend):
        for step in range(6):
            ids = np.random.default_rng(step).integers(-1, 9, 2 * step).astype(np.int32)
            y = ops.embedding(table, ids, trusted=True)
            np.testing.assert_array_equal(y.data[:, 0], np.where(ids < 0, 0, 3))
            y.backward()
            expected = np.bincount(ids[ids >= 0], minlength=9).astype(np.float32)
            np.testing.assert_array_equal(table.grad, np.repeat(expected[:, None], 5, 1))
            assert table.rows is None
            table.fresh = False


def test_cpp_refuses_other_ids_than_those_of_rows_and_of_none():
    if backends.available("cpp"):
        pytest.skip(f"backend cpp: {backends.available('cpp')}")
    table, dy = np.zeros((5, 2), np.float32), np.zeros((2, 2), np.float32)
    with backends.use("cpp"):
        for bad in (-2, 5):
            ids = np.array([-1, bad], np.int32)
            with pytest.raises(IndexError, match=rf"embedding_forward: ids\[1\] is {bad}, outside -1\.\.4"):
                kernels.embedding_forward(dy, table, ids)
            with pytest.raises(IndexError, match=rf"embedding_backward: ids\[1\] is {bad}, outside -1\.\.4"):
                kernels.embedding_backward(table, dy, ids, None, 0.0)
        with pytest.raises(IndexError, match=r"embedding_backward: stale\[0\] is -1, outside 0\.\.4"):
            kernels.embedding_backward(table, dy, np.zeros(2, np.int32), np.array([-1], np.int32), 0.0)


@pytest.mark.parametrize(("bad", "named"), [(-1, "-1"), (5, "5"), (10**6, "1000000")])
def test_refuses_ids_outside_the_table(backend, bad, named):
    with backends.use(backend), pytest.raises(IndexError, match=f"id {named} is outside the table of 5 rows"):
        ops.embedding(Tensor(np.zeros((5, 2), np.float32)), np.array([0, bad, 1], np.int32))


def test_refuses_other_integers():
    with pytest.raises(TypeError, match="int64, not int32"):
        ops.embedding(Tensor(np.zeros((5, 2), np.float32)), np.array([0, 1]))
