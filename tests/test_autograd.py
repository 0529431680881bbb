"""The autograd core: traversal, accumulation, memory, errors; sparse rows of embeddings."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest

from pycap import backends, memory, ops
from pycap.autograd import Function, Tensor, no_grad
from pycap.testing import gradcheck


def leaf(*shape: int, seed: int = 0, dtype: type = np.float64) -> Tensor:
    return Tensor(np.random.default_rng(seed).standard_normal(shape).astype(dtype), requires_grad=True)


class Probe(Function):
    """The identity; keeps an array that the tests watch, and counts backwards."""

    ran: list[str] = []

    def forward(self, x, *, name="", watch=None):
        self.name, self.watch = name, watch
        return x.copy()

    def backward(self, dy):
        Probe.ran.append(self.name)
        return dy


@pytest.fixture(autouse=True)
def _fresh_probe():
    Probe.ran = []


@pytest.fixture(autouse=True)
def _reference():
    with backends.use("reference"):  # these tests are about the graph, in float64
        yield


# Traversal ------------------------------------------------------------------------------------------------------------


def test_chain_of_20000_nodes():
    x = leaf(3)
    y = x
    for _ in range(20_000):
        y = y + 1.0
    y.backward()
    np.testing.assert_array_equal(x.grad, np.ones(3))


def test_diamond_runs_each_node_once_in_reverse_order():
    x = leaf(4)
    top = Probe.apply(x, name="top")
    left, right = Probe.apply(top * 2.0, name="left"), Probe.apply(top * 3.0, name="right")
    (left + right).backward()
    assert Probe.ran == ["right", "left", "top"]
    np.testing.assert_allclose(x.grad, np.full(4, 5.0))


def test_node_used_by_a_late_and_an_early_consumer_waits_for_both():
    x = leaf(4)
    shared = Probe.apply(x, name="shared")
    long = shared
    for _ in range(5):
        long = Probe.apply(long, name="long")
    (shared * 10.0 + long).backward()
    assert Probe.ran == ["long"] * 5 + ["shared"]
    np.testing.assert_allclose(x.grad, np.full(4, 11.0))


def test_same_tensor_as_both_operands():
    x = leaf(5)
    (x + x).backward()
    np.testing.assert_allclose(x.grad, np.full(5, 2.0))
    y = leaf(5)
    middle = y * 1.0
    (middle * middle).backward()
    np.testing.assert_allclose(y.grad, 2 * y.data)


def test_nodes_count_how_often_they_are_consumed():
    top = Probe.apply(leaf(4))
    assert top.node.consumers == 0
    with no_grad():
        _ = top * 2.0
    _ = top.detach() * Probe.apply(leaf(4, seed=1))
    assert top.node.consumers == 0  # neither sends a gradient
    first = top * 2.0
    assert (top.node.consumers, first.node.consumers) == (1, 0)
    _ = first + first
    assert (top.node.consumers, first.node.consumers) == (1, 2)


def test_scalar_activation_with_several_consumers_sums_their_gradients():
    """0-d results are NumPy scalars, which += would replace instead of change."""
    x = leaf(3)
    s = ops.sum(x)
    (s * 2.0 + s * 3.0 + s * 4.0).backward()
    np.testing.assert_allclose(x.grad, np.full(3, 9.0))


def test_gradient_that_two_parents_share_is_not_corrupted_by_one_of_them():
    """Add hands one array to both parents; adding into one must not change the other's."""
    x, z = leaf(4, seed=1), leaf(4, seed=2)
    a, b = x * 1.0, z * 1.0
    later = [a * 5.0, b * 7.0]  # walked after the sums, as they were made before
    (later[0] + later[1] + (a + b)).backward()
    np.testing.assert_allclose(x.grad, np.full(4, 6.0))
    np.testing.assert_allclose(z.grad, np.full(4, 8.0))


@pytest.mark.parametrize("view_first", [True, False])
def test_gradient_that_is_a_view_of_another_is_not_corrupted(view_first):
    x, z = leaf(2, 2, seed=1), leaf(4, seed=2)
    a, b = x * 1.0, z * 1.0
    later = [b * 7.0, a * 5.0] if view_first else [a * 5.0, b * 7.0]
    (ops.sum(later[0]) + ops.sum(later[1]) + ops.sum(a.reshape(4) + b)).backward()
    np.testing.assert_allclose(x.grad, np.full((2, 2), 6.0))
    np.testing.assert_allclose(z.grad, np.full(4, 8.0))


