"""Batches on their way to the device: copied there before they are asked for, and the time measured that it waits for them.

The loader's threads decode images into pinned memory of the host; a thread of the feed takes finished batches and has a
stream of its own copy them into one of two device buffers. While a step reads the one, the other is filled.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Generator
from contextlib import closing
from dataclasses import astuple, dataclass, replace
from queue import SimpleQueue
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pycap import device, memory
from pycap.data.loader import Batch, Loader

#: Device buffers of a feed, each for a whole batch's images: one is read, one is filled.
BUFFERS = 2

#: The part of the time that a device may wait for images before the run says so.
TOLERATED = 0.02


@dataclass(frozen=True, slots=True)
class Fed:
    """A batch, and its images where the kernels are.

    batch: as the loader made it, all on the host. images: its images on the current device; on the CPU
    `batch.images` itself. On a GPU they lie in a buffer of the feed, and hold only until the next item is asked for.
    """

    batch: Batch
    images: Any


@dataclass(frozen=True, slots=True)
class Stall:
    """How long images were waited for. seconds: in which the device (on the CPU: the loop) had nothing else to do;
    of_seconds, steps, images: all time, and the steps and images in it. starting: seconds of waiting for the first batch of
    an epoch, with which the decoding threads start; those steps are in none of the others.
    """

    seconds: float = 0.0
    of_seconds: float = 0.0
    steps: int = 0
    images: int = 0
    starting: float = 0.0

    @property
    def share(self) -> float:
        """The part of the time that was waited, from 0 to 1."""
        return self.seconds / self.of_seconds if self.of_seconds else 0.0

    def __add__(self, other: Stall) -> Stall:
        """Of both times together."""
        return Stall(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


class _Clock(Protocol):
    """Marks points in what the device does."""

    def mark(self) -> Any:
        """The point at which the device will have done all that it was given so far."""

    def between(self, first: Any, last: Any) -> float | None:
        """Seconds from one point to a later one; None while the device has not come to it."""


@dataclass(frozen=True, slots=True)
class _Step:
    """asked, fed: marks from before and after the wait for images. began, seconds: of the host, from asking to asking.
    first: of an epoch.
    """

    asked: Any
    fed: Any
    began: float
    images: int
    first: bool
    seconds: float = 0.0


class _Meter:
    """Adds up what steps waited for images. It never waits for the device: what is not known yet is counted later."""

    def __init__(self, clock: _Clock) -> None:
        self._clock = clock
        self._open: _Step | None = None
        self._ended: deque[_Step] = deque()
        self._sum = Stall()
        self._asked: tuple[Any, float] = (None, 0.0)
        self._first = True

    def start(self) -> None:
        """An epoch begins."""
        self._open, self._first = None, True

    def asked(self) -> None:
        """The next batch is wanted; all work of the step before has been given to the device."""
        self._asked = self._clock.mark(), time.perf_counter()
        if self._open is not None:
            self._ended.append(replace(self._open, seconds=self._asked[1] - self._open.began))
        self._add()

    def fed(self, images: int) -> None:
        """The next batch is there, or the device has been told to wait for it."""
        mark, began = self._asked
        self._open = _Step(mark, self._clock.mark(), began, images, self._first)
        self._first = False

    def read(self) -> Stall:
        """Of the steps since the last reading that the device is known to have begun."""
        self._add()
        read, self._sum = self._sum, Stall()
        return read

    def _add(self) -> None:
        while self._ended:
            step = self._ended[0]
            waited = self._clock.between(step.asked, step.fed)
            if waited is None:
                return
            self._ended.popleft()
            total = self._sum
            if step.first:
                self._sum = replace(total, starting=total.starting + waited)
                continue
            self._sum = Stall(
                total.seconds + waited,
                total.of_seconds + step.seconds,
                total.steps + 1,
                total.images + step.images,
                total.starting,
            )


class Feed:
    """A loader's batches with their images on the current device; `len(feed)` an epoch, as the loader's."""

    def __init__(self, loader: Loader, stream: Any = None) -> None:
        """stream: the CUDA stream on which the images are read; None: the one that is current when an item is asked for."""
        self.loader = loader
        shape = (loader.most, *loader.image_shape)
        self._way = _Direct() if device.current() == "cpu" else _Copies(shape, loader.image_dtype, stream)
        self._meter = _Meter(self._way)

    def __len__(self) -> int:
        return len(self.loader)

    def epoch(self, epoch: int, start_batch: int = 0) -> Generator[Fed, None, None]:
        """The batches of `Loader.epoch` in their order, and its errors. Threads start at the first `next` and end with the
        iterator (or its `close`); one epoch may be iterated at a time.

        On a GPU `next` has the stream wait for the images' copy, and takes all that was given to the stream before it for
        the last reader of the images handed out before.
        """
        return self._measured(self.loader.epoch(epoch, start_batch))

    def stall(self) -> Stall:
        """How long images were waited for since the last call; the device is not waited for to tell it."""
        return self._meter.read()

    def sentence(self, stall: Stall) -> str:
        """What `stall` means, for a person: how much was waited and, where that is more than is tolerated, the remedy."""
        who = "training" if device.current() == "cpu" else "the GPU"
        waited = f"{who} waited {100 * stall.share:.1f} % of the time for images"
        if stall.share <= TOLERATED:
            return waited
        threads, cpus = self.loader.workers, device.cpu_count()
        remedies = ["more --workers"] if threads < cpus else []
        if self.loader.store is None and self.loader.features is None:
            remedies.append("a --store of resized images")
        remedy = ", or ".join(remedies) or f"more CPUs than these {cpus}, or a smaller --resize"
        how = f"with {threads} thread{'s' if threads > 1 else ''}" if threads else "without threads"
        step = (stall.of_seconds - stall.seconds) / max(stall.steps, 1)
        return (
            f"{waited} (decoding gives {stall.images / stall.of_seconds:.0f} images/s {how}, "
            f"a step takes {1000 * step:.3g} ms): {remedy}"
        )

    def _measured(self, batches: Generator[Batch, None, None]) -> Generator[Fed, None, None]:
        self._meter.start()
        with closing(self._way.items(batches)) as items:
            while True:
                self._meter.asked()
                item = next(items, None)
                if item is None:
                    return
                self._meter.fed(len(item.batch))
                yield item


class _Direct:
    """The CPU's way: nothing is copied, and the one who waits is the host."""

    def mark(self) -> float:
        return time.perf_counter()

    def between(self, first: float, last: float) -> float | None:
        return last - first

    def items(self, batches: Generator[Batch, None, None]) -> Generator[Fed, None, None]:
        with closing(batches):
            for batch in batches:
                yield Fed(batch, batch.images)


