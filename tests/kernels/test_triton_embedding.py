"""Gather and scatter of rows on Triton kernels, beyond the primitives' common cases: foreign ids, float16, repetition."""

from __future__ import annotations

import numpy as np
import pytest

from pycap.backends.triton import launching
from pycap.device import bfloat16

pytestmark = pytest.mark.triton


@pytest.fixture(scope="module")
def embedding():
    return pytest.importorskip("pycap.backends.triton.embedding")


@pytest.fixture
def rng():
    return np.random.default_rng(11)


FOREIGN = np.array([2, -1, 5, 0, 6, 2, -(2**31), 2**31 - 1], np.int32)  # of a table of 6 rows


def test_ids_outside_the_table_read_nothing(embedding, rng):
    table = rng.standard_normal((6, 19)).astype(np.float32)
    y = np.full((8, 19), np.nan, np.float32)
    embedding.embedding_forward(y, table, FOREIGN)
    known = (FOREIGN >= 0) & (FOREIGN < 6)
    np.testing.assert_array_equal(y[known], table[FOREIGN[known]])
    assert not y[~known].any()


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_ids_outside_the_table_write_nothing(embedding, rng, beta):
    dy = rng.standard_normal((8, 19)).astype(np.float32)
    whole = rng.standard_normal((10, 19)).astype(np.float32)
    dtable, around = whole[2:8], (whole[:2].copy(), whole[8:].copy())
    expected = beta * dtable
    np.add.at(expected, [2, 5, 0, 2], dy[[0, 2, 3, 5]])
    embedding.embedding_backward(dtable, dy, FOREIGN, None, beta)
    np.testing.assert_allclose(dtable, expected, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(whole[:2], around[0])
    np.testing.assert_array_equal(whole[8:], around[1])


def test_a_program_without_a_row_compares_no_ids(embedding, rng, monkeypatch):
    """Padding costs a program that ends, wherever it stands; an id costs the scan of those before it and after it."""
    inside = launching.kernel_module("embedding")
    equal, compared = inside._equal, []

    class Counted:
        def __call__(self, *arguments):
            compared.append(arguments[-1])
            return equal(*arguments)

    monkeypatch.setattr(inside, "_equal", Counted())
    dtable, ids = np.zeros((6, 19), np.float32), np.full(150, -1, np.int32)
    embedding.embedding_backward(dtable, np.ones((150, 19), np.float32), ids, None, 1.0)
    assert not compared and not dtable.any()
    ids[140] = 5
    embedding.embedding_backward(dtable, np.ones((150, 19), np.float32), ids, None, 1.0)
    assert compared and (dtable[5] == 1).all()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_many_equal_ids_are_summed_once_and_rounded_once(embedding, rng, dtype, beta):
    """Ids repeat across the blocks in which they are scanned, so that a second first occurrence would show."""
    dtype = bfloat16() if dtype == "bfloat16" else np.dtype(dtype)
    ids = np.resize(np.array([3, 0, 3, 3, 1], np.int32), 150)
    dy, old = rng.standard_normal((150, 37)).astype(dtype), rng.standard_normal((5, 37)).astype(dtype)
    got = old.copy()
    embedding.embedding_backward(got, dy, ids, None, beta)
    truth = beta * old.astype(np.float64)
    np.add.at(truth, ids, dy.astype(np.float64))
    half_a_unit = {"float32": 0, "float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype.name]
    error = np.abs(got.astype(np.float64) - truth)
    assert (error <= half_a_unit * np.abs(truth) + 1e-5).all(), error.max()


def test_only_stale_and_used_rows_are_written(embedding, rng):
    table = np.full((9, 5), 7.0, np.float32)
    embedding.embedding_backward(
        table, np.ones((2, 5), np.float32), np.array([4, 1], np.int32), np.array([1, 8], "i4"), 0.0
    )
    np.testing.assert_array_equal(table[:, 0], [7, 1, 7, 7, 1, 7, 7, 7, 0])


def test_stale_rows_of_another_type_are_refused(embedding):
    table, dy = np.zeros((3, 2), np.float32), np.zeros((1, 2), np.float32)
    with pytest.raises(TypeError, match="stale must be int32, got int64"):
        embedding.embedding_backward(table, dy, np.zeros(1, np.int32), np.zeros(1, np.int64), 0.0)
    with pytest.raises(ValueError, match=r"embedding_backward: dy has shape \(1, 2\), expected \(2, 2\)"):
        embedding.embedding_backward(table, dy, np.zeros(2, np.int32), None, 0.0)
