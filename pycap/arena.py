"""A step's arrays in one buffer, planned once: record what the step asks for, place it, serve it from then on.

    prepare_gradients(parameters)  # what outlives the step must not be in the buffer
    with trace() as seen:
        step()
    layout = plan(seen)
    arena = Arena(layout.nbytes)
    with arena.serving(layout):
        step()

Steps of the same shapes ask for the same arrays in the same order and let them go at the same points, for nothing but
reference counts decides that. So the i-th request gets the i-th range, at the same address in every step, as a CUDA graph needs
it; ranges of arrays that are never alive together share memory. An `Arena` serves the layouts of several shapes, one at a
time.

The rule: **what outlives the step is not from the arena.** Parameters, their gradients (`prepare_gradients`), the
optimiser's state and prepared weights are made before, or within `memory.persistent()`. A result that the caller keeps (the
loss) is overwritten by the next step: it must be copied out, or made persistent.
"""

from __future__ import annotations

import gc
import mmap
import sys
from bisect import insort
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from pycap import device, memory

#: Ranges begin at multiples of this: what CuPy's allocator gives, and more than any kernel asks for.
ALIGN = 256

_FOREVER = sys.maxsize


class ArenaError(RuntimeError):
    """A step asked for other arrays than the ones planned; the text says which request differs."""


# What a step asks for -------------------------------------------------------------------------------------------------


