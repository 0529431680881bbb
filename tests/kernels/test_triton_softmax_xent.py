"""The vocabulary loss and top-k on Triton kernels, beyond what the primitives' common cases reach: types, infinities, edges."""

from __future__ import annotations

import numpy as np
import pytest

from pycap.backends import reference
from pycap.device import bfloat16
from pycap.memory import poisoned

OP = "softmax_xent"


@pytest.fixture
def xent(kernels):
    return kernels


@pytest.fixture
def rng():
    return np.random.default_rng(8)


def problem(rng, m=19, k=24, v=150):
    h, w, b = (rng.standard_normal(s).astype(np.float32) for s in ((m, k), (v, k), (v,)))
    return h, w, b, rng.integers(0, v, m).astype(np.int32)


def exact(h, w, b, targets):
    loss, dlogits = np.empty(len(h)), np.empty((len(h), len(w)))
    reference.linear_xent_forward(
        loss, dlogits, h.astype(np.float64), w.astype(np.float64), b.astype(np.float64), targets, None
    )
    return loss, dlogits


def sums_error(h, w, b):
    """What float32's rounding of a logit's sum may come to."""
    return (
        2.0**-23 * (2 + h.shape[1] ** 0.5) * np.abs(h.astype(np.float64) @ w.astype(np.float64).T + b)[:, -50:].max()
    )  # those of the others may be -inf


def run(xent, h, w, b, targets, weights=None):
    loss, dlogits = np.full(len(h), np.nan, np.float32), np.full((len(h), len(w)), np.nan, h.dtype)
    with poisoned():
        xent.linear_xent_forward(loss, dlogits, h, w, b, targets, weights)
    return loss, dlogits


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
@pytest.mark.parametrize("weights", ["float32", "of h's type"])
def test_half_precision_rounds_gradients_but_not_losses(xent, rng, name, weights):
    """The loss is of float32 sums; dlogits differ by two roundings: the logit's, which scales p, and their own."""
    dtype = bfloat16() if name == "bfloat16" else np.dtype(name)
    h, w, b, targets = problem(rng)
    h, rounded = h.astype(dtype), w.astype(dtype)
    loss, dlogits = run(xent, h, rounded if weights != "float32" else w, b, targets)
    true_loss, true_dlogits = exact(h, rounded, b, targets)
    np.testing.assert_allclose(loss, true_loss, rtol=2e-6, atol=sums_error(h, rounded, b))
    half = float(np.finfo(np.float16).eps if name == "float16" else 2.0**-7) / 2
    logits = h.astype(np.float64) @ rounded.astype(np.float64).T + b
    p = true_dlogits + (np.arange(len(w)) == targets[:, None])
    allowed = p * np.expm1(half * np.abs(logits)) + half * np.abs(true_dlogits) + sums_error(h, rounded, b)
    assert (np.abs(dlogits.astype(np.float64) - true_dlogits) <= 1.1 * allowed).all()


