"""Ranks that MPI joins, through mpi4py: any MPI, and across machines whatever network it knows."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from pycap.distributed.launch import DistributedError, Launch

T = TypeVar("T")

#: What mpi4py calls the MPI that it was loaded with -> who starts its processes.
_VENDORS = {"Open MPI": "openmpi"}
_NAMES = {"openmpi": "Open MPI", "mpich": "MPICH"}


def load(launch: Launch) -> Any:
    """mpi4py's `MPI`, started, with `launch.size` ranks. Raises DistributedError where it is missing, or not
    the launcher's."""
    try:
        import mpi4py

        # An MPI that another one's mpirun starts ends the process: it is asked who it is before it does anything. It is not
        # ended at exit but in `finalize`: after an error that would wait for ranks which do not know of it.
        mpi4py.rc(initialize=False, finalize=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the same suspicion, in other words
            from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # the latter: no library of MPI
        raise DistributedError(
            f"{_NAMES[launch.by]}'s mpirun started this, but mpi4py does not import ({' '.join(str(error).split())}): "
            'pip install "pycap-captioning[distributed]"'
        ) from error
    mine = _VENDORS.get(MPI.get_vendor()[0], "mpich")
    if mine != launch.by:
        raise DistributedError(_foreign(launch, mine, "which it cannot start"))
    if not MPI.Is_initialized():
        MPI.Init_thread()
    size = MPI.COMM_WORLD.size
    if launch.size and size != launch.size:
        raise DistributedError(
            _foreign(launch, mine, f"and {launch.size} processes were started, of which it sees {size}")
        )
    return MPI


def _foreign(launch: Launch, mine: str, what: str) -> str:
    beside = Path(sys.executable).with_name("mpirun")
    own = str(beside) if beside.exists() else f"{_NAMES[mine]}'s mpirun"
    return f"this mpirun is {_NAMES[launch.by]}'s, and mpi4py's MPI is {_NAMES[mine]}, {what}: start with {own}"


class MpiRanks:
    """`Ranks` over MPI."""

    def __init__(self, MPI: Any) -> None:
        self._mpi, self._comm = MPI, MPI.COMM_WORLD.Dup()
        self.rank, self.size = self._comm.rank, self._comm.size
        self.local_rank, self.local_size = 0, 1

    def each(self, value: T) -> list[T]:
        return self._comm.allgather(value)

    def first(self, value: T) -> T:
        return self._comm.bcast(value, 0)

    def total(self, values: Any) -> Any:
        return np.sum(self.each(np.asarray(values)), axis=0)

    def barrier(self) -> None:
        self._comm.barrier()

    def start_sum(self, array: np.ndarray) -> _Sum:
        return _Sum(self._comm.Iallreduce(self._mpi.IN_PLACE, array))

    def finalize(self) -> None:
        """The end of MPI in this process, which every rank comes to."""
        self._mpi.Finalize()


class _Sum:
    def __init__(self, request: Any) -> None:
        self._request = request

    def wait(self) -> None:
        self._request.Wait()