def test_nodes_receive_contiguous_gradients():
    """Kernels take nothing else, and the pieces of a concatenation's gradient are strided views."""
    seen = []

    class Look(Function):
        def forward(self, x):
            return x.copy()

        def backward(self, dy):
            seen.append(dy.flags.c_contiguous)
            return dy

    x = leaf(3, 4)
    ops.concatenate([Look.apply(x), Look.apply(x)], 1).backward()
    (Look.apply(x) * Tensor(np.asfortranarray(np.ones((3, 4))))).backward(np.asfortranarray(np.ones((3, 4))))
    assert seen == [True] * 3


def test_seed_is_used_and_not_modified():
    x = leaf(2, 3)
    y = x * 2.0
    seed = np.arange(6.0).reshape(2, 3)
    held = seed.copy()
    (y + 0.0).backward(seed)
    np.testing.assert_array_equal(x.grad, 2 * held)
    np.testing.assert_array_equal(seed, held)


def test_several_outputs_of_one_node():
    x = leaf(3, 2, 4)
    w_x, w_h, b = leaf(8, 4, seed=1), leaf(8, 2, seed=2), leaf(8, seed=3)
    h, c = ops.lstm(x, w_x, w_h, b)
    (ops.sum(h) + ops.sum(c)).backward()
    both = x.grad.copy()
    parts = []
    for k in range(2):
        x.fresh = False
        ops.sum(ops.lstm(x, w_x, w_h, b)[k]).backward()
        parts.append(x.grad.copy())
    np.testing.assert_allclose(both, parts[0] + parts[1], rtol=1e-12)


class Split(Function):
    """Two outputs; records which gradients arrive."""

    seen: list = []

    def forward(self, x):
        return x * 2.0, x * 3.0

    def backward(self, da, db):
        Split.seen = [da is not None, db is not None]
        return (0 if da is None else da * 2.0) + (0 if db is None else db * 3.0)


def test_missing_upstream_gradient_is_none():
    x = leaf(3)
    _, b = Split.apply(x)
    (b * 1.0).backward()
    assert Split.seen == [False, True]
    np.testing.assert_allclose(x.grad, np.full(3, 3.0))


class Stop(Function):
    """Wants its parent's node walked, but sends it no gradient."""

    def forward(self, x):
        return x.copy()

    def backward(self, dy):
        return None


def test_node_that_receives_no_gradient_does_not_run():
    x = leaf(3)
    Stop.apply(Probe.apply(x, name="never")).backward()
    assert Probe.ran == []
    assert x.grad is None


# Leaves ---------------------------------------------------------------------------------------------------------------


def test_fresh_leaf_accumulates_and_stale_leaf_is_overwritten():
    x = leaf(3)
    (x * 2.0).backward()
    buffer = x.grad
    assert x.fresh
    (x * 3.0).backward()
    np.testing.assert_allclose(x.grad, np.full(3, 5.0))
    x.fresh = False
    x.grad.fill(np.nan)  # beta 0 must not read this
    (x * 7.0).backward()
    np.testing.assert_allclose(x.grad, np.full(3, 7.0))
    assert x.grad is buffer


@pytest.mark.gradcheck
def test_leaf_shared_by_several_layers():
    rng = np.random.default_rng(0)
    gradcheck(
        lambda x, w: ops.linear(ops.linear(x, w, relu=True), w),
        rng.standard_normal((3, 4)),
        rng.standard_normal((4, 4)),
    )


def test_frozen_leaf_gets_no_gradient_and_its_subgraph_is_not_walked():
    frozen, learned = Tensor(np.ones((3, 3))), leaf(3, 3)
    hidden = ops.linear(Tensor(np.ones((2, 3))), frozen)
    assert hidden.node is None
    ops.sum(ops.linear(hidden, learned)).backward()
    assert frozen.grad is None and learned.grad is not None


@pytest.mark.parametrize("wanted", range(3))
def test_only_the_leaf_that_asks_gets_a_gradient(wanted):
    rng = np.random.default_rng(0)
    arrays = rng.standard_normal((2, 5, 5, 3)), rng.standard_normal((4, 3, 3, 3)), rng.standard_normal(4)
    everything = [Tensor(a, requires_grad=True) for a in arrays]
    ops.sum(ops.conv2d(*everything, relu=True, pool=True)).backward()
    some = [Tensor(a, requires_grad=i == wanted) for i, a in enumerate(arrays)]
    ops.sum(ops.conv2d(*some, relu=True, pool=True)).backward()
    for i, tensor in enumerate(some):
        assert (tensor.grad is not None) == (i == wanted)
    np.testing.assert_array_equal(some[wanted].grad, everything[wanted].grad)


