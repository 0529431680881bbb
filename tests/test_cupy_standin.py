"""The stand-in for CuPy: it mixes with NumPy as little as CuPy does, and has nothing that CuPy lacks."""

from __future__ import annotations

import contextlib
import importlib.util
import operator
import types

import numpy as np
import pytest

from tests import cupy_memory, cupy_nccl, cupy_standin, cupy_streams


@pytest.fixture(scope="module")
def xp():
    return cupy_standin.make()


MIXED = {
    "np.asarray(device)": lambda d, h: np.asarray(d),
    "host + device": lambda d, h: h + d,
    "device + host": lambda d, h: d + h,
    "host @ device": lambda d, h: h @ d,
    "host += device": lambda d, h: operator.iadd(h, d),
    "device += host": lambda d, h: operator.iadd(d, h),
    "device[...] = host": lambda d, h: operator.setitem(d, ..., h),
    "host[...] = device": lambda d, h: operator.setitem(h, ..., d),
    "device[host ids]": lambda d, h: d[np.arange(2)],
    "host[device ids]": lambda d, h: h[d],
    "np.exp(device)": lambda d, h: np.exp(d),
    "np.zeros_like(device)": lambda d, h: np.zeros_like(d),
    "xp.exp(host)": lambda d, h: cupy_standin.make().exp(h),
    "xp.concatenate of both": lambda d, h: cupy_standin.make().concatenate([d, h]),
    "an argument by name": lambda d, h: cupy_standin.make().maximum(d, 0, out=h),
}


@pytest.mark.parametrize("operation", MIXED.values(), ids=MIXED.keys())
def test_host_and_device_do_not_mix(xp, operation):
    host = np.ones((2, 2), np.float32)
    with pytest.raises((TypeError, IndexError)):
        operation(xp.asarray(host), host)
    assert (host == 1).all()


def test_arithmetic_is_numpys_and_stays_on_the_device(xp):
    host = np.arange(6, dtype=np.float32).reshape(2, 3)
    device = xp.asarray(host)
    for result, expected in (
        (device * np.float32(2) + 1, host * np.float32(2) + 1),
        (np.float32(2) * device, np.float32(2) * host),
        (device @ device.T, host @ host.T),
        (device.sum(), host.sum()),
        (device[1, 2], host[1, 2]),
        (device[xp.asarray(np.array([1, 0]))], host[[1, 0]]),
        (xp.where(device > 2, device, 0), np.where(host > 2, host, 0)),
    ):
        assert isinstance(result, cupy_standin.ndarray)
        got = result.get()
        assert got.dtype == expected.dtype and got.tobytes() == np.asarray(expected).tobytes()


def test_views_are_views_and_elements_too(xp):
    array = xp.zeros((2, 3))
    array[0][...] = 1
    array[1, 2] += 5
    element = array[1, 1]
    element.fill(7)
    assert array.tolist() == [[1, 1, 1], [0, 7, 5]]
    assert array.base is None and element.base is not None


def test_the_way_onto_the_device_copies_and_empty_holds_nan(xp):
    host = np.ones(3, np.float32)
    device = xp.asarray(host)
    host.fill(2)
    assert device.tolist() == [1, 1, 1] and xp.asarray(device) is device
    device.set(host)
    assert device.tolist() == [2, 2, 2]
    with pytest.raises(ValueError, match="float64"):
        device.set(np.ones(3))
    assert np.isnan(xp.empty((3,), np.float32).get()).all()


# Streams and graphs ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def capturing(xp):
    """A stream that captures; afterwards `graph` of what this gives is what it captured."""
    held = types.SimpleNamespace(stream=xp.cuda.Stream(non_blocking=True), pool=xp.cuda.MemoryPool())
    with held.stream, xp.cuda.using_allocator(held.pool.malloc):
        held.stream.begin_capture()
        try:
            yield held
        finally:
            held.graph = held.stream.end_capture()


