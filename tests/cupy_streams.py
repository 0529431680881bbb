"""Streams of the stand-in for CuPy: order, events, copies that arrive late, and capture into graphs that recompute.

What is launched runs at once, but for copies between the device and pinned memory: those are made when something that waits
for them does (an operation on their stream, an event, a wait), so that a wait that is missing shows up as old contents.

While a stream captures, operations are recorded. They run too, because NumPy knows no shapes without, and then everything is
undone: memory that was there before is put back, memory that was made is filled with NaN. `Graph.launch` runs them again on
the same memory, and raises where a GPU would read or write what is somebody else's by then: memory from before the capture
that no array of the device views any more, and what was made in it, unless its pool is alive and not the default one. What CUDA
forbids, or what could not mean the same in a replay, raises and invalidates the capture: reading a number, copies from and to
pageable memory, shapes that depend on contents, waiting.
"""

from __future__ import annotations

import itertools
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np


class CUDARuntimeError(RuntimeError):
    """What CUDA's calls raise."""


_here = threading.local()
_numbers = itertools.count(1)


class Stream:
    """Work in order. waits: how often the host has waited for a stream or an event."""

    waits = 0
    null: Stream
    _blocking: weakref.WeakSet[Stream] = weakref.WeakSet()

    def __init__(self, null: bool = False, non_blocking: bool = False) -> None:
        self.ptr = 0 if null else next(_numbers)
        self.is_non_blocking = non_blocking
        self._late: list[tuple[int, Callable[[], Any]]] = []
        self._given = 0
        self._capture: _Capture | None = None
        if not null and not non_blocking:
            Stream._blocking.add(self)

    def __enter__(self) -> Stream:
        _stack().append(self)
        return self

    def __exit__(self, *error: Any) -> None:
        _stack().pop()

    def use(self) -> Stream:
        _stack()[-1] = self
        return self

    @property
    def done(self) -> bool:
        self._forbid_while_capturing()
        late = bool(self._late)
        self._arrive()
        return not late

    def synchronize(self) -> None:
        self._forbid_while_capturing()
        Stream.waits += 1
        self._arrive()

    def record(self, event: Event | None = None) -> Event:
        event = event or Event()
        event._stream, event._place, event._time = self, self._given, time.perf_counter()
        event._capture = self._capture
        return event

    def wait_event(self, event: Event) -> None:
        if self._capture is not event._capture:
            self._forbid_while_capturing("cudaErrorStreamCaptureIsolation")
            raise CUDARuntimeError(
                "cudaErrorCapturedEvent: operation not permitted on an event last recorded in a capture"
            )
        if self._capture is None:
            self._later(event._arrive)

    def begin_capture(self, mode: int | None = None) -> None:
        if self.ptr == 0:
            raise RuntimeError("cannot capture on the default (legacy) stream")
        if self._capture is not None:
            raise CUDARuntimeError("cudaErrorIllegalState: the stream is capturing already")
        self._arrive()
        self._capture = _Capture()

    def end_capture(self) -> Graph:
        capture, self._capture = self._capture, None
        if capture is None:
            raise CUDARuntimeError("cudaErrorIllegalState: the stream is not capturing")
        capture.undo()
        if capture.broken:
            raise CUDARuntimeError("cudaErrorStreamCaptureInvalidated: operation failed due to a previous error")
        return Graph(capture.operations, capture.lives())

    def is_capturing(self) -> bool:
        if self._capture is not None and self._capture.broken:
            raise RuntimeError("the stream was capturing, but an error has invalidated the capture sequence")
        return self._capture is not None

    def _forbid_while_capturing(self, kind: str = "cudaErrorStreamCaptureUnsupported") -> None:
        if self._capture is not None:
            self._capture.broken = True
            raise CUDARuntimeError(f"{kind}: operation not permitted when stream is capturing")

    def _later(self, copy: Callable[[], Any]) -> None:
        """`copy` is made before anything that comes after it on this stream, and not earlier."""
        self._given += 1
        self._late.append((self._given, copy))

    def _arrive(self, place: float = float("inf")) -> None:
        """Make the copies that were asked for up to `place`; the default stream and blocking ones wait for each other."""
        if self.ptr == 0:
            for stream in list(Stream._blocking):
                stream._arrive()
        elif not self.is_non_blocking:
            Stream.null._own_arrive(float("inf"))
        self._own_arrive(place)

    def _own_arrive(self, place: float) -> None:
        while self._late and self._late[0][0] <= place:
            self._late.pop(0)[1]()