def test_micro_batches_accumulate_to_the_gradient_of_the_batch():
    rng = np.random.default_rng(0)
    x, targets = rng.standard_normal((6, 5)), np.array([1, 2, 0, 3, 1, 2], np.int32)
    w, v, b = leaf(4, 5, seed=1), leaf(7, 4, seed=2), leaf(7, seed=3)

    def loss(rows):
        h = ops.dropout(ops.linear(Tensor(x[rows]), w, relu=True), 0.5, 99, total=6, offset=rows.start)
        return ops.linear_cross_entropy(h, v, b, targets[rows], normalizer=5)

    loss(slice(0, 6)).backward()
    whole = [t.grad.copy() for t in (w, v, b)]
    for t in (w, v, b):
        t.fresh = False
    for start, stop in ((0, 2), (2, 3), (3, 6)):
        loss(slice(start, stop)).backward()
    for t, expected in zip((w, v, b), whole, strict=True):
        np.testing.assert_allclose(t.grad, expected, rtol=1e-12, atol=1e-15)


# Memory ---------------------------------------------------------------------------------------------------------------


class Watched:
    """An object that a weak reference can watch."""


def test_saved_arrays_die_as_soon_as_their_backward_has_run():
    watched = Watched()
    alive = weakref.ref(watched)
    x = leaf(3)

    class Late(Function):
        def forward(self, x):
            return x.copy()

        def backward(self, dy):
            Late.upstream_alive = alive() is not None
            return dy

    y = Probe.apply(Late.apply(x), watch=watched)
    del watched
    assert alive() is not None
    y.backward()
    assert Late.upstream_alive is False  # gone already when the node below ran
    assert y.node.done


def test_nodes_are_freed_once_nothing_outside_names_them():
    x = leaf(8)
    y = x
    nodes = []
    for _ in range(40):
        y = y * 0.5
        nodes.append(weakref.ref(y.node))
    y.backward()
    assert [n() is not None for n in nodes] == [False] * 39 + [True]  # y still names its own


def test_no_reference_cycle_keeps_a_graph_alive():
    gc.disable()
    try:
        x = leaf(3)
        y = ops.sum(Probe.apply(x) * 2.0)
        node = weakref.ref(y.node)
        del y
        assert node() is None
    finally:
        gc.enable()


# no_grad and errors ---------------------------------------------------------------------------------------------------


def test_no_grad_records_nothing_and_restores_after_an_exception():
    x = leaf(3)
    with pytest.raises(KeyError), no_grad():
        y = x * 2.0
        assert not y.requires_grad and y.node is None
        raise KeyError
    assert (x * 2.0).requires_grad
    with no_grad():
        with no_grad():
            pass
        assert not (x * 2.0).requires_grad
    assert (x * 2.0).requires_grad
    with pytest.raises(RuntimeError, match="no_grad"):
        y.backward()


def test_detach_cuts_the_graph():
    x = leaf(3)
    y = x * 2.0
    cut = y.detach()
    assert cut.data is y.data and not cut.requires_grad
    (cut * x).backward()
    np.testing.assert_allclose(x.grad, 2 * x.data)


def test_second_backward_on_the_same_tensor_is_an_error():
    y = leaf(3) * 2.0
    y.backward()
    with pytest.raises(RuntimeError, match=r"second time through Mul.*add the losses"):
        y.backward()


def test_second_backward_through_a_shared_part_is_an_error():
    x = leaf(3)
    shared = Probe.apply(x)
    first, second = shared * 2.0, shared * 3.0
    first.backward()
    with pytest.raises(RuntimeError, match="second time through Probe"):
        second.backward()
    with pytest.raises(RuntimeError, match="second time through Probe"):
        (shared + 1.0).backward()


def test_backward_on_a_leaf_and_without_a_graph_is_an_error():
    with pytest.raises(RuntimeError, match="leaf"):
        leaf(3).backward()
    with pytest.raises(RuntimeError, match="no gradient"):
        (Tensor(np.ones(3)) * 2.0).backward()


@pytest.mark.parametrize("seed", [np.ones(4), np.ones((3, 1)), np.ones(()), 1.0])
def test_seed_of_another_shape_is_an_error_that_names_both(seed):
    with pytest.raises(ValueError, match=r"seed has shape .*\(3,\)"):
        (leaf(3) * 2.0).backward(seed)


def test_tensor_from_a_list_is_float32_and_arrays_keep_their_dtype():
    assert Tensor([1, 2]).dtype == np.float32
    assert Tensor(np.ones(2)).dtype == np.float64
    assert Tensor(np.ones((2, 3))).shape == (2, 3)
    assert "requires_grad" in repr(leaf(1))
    assert Tensor(np.array([2.5])).item() == 2.5


# Embedding rows -------------------------------------------------------------------------------------------------------


def ids(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int32)


