"""Memory of the stand-in for CuPy: NumPy's, of which it is known whether arrays of the device view it; pools, pinned memory."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np


class CUDARuntimeError(RuntimeError):
    """What CUDA's calls raise."""


_here = threading.local()


class Views:
    """Alive while an array of the device views the memory."""

    def __init__(self, root: np.ndarray) -> None:
        self.root = weakref.ref(root)


viewed: weakref.WeakValueDictionary[int, Views] = weakref.WeakValueDictionary()


def views(array: np.ndarray) -> Views:
    """What each array of the device holds for its memory, the same for all views of it."""
    root = root_of(array)
    return viewed.setdefault(id(root), Views(root))


def memory_at(address: int, dtype: np.dtype, count: int) -> np.ndarray:
    """An array of the memory of the device that lies there; CUDARuntimeError where it is no such memory."""
    nbytes = count * dtype.itemsize
    for root in (found.root() for found in list(viewed.values())):
        if root is not None and 0 <= address - root.ctypes.data <= root.nbytes - nbytes:
            first = address - root.ctypes.data
            return root.reshape(-1).view(np.uint8)[first : first + nbytes].view(dtype)
    raise CUDARuntimeError(f"cudaErrorIllegalAddress: {nbytes} bytes at {address:#x} are not the device's")


def spoil(array: np.ndarray) -> None:
    """NaN in floats, the largest number in integers: what memory holds that nobody has written."""
    array.fill(np.nan if array.dtype.kind in "fV" else True if array.dtype.kind == "b" else np.iinfo(array.dtype).max)


def root_of(array: np.ndarray) -> np.ndarray:
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


class MemoryPool:
    """Counts what it gives out; nothing is given out twice."""

    def __init__(self) -> None:
        self._used = self._total = 0

    def _gives(self, array: np.ndarray) -> None:
        self._used += array.nbytes
        self._total += array.nbytes
        weakref.finalize(root_of(array), MemoryPool._takes, weakref.ref(self), array.nbytes)

    @staticmethod
    def _takes(pool: weakref.ref[MemoryPool], nbytes: int) -> None:
        alive = pool()
        if alive is not None:
            alive._used -= nbytes

    def malloc(self, size: int) -> Any:
        """Of use to `using_allocator` only."""
        block = np.empty(size, np.uint8)
        self._gives(block)
        return SimpleNamespace(ptr=block.ctypes.data, mem=block)

    def used_bytes(self) -> int:
        return self._used

    def free_bytes(self) -> int:
        return self._total - self._used

    def total_bytes(self) -> int:
        return self._total

    def free_all_blocks(self) -> None:
        self._total = self._used


def current_pool() -> MemoryPool | None:
    """What memory comes from in this thread; None for the default pool."""
    return getattr(_here, "pool", None)


@contextmanager
def using_allocator(allocator: Any = None) -> Iterator[None]:
    """Within this, and in this thread, memory comes from the pool whose `malloc` is given."""
    before = current_pool()
    _here.pool = None if allocator is None else allocator.__self__
    try:
        yield
    finally:
        _here.pool = before


class PinnedMemoryPointer(bytearray):
    """Memory of the host that the device reads and writes by itself."""

    @property
    def ptr(self) -> int:
        return np.frombuffer(self, np.uint8).ctypes.data

    def size(self) -> int:
        return len(self)


def alloc_pinned_memory(size: int) -> PinnedMemoryPointer:
    """At least `size` bytes; more, as CuPy's pool gives, so that `np.frombuffer` needs its count."""
    return PinnedMemoryPointer(-(-max(size, 1) // 512) * 512)


def is_pinned(array: np.ndarray) -> bool:
    base: Any = root_of(array).base
    return isinstance(base.obj if isinstance(base, memoryview) else base, PinnedMemoryPointer)
