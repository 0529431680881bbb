"""NCCL of the stand-in for CuPy (its module "cupy.cuda.nccl"): sums over GPUs that are processes of one machine.

A sum is work of its stream and can be captured, as launches can (`tests/cupy_streams.py`). It is as strict as NCCL's guide:
ranks have to make the same sums in the same order, and whether one is captured, and in which capture, must be the same for all
of them ("Using NCCL with CUDA Graphs"). Where NCCL would give rubbish or hang, all ranks raise what differs. A peer that has
gone leaves the stream stuck, and an asynchronous error.

Sums are made in the order of the ranks; in bfloat16 each addition is rounded, as along NCCL's rings.
"""

from __future__ import annotations

import functools
import itertools
import operator
import weakref
from typing import Any

import ml_dtypes
import numpy as np

from pycap.distributed import ALONE, DistributedError
from pycap.distributed.sockets import SocketRanks, listen
from tests.cupy_memory import memory_at
from tests.cupy_streams import Stream, Stuck, exchange

available = True
NCCL_SUM, NCCL_FLOAT32, NCCL_FLOAT64, NCCL_BFLOAT16 = 0, 7, 8, 9
_DTYPES = {NCCL_FLOAT32: np.float32, NCCL_FLOAT64: np.float64, NCCL_BFLOAT16: ml_dtypes.bfloat16}

_ID_BYTES = 128


class NcclError(RuntimeError):
    """What NCCL's calls raise."""


def get_unique_id() -> bytes:
    """In which the port is at which rank 0 will listen."""
    with listen() as listener:
        return str(listener.getsockname()[1]).encode().ljust(_ID_BYTES, b"\0")


class NcclCommunicator:
    """One GPU of `ndev`; made when all of them ask for it."""

    def __init__(self, ndev: int, commId: bytes, rank: int) -> None:
        assert len(commId) == _ID_BYTES and 0 <= rank < ndev
        port = int(commId.rstrip(b"\0"))
        self._ranks: Any = SocketRanks(rank, ndev, "127.0.0.1", port, b"stand-in") if ndev > 1 else ALONE
        self._captures = itertools.count()
        self._numbers: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self._failed = ""

    def allReduce(self, sendbuf: int, recvbuf: int, count: int, datatype: int, op: int, stream: int) -> None:
        ranks, dtype = self._open(), np.dtype(_DTYPES[datatype])
        source, target = memory_at(sendbuf, dtype, count), memory_at(recvbuf, dtype, count)
        where = Stream._all[stream]
        what: tuple[Any, ...] = (datatype, op, count, "eager")
        if where._capture is not None:
            if where._capture not in self._numbers:
                self._numbers[where._capture] = next(self._captures)
            what = (*what[:3], f"capture {self._numbers[where._capture]}")

        def add() -> None:
            try:
                given = ranks.each((what, source.copy()))
            except DistributedError as error:
                self._failed = f"NCCL_ERROR_REMOTE: {error}"
                raise Stuck(self._failed) from error
            if len({made for made, _ in given}) > 1:
                raise NcclError(f"the ranks' sums differ: {[made for made, _ in given]}")
            target[...] = functools.reduce(operator.add, [array for _, array in given])

        exchange(where, add, target)

    def check_async_error(self) -> None:
        self._open()
        if self._failed:
            raise NcclError(self._failed)

    def destroy(self) -> None:
        if isinstance(self._ranks, SocketRanks):
            for link in self._ranks._links.values():
                link.socket.close()
        self._ranks = None

    abort = destroy

    def _open(self) -> Any:
        if self._ranks is None:
            raise NcclError("NCCL_ERROR_INVALID_ARGUMENT: the communicator has been destroyed")
        return self._ranks