def dense_rows(table: Tensor, batches: list[np.ndarray], weights: list[np.ndarray]) -> np.ndarray:
    grad = np.zeros(table.shape)
    for batch, weight in zip(batches, weights, strict=True):
        for i, row in zip(batch, weight, strict=True):
            grad[i] += row
    return grad


def test_embedding_gradient_is_zero_outside_its_rows_step_after_step():
    rng = np.random.default_rng(0)
    table = leaf(9, 4)
    with memory.poisoned():
        for batch in (ids(1, 3, 3), ids(2), ids(), ids(8, 0, 1, 1), ids(3, 5)):
            weight = rng.standard_normal((len(batch), 4))
            (ops.embedding(table, batch) * Tensor(weight)).backward()
            np.testing.assert_allclose(table.grad, dense_rows(table, [batch], [weight]), rtol=1e-12)
            assert table.rows.tolist() == sorted(set(batch.tolist()))
            table.fresh = False


def test_embedding_clears_only_the_rows_of_the_step_before():
    table = leaf(6, 2)
    ops.embedding(table, ids(1, 4)).backward()
    table.fresh = False
    table.grad[0] = 77.0  # a row that no step used: a backward that touches every row would wipe this
    ops.embedding(table, ids(2)).backward()
    np.testing.assert_array_equal(table.grad[:, 0], [77.0, 0, 1, 0, 0, 0])


def test_two_embeddings_that_share_a_table():
    rng = np.random.default_rng(0)
    table = leaf(9, 4)
    for first, second in ((ids(1, 2), ids(2, 5)), (ids(7), ids(0, 0)), (ids(3), ids(3))):
        weights = [rng.standard_normal((len(b), 4)) for b in (first, second)]
        a = ops.embedding(table, first) * Tensor(weights[0])
        b = ops.embedding(table, second) * Tensor(weights[1])
        (ops.sum(a) + ops.sum(b)).backward()
        np.testing.assert_allclose(table.grad, dense_rows(table, [first, second], weights), rtol=1e-12)
        assert table.rows.tolist() == sorted({*first.tolist(), *second.tolist()})
        table.fresh = False


@pytest.mark.parametrize("embedding_first", [True, False])
def test_table_that_is_also_the_output_projection(embedding_first):
    """A tied weight: every row gets a gradient, whichever of the two writes first."""
    rng = np.random.default_rng(0)
    table, bias, x = leaf(7, 4), leaf(7, seed=1), leaf(3, 4, seed=2)

    def losses(batch, targets):
        if embedding_first:  # created last, walked first
            projected = ops.linear_cross_entropy(x, table, bias, targets)
            return ops.sum(ops.embedding(table, batch)) + projected
        embedded = ops.sum(ops.embedding(table, batch))
        return ops.linear_cross_entropy(x, table, bias, targets) + embedded

    for batch, targets in ((ids(1, 2), ids(1, 2, 3)), (ids(6), ids(4, 0, 0)), (ids(5, 5), ids(6, 5, 4))):
        losses(batch, targets).backward()
        assert table.rows is None
        separate, alone = Tensor(table.data, requires_grad=True), dense_rows(table, [batch], [np.ones((len(batch), 4))])
        ops.linear_cross_entropy(Tensor(x.data), separate, Tensor(bias.data), targets).backward()
        np.testing.assert_allclose(table.grad, separate.grad + alone, rtol=1e-12)
        for t in (table, bias, x):
            t.fresh = False
            t.grad.fill(rng.standard_normal())


def test_rows_of_a_dense_step_followed_by_a_sparse_one():
    table = leaf(5, 2)
    (table * 3.0).backward()
    assert table.rows is None
    table.fresh = False
    ops.embedding(table, ids(2)).backward()
    np.testing.assert_array_equal(table.grad[:, 0], [0, 0, 1, 0, 0])
    (table * 1.0).backward()  # accumulates densely onto the sparse gradient
    assert table.rows is None
    np.testing.assert_array_equal(table.grad[:, 0], [1, 1, 2, 1, 1])


@pytest.mark.gradcheck
def test_embedding_of_an_activation_gathers_and_scatters_rows():
    rng = np.random.default_rng(0)
    batch = ids(2, 0, 2, 2)
    gradcheck(lambda x: ops.embedding(x * 2.0, batch) * ops.embedding(x * 1.0, batch), rng.standard_normal((3, 4)))
    gradcheck(lambda x: _gather_and_use(x * 2.0, batch), rng.standard_normal((3, 4)))


def _gather_and_use(activation: Tensor, batch: np.ndarray) -> Tensor:
    return ops.sum(ops.embedding(activation, batch)) + ops.sum(activation * activation)
