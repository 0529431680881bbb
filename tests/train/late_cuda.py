"""CUDA's streams, events and pinned memory in a fake that does its work when nobody expects it: as late as it may, at once,
or in between, as a seed says. Only what streams and events order is in order.

Pinned memory is poisoned as soon as no array views it, and copies read it by its address, as a GPU would.
"""

from __future__ import annotations

import ctypes
import random
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

POISON = 0xEE


class _Owned(np.ndarray):
    """A pinned block while it is in use."""


class _Work:
    def __init__(self, do: Callable[[], None], after: list[_Work]) -> None:
        self.do, self.after, self.done = do, after, False


class LateCuda:
    """What is put in the place of `cupy.cuda`. seed: of the order of work; None: nothing is done before somebody waits."""

    def __init__(self, seed: int | None) -> None:
        self.now = 0.0  # milliseconds; work may advance it
        self.blocks: list[np.ndarray] = []  # all pinned memory there is
        self._free: list[np.ndarray] = []
        self._random = None if seed is None else random.Random(seed)
        self._waiting: list[_Work] = []
        self._lock = threading.RLock()
        self.default = self.Stream()

    def Stream(self, non_blocking: bool = False) -> Stream:
        return Stream(self)

    def Event(self, block: bool = False, disable_timing: bool = False) -> Event:
        return Event(self, not disable_timing)

    def get_current_stream(self) -> Stream:
        return self.default

    def get_elapsed_time(self, first: Event, last: Event) -> float:
        assert first.done and last.done and first.timed and last.timed
        return last.at - first.at

    def alloc_pinned_memory(self, nbytes: int) -> memoryview:
        with self._lock:
            block = next((b for b in self._free if b.nbytes == nbytes), None)
            if block is None:
                block = np.full(nbytes, POISON, np.uint8)
                self.blocks.append(block)
            else:
                self._free = [b for b in self._free if b is not block]
            owned = block.view(_Owned)
        weakref.finalize(owned, self._give_back, block)
        return memoryview(owned)

    def _give_back(self, block: np.ndarray) -> None:
        block.fill(POISON)
        self._free.append(block)

    def submit(self, work: _Work) -> None:
        with self._lock:
            self._waiting.append(work)
            if self._random is not None:
                for _ in range(self._random.choice((0, 0, 1, 2, 8))):
                    ready = [w for w in self._waiting if all(before.done for before in w.after)]
                    if ready:
                        self.finish(self._random.choice(ready))

    def finish(self, last: _Work) -> None:
        """Do `last`, and before it what it has to come after."""
        with self._lock:
            stack = [last]
            while stack:
                work = stack[-1]
                before = [w for w in work.after if not w.done]
                if before and not work.done:
                    stack.extend(reversed(before))  # the stream's own first: what it waits for comes as late as it may
                    continue
                stack.pop()
                if not work.done:
                    work.do()
                    work.done = True
                    self._waiting.remove(work)


class Stream:
    def __init__(self, cuda: LateCuda) -> None:
        self._cuda = cuda
        self._last: _Work | None = None

    def launch(self, do: Callable[[], None], *after: _Work) -> _Work:
        """Work after all that this stream has, and `after`."""
        work = _Work(do, [*([self._last] if self._last else []), *after])
        self._last = work
        self._cuda.submit(work)
        return work

    def record(self, event: Event) -> Event:
        def reach() -> None:
            event.at = self._cuda.now

        event.work = self.launch(reach)
        return event

    def wait_event(self, event: Event) -> None:
        self.launch(lambda: None, event.work)

    def synchronize(self) -> None:
        if self._last is not None:
            self._cuda.finish(self._last)


class Event:
    def __init__(self, cuda: LateCuda, timed: bool) -> None:
        self._cuda, self.timed, self.at = cuda, timed, 0.0
        self.work: Any = None

    @property
    def done(self) -> bool:
        return self.work.done

    def synchronize(self) -> None:
        self._cuda.finish(self.work)


def set_on(array: Any, source: np.ndarray, stream: Stream) -> None:
    """`cupy.ndarray.set` on a stream, from pinned memory: the source is known by its address alone."""
    target, address = array._host, source.ctypes.data
    assert target.shape == source.shape and target.dtype == source.dtype
    assert target.flags.c_contiguous and source.flags.c_contiguous

    def copy() -> None:
        ctypes.memmove(target.ctypes.data, address, target.nbytes)

    stream.launch(copy)
