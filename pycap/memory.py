"""The one place that allocates arrays, on the current device: pooled blocks, reused as soon as no array views them.

On the CPU the pool is ours, and blocks are 64-byte aligned; on a GPU it is CuPy's. Within `taking_from(source)` arrays come
from the source instead: `pycap.arena` records a step's requests so, and then serves them from ranges planned once.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache, wraps
from types import ModuleType
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import DTypeLike

from pycap import device

Made = TypeVar("Made")

_ALIGN = 64
_free: dict[int, list[np.ndarray]] = {}
_lock = threading.Lock()
_poison = False
_scratch: dict[ModuleType, Any] = {}  # by the module of its arrays


class Source(Protocol):
    """What gives arrays in the pool's place. poisons: whether they may be filled with NaN (else nothing may touch them)."""

    poisons: bool

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> Any:
        """An uninitialised C-contiguous array on the current device."""

    def workspace(self, nbytes: int) -> Any:
        """A uint8 array for one call, or None: the workspace that all share."""


_source: Source | None = None
_source_thread = 0  # the others go on taking from the pool
_held: list[Any] | None = None
_held_thread = 0


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


def empty(shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> Any:
    """An uninitialised C-contiguous array on the current device, from the pool; NaN-filled while `poisoned`.

    On the CPU it is 64-byte aligned; small arrays (under 4 KiB) come straight from NumPy: the pool would cost more than it
    saves.
    """
    dtype = np.dtype(dtype)
    if _source is not None and threading.get_ident() == _source_thread:
        array = _source.empty(shape, dtype)
        if _poison and _source.poisons:
            _fill_with_nan(array)
        return array
    if device.module() is not np:
        array = device.module().empty(shape, dtype)
        if _poison:
            _fill_with_nan(array)
        return array
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


def _fill_with_nan(array: Any) -> None:
    if array.dtype.kind in "fV":
        array.reshape(-1).view(np.uint8).fill(0xFF)  # NaN in every float format
    else:
        array.fill(np.iinfo(array.dtype).max)


def empty_like(array: Any) -> Any:
    """An uninitialised array of `array`'s shape and dtype."""
    return empty(array.shape, array.dtype)


def zeros(shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> Any:
    """An array of zeros on the current device, not from our pool: for what lives long, as parameters do."""
    return device.module().zeros(shape, dtype)


def filled_like(array: Any, value: float) -> Any:
    """An array of `array`'s shape and dtype, every element `value`."""
    made = empty_like(array)
    made.fill(value)
    return made


def asarray(values: Any, dtype: DTypeLike = np.float32) -> Any:
    """Python numbers, nested as they may be, as an array on the current device."""
    return device.to_device(np.asarray(values, dtype))


def workspace(nbytes: int) -> Any:
    """A uint8 array of at least `nbytes` on the current device, shared by all kernels that run one after another.

    On the CPU it is 64-byte aligned. Its contents do not outlive the call that asked for it. It grows to the largest request
    and stays; while `poisoned` it is filled with NaN on every request.
    """
    if _source is not None and threading.get_ident() == _source_thread:
        given = _source.workspace(nbytes)
        if given is not None:
            return given
    module = device.module()
    with _lock:
        scratch = _scratch.get(module)
        if scratch is None or scratch.nbytes < nbytes:
            scratch = None  # let the old one go first: both at once would raise the peak
            _scratch.pop(module, None)
            raw = module.empty(nbytes + _ALIGN, np.uint8)
            start = -device.address(raw) % _ALIGN
            _scratch[module] = scratch = raw[start : start + nbytes]
        if _poison:
            scratch.fill(0xFF)  # NaN in every float format
        return scratch


def trim() -> int:
    """Give the unused pooled blocks back to the system, the current GPU's too; returns how many bytes they held."""
    held = pooled_bytes()
    _free.clear()
    if device.module() is not np:
        device.module().get_default_memory_pool().free_all_blocks()
    return held


def pooled_bytes() -> int:
    """Bytes that lie unused in the pool; where the current device is a GPU, in CuPy's too."""
    held = sum(size * len(blocks) for size, blocks in list(_free.items()))
    if device.module() is not np:
        held += device.module().get_default_memory_pool().free_bytes()
    return held


@contextmanager
def taking_from(source: Source | None) -> Iterator[None]:
    """Within this, this thread's `empty` and `workspace` ask `source` (None: the pool, as ever)."""
    global _source, _source_thread
    before = _source, _source_thread
    _source, _source_thread = source, threading.get_ident()
    try:
        yield
    finally:
        _source, _source_thread = before


def persistent() -> AbstractContextManager[None]:
    """Within this, arrays come from the pool, whatever source the caller takes from: for what outlives the step (a gradient's
    buffer, prepared weights). What a source gives is used again as soon as the step's plan says so."""
    return taking_from(None)


class Fields:
    """Arrays of these shapes and dtypes side by side in one block of bytes, which one copy moves. nbytes: the block's."""

    def __init__(self, fields: Mapping[str, tuple[tuple[int, ...], DTypeLike]]) -> None:
        """fields: (shape, dtype) by name. Each begins at a multiple of 256 bytes, as an allocator's arrays do."""
        self._places: dict[str, tuple[int, int, np.dtype, tuple[int, ...]]] = {}
        end = 0
        for name, (shape, dtype) in fields.items():
            start = -(-end // 256) * 256
            end = start + math.prod(shape) * np.dtype(dtype).itemsize
            self._places[name] = start, end, np.dtype(dtype), shape
        self.nbytes = max(end, 1)

    def views(self, block: Any) -> dict[str, Any]:
        """The arrays by name, in the order of the fields, in a uint8 array [nbytes] of the host or the device."""
        return {name: block[a:b].view(dtype).reshape(shape) for name, (a, b, dtype, shape) in self._places.items()}


def kept(limit: int) -> Callable[[Callable[..., Made]], Callable[..., Made]]:
    """A decorator for functions that make small arrays of the device, tables and constants: the last `limit` results are kept,
    by the arguments. Launches that are recorded with their addresses need them longer (`holding`)."""

    def decorate(make: Callable[..., Made]) -> Callable[..., Made]:
        found = lru_cache(limit)(make)

        @wraps(make)
        def get(*arguments: Any) -> Made:
            made = found(*arguments)
            if _held is not None and threading.get_ident() == _held_thread:
                _held.append(made)
            return made

        return get

    return decorate


@contextmanager
def holding() -> Iterator[list[Any]]:
    """Within this, in the calling thread, what functions under `kept` return is noted in the list."""
    global _held, _held_thread
    before, _held, _held_thread = (_held, _held_thread), [], threading.get_ident()
    try:
        yield _held
    finally:
        _held, _held_thread = before


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
