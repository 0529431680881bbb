"""Streams of the stand-in for CuPy: order, events, copies that arrive late, and capture into graphs that recompute.

What is launched runs at once, but for copies between the device and pinned memory: those are made when something that waits
for them does (an operation on their stream, an event, a wait), so that a wait that is missing shows up as old contents. So is
all that a stream is given once it exchanges with other GPUs (`tests/cupy_nccl.py`), but `in_order("early")`.

While a stream captures, operations are recorded. They run too, because NumPy knows no shapes without, and then everything is
undone: memory that was there before is put back, memory that was made is filled with NaN. A stream that waits for an event of
the capture joins it. `Graph.launch` runs the operations again on the same memory, those of other streams as late as events
allow, or `in_order` another way. It raises where a GPU would read or write what is somebody else's by then: memory from before
the capture that no array of the device views any more, and what was made in it, unless its pool is alive and not the default
one. What CUDA forbids, or what could not mean the same in a replay, raises and invalidates the capture: reading a number,
copies from and to pageable memory, shapes that depend on contents, waiting.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tests.cupy_memory import CUDARuntimeError, MemoryPool, current_pool, is_pinned, root_of, spoil, viewed

#: See `in_order`.
Order = Literal["late", "early"] | int

_here = threading.local()
_numbers = itertools.count(1)


class Stuck(RuntimeError):
    """The device works on something that will never end: whoever waits for it waits for ever."""


class Stream:
    """Work in order. waits: how often the host has waited for a stream or an event."""

    waits = 0
    _order: Order = "late"
    null: Stream
    _blocking: weakref.WeakSet[Stream] = weakref.WeakSet()
    _all: weakref.WeakValueDictionary[int, Stream] = weakref.WeakValueDictionary()

    def __init__(self, null: bool = False, non_blocking: bool = False, priority: int | None = None) -> None:
        self.ptr = 0 if null else next(_numbers)
        Stream._all[self.ptr] = self
        self.is_non_blocking = non_blocking
        self._late: list[tuple[int, Callable[[], Any]]] = []
        self._given = 0
        self._exchanges = False
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
        if self._capture is not None:
            event._point = self._capture.point(self)
        return event

    def wait_event(self, event: Event) -> None:
        if self._capture is None and event._capture is not None and event._capture.open:
            self._arrive()
            self._capture = event._capture  # as CUDA has it: who waits for what is captured is captured itself
        if self._capture is not event._capture:
            self._forbid_while_capturing("cudaErrorStreamCaptureIsolation")
            raise CUDARuntimeError(
                "cudaErrorCapturedEvent: operation not permitted on an event last recorded in a capture"
            )
        if self._capture is None:
            self._later(event._arrive)
        else:
            self._capture.add(self, event._point)

    def begin_capture(self, mode: int | None = None) -> None:
        if self.ptr == 0:
            raise RuntimeError("cannot capture on the default (legacy) stream")
        if self._capture is not None:
            raise CUDARuntimeError("cudaErrorIllegalState: the stream is capturing already")
        self._arrive()
        self._capture = _Capture(self)

    def end_capture(self) -> Graph:
        capture = self._capture
        if capture is None:
            raise CUDARuntimeError("cudaErrorIllegalState: the stream is not capturing")
        capture.open = False
        for stream in capture.work:
            stream._capture = None
        capture.undo()
        if capture.broken:
            raise CUDARuntimeError("cudaErrorStreamCaptureInvalidated: operation failed due to a previous error")
        if capture.unjoined():
            raise CUDARuntimeError("cudaErrorStreamCaptureUnjoined: capturing stream has unjoined work")
        return Graph(self, capture.work, capture.lives())

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
            first = self._late.pop(0)
            try:
                first[1]()
            except Stuck:
                self._late.insert(0, first)
                raise


Stream.null = Stream(null=True)


def renew() -> None:
    """The default stream of a device on which nobody has done anything: all streams share it, and it outlives them."""
    Stream.null._late.clear()
    Stream.null._exchanges = False


def _stack() -> list[Stream]:
    if not hasattr(_here, "streams"):
        _here.streams = [Stream.null]
    return _here.streams


@contextmanager
def in_order(order: Order) -> Iterator[None]:
    """Within this, a graph's launch does what streams other than its first were given as late as may be, as early, or in
    between, as a seed says; and a stream that exchanges does all at once if "early"."""
    before, Stream._order = Stream._order, order
    try:
        yield
    finally:
        Stream._order = before


def get_current_stream() -> Stream:
    return _stack()[-1]


class Event:
    """A place in a stream's order."""

    def __init__(self, block: bool = False, disable_timing: bool = False, interprocess: bool = False) -> None:
        self._stream, self._place, self._time = Stream.null, 0, 0.0
        self._timed = not disable_timing
        self._capture: _Capture | None = None
        self._point = _Point(Stream.null, 0)

    def record(self, stream: Stream | None = None) -> None:
        (stream or get_current_stream()).record(self)

    @property
    def done(self) -> bool:
        """Whether it had come by now; then it comes, if ever."""
        late = any(place <= self._place for place, _ in self._stream._late)
        with contextlib.suppress(Stuck):
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


@dataclass(frozen=True)
class _Point:
    """After so much of a stream's work."""

    stream: Stream
    count: int