Stream.null = Stream(null=True)


def _stack() -> list[Stream]:
    if not hasattr(_here, "streams"):
        _here.streams = [Stream.null]
    return _here.streams


def get_current_stream() -> Stream:
    return _stack()[-1]


class Event:
    """A place in a stream's order."""

    def __init__(self, block: bool = False, disable_timing: bool = False, interprocess: bool = False) -> None:
        self._stream, self._place, self._time = Stream.null, 0, 0.0
        self._timed = not disable_timing
        self._capture: _Capture | None = None

    def record(self, stream: Stream | None = None) -> None:
        (stream or get_current_stream()).record(self)

    @property
    def done(self) -> bool:
        """Whether it had come by now; then it comes."""
        late = any(place <= self._place for place, _ in self._stream._late)
        self._arrive()
        return not late

    def synchronize(self) -> None:
        Stream.waits += 1
        self._arrive()

    def _arrive(self) -> None:
        if self._capture is not None:
            self._capture.broken = True
            raise CUDARuntimeError(
                "cudaErrorCapturedEvent: operation not permitted on an event last recorded in a capture"
            )
        self._stream._arrive(self._place)


def get_elapsed_time(start_event: Event, end_event: Event) -> float:
    if not (start_event._timed and end_event._timed):
        raise CUDARuntimeError("cudaErrorInvalidResourceHandle: an event does not keep the time")
    return 1000 * (end_event._time - start_event._time)


# Capture --------------------------------------------------------------------------------------------------------------


class _Capture:
    """What a stream has recorded, and how to undo what recording did."""

    def __init__(self) -> None:
        self.operations: list[Callable[[], Any]] = []
        self.broken = False
        self._before: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._made: dict[int, np.ndarray] = {}
        self._lives: dict[int, Callable[[], Any]] = {}

    def uses(self, array: np.ndarray) -> None:
        root = _root(array)
        if id(root) not in self._made and id(root) in _views:
            self._lives[id(root)] = weakref.ref(_views[id(root)])

    def writes(self, array: np.ndarray) -> None:
        self.uses(array)
        root = _root(array)
        if id(root) not in self._made and id(root) not in self._before:
            self._before[id(root)] = (root, root.copy())

    def made(self, array: np.ndarray, pool: MemoryPool | None) -> None:
        root = _root(array)
        self._made[id(root)] = root
        if pool is not None:
            self._lives[id(root)] = weakref.ref(pool)

    def lives(self) -> list[Callable[[], Any]]:
        """What gives None when the memory that the operations read and write has gone to others."""
        for place in self._made.keys() - self._lives.keys():
            self._lives[place] = weakref.ref(_views[place]) if place in _views else lambda: None
        return list(self._lives.values())

    def undo(self) -> None:
        for root, contents in self._before.values():
            root[...] = contents
        for root in self._made.values():
            spoil(root)


class Graph:
    """Operations that were captured, to be run again on the memory that they were captured with."""

    def __init__(self, operations: list[Callable[[], Any]], lives: list[Callable[[], Any]]) -> None:
        self._operations, self._lives = operations, lives

    def launch(self, stream: Stream | None = None) -> None:
        stream = stream or get_current_stream()
        stream._forbid_while_capturing()
        stream._arrive()
        if any(alive() is None for alive in self._lives):
            raise CUDARuntimeError(
                "cudaErrorIllegalAddress: the graph uses memory that has been given back since its capture"
            )
        for operation in self._operations:
            operation()