@dataclass
class Request:
    """One array that a step asked for. birth, death: when, in events of the trace; a death of `sys.maxsize`: not within it."""

    shape: tuple[int, ...]
    dtype: np.dtype
    nbytes: int
    birth: int
    death: int = _FOREVER

    @property
    def size(self) -> int:
        """The bytes of its range."""
        return -(-self.nbytes // ALIGN) * ALIGN

    def meets(self, other: Request) -> bool:
        """Whether both are alive at some moment."""
        return self.birth < other.death and other.birth < self.death

    def __str__(self) -> str:
        return f"{self.dtype} {self.shape}, {self.nbytes} bytes"


class _Traced:
    """Owns the memory of one traced array; when the array and all its views are gone, the trace hears of it."""

    __slots__ = ("__array_interface__", "_memory", "_request", "_trace")

    def __init__(self, trace: Trace, request: Request) -> None:
        self._memory = _untouched(request.nbytes)
        address = device.address(self._memory)
        self.__array_interface__ = {
            "data": (address, False), "shape": request.shape, "typestr": request.dtype.str, "version": 3,
        }  # fmt: skip
        self._trace, self._request = trace, request

    def __del__(self) -> None:
        self._trace._let_go(self._request)


def _untouched(nbytes: int) -> np.ndarray:
    """Zeros, of which the system sets no page aside before it is touched; aligned to a page."""
    if sys.platform == "win32":
        return np.zeros(nbytes + mmap.PAGESIZE, np.uint8)[:nbytes]
    no_reserve = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)  # a name since Python 3.13
    pages = mmap.mmap(-1, max(nbytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve)
    return np.frombuffer(pages, np.uint8)


@dataclass
class Trace:
    """What was asked for while it was open. workspace_nbytes: the largest request for scratch memory, in bytes.

    live: bytes of the arrays alive now; peak: the most there were at once, which no layout can be smaller than.
    """

    requests: list[Request] = field(default_factory=list)
    workspace_nbytes: int = 0
    live: int = 0
    peak: int = 0
    poisons = False
    _clock: int = 0
    _open: bool = True

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> Any:
        nbytes = dtype.itemsize
        for n in shape:
            nbytes *= n
        request = Request(tuple(int(n) for n in shape), dtype, int(nbytes), self._clock)
        self._clock += 1
        self.requests.append(request)
        self.live += request.size
        self.peak = max(self.peak, self.live)
        array = np.asarray(_Traced(self, request))
        return array.view(dtype) if dtype.kind == "V" else array  # the array interface knows bfloat16 as two bytes

    def workspace(self, nbytes: int) -> Any:
        self.workspace_nbytes = max(self.workspace_nbytes, nbytes)
        return _untouched(nbytes)

    def close(self) -> None:
        """What is alive now counts as alive to the end."""
        self._open = False

    def _let_go(self, request: Request) -> None:
        if self._open:
            request.death = self._clock
            self._clock += 1
            self.live -= request.size


@contextmanager
def trace() -> Iterator[Trace]:
    """Within this, arrays lie in memory of the host that takes no room until it is touched, and each is recorded.

    The current device must be the CPU. With `pycap.backends.dry` no kernel touches them: then a step that needs a hundred GiB
    is traced on any machine. Reference counts alone end an array's life in it, never the garbage collector, which at
    run time may come at any moment.
    """
    if device.current() != "cpu":
        raise ArenaError("a trace is of arrays on the host: take it within device.use('cpu')")
    seen = Trace()
    collects = gc.isenabled()
    gc.disable()
    try:
        with memory.taking_from(seen):
            yield seen
    finally:
        seen.close()
        if collects:
            gc.enable()


# Where it goes --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """Where each request of a step goes. offsets: bytes from the buffer's start. nbytes: of the buffer it needs. bound: what
    the arrays alive at once need at the least. workspace: bytes of scratch memory, beside the buffer."""

    requests: tuple[Request, ...]
    offsets: tuple[int, ...]
    nbytes: int
    bound: int
    workspace: int = 0

    def check(self) -> None:
        """ArenaError where two requests that are alive together overlap."""
        by_place = sorted(range(len(self.offsets)), key=self.offsets.__getitem__)
        for n, i in enumerate(by_place):
            end = self.offsets[i] + self.requests[i].size
            for j in by_place[n + 1 :]:
                if self.offsets[j] >= end:
                    break
                if self.requests[i].size and self.requests[j].size and self.requests[i].meets(self.requests[j]):
                    raise ArenaError(f"requests {i} ({self.requests[i]}) and {j} ({self.requests[j]}) overlap")

    def for_smaller(self, seen: Trace) -> Layout | None:
        """The same places for a step that asks for no more, at the same points; None for any other."""
        pairs = list(zip(self.requests, seen.requests, strict=False))
        same = all((a.birth, a.death) == (b.birth, b.death) and b.size <= a.size for a, b in pairs)
        if not same or len(self.requests) != len(seen.requests):
            return None
        return replace(self, requests=tuple(seen.requests), bound=seen.peak, workspace=seen.workspace_nbytes)


def plan(seen: Trace) -> Layout:
    """Ranges for the requests of a trace: those alive together are apart.

    Greedy by size (Pisarchyk & Lee 2020, "Efficient Memory Management for Deep Neural Net Inference", arXiv 2001.03288): the
    largest first, each into the smallest gap that holds it among those placed before that it meets in time.
    """
    requests = seen.requests
    offsets = [0] * len(requests)
    placed: list[tuple[int, int, int]] = []  # (begin, end, number), in that order
    nbytes = 0
    for i in sorted(range(len(requests)), key=lambda i: (-requests[i].size, requests[i].birth)):
        mine = requests[i]
        if not mine.size:
            continue
        at = _best_gap(mine.size, ((begin, end) for begin, end, j in placed if mine.meets(requests[j])))
        offsets[i] = at
        nbytes = max(nbytes, at + mine.size)
        insort(placed, (at, at + mine.size, i))
    return Layout(tuple(requests), tuple(offsets), nbytes, seen.peak, seen.workspace_nbytes)


def _best_gap(size: int, taken: Iterable[tuple[int, int]]) -> int:
    """Where the smallest gap of at least `size` begins among ranges in order of their begin; after all, if there is none."""
    free, best, least = 0, -1, _FOREVER
    for begin, end in taken:
        gap = begin - free
        if size <= gap < least:
            best, least = free, gap
        free = max(free, end)
    return free if best < 0 else best


# Serving --------------------------------------------------------------------------------------------------------------


class _Served:
    """Gives the arrays of a layout, one after another."""

    poisons = True

    def __init__(self, buffer: Any, layout: Layout) -> None:
        self._buffer, self._layout, self._next = buffer, layout, 0

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> Any:
        i, requests = self._next, self._layout.requests
        nbytes = dtype.itemsize
        for n in shape:
            nbytes *= n
        if i >= len(requests) or requests[i].nbytes != nbytes:
            planned = str(requests[i]) if i < len(requests) else f"no more than {len(requests)} requests"
            raise ArenaError(
                f"request {i} is for {dtype} {tuple(shape)}, {nbytes} bytes; planned: {planned}. The step differs from the one "
                "that was traced: trace it anew for these shapes, or run it from the pool"
            )
        self._next = i + 1
        begin = self._layout.offsets[i]
        return self._buffer[begin : begin + nbytes].view(dtype).reshape(shape)

    def workspace(self, nbytes: int) -> Any:
        return None


class Arena:
    """One buffer of the current device from which steps take their arrays; `nbytes` is the largest of its layouts'."""

    def __init__(self, nbytes: int) -> None:
        raw = memory.zeros((nbytes + ALIGN,), np.uint8)
        start = -device.address(raw) % ALIGN
        self._buffer = raw[start : start + nbytes]
        self.nbytes = nbytes

    @classmethod
    def of(cls, layouts: Sequence[Layout]) -> Arena:
        """An arena that serves each of them."""
        return cls(max((layout.nbytes for layout in layouts), default=0))

    @contextmanager
    def serving(self, layout: Layout) -> Iterator[None]:
        """Within this, the step that `layout` was planned for takes its arrays from the buffer, from the first request on.

        Raises ArenaError for a layout that needs more; `memory.empty` raises it for a request that differs from the plan, and
        what the step has written by then is void.
        """
        if layout.nbytes > self.nbytes:
            raise ArenaError(f"the layout needs {layout.nbytes} bytes, the arena has {self.nbytes}: make a larger one")
        memory.workspace(layout.workspace)  # grown now, it does not move within the step
        with memory.taking_from(_Served(self._buffer, layout)):
            yield


def prepare_gradients(parameters: Iterable[Any]) -> None:
    """Give each tensor that wants a gradient the buffer for it, as its first backward would: outside of any step, so that
    the buffer is not taken from one step's memory and overwritten by the next's."""
    with memory.persistent():
        for tensor in parameters:
            if tensor.requires_grad and tensor.grad is None:
                tensor.grad = memory.empty_like(tensor.data)