class _Capture:
    """What a stream, and those that have joined it, have recorded, and how to undo what recording did. work: of each stream,
    operations and points to wait for."""

    def __init__(self, origin: Stream) -> None:
        self.work: dict[Stream, list[Callable[[], Any] | _Point]] = {origin: []}
        self.origin = origin
        self.open = True
        self.broken = False
        self._before: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._made: dict[int, np.ndarray] = {}
        self._lives: dict[int, Callable[[], Any]] = {}

    def add(self, stream: Stream, work: Callable[[], Any] | _Point) -> None:
        self.work.setdefault(stream, []).append(work)

    def point(self, stream: Stream) -> _Point:
        return _Point(stream, len(self.work[stream]))

    def unjoined(self) -> bool:
        """Whether the work of a stream goes on after the last point of it that the first stream waits for, directly or not."""
        reached = {self.origin: len(self.work[self.origin])}
        fresh = [self.origin]
        while fresh:
            stream = fresh.pop()
            for waited in self.work[stream][: reached[stream]]:
                if isinstance(waited, _Point) and waited.count > reached.get(waited.stream, 0):
                    reached[waited.stream] = waited.count
                    fresh.append(waited.stream)
        return any(len(work) > reached.get(stream, 0) for stream, work in self.work.items())

    def uses(self, array: np.ndarray) -> None:
        root = root_of(array)
        if id(root) not in self._made and id(root) in viewed:
            self._lives[id(root)] = weakref.ref(viewed[id(root)])

    def writes(self, array: np.ndarray) -> None:
        self.uses(array)
        root = root_of(array)
        if id(root) not in self._made and id(root) not in self._before:
            self._before[id(root)] = (root, root.copy())

    def made(self, array: np.ndarray, pool: MemoryPool | None) -> None:
        root = root_of(array)
        self._made[id(root)] = root
        if pool is not None:
            self._lives[id(root)] = weakref.ref(pool)

    def lives(self) -> list[Callable[[], Any]]:
        """What gives None when the memory that the operations read and write has gone to others."""
        for place in self._made.keys() - self._lives.keys():
            self._lives[place] = weakref.ref(viewed[place]) if place in viewed else lambda: None
        return list(self._lives.values())

    def undo(self) -> None:
        for root, contents in self._before.values():
            root[...] = contents
        for root in self._made.values():
            spoil(root)


class Graph:
    """Operations that were captured, to be run again on the memory that they were captured with."""

    def __init__(
        self, origin: Stream, work: dict[Stream, list[Callable[[], Any] | _Point]], lives: list[Callable[[], Any]]
    ) -> None:
        self._origin, self._work, self._lives = origin, work, lives

    def launch(self, stream: Stream | None = None) -> None:
        stream = stream or get_current_stream()
        stream._forbid_while_capturing()
        stream._arrive()
        if any(alive() is None for alive in self._lives):
            raise CUDARuntimeError(
                "cudaErrorIllegalAddress: the graph uses memory that has been given back since its capture"
            )
        joined = [own for own in self._work if own is not self._origin]
        order = [*joined, self._origin] if Stream._order == "early" else [self._origin, *joined]
        done = dict.fromkeys(order, 0)
        drawn = random.Random(Stream._order) if isinstance(Stream._order, int) else None

        def ready(own: Stream) -> bool:
            if done[own] == len(self._work[own]):
                return False
            work = self._work[own][done[own]]
            return not isinstance(work, _Point) or done[work.stream] >= work.count

        while (own := next(filter(ready, drawn.sample(order, len(order)) if drawn else order), None)) is not None:
            work = self._work[own][done[own]]
            if not isinstance(work, _Point):
                work()
            done[own] += 1


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
    capture = stream._capture
    if stream._exchanges and capture is None:
        return _run_late(stream, operation, writes)
    stream._arrive()
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
            capture.add(stream, operation)
        return result
    roots = {id(root_of(array)) for array in given}
    for array in _arrays(result):
        if id(root_of(array)) not in roots:
            new(array)
            if capture is not None:
                capture.add(stream, lambda: [old.__setitem__(..., now) for old, now in _pairs(result, operation())])
                break
    return result


def _run_late(stream: Stream, operation: Callable[[], Any], writes: np.ndarray | None) -> Any:
    """`operation` on a stream that exchanges; what it gives holds nothing before it has come."""
    if writes is not None:
        stream._later(operation)
        result: Any = writes
    else:
        with np.errstate(all="ignore"):
            result = operation()
        result = np.asarray(result) if isinstance(result, np.generic) else result
        for array in _arrays(result):
            spoil(new(array))
        stream._later(lambda: [old.__setitem__(..., now) for old, now in _pairs(result, operation())])
    if Stream._order == "early":
        stream._arrive()
    return result


def exchange(stream: Stream, operation: Callable[[], Any], array: np.ndarray) -> None:
    """What all GPUs do together with memory of the device: `operation` changes `array`. From then on the stream is one that
    exchanges."""
    if stream._capture is not None:
        stream._capture.writes(array)
        stream._capture.add(stream, operation)
        return
    stream._exchanges = True
    stream._later(operation)
    if Stream._order == "early":
        with contextlib.suppress(Stuck):
            stream._arrive()


def _pairs(old: Any, now: Any) -> Iterable[tuple[Any, Any]]:
    return zip(old, now, strict=True) if isinstance(old, tuple) else [(old, now)]


def new(array: np.ndarray) -> np.ndarray:
    """Count `array` as memory that the device has given out, from the current pool, within the current capture."""
    pool = current_pool()
    if pool is not None:
        pool._gives(array)
    capture = get_current_stream()._capture
    if capture is not None:
        capture.made(array, pool)
    return array


def forbid_while_capturing() -> None:
    """CUDARuntimeError where the current stream captures, whose capture is then invalid."""
    get_current_stream()._forbid_while_capturing()


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
        stream._capture.add(stream, move)
    elif is_pinned(host) and not blocking:
        stream._later(move)
    else:
        stream._arrive()
        move()
