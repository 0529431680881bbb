"""Gradients of a recorded step summed over the ranks' GPUs on a second stream, while backward goes on on the first.

A bucket's exchange begins where the first stream has written the last of its gradients, and the first stream waits for all of
them before it reads a sum: a fork and a join by events, which a CUDA graph's capture follows. The fully connected layers,
nine tenths of VGG's parameters, come first, and are under way while the convolutions' backward runs.

With `half`, gradients are rounded to bfloat16 for the way, which halves the bytes. With n ranks and u = 2**-8 each element
of a sum then is off by at most ((1+u)**n - 1) times the sum of the magnitudes that were added: each summand is rounded once,
and so is each of the n-1 additions, which are exact before. The sums are float32 again when they are read.

**The sequence of exchanges** is the same on all ranks, whatever becomes of each: the step's loss, then every bucket in its
order, once. Ranks have agreed on the step's shape, and so on whether it is launched, recorded or replayed
(`pycap.training.shapes`). A step that is launched kernel by kernel may be begun anew, where it does not keep to its plan of the
memory (`arena.ArenaError`): it exchanges only once its backward has ended. One that is being recorded exchanges nothing yet;
whether its graph is launched, all ranks decide together (`pycap.graphs`), so that all replay it or none does. In
micro-batches only the last pass is reduced. A rank without images adds zeros. A dry run asks for memory and exchanges
nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pycap import device, memory
from pycap.autograd import Tensor
from pycap.backends import kernels
from pycap.distributed.nccl import Communicator
from pycap.distributed.reducer import BUCKET_BYTES, Bucket, Reducer


class DeviceReducer(Reducer):
    """For gradients in a GPU's memory."""

    def __init__(
        self,
        communicator: Communicator | None,
        tensors: Sequence[Tensor],
        half: bool,
        bucket_bytes: int = BUCKET_BYTES,
    ) -> None:
        """communicator: None where there is never more than a dry run. half: whether gradients go as bfloat16."""
        super().__init__(tensors, bucket_bytes)
        self._communicator, self._half = communicator, half
        self._stream = device.module().cuda.Stream(non_blocking=True, priority=-1) if communicator else None
        self._dry, self._overlaps = communicator is None, False
        self._given: list[tuple[Any, Any]] = []
        self.exchanged = False

    @contextmanager
    def step(self, *, dry: bool = False, overlaps: bool = False) -> Iterator[None]:
        """Around each attempt at a step. dry: nothing is exchanged. overlaps: sums begin within backward; else after it.
        `exchanged` then says whether the attempt has begun to."""
        self._dry, self._overlaps, self.exchanged = dry or self._communicator is None, overlaps, False
        try:
            yield
        finally:
            self._given.clear()

    def add(self, array: Any) -> None:
        """Sum an array of the device besides, of float32 or float64: called before `backward`, and there after it."""
        self._give(array, None)

    def _start(self, bucket: Bucket) -> None:
        self._give(bucket.flat, memory.empty(bucket.flat.shape, device.bfloat16()) if self._half else None)

    def _give(self, array: Any, half: Any) -> None:
        """Sum `array`, by way of `half`: of the step's memory, of which the first stream is given what is let go too early."""
        self._given.append((array, half))
        if self._overlaps and not self._dry:
            self._exchange(array, half)

    def _finish(self) -> None:
        for array, half in self._given:
            if self._dry:
                _sum_rounded(array, half, None)
            elif not self._overlaps:
                self._exchange(array, half)
        if self._stream is not None and not self._dry:
            cuda = device.module().cuda
            cuda.get_current_stream().wait_event(self._stream.record(cuda.Event(disable_timing=True)))
        self._given.clear()

    def _exchange(self, array: Any, half: Any) -> None:
        assert self._communicator is not None and self._stream is not None
        self.exchanged = True
        cuda = device.module().cuda
        self._stream.wait_event(cuda.get_current_stream().record(cuda.Event(disable_timing=True)))
        with self._stream:
            _sum_rounded(array, half, self._communicator)


def _sum_rounded(array: Any, half: Any, communicator: Communicator | None) -> None:
    """Sum `array` over the ranks (None: do not), in bfloat16 by way of `half` where that is an array."""
    way = array
    if half is not None:
        kernels.cast(half, array, 0.0)
        way = half
    if communicator is not None:
        communicator.sum(way)
    if half is not None:
        kernels.cast(array, half, 0.0)
