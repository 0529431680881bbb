"""dropout: the hash, its statistics, pieces of a batch, gradients, refusals."""

from __future__ import annotations

import numpy as np
import pytest

from pycap import backends, ops
from pycap.autograd import Tensor
from pycap.backends import reference
from pycap.nn import Dropout, Linear, Module
from pycap.nn.layers import dropout_seeds, place_dropout
from pycap.testing import compare_op, gradcheck
from tests import naive

SEEDS = [0, 1, 2**31, 2**32 - 1, 2**32, 0x0123456789ABCDEF, 2**64 - 1]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("shape", "total", "offset"), [((1, 3, 5), 3, 0), ((4, 2, 7), 5, 3), ((2, 1, 3), 2**31, 2**31 - 1)]
)
@pytest.mark.parametrize("p", [0.1, 0.5, 0.97])
def test_reference_is_the_definition(seed, shape, total, offset, p):
    x = np.random.default_rng(0).standard_normal(shape)
    y = np.full(shape, np.nan)
    reference.dropout(y, x, p, seed, total, offset, 0.0)
    np.testing.assert_allclose(y, naive.dropout(x, p, seed, total, offset), rtol=1e-14)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_backend_drops_the_same_elements(backend, seed):
    x = Tensor(np.ones((3, 5, 37), np.float32))
    with backends.use(backend):
        y = ops.dropout(x, 0.4, seed, total=9, offset=4).data
    np.testing.assert_array_equal(y != 0, naive.dropout(x.data, 0.4, seed, 9, 4) != 0)


def test_the_threshold_itself_is_kept(backend):
    """An element is dropped where its hash is below floor(p * 2^32), not where it equals it."""
    seed = 0x123456789
    number = naive.hash32(0, seed)
    x = Tensor(np.ones((1, 1), np.float32))
    with backends.use(backend):
        assert ops.dropout(x, number / 2**32, seed).data.item() != 0
        assert ops.dropout(x, (number + 1) / 2**32, seed).data.item() == 0


@pytest.mark.gradcheck
@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 4), (1, 1)])
def test_gradient(shape):
    x = np.random.default_rng(0).standard_normal(shape)
    gradcheck(lambda x: ops.dropout(x, 0.4, 2**40 + 3), x)
    gradcheck(lambda x: ops.dropout(x * x, 0.4, 5) + ops.dropout(x, 0.2, 6, total=shape[-2] + 4, offset=2), x)


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_backend(backend, p):
    x = np.random.default_rng(0).standard_normal((3, 7, 33))
    compare_op(lambda x: ops.dropout(x * 1.0, p, 2**50 + 1) + x, x, backend=backend)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_statistics(backend, p):
    """Share dropped and mean, within four standard deviations; neighbours in rows and columns are independent."""
    x = Tensor(np.ones((512, 512), np.float32))
    with backends.use(backend):
        kept = ops.dropout(x, p, 12345).data != 0
        again = ops.dropout(x, p, 12346).data != 0
    n = kept.size
    tolerance = 4 * (p * (1 - p) / n) ** 0.5
    assert abs(kept.mean() - (1 - p)) < tolerance
    for pair in ((kept[1:], kept[:-1]), (kept[:, 1:], kept[:, :-1]), (kept, again)):
        assert abs(np.corrcoef(pair[0].ravel(), pair[1].ravel())[0, 1]) < 4.5 / n**0.5
    assert abs(kept.mean(0) - (1 - p)).max() < 6 * (p * (1 - p) / 512) ** 0.5


def test_scale_keeps_the_expectation(backend):
    x = Tensor(np.full((4, 5), 3.0, np.float32))
    with backends.use(backend):
        y = ops.dropout(x, 0.25, 1).data
    np.testing.assert_allclose(y[y != 0], 4.0, rtol=1e-6)


