"""Sums over GPUs, one a rank, by NCCL through CuPy: on the current stream, and in the capture of a CUDA graph like a launch.

All ranks make the same sums in the same order. Whether a sum is captured is as much of its nature as its size: it must be
the same on all ranks, and a graph that holds one is launched by all of them, each its own graph of the same capture ("Using
NCCL with CUDA Graphs" in NCCL's guide). So ranks agree beforehand on what they do (`pycap.graphs`, `pycap.training.shapes`).
"""

from __future__ import annotations

import importlib
import time
import weakref
from typing import Any

from pycap import device
from pycap.distributed import DistributedError, Ranks

#: ncclDataType_t by dtype; CuPy has names for them, but for bfloat16 only of late.
_TYPES = {"float32": 7, "float64": 8, "bfloat16": 9}
_SUM = 0  # ncclRedOp_t

_POLL = 5e-4  # seconds between looks at the device
_CHECK = 0.5  # seconds between questions to NCCL


class ExchangeError(DistributedError):
    """GPUs cannot exchange, or one of them has stopped to; the text has NCCL's reason and the remedy."""


class Communicator:
    """This rank's end of the exchange between all ranks' GPUs."""

    def __init__(self, ranks: Ranks) -> None:
        """Waits for all ranks, each with a GPU of its own current. Raises ExchangeError on all of them where CuPy finds no NCCL
        on one, or NCCL refuses."""
        self._ranks = ranks
        self._nccl, obstacle = _nccl()
        lacking = [f"rank {rank}: {told}" for rank, told in enumerate(ranks.each(obstacle)) if told]
        if lacking:
            raise ExchangeError(f"NCCL is needed to train on several GPUs; {'; '.join(lacking)}")
        unique = ranks.first(self._nccl.get_unique_id() if ranks.rank == 0 else None)
        try:
            self._own: Any = self._nccl.NcclCommunicator(ranks.size, unique, ranks.rank)
        except self._nccl.NcclError as error:
            raise self._failed(error) from error
        # Where nobody closes it: CuPy would have NCCL wait for ranks that may have gone.
        self._abort = weakref.finalize(self, self._own.abort)

    def sum(self, array: Any) -> None:
        """Replace a contiguous array of the device, of float32, float64 or bfloat16, by its sum over ranks, the same bits on
        every one of them, in the order of the current stream. The host waits for nothing."""
        stream = device.module().cuda.get_current_stream()
        place = device.address(array)
        try:
            self._own.allReduce(place, place, array.size, _TYPES[array.dtype.name], _SUM, stream.ptr)
        except self._nccl.NcclError as error:
            raise self._failed(error) from error

    def wait(self, mark: device.Mark) -> None:
        """`mark.wait()`, but for an error that NCCL has heard of meanwhile, as of a connection that broke: then this rank's
        sums are given up, so that the device comes to rest, and ExchangeError is raised. Of a peer on the same machine that
        died NCCL hears nothing: whoever watches over the ranks ends them."""
        asked = time.monotonic()
        while not mark.passed:
            if time.monotonic() - asked > _CHECK:
                asked = time.monotonic()
                try:
                    self._own.check_async_error()
                except self._nccl.NcclError as error:
                    self._abort()
                    raise self._failed(error) from error
            time.sleep(_POLL)

    def close(self) -> None:
        """Leave, as all ranks do, when no sum is under way and no graph that holds one is left."""
        if self._abort.detach() is not None:
            self._ranks.barrier()
            self._own.destroy()

    def _failed(self, error: Exception) -> ExchangeError:
        return ExchangeError(
            f"rank {self._ranks.rank} of {self._ranks.size}: its GPU cannot exchange with the others ({error}): one of them "
            "has probably ended, and its own message says why; NCCL_DEBUG=WARN has NCCL say more; --resume continues the run"
        )


def _nccl() -> tuple[Any, str]:
    """(CuPy's NCCL, why there is none)."""
    if device.current() == "cpu":
        return None, "its device is the CPU; give --device cuda to all ranks or to none"
    nccl = importlib.import_module("cupy.cuda.nccl")
    if not nccl.available:
        return None, "CuPy finds no NCCL; pip install nvidia-nccl-cu13 (or -cu12), as fits the driver"
    return nccl, ""