def test_half_precision_backward(xent, rng):
    h, w, b, targets = problem(rng)
    h, w = h.astype(bfloat16()), w.astype(bfloat16())
    _, dlogits = run(xent, h, w, b, targets)
    dh, dw, db = np.empty(h.shape, h.dtype), np.empty(w.shape, np.float32), np.empty(b.shape, np.float32)
    xent.linear_xent_backward(dh, dw, db, dlogits, h, w, 0.25, (0.0, 0.0, 0.0))
    g, hh, ww = (a.astype(np.float64) for a in (dlogits, h, w))
    np.testing.assert_allclose(dh.astype(np.float64), 0.25 * g @ ww, rtol=2.0**-8, atol=1e-5)
    np.testing.assert_allclose(dw, 0.25 * g.T @ hh, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(db, 0.25 * g.sum(0), rtol=1e-5, atol=1e-5)


def test_each_gradient_may_be_the_only_one(xent, rng):
    h, w, b, targets = problem(rng)
    _, dlogits = run(xent, h, w, b, targets)
    arrays = [np.empty_like(a) for a in (h, w, b)]
    xent.linear_xent_backward(*arrays, dlogits, h, w, 1.0, (0.0, 0.0, 0.0))
    for number, wanted in enumerate(arrays):
        alone = [None, None, None]
        alone[number] = np.full_like(wanted, np.nan)
        xent.linear_xent_backward(*alone, dlogits, h, w, 1.0, (0.0, 0.0, 0.0))
        np.testing.assert_array_equal(alone[number], wanted)


def test_words_of_probability_zero(xent, rng):
    """A whole tile of -inf, and -inf beside numbers: as in the reference, and not NaN."""
    h, w, b, targets = problem(rng)
    b[:40], targets[:] = -np.inf, 60
    loss, dlogits = run(xent, h, w, b, targets)
    true_loss, true_dlogits = exact(h, w, b, targets)
    np.testing.assert_allclose(loss, true_loss, rtol=2e-6, atol=sums_error(h, w, b))
    np.testing.assert_allclose(dlogits, true_dlogits, atol=sums_error(h, w, b))
    assert (dlogits[:, :40] == 0).all()
    targets[:] = 3
    assert np.isposinf(run(xent, h, w, b, targets)[0]).all()


@pytest.mark.filterwarnings("ignore:All-NaN slice encountered:RuntimeWarning")  # how the interpreter takes a maximum
def test_not_a_number_spoils_its_row_alone(xent, rng):
    h, w, b, targets = problem(rng)
    h[4, 2] = np.nan
    loss, dlogits = run(xent, h, w, b, targets)
    assert np.flatnonzero(np.isnan(loss)).tolist() == [4]
    assert np.flatnonzero(np.isnan(dlogits).any(1)).tolist() == [4] and np.isnan(dlogits[4]).all()


def test_a_target_that_does_not_exist_gives_no_loss(xent, rng):
    h, w, b, targets = problem(rng)
    targets[[0, 1, 2]] = -1, 150, 2**31 - 1
    loss, dlogits = run(xent, h, w, b, targets)
    assert np.flatnonzero(np.isnan(loss)).tolist() == [0, 1, 2]
    assert np.isfinite(dlogits).all() and np.abs(dlogits[:3].sum(1) - 1).max() < 1e-5


@pytest.mark.filterwarnings("ignore:All-NaN slice encountered")  # the interpreter's
@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_a_row_of_weight_0_is_0_whatever_it_holds(xent, rng, name):
    """Of 0 times infinity and NaN too; the other rows are the product with their weight, to the last bit."""
    h, w, b, targets = problem(rng)
    h = h.astype(np.dtype(name) if name == "float32" else bfloat16())
    weights = np.resize(np.array([1, 0, 0.5, -2], np.float32), len(h))
    plain_loss, plain = run(xent, h, w, b, targets)
    h[1], h[5], h[9, 3] = 3e38, -3e38, np.nan
    targets[13] = -1
    loss, dlogits = run(xent, h, w, b, targets, weights)
    out = weights == 0
    assert not loss[out].any() and not dlogits[out].astype(np.float32).any()
    np.testing.assert_array_equal(loss[~out], (plain_loss * weights)[~out])
    if name == "float32":
        np.testing.assert_array_equal(dlogits[~out], (plain * weights[:, None])[~out])
    else:  # powers of two: a rounding commutes with them
        np.testing.assert_array_equal(dlogits[~out].astype("f4"), (plain.astype("f4") * weights[:, None])[~out])


def topk(xent, logits, k, suppress=()):
    values, indices = np.full((len(logits), k), np.nan, np.float32), np.full((len(logits), k), 99, np.int32)
    xent.log_softmax_topk(values, indices, logits, suppress)
    return values, indices


def test_topk_orders_everything_equals_by_id(xent):
    logits = np.zeros((1, 200), np.float32)
    logits[0, [150, 20, 130]] = 1.0
    _, indices = topk(xent, logits, 6, (0,))
    assert indices.tolist() == [[20, 130, 150, 1, 2, 3]]


def test_topk_reaches_the_impossible_last(xent):
    logits = np.array([[0.0, -np.inf, 2.0, 1.0]], np.float32)
    values, indices = topk(xent, logits, 4, (3,))
    assert indices.tolist() == [[2, 0, 1, 3]]
    assert np.isneginf(values[0, 2:]).all()
    np.testing.assert_allclose(np.exp(values[0, :2]).sum(), 1, rtol=4e-6)


def test_topk_of_not_a_number_names_words_that_exist(xent):
    logits = np.zeros((2, 70), np.float32)
    logits[0, 69] = np.nan
    values, indices = topk(xent, logits, 3)
    assert np.isnan(values[0]).all() and indices[0].tolist() == [0, 1, 2]
    np.testing.assert_allclose(values[1], -np.log(70), rtol=4e-6)


def test_topk_reads_bfloat16(xent, rng):
    logits = rng.permutation(256).reshape(2, 128).astype(bfloat16())  # each is exact
    values, indices = topk(xent, logits, 5, (9,))
    wide = logits.astype(np.float64)
    true_values, true_indices = np.empty((2, 5)), np.empty((2, 5), np.int32)
    reference.log_softmax_topk(true_values, true_indices, wide, (9,))
    np.testing.assert_array_equal(indices, true_indices)
    np.testing.assert_allclose(values, true_values, rtol=4e-6, atol=4e-6)


@pytest.mark.parametrize(("k", "suppress", "said"), [(6, (), "room for 6 of 5 words"), (2, (1, 5), "vocabulary of 5")])
def test_topk_refuses_what_it_cannot_do(xent, k, suppress, said):
    with pytest.raises(ValueError, match=said):
        topk(xent, np.zeros((1, 5), np.float32), k, suppress)


def test_wrong_shapes_are_named(xent, rng):
    h, w, b, targets = problem(rng)
    with pytest.raises(ValueError, match=r"linear_xent_forward: targets has shape \(18,\), expected \(19,\)"):
        run(xent, h, w, b, targets[1:])
    with pytest.raises(TypeError, match="targets must be int32, got int64"):
        run(xent, h, w, b, targets.astype(np.int64))
    with pytest.raises(ValueError, match=r"linear_xent_forward: weights has shape \(18,\), expected \(19,\)"):
        run(xent, h, w, b, targets, np.ones(18, np.float32))
    with pytest.raises(TypeError, match="weights must be float32, got float64"):
        run(xent, h, w, b, targets, np.ones(19))
