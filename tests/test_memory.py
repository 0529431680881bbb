"""The allocator: alignment, reuse only after every view is gone, poisoning, the shared workspace."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from pycap import memory
from pycap.device import bfloat16


@pytest.fixture(autouse=True)
def _empty_pool():
    memory.trim()


@pytest.mark.parametrize("shape", [(1024,), (3, 5, 7, 11), (1, 4096), (65537,), (2, 0, 3), (), (17,)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8, np.int32, bfloat16()], ids=str)
def test_arrays_are_contiguous_writable_and_of_the_asked_kind(shape, dtype):
    a = memory.empty(shape, dtype)
    assert a.shape == shape and a.dtype == dtype and a.flags.c_contiguous and a.flags.writeable
    if a.nbytes >= 4096:
        assert a.ctypes.data % 64 == 0
    a[...] = 3
    assert (a == 3).all()


def test_a_freed_block_is_used_again():
    a = memory.empty((100, 100))
    address = a.ctypes.data
    del a
    assert memory.pooled_bytes() >= 40_000
    b = memory.empty((10_000,))  # another shape of the same size
    assert b.ctypes.data == address
    assert memory.pooled_bytes() == 0


@pytest.mark.parametrize("dtype", [np.float32, bfloat16()], ids=str)
def test_a_block_with_a_living_view_is_not_used_again(dtype):
    a = memory.empty((100, 100), dtype)
    view = a[3:, ::2].T.reshape(-1, 97)[1:]
    base = a[50]
    base.fill(7)
    del a
    assert memory.pooled_bytes() == 0
    other = [memory.empty((100, 100), dtype) for _ in range(3)]
    for o in other:
        o.fill(-1)
    assert (base == 7).all()
    del base, view
    assert memory.pooled_bytes() > 0


def test_living_arrays_never_overlap():
    rng = np.random.default_rng(0)
    alive: list[tuple[np.ndarray, float]] = []
    for i in range(400):
        if alive and rng.random() < 0.5:
            array, value = alive.pop(int(rng.integers(len(alive))))
            assert (array == value).all()
        array = memory.empty((int(rng.integers(1, 5000)),))
        array.fill(i)
        alive.append((array, float(i)))
    assert all((array == value).all() for array, value in alive)


def test_threads_share_the_pool():
    errors: list[str] = []

    def work(number: int) -> None:
        for i in range(300):
            a = memory.empty((1500 + i % 7,))
            a.fill(number)
            if not (a == number).all():
                errors.append(f"thread {number}: array changed under its feet")

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not errors


def test_trim_gives_back_what_is_unused():
    held = memory.empty((5000,))
    loose = memory.empty((5000,))
    del loose
    assert memory.trim() >= 20_000
    assert memory.pooled_bytes() == 0
    held.fill(1)
    del held
    assert memory.pooled_bytes() >= 20_000


def test_sizes_waste_at_most_an_eighth():
    for nbytes in [4096, 5000, 10_000, 123_457, 10**6, 10**7 + 1]:
        a = memory.empty((nbytes,), np.uint8)
        memory.trim()
        del a
        assert nbytes <= memory.pooled_bytes() <= max(nbytes * 9 / 8, nbytes + 4096) + 64
        memory.trim()


@pytest.mark.parametrize("size", [10, 10_000])
def test_poisoned_arrays_are_nan_or_the_largest_integer(size):
    with memory.poisoned():
        assert np.isnan(memory.empty((size,))).all()
        assert np.isnan(memory.empty_like(np.zeros((size, 2)))).all()
        assert np.isnan(memory.empty((size,), bfloat16())).all()
        assert (memory.empty((size,), np.uint8) == 255).all()
        assert (memory.empty((size,), np.int32) == 2**31 - 1).all()
        with memory.poisoned():
            pass
        memory.empty((size,)).fill(1.0)
        assert np.isnan(memory.empty((size,))).all()
    memory.empty((size,)).fill(1.0)
    assert (memory.empty((10_000,)) == 1.0).all() or size == 10  # not poisoned any more: the old contents


def test_poisoning_ends_with_an_exception():
    with pytest.raises(KeyError), memory.poisoned():
        raise KeyError
    a = memory.empty((5000,))
    a.fill(2.0)
    del a
    assert (memory.empty((5000,)) == 2.0).all()


def test_workspace_is_poisoned_on_every_request():
    memory.workspace(4096).fill(0)
    with memory.poisoned():
        for _ in range(2):
            scratch = memory.workspace(4096)
            assert np.isnan(scratch[:4096].view(np.float32)).all()
            scratch.fill(0)
    assert not memory.workspace(4096)[:4096].any()


def test_workspace_grows_and_is_aligned_and_shared():
    small = memory.workspace(100)
    assert small.dtype == np.uint8 and small.nbytes >= 100 and small.ctypes.data % 64 == 0
    large = memory.workspace(small.nbytes + 10_000)
    assert large.nbytes >= small.nbytes + 10_000 and large.ctypes.data % 64 == 0
    assert memory.workspace(50) is large
    assert memory.workspace(0) is large


def test_fields_lie_side_by_side_in_one_block_and_apart():
    fields = memory.Fields(
        {"a": ((3,), np.uint8), "b": ((2, 5), np.float64), "none": ((0,), np.int32), "c": ((), np.int32)}
    )
    block = np.zeros(fields.nbytes, np.uint8)
    views = fields.views(block)
    assert list(views) == ["a", "b", "none", "c"] and views["none"].size == 0
    assert [(v.shape, v.dtype) for v in views.values()][1] == ((2, 5), np.dtype(np.float64))
    starts = [v.__array_interface__["data"][0] - block.ctypes.data for v in views.values() if v.size]
    assert all(start % 256 == 0 for start in starts)
    for number, view in enumerate(views.values(), 1):
        view[...] = number
    assert [view.max() for view in views.values() if view.size] == [1, 2, 4] and views["b"].min() == 2
    assert memory.Fields({}).nbytes == 1
