"""Cross-entropy over the vocabulary: definition, gradients, padding, pieces of a batch, places, overflow, refusals."""

from __future__ import annotations

import numpy as np
import pytest

from pycap import backends, ops
from pycap.autograd import Tensor
from pycap.backends import kernels, reference
from pycap.testing import compare_op, gradcheck
from tests import naive


def draw(m, hidden, v, seed=0):
    rng = np.random.default_rng(seed)
    arrays = [rng.standard_normal((m, hidden)), rng.standard_normal((v, hidden)), rng.standard_normal(v)]
    return arrays, rng.integers(0, v, m).astype(np.int32)


SHAPES = [(5, 3, 7), (1, 1, 1), (4, 2, 2), (0, 3, 5), (3, 5, 31)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_reference_is_the_definition(shape, scale):
    (h, w, b), targets = draw(*shape)
    loss, dlogits = np.full(shape[0], np.nan), np.full((shape[0], shape[2]), np.nan)
    reference.linear_xent_forward(loss, dlogits, h, scale * w, b, targets, None)
    expected = naive.linear_xent(h, scale * w, b, targets)
    np.testing.assert_allclose(loss, expected[0], rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(dlogits, expected[1], rtol=1e-9, atol=1e-12)


@pytest.mark.gradcheck
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("ignore", [0, -1])
@pytest.mark.parametrize("normalizer", [None, 11])
def test_gradient(shape, ignore, normalizer):
    arrays, targets = draw(*shape)
    if ignore == -1 and shape[0] > 2:
        targets[1] = -1
    gradcheck(lambda *t: ops.linear_cross_entropy(*t, targets, ignore=ignore, normalizer=normalizer), *arrays)


@pytest.mark.gradcheck
def test_gradient_of_an_activation_with_padding_and_another_consumer():
    (h, w, b), targets = draw(6, 3, 5)
    targets[[1, 4]] = 0

    def network(h, w, b):
        a = h * 2.0
        loss = ops.linear_cross_entropy(a, w, b, targets)
        return loss * 3.0 + ops.linear_cross_entropy(a, w, b, targets, ignore=2), a

    gradcheck(network, h, w, b)


@pytest.mark.parametrize("shape", [(7, 11, 13), (17, 33, 101), (5, 64, 1009), (1, 1, 1)], ids=str)
@pytest.mark.parametrize("ignore", [0, -1])
def test_backend(backend, shape, ignore):
    arrays, targets = draw(*shape)
    compare_op(
        lambda h, w, b: ops.linear_cross_entropy(h * 1.0, w, b, targets, ignore=ignore), *arrays, backend=backend
    )


def test_is_the_mean_over_positions_that_count(backend):
    (h, w, b), targets = draw(6, 3, 5)
    targets[[0, 3]] = 0
    expected = naive.linear_xent(h, w, b, targets)[0][targets != 0]
    with backends.use(backend):
        tensors = [Tensor(a.astype(np.float32)) for a in (h, w, b)]
        loss = ops.linear_cross_entropy(*tensors, targets)
        part = ops.linear_cross_entropy(*tensors, targets, normalizer=10)
    assert loss.shape == () and loss.dtype == np.float32
    np.testing.assert_allclose(loss.item(), expected.mean(), rtol=1e-5)
    np.testing.assert_allclose(part.item(), expected.sum() / 10, rtol=1e-5)


def test_padding_gets_a_gradient_of_zero(backend):
    arrays, targets = draw(6, 3, 5)
    targets[:] = [1, 0, 2, 0, 0, 4]
    with backends.use(backend):
        h, w, b = (Tensor(a.astype(np.float32), requires_grad=True) for a in arrays)
        ops.linear_cross_entropy(h, w, b, targets).backward()
    assert (h.grad[targets == 0] == 0).all() and (np.abs(h.grad[targets != 0]).sum(1) > 0).all()


def test_nothing_but_padding_is_a_loss_of_zero(backend):
    arrays, _ = draw(4, 3, 5)
    with backends.use(backend):
        h, w, b = (Tensor(a.astype(np.float32), requires_grad=True) for a in arrays)
        loss = ops.linear_cross_entropy(h, w, b, np.zeros(4, np.int32))
        assert loss.item() == 0.0
        loss.backward()
    for tensor in (h, w, b):
        assert (tensor.grad == 0).all()


def test_huge_logits_neither_overflow_nor_lose_the_loss(backend):
    h = np.array([[1.0], [1.0]], np.float32)
    w, b = np.array([[3e4], [-3e4], [0.0]], np.float32), np.zeros(3, np.float32)
    with backends.use(backend), np.errstate(over="raise", invalid="raise"):
        right = ops.linear_cross_entropy(Tensor(h), Tensor(w), Tensor(b), np.array([0, 0], np.int32), ignore=-1)
        wrong = ops.linear_cross_entropy(Tensor(h), Tensor(w), Tensor(b), np.array([1, 2], np.int32), ignore=-1)
    assert right.item() == 0.0
    np.testing.assert_allclose(wrong.item(), 45_000.0, rtol=1e-6)


def test_nan_reaches_the_loss(backend):
    (h, w, b), targets = draw(3, 3, 5)
    h[1, 1] = np.nan
    with backends.use(backend):
        loss = ops.linear_cross_entropy(*(Tensor(a.astype(np.float32)) for a in (h, w, b)), targets, ignore=-1)
    assert np.isnan(loss.item())


@pytest.mark.parametrize(
    ("shapes", "targets", "error", "message"),
    [
        (((3, 4), (5, 3), (5,)), [1, 1, 1], ValueError, r"h \(3, 4\), w \(5, 3\)"),
        (((3, 4), (5, 4), (5,)), [1, 1], ValueError, r"targets \(2,\)"),
        (((3, 4), (5, 4), (4,)), [1, 1, 1], ValueError, r"b \(4,\) is not \[V\] = \(5,\)"),
        (((3, 4), (5, 4), (5,)), [1, 5, 1], IndexError, r"target 5 is outside the vocabulary of 5"),
        (((3, 4), (5, 4), (5,)), [1, -2, 1], IndexError, r"target -2 is outside the vocabulary of 5"),
    ],
)
def test_refuses(backend, shapes, targets, error, message):
    tensors = [Tensor(np.zeros(s, np.float32)) for s in shapes]
    with backends.use(backend), pytest.raises(error, match=message):
        ops.linear_cross_entropy(*tensors, np.array(targets, np.int32))


def test_refuses_other_integers():
    tensors = [Tensor(np.zeros(s, np.float32)) for s in ((3, 4), (5, 4), (5,))]
    with pytest.raises(ValueError, match="int64"):
        ops.linear_cross_entropy(*tensors, np.array([1, 2, 3]))


# Weighted, of a fixed size --------------------------------------------------------------------------------------------


def weighted(m, k, used, v, seed=0):
    """k different rows of m, of which the first `used` have weights, with their targets; and the inverse of the rows."""
    rng = np.random.default_rng(seed)
    rows, weights = rng.permutation(m)[:k].astype(np.int32), np.zeros(k, np.float32)
    weights[:used] = rng.uniform(0.5, 2, used)
    places = np.full(m, -1, np.int32)
    for place in range(used):
        places[rows[place]] = place
    return rng.integers(0, v, k).astype(np.int32), weights, rows, places


SIZES = [(6, 4, 3), (5, 5, 5), (4, 2, 0), (3, 0, 0), (1, 1, 1)]  # M, K, how many have weights


@pytest.mark.gradcheck
@pytest.mark.parametrize(("m", "k", "used"), SIZES)
@pytest.mark.parametrize("known", [True, False])
def test_gradient_of_a_weighted_loss(m, k, used, known):
    arrays, _ = draw(m, 3, 5)
    targets, weights, rows, places = weighted(m, k, used, 5)
    how = targets, weights, rows, places if known else None
    gradcheck(lambda h, w, b: ops.weighted_cross_entropy(h, w, b, *how), *arrays)


@pytest.mark.gradcheck
def test_gradient_of_two_weighted_losses_of_one_activation():
    """The second adds to what the first has gathered."""
    arrays, _ = draw(6, 3, 5)
    first, second = weighted(6, 4, 3, 5), weighted(6, 5, 4, 5, seed=1)

    def network(h, w, b):
        a = h * 2.0
        return ops.weighted_cross_entropy(a, w, b, *first) + ops.weighted_cross_entropy(a, w, b, *second)

    gradcheck(network, *arrays)


@pytest.mark.parametrize(("m", "k", "used"), SIZES)
def test_gathered_gradients_are_the_scattered_ones(backend, monkeypatch, m, k, used):
    """Bit for bit, but for the sign of zeros; and gathered they are, where they need not be added to others."""
    arrays, _ = draw(m, 3, 5)
    targets, weights, rows, places = weighted(m, k, used, 5)
    results, scattered = [], []
    with backends.use(backend):
        scatter = kernels.embedding_backward
        monkeypatch.setattr(kernels, "embedding_backward", lambda *how: scattered.append(how[-1]) or scatter(*how))
        for known in (None, places):
            tensors = [Tensor(a.astype(np.float32), requires_grad=True) for a in arrays]
            ops.weighted_cross_entropy(*tensors, targets, weights, rows, known).backward(np.float32(1))
            results.append([t.grad.copy() for t in tensors])
        assert scattered == [0.0]
        ops.weighted_cross_entropy(*tensors, targets, weights, rows, places).backward(np.float32(1))
        assert scattered == [0.0, 1.0]
    for plain, gathered in zip(*results, strict=True):
        np.testing.assert_array_equal(gathered, plain)
    assert used == 0 or results[0][0].any()


def test_refuses_places_that_are_no_inverse():
    arrays, _ = draw(6, 3, 5)
    targets, weights, rows, places = weighted(6, 4, 3, 5)
    tensors = [Tensor(a.astype(np.float32)) for a in arrays]
    with pytest.raises(ValueError, match=r"places \(5,\) are not \[M\] = \(6,\)"):
        ops.weighted_cross_entropy(*tensors, targets, weights, rows, places[:-1])
    with pytest.raises(ValueError, match="places are the inverse of rows: pass both, or neither"):
        ops.weighted_cross_entropy(*tensors, np.zeros(6, np.int32), np.ones(6, np.float32), None, places)
