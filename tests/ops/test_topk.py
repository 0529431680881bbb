"""log_softmax_topk: definition, order of equals, suppressed ids, refusals."""

from __future__ import annotations

import numpy as np
import pytest

from pycap import backends, ops
from tests import naive


@pytest.mark.parametrize(("rows", "v", "k"), [(3, 7, 3), (1, 1, 1), (5, 31, 31), (4, 33, 1), (0, 5, 2), (2, 1009, 10)])
@pytest.mark.parametrize("ties", [False, True])
def test_every_backend_is_the_definition(backend, rows, v, k, ties):
    rng = np.random.default_rng(0)
    logits = (rng.integers(0, 4, (rows, v)) if ties else rng.permuted(np.tile(np.arange(v), (rows, 1)), axis=1)) * 0.25
    suppress = (0, v - 1) if v > k + 2 else ()
    with backends.use(backend):
        values, ids = ops.log_softmax_topk(logits.astype(np.float32), k, suppress)
    expected_values, expected_ids = naive.log_softmax_topk(logits, k, suppress)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_allclose(values, expected_values, rtol=1e-5, atol=1e-5)
    assert ids.dtype == np.int32 and values.dtype == np.float32


def test_logits_are_left_alone_and_probabilities_sum_to_one(backend):
    logits = np.random.default_rng(0).standard_normal((3, 9)).astype(np.float32)
    held = logits.copy()
    with backends.use(backend):
        values, ids = ops.log_softmax_topk(logits, 7, (2, 5))
    np.testing.assert_array_equal(logits, held)
    np.testing.assert_allclose(np.exp(values.astype(np.float64)).sum(1), 1.0, rtol=1e-5)
    assert not np.isin(ids, [2, 5]).any()
    assert (np.diff(values, axis=1) <= 0).all()


def test_huge_logits_and_minus_infinity(backend):
    logits = np.array([[1e4, -1e4, -np.inf, 1e4 - 1]], np.float32)
    with backends.use(backend):
        values, ids = ops.log_softmax_topk(logits, 2)
    assert ids.tolist() == [[0, 3]]
    np.testing.assert_allclose(values[0], [-np.log1p(np.exp(-1)), -1 - np.log1p(np.exp(-1))], rtol=1e-5)


def test_an_id_suppressed_twice_counts_once(backend):
    with backends.use(backend):
        _, ids = ops.log_softmax_topk(np.zeros((1, 5), np.float32), 3, (1, 1, 2))
    assert ids.tolist() == [[0, 3, 4]]


@pytest.mark.parametrize(("k", "suppress"), [(0, ()), (6, ()), (5, (0,)), (4, (1, 1, 2))])
def test_refuses(k, suppress):
    with pytest.raises(ValueError, match=rf"k = {k} of 5 ids, {len(set(suppress))} of them suppressed"):
        ops.log_softmax_topk(np.zeros((2, 5), np.float32), k, suppress)