@pytest.mark.parametrize("shape", [(6, 5), (4, 6, 5)])
def test_pieces_of_a_batch_drop_what_the_whole_drops(backend, shape):
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    with backends.use(backend):
        whole = ops.dropout(Tensor(x), 0.5, 77).data
        pieces = [
            ops.dropout(Tensor(np.ascontiguousarray(x[..., i : i + 2, :])), 0.5, 77, total=6, offset=i).data
            for i in (0, 2, 4)
        ]
    np.testing.assert_array_equal(np.concatenate(pieces, -2), whole)


def test_p_of_zero_is_the_identity():
    x = Tensor(np.ones((2, 3), np.float32), requires_grad=True)
    assert ops.dropout(x, 0.0, 1) is x


@pytest.mark.parametrize("p", [-0.1, 1.0, 1.5, float("nan")])
def test_refuses_probabilities(p):
    with pytest.raises(ValueError, match=r"not in \[0, 1\)"):
        ops.dropout(Tensor(np.ones((2, 3), np.float32)), p, 1)


def test_refuses_shapes():
    with pytest.raises(ValueError, match=r"neither \[N,F\] nor \[T,N,F\]"):
        ops.dropout(Tensor(np.ones(3, np.float32)), 0.5, 1)


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1, 2**32, 0xFEDCBA9876543210])
def test_a_seed_in_an_array_is_the_int_of_its_halves(backend, seed):
    """Forward and backward, bit for bit."""
    data, halves = np.ones((3, 4, 33), np.float32), np.array([seed & 0xFFFFFFFF, seed >> 32], np.uint32)
    with backends.use(backend):
        made = []
        for given in (seed, np.uint64(seed), halves):
            x = Tensor(data, requires_grad=True)
            y = ops.dropout(x, 0.4, given, total=9, offset=4)
            ops.sum(y * y).backward()
            made.append((y.data.tobytes(), x.grad.tobytes()))
    assert made[0] == made[1] == made[2]
    assert halves.tolist() == [seed & 0xFFFFFFFF, seed >> 32]


@pytest.mark.parametrize("seed", [np.zeros(3, np.uint32), np.zeros((1, 2), np.uint32), np.zeros(2, np.int64)])
def test_other_arrays_are_no_seeds(seed):
    with pytest.raises(ValueError, match=r"dropout: seed \(.*\) u?int\d+ is neither an int nor uint32 \[2\]"):
        ops.dropout(Tensor(np.ones((2, 3), np.float32)), 0.5, seed)


class Three(Module):
    """Three layers, one of them further down."""

    def __init__(self):
        self.first, self.below, self.last = Dropout(0.5), Module(), Dropout(0.1)
        self.below.middle = Dropout(0.25)


def test_layers_are_placed_by_a_seed_or_by_seeds():
    """What a step's seed has always given its layers: NumPy's words of 64 bits, in the layers' order."""
    model, seed = Three(), 2**62 + 12345
    layers = [model.first, model.below.middle, model.last]
    words = np.random.SeedSequence(seed).generate_state(3, np.uint64)
    place_dropout(model, seed, 2, 3, 8)
    assert [layer.seed for layer in layers] == words.tolist()
    assert {(layer.first, layer.count, layer.total) for layer in layers} == {(2, 3, 8)}
    seeds = dropout_seeds(model, seed)
    assert seeds.dtype == np.uint32 and [low | high << 32 for low, high in seeds.tolist()] == words.tolist()
    place_dropout(model, seeds, 1, 2, 4)
    for layer, row in zip(layers, seeds, strict=True):
        assert layer.seed.base is seeds and layer.seed.tolist() == row.tolist() and layer.total == 4
    with pytest.raises(ValueError, match="2 seeds for 3 layers"):
        place_dropout(model, seeds[:2], 0, 1, 1)


def test_a_model_without_dropout_has_no_seeds():
    assert dropout_seeds(Linear(2, 3, None), 5).shape == (0, 2)
    place_dropout(Linear(2, 3, None), 5, 0, 1, 1)