class Views:
    """Alive while an array of the device views the memory."""


_views: weakref.WeakValueDictionary[int, Views] = weakref.WeakValueDictionary()


def views(array: np.ndarray) -> Views:
    """What each array of the device holds for its memory, the same for all views of it."""
    return _views.setdefault(id(_root(array)), Views())


def spoil(array: np.ndarray) -> None:
    """NaN in floats, the largest number in integers: what memory holds that nobody has written."""
    array.fill(np.nan if array.dtype.kind in "fV" else True if array.dtype.kind == "b" else np.iinfo(array.dtype).max)


def _root(array: np.ndarray) -> np.ndarray:
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def _arrays(value: Any) -> Iterator[np.ndarray]:
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _arrays(item)


def run(operation: Callable[[], Any], reads: Iterable[Any] = (), writes: np.ndarray | None = None) -> Any:
    """Do `operation` on the current stream, and record it where that captures; returns what it gives, numbers as arrays.

    reads: its arguments; a result that is a view of one of them is no work of the device. writes: the array that it changes;
    without one, its results are new memory.
    """
    stream = get_current_stream()
    stream._arrive()
    capture = stream._capture
    given = list(_arrays(list(reads)))
    if capture is not None:
        for array in given:
            capture.uses(array)
        if writes is not None:
            capture.writes(writes)
    result = operation()
    if isinstance(result, np.generic):
        result = np.asarray(result)
    if writes is not None:
        if capture is not None:
            capture.operations.append(operation)
        return result
    roots = {id(_root(array)) for array in given}
    for array in _arrays(result):
        if id(_root(array)) not in roots:
            new(array)
            if capture is not None:
                capture.operations.append(
                    lambda: [old.__setitem__(..., now) for old, now in _pairs(result, operation())]
                )
                break
    return result


def _pairs(old: Any, now: Any) -> Iterable[tuple[Any, Any]]:
    return zip(old, now, strict=True) if isinstance(old, tuple) else [(old, now)]


def new(array: np.ndarray) -> np.ndarray:
    """Count `array` as memory that the device has given out, from the current pool, within the current capture."""
    pool = getattr(_here, "pool", None)
    if pool is not None:
        pool._gives(array)
    capture = get_current_stream()._capture
    if capture is not None:
        capture.made(array, pool)
    return array


def forbid_while_capturing() -> None:
    """CUDARuntimeError where the current stream captures, whose capture is then invalid."""
    get_current_stream()._forbid_while_capturing()


# Memory ---------------------------------------------------------------------------------------------------------------


class MemoryPool:
    """Counts what it gives out; nothing is given out twice."""

    def __init__(self) -> None:
        self._used = self._total = 0

    def _gives(self, array: np.ndarray) -> None:
        self._used += array.nbytes
        self._total += array.nbytes
        weakref.finalize(_root(array), MemoryPool._takes, weakref.ref(self), array.nbytes)

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


@contextmanager
def using_allocator(allocator: Any = None) -> Iterator[None]:
    """Within this, and in this thread, memory comes from the pool whose `malloc` is given."""
    before = getattr(_here, "pool", None)
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
    base: Any = _root(array).base
    return isinstance(base.obj if isinstance(base, memoryview) else base, PinnedMemoryPointer)


def copy(target: np.ndarray, source: np.ndarray, host: np.ndarray, stream: Stream | None, blocking: bool) -> None:
    """target[...] = source, one of which is `host`: late from and to pinned memory unless `blocking`, else at once."""
    stream = stream or get_current_stream()

    def move() -> None:
        target[...] = source

    if stream._capture is not None and (blocking or not is_pinned(host)):
        stream._forbid_while_capturing()
    if stream._capture is not None:
        stream._capture.uses(source)
        if host is source:
            stream._capture.writes(target)
            move()
        stream._capture.operations.append(move)
    elif is_pinned(host) and not blocking:
        stream._later(move)
    else:
        stream._arrive()
        move()