#: Work on x [2,3] of 0..5, its outcome, and whether it changes x itself.
WORK = {
    "an operator": (lambda xp, x: x * 2 + 1, lambda x: x * 2 + 1),
    "a method": (lambda xp, x: x.sum(1, keepdims=True), lambda x: x.sum(1, keepdims=True)),
    "a number": (lambda xp, x: x.max(), lambda x: x.max()),
    "a function": (lambda xp, x: xp.where(x > 2, x, -x), lambda x: np.where(x > 2, x, -x)),
    "several arrays": (lambda xp, x: xp.concatenate([x, x[:1]]), lambda x: np.concatenate([x, x[:1]])),
    "an output": (lambda xp, x: xp.exp(x, out=xp.empty((2, 3), np.float32)), np.exp),
    "ids": (lambda xp, x: x[xp.arange(1, -1, -1)], lambda x: x[::-1]),
    "a view": (lambda xp, x: x.T[1:].reshape(2, 2)[0] + 0, lambda x: x.T[1:].reshape(2, 2)[0]),
    "a copy that looks like a view": (lambda xp, x: x.T.reshape(-1), lambda x: x.T.reshape(-1)),
    "in place": (lambda xp, x: _then(x.copy(), lambda y: operator.imul(y, 3)), lambda x: x * 3),
    "an element": (
        lambda xp, x: _then(x + 0, lambda y: y[1, 2].fill(9)),
        lambda x: _then(x + 0, lambda y: y.put(5, 9)),
    ),
    "a mask": (lambda xp, x: _then(x + 0, lambda y: operator.setitem(y, y > 3, 0)), lambda x: np.where(x > 3, 0, x)),
    "a sum at ids": (
        lambda xp, x: _then(xp.zeros((3, 3), np.float32), lambda y: xp.add.at(y, xp.full((2,), 1), x)),
        lambda x: np.stack([0 * x[0], x.sum(0), 0 * x[0]]),
    ),
    "a number of the host": (lambda xp, x: x + xp.asarray(np.float32(4)), lambda x: x + 4),
}


def _then(array, change):
    change(array)
    return array


@pytest.mark.parametrize(("work", "expected"), WORK.values(), ids=WORK.keys())
def test_a_capture_does_nothing_and_a_launch_computes_from_what_is_there_then(xp, work, expected):
    x, out = xp.zeros((2, 3), np.float32), xp.asarray(np.full((3, 3), 7, np.float32))
    with capturing(xp) as held:
        result = work(xp, x)
        out[: result.shape[0] if result.ndim == 2 else 1].fill(result.ndim)
    assert out.tolist() == [[7] * 3] * 3 and np.isnan(result.get()).all() and not x.get().any()
    for offset in (0, 10):
        x.set(np.arange(6, dtype=np.float32).reshape(2, 3) + offset)
        held.graph.launch()
        got, host = result.get(), x.get()
        np.testing.assert_array_equal(got, expected(host))
        assert out.tolist() != [[7] * 3] * 3


def test_an_invalid_capture_gives_no_graph_and_leaves_stream_and_memory_as_they_were(xp):
    x, stream = xp.zeros((3,)), xp.cuda.Stream(non_blocking=True)
    with stream:
        for meet in (x.tolist, lambda: x.set(np.ones(3)), stream.synchronize, lambda: x[x > 0], lambda: bool(x[0])):
            stream.begin_capture()
            x.fill(1)
            with pytest.raises(xp.cuda.runtime.CUDARuntimeError, match="cudaErrorStreamCaptureUnsupported"):
                meet()
            with pytest.raises(RuntimeError, match="invalidated"):
                stream.is_capturing()
            with pytest.raises(xp.cuda.runtime.CUDARuntimeError, match="cudaErrorStreamCaptureInvalidated"):
                stream.end_capture()
            assert not stream.is_capturing() and x.tolist() == [0, 0, 0]
    with pytest.raises(RuntimeError, match="default"):
        xp.cuda.Stream.null.begin_capture()
    with pytest.raises(xp.cuda.runtime.CUDARuntimeError, match="not capturing"):
        stream.end_capture()


def test_a_graph_refuses_memory_that_has_gone_to_others(xp):
    x, out = xp.zeros((3,)), xp.zeros((3,))
    with capturing(xp) as held:
        out[...] = x + 1
    held.graph.launch()
    del held.pool
    with pytest.raises(xp.cuda.runtime.CUDARuntimeError, match="cudaErrorIllegalAddress"):
        held.graph.launch()
    with capturing(xp) as held:
        out[...] = x
    del x
    with pytest.raises(xp.cuda.runtime.CUDARuntimeError, match="cudaErrorIllegalAddress"):
        held.graph.launch()


