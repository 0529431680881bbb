"""The one place that allocates arrays: pooled, 64-byte aligned blocks that are reused as soon as no array views them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

_ALIGN = 64
_free: dict[int, list[np.ndarray]] = {}
_lock = threading.Lock()
_poison = False
_scratch = np.empty(0, np.uint8)


class _Block:
    """Owns raw bytes for one array; when the array and all its views are gone the bytes return to the pool."""

    __slots__ = ("__array_interface__", "raw")

    def __init__(self, raw: np.ndarray, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.raw = raw
        address = raw.ctypes.data
        address += -address % _ALIGN
        self.__array_interface__ = {"data": (address, False), "shape": shape, "typestr": dtype.str, "version": 3}

    def __del__(self) -> None:
        free = _free  # None while the interpreter shuts down
        if free is not None:
            free.setdefault(self.raw.nbytes, []).append(self.raw)


def _size_class(nbytes: int) -> int:
    """The block size that serves `nbytes`: eight classes an octave, so that near-equal shapes share blocks."""
    step = max(1 << max(nbytes.bit_length() - 4, 0), 4096)
    return -(-nbytes // step) * step


def empty(shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> np.ndarray:
    """An uninitialised C-contiguous array, 64-byte aligned, from the pool; NaN-filled while `poisoned`.

    Small arrays (under 4 KiB) come straight from NumPy: the pool would cost more than it saves.
    """
    dtype = np.dtype(dtype)
    nbytes = dtype.itemsize
    for n in shape:
        nbytes *= n
    if nbytes < 4096:
        array = np.empty(shape, dtype)
    else:
        size = _size_class(nbytes) + _ALIGN
        try:
            raw = _free[size].pop()
        except (KeyError, IndexError):
            raw = np.empty(size, np.uint8)
        array = np.asarray(_Block(raw, tuple(int(n) for n in shape), dtype))
        if dtype.kind == "V":  # bfloat16: the array interface knows it as two bytes without a meaning
            array = array.view(dtype)
    if _poison:
        array.fill(np.nan if dtype.kind in "fV" else np.iinfo(dtype).max)
    return array


def empty_like(array: Any) -> np.ndarray:
    """An uninitialised array of `array`'s shape and dtype."""
    return empty(array.shape, array.dtype)


def workspace(nbytes: int) -> np.ndarray:
    """A uint8 array of at least `nbytes`, 64-byte aligned, shared by all kernels that run one after another.

    Its contents do not outlive the call that asked for it. It grows to the largest request and stays; while `poisoned`
    it is filled with NaN on every request.
    """
    global _scratch
    with _lock:
        if _scratch.nbytes < nbytes:
            _scratch = np.empty(0, np.uint8)  # let the old one go first: both at once would raise the peak
            raw = np.empty(nbytes + _ALIGN, np.uint8)
            start = -raw.ctypes.data % _ALIGN
            _scratch = raw[start : start + nbytes]
        if _poison:
            _scratch.fill(0xFF)  # NaN in every float format
        return _scratch


def trim() -> int:
    """Give the unused pooled blocks back to the system; returns how many bytes they held."""
    held = pooled_bytes()
    _free.clear()
    return held


def pooled_bytes() -> int:
    """Bytes that lie unused in the pool."""
    return sum(size * len(blocks) for size, blocks in list(_free.items()))


@contextmanager
def poisoned() -> Iterator[None]:
    """Within this, every new array is filled with NaN (integers: their maximum), so that a kernel that reads what it
    should write, or leaves a hole, shows up in its results."""
    global _poison
    before, _poison = _poison, True
    try:
        yield
    finally:
        _poison = before