@dataclass(eq=False)
class _Buffer:
    """images: on the device. read: the event after which nobody reads them. copied: the event after which they are there.
    host: the pinned array that they come from, which has to live until then."""

    images: Any
    read: Any
    copied: Any = None
    host: NDArray[Any] | None = None


class _Copies:
    """The GPU's way: a thread that has each batch copied as soon as a buffer is free, on a stream of its own."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype, stream: Any) -> None:
        self._cuda = device.module().cuda
        self._reader = stream
        self._stream = self._cuda.Stream(non_blocking=True)
        arrays = [memory.zeros(shape, dtype) for _ in range(BUFFERS)]
        made = self._now()
        self._buffers = [_Buffer(array, made) for array in arrays]

    def mark(self) -> Any:
        return self._current().record(self._cuda.Event())

    def between(self, first: Any, last: Any) -> float | None:
        return self._cuda.get_elapsed_time(first, last) / 1000 if last.done else None

    def items(self, batches: Generator[Batch, None, None]) -> Generator[Fed, None, None]:
        free: SimpleQueue[_Buffer | None] = SimpleQueue()
        staged: SimpleQueue[tuple[_Buffer, Batch] | BaseException | None] = SimpleQueue()
        for buffer in self._buffers:
            free.put(buffer)
        stop = threading.Event()
        # A daemon: a feed that nobody closed must not keep the process from ending.
        thread = threading.Thread(
            target=self._stage, args=(batches, free, staged, stop), name="pycap-feed", daemon=True
        )
        thread.start()
        try:
            while True:
                given = staged.get()
                if given is None:
                    return
                if isinstance(given, BaseException):
                    raise given
                buffer, batch = given
                self._current().wait_event(buffer.copied)
                yield Fed(batch, buffer.images[: len(batch)])
                buffer.read = self._now()
                free.put(buffer)
        finally:
            stop.set()
            free.put(None)  # wakes the thread where it waits for a buffer
            thread.join()
            self._stream.synchronize()
            read = self._now()
            for buffer in self._buffers:
                buffer.read, buffer.host = read, None

    def _stage(
        self,
        batches: Generator[Batch, None, None],
        free: SimpleQueue[_Buffer | None],
        staged: SimpleQueue[tuple[_Buffer, Batch] | BaseException | None],
        stop: threading.Event,
    ) -> None:
        """The thread: copies of batches, then None, or the error that ended them."""
        try:
            with closing(batches):
                for batch in batches:
                    buffer = free.get()
                    if buffer is None or stop.is_set():
                        return
                    self._copy(buffer, batch)
                    staged.put((buffer, batch))
            staged.put(None)
        except BaseException as error:
            staged.put(error)

    def _copy(self, buffer: _Buffer, batch: Batch) -> None:
        if buffer.copied is not None:
            buffer.copied.synchronize()  # the buffer's last copy: till then its pinned source must not go
        buffer.host = batch.images
        self._stream.wait_event(buffer.read)
        if len(batch):  # of several ranks one may have none
            buffer.images[: len(batch)].set(batch.images, stream=self._stream)
        buffer.copied = self._stream.record(self._cuda.Event(block=True, disable_timing=True))

    def _current(self) -> Any:
        return self._cuda.get_current_stream() if self._reader is None else self._reader

    def _now(self) -> Any:
        """An event after all that the images' readers have been given."""
        return self._current().record(self._cuda.Event(disable_timing=True))