def pinned(xp, count):
    return np.frombuffer(xp.cuda.alloc_pinned_memory(4 * count), np.float32, count)


def test_copies_with_pinned_memory_are_late_and_those_with_pageable_memory_are_not(xp):
    stream, x = xp.cuda.Stream(non_blocking=True), xp.zeros((2,), np.float32)
    there, back = pinned(xp, 2), pinned(xp, 2)
    there[:] = 1
    x.set(there, stream)
    there[:] = 2  # before the copy was waited for: that is what arrives
    assert x.tolist() == [0, 0]
    stream.synchronize()
    assert x.tolist() == [2, 2]
    pageable = np.full(2, 5, np.float32)
    x.set(pageable, stream)
    pageable[:] = 6
    with stream:
        assert x.tolist() == [5, 5]
        reads = cupy_standin.ndarray.reads
        assert x.get(out=back, blocking=False) is back and not back.any()
        assert cupy_standin.ndarray.reads == reads and not stream.done
        assert stream.done and back.tolist() == [5, 5]


def test_an_event_brings_what_was_asked_for_before_it_and_only_that(xp):
    stream, other = xp.cuda.Stream(non_blocking=True), xp.cuda.Stream(non_blocking=True)
    first, second = pinned(xp, 2), pinned(xp, 2)
    x, y = xp.zeros((2,), np.float32), xp.zeros((2,), np.float32)
    first[:], second[:] = 1, 2
    x.set(first, stream)
    event = stream.record()
    y.set(second, stream)
    other.wait_event(event)
    assert x.tolist() == y.tolist() == [0, 0]  # on the default stream, which waits for neither
    with other:
        assert x.tolist() == [1, 1] and y.tolist() == [0, 0]
    assert event.done
    waits = xp.cuda.Stream.waits
    last = stream.record(xp.cuda.Event(disable_timing=True))
    last.synchronize()
    assert y.tolist() == [2, 2] and xp.cuda.Stream.waits == waits + 1
    with pytest.raises(xp.cuda.runtime.CUDARuntimeError, match="time"):
        xp.cuda.get_elapsed_time(event, last)
    assert xp.cuda.get_elapsed_time(event, stream.record()) >= 0


def test_blocking_streams_and_the_default_one_wait_for_each_other(xp):
    there, x = pinned(xp, 2), xp.zeros((2,), np.float32)
    there[:] = 3
    x.set(there, xp.cuda.Stream())
    stream = xp.cuda.Stream()
    x.set(there, stream)
    assert x.tolist() == [3, 3]


def test_copies_with_pinned_memory_are_captured(xp):
    there, back, x = pinned(xp, 2), pinned(xp, 2), xp.zeros((2,), np.float32)
    with capturing(xp) as held:
        x.set(there)
        x *= 2
        x.get(out=back, blocking=False)
    assert not x.get().any()
    for number in (1, 2):
        there[:] = number
        held.graph.launch()
        assert x.tolist() == back.tolist() == [2 * number] * 2


# What other streams do in a capture -----------------------------------------------------------------------------------


def forked(xp, join=True):
    """A graph that doubles x on a second stream, from where the first has made it 3; then the first adds to y, and x to z."""
    cuda, first, second = xp.cuda, xp.cuda.Stream(non_blocking=True), xp.cuda.Stream(non_blocking=True)
    x, y, z = (xp.zeros((2,), np.float32) for _ in range(3))
    with first:
        first.begin_capture()
        x.fill(3)
        second.wait_event(first.record(cuda.Event()))
        with second:
            x *= 2
        y += 1
        if join:
            first.wait_event(second.record(cuda.Event()))
        z += x
        graph = first.end_capture()
    return graph, first, (x, y, z)


