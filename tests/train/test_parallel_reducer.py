"""Gradients summed over ranks within backward: buckets, their order, ranks that have nothing to add."""

from __future__ import annotations

import weakref
from collections.abc import Iterator

import numpy as np
import pytest

from pycap import backends, ops
from pycap.autograd import Tensor
from pycap.distributed import ALONE
from pycap.distributed.reducer import Bucket, HostReducer, uses
from tests.lockstep import Lockstep, together


@pytest.fixture(autouse=True)
def _reference() -> Iterator[None]:
    with backends.use("reference"):
        yield


def leaf(*shape: int, seed: int) -> Tensor:
    return Tensor(np.random.default_rng(seed).standard_normal(shape).astype(np.float32), requires_grad=True)


class Net:
    """A table of words and two layers, of which the second is used twice."""

    def __init__(self) -> None:
        self.table, self.first, self.second = leaf(50, 8, seed=1), leaf(8, 8, seed=2), leaf(8, 8, seed=3)
        self.zeros = Tensor(np.zeros(8, np.float32))

    def all(self) -> list[Tensor]:
        return [self.table, self.first, self.second]

    def loss(self, ids: list[int]) -> Tensor:
        x = ops.embedding(self.table, np.array(ids, np.int32))
        x = ops.linear(x, self.first, self.zeros, relu=True)
        x = ops.linear(ops.linear(x, self.second, self.zeros), self.second, self.zeros)
        target = np.arange(1, len(ids) + 1, dtype=np.int32) % 8
        return ops.linear_cross_entropy(x, leaf(8, 8, seed=4).detach(), self.zeros, target, normalizer=10)


IDS = [3, 7, 7, 1, 49, 3, 20]


def wanted(*parts: list[int]) -> list[np.ndarray]:
    """The sum of the parts' gradients, one after the other."""
    net = Net()
    for part in parts:
        net.loss(part).backward()
    return [tensor.grad.copy() for tensor in net.all()]


@pytest.mark.parametrize("bucket_bytes", [1, 300, 1 << 20])  # each its own bucket; two buckets; one
def test_every_rank_has_the_sum(bucket_bytes: int) -> None:
    def part(ranks: Lockstep) -> tuple[list[np.ndarray], list[int], list[bool]]:
        net = Net()
        reducer = HostReducer(ranks, net.all(), bucket_bytes)
        reducer.backward(net.loss([IDS[:3], IDS[3:]][ranks.rank]))
        return [t.grad.copy() for t in net.all()], ranks.sent, [t.fresh for t in net.all()]

    found = together(2, part)
    for own, expected in zip(found[0][0], wanted(IDS[:3], IDS[3:]), strict=True):
        np.testing.assert_allclose(own, expected, rtol=1e-6, atol=1e-7)
    for own, other in zip(found[0][0], found[1][0], strict=True):
        assert np.array_equal(own, other)
    assert found[0][1] == found[1][1] == {1: [256, 256, 1600], 300: [512, 1600], 1 << 20: [2112]}[bucket_bytes]
    assert all(found[0][2])


def test_the_next_step_writes_every_row_of_the_table() -> None:
    """A row that only another rank used must not keep that rank's gradient."""

    def part(ranks: Lockstep) -> np.ndarray:
        net = Net()
        reducer = HostReducer(ranks, net.all())
        for ids in ([[1, 2], [3, 4]][ranks.rank], [[5], [6]][ranks.rank]):
            reducer.backward(net.loss(ids))
            for tensor in net.all():
                tensor.fresh = False
        return net.table.grad.copy()

    for table in together(2, part):
        assert sorted(np.flatnonzero(np.abs(table).sum(1))) == [5, 6]


def test_passes_before_the_last_one_are_added_and_a_rank_without_images_adds_nothing() -> None:
    def part(ranks: Lockstep) -> list[np.ndarray]:
        net = Net()
        reducer = HostReducer(ranks, net.all(), 300)
        if ranks.rank == 0:
            net.loss(IDS[:2]).backward()
            reducer.backward(net.loss(IDS[2:]))
        else:
            for tensor in net.all():
                tensor.grad.fill(1e9)  # of a step before
            reducer.backward(None)
        return [t.grad.copy() for t in net.all()]

    for found in together(3, part):
        for own, expected in zip(found, wanted(IDS[:2], IDS[2:]), strict=True):
            assert np.array_equal(own, expected)


def test_a_parameter_outside_a_ranks_graph_counts_as_zero() -> None:
    def part(ranks: Lockstep) -> np.ndarray:
        net, unused = Net(), leaf(5, seed=9)
        reducer = HostReducer(ranks, [*net.all(), unused], 1)
        unused.grad.fill(7)
        loss = net.loss(IDS)
        if ranks.rank == 1:
            loss = ops.linear_cross_entropy(
                ops.reshape(unused, (1, 5)), leaf(8, 5, seed=5).detach(), net.zeros, np.array([2], np.int32)
            )
        reducer.backward(loss)
        return unused.grad.copy()

    first, second = together(2, part)
    assert np.array_equal(first, second) and 0 < np.abs(first).max() < 2


def test_a_bucket_is_sent_before_backward_goes_on() -> None:
    order: list[str] = []

    class Watched(HostReducer):
        def _start(self, bucket: Bucket) -> None:
            order.append(f"bucket {len(bucket.tensors)}")
            super()._start(bucket)

    net = Net()
    reducer = Watched(ALONE, net.all(), 1)
    loss = net.loss(IDS)
    plain = ops.embedding.__globals__["Embedding"].backward

    def slow(self: object, dy: object) -> None:
        order.append("table")
        plain(self, dy)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops.embedding.__globals__["Embedding"], "backward", slow)
        reducer.backward(loss)
    assert order == ["bucket 1", "bucket 1", "table", "bucket 1"]


def test_uses_counts_each_write() -> None:
    net = Net()
    loss = net.loss(IDS)
    assert loss.node is not None
    assert [uses(loss.node)[id(t)] for t in net.all()] == [1, 1, 2]


def test_after_is_told_of_each_nodes_parents_when_their_gradients_are_written() -> None:
    net = Net()
    done: list[list[bool]] = []
    net.loss(IDS).backward(after=lambda parents: done.append([t.fresh for t in net.all()]))
    assert done == [[False] * 3, [False, False, True], [False, False, True], [False, True, True], [True] * 3]


def test_what_a_reducer_releases_nobody_holds() -> None:
    net = Net()
    reducer = HostReducer(ALONE, net.all(), 1)
    held = [weakref.ref(bucket.flat) for bucket in reducer.buckets]
    reducer.release()
    assert len(held) == 3 and not any(flat() is not None for flat in held)
    assert all(tensor.grad is None for tensor in net.all())