@pytest.mark.parametrize("order", ["late", "early", 0, 1, 2])
def test_a_stream_that_waits_for_a_capture_joins_it(xp, order):
    graph, first, (x, y, z) = forked(xp)
    assert not (x.get().any() or y.get().any() or z.get().any())
    with cupy_streams.in_order(order):
        graph.launch(first)
        graph.launch(first)
    assert x.tolist() == [6, 6] and y.tolist() == [2, 2] and z.tolist() == [12, 12]


def test_a_stream_that_is_not_joined_spoils_the_capture(xp):
    with pytest.raises(xp.cuda.runtime.CUDARuntimeError, match="Unjoined"):
        forked(xp, join=False)


def test_what_no_event_orders_comes_in_another_order(xp):
    """The second stream waits for the fork alone: what the first does after it is overtaken, or not."""
    cuda, first, second = xp.cuda, xp.cuda.Stream(non_blocking=True), xp.cuda.Stream(non_blocking=True)
    x = xp.zeros((1,), np.float32)
    with first:
        first.begin_capture()
        x.fill(3)
        second.wait_event(first.record(cuda.Event()))
        x += 1
        with second:
            x *= 2
        first.wait_event(second.record(cuda.Event()))
        graph = first.end_capture()
    found = set()
    for order in ("early", "late"):
        with cupy_streams.in_order(order):
            graph.launch(first)
        found.add(x.item())
    assert found == {7, 8}


@pytest.mark.skipif(importlib.util.find_spec("cupy") is None, reason="CuPy is not installed")
def test_cupy_has_every_name_of_the_standin(xp):
    """So a run on the stand-in uses nothing that CuPy lacks. `reads` and `waits` are the stand-in's own."""
    import cupy

    def lacking(real, name, ours):
        names = [n for n in vars(ours) if not n.startswith("_") and n != "waits"]
        return [f"{name}.{n}" for n in names if not hasattr(real, n)]

    ours = [n for n in vars(cupy_standin.ndarray) if not n.startswith("_") or n in cupy_standin.METHODS]
    missing = [f"ndarray.{n}" for n in (*ours, *cupy_standin.IN_PLACE) if n != "reads" and not hasattr(cupy.ndarray, n)]
    missing += lacking(cupy, "cupy", xp) + lacking(cupy.cuda, "cupy.cuda", xp.cuda)
    missing += lacking(cupy.cuda.runtime, "cupy.cuda.runtime", xp.cuda.runtime)
    missing += lacking(cupy.cuda.Device, "cupy.cuda.Device", cupy_standin.Device)
    missing += [f"MemoryPool.{n}" for n in vars(xp.get_default_memory_pool()) if not hasattr(cupy.cuda.MemoryPool, n)]
    for name in ("Stream", "Event", "Graph", "MemoryPool"):
        missing += lacking(getattr(cupy.cuda, name), name, getattr(xp.cuda, name))
    nccl = importlib.import_module("cupy.cuda.nccl")
    if nccl.available:
        missing += [
            f"nccl.{n}" for n in vars(cupy_nccl) if n.startswith("NCCL_") and getattr(nccl, n) != vars(cupy_nccl)[n]
        ]
        missing += lacking(nccl.NcclCommunicator, "NcclCommunicator", cupy_nccl.NcclCommunicator)
        missing += [f"nccl.{n}" for n in ("NcclError", "get_unique_id") if not hasattr(nccl, n)]
    missing += lacking(cupy.cuda.PinnedMemoryPointer, "PinnedMemoryPointer", cupy_memory.PinnedMemoryPointer)
    missing += ["cupy.add.at"] if not hasattr(cupy.add, "at") else []
    assert not missing


def test_a_new_device_has_nothing_of_the_last_one():
    xp = cupy_standin.make()
    array = xp.zeros(4, np.float32)
    own = cupy_nccl.NcclCommunicator(1, cupy_nccl.get_unique_id(), 0)
    own.allReduce(array.data.ptr, array.data.ptr, 4, cupy_nccl.NCCL_FLOAT32, cupy_nccl.NCCL_SUM, 0)
    assert cupy_streams.Stream.null._exchanges
    fresh = cupy_standin.make().zeros(4, np.float32)
    fresh += 1
    assert np.array_equal(fresh._host, np.ones(4))  # there without anybody waiting for it
