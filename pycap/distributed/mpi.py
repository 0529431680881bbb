"""Ranks that MPI joins, through mpi4py: any MPI, and across machines whatever network it knows."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from pycap.distributed.launch import DistributedError, Launch

T = TypeVar("T")

#: What mpi4py calls the MPI that it was loaded with -> who starts its processes.
_VENDORS = {"Open MPI": "openmpi"}
_NAMES = {"openmpi": "Open MPI", "mpich": "MPICH"}


def load(launch: Launch) -> Any:
    """mpi4py's `MPI`, started by mpirun. Raises DistributedError where it is missing, or not the launcher's."""
    try:
        MPI = _library()
    except (ImportError, RuntimeError) as error:
        raise DistributedError(
            f"{_NAMES[launch.by]}'s mpirun started this, but mpi4py does not import ({' '.join(str(error).split())}): "
            'pip install "pycap-captioning[distributed]"'
        ) from error
    mine = _kind(MPI)
    if mine != launch.by:
        raise DistributedError(_foreign(launch, mine, "which it cannot start"))
    if launch.size not in (0, size := _start(MPI)):
        seen = f"and {launch.size} processes were started, of which it sees {size}"
        raise DistributedError(_foreign(launch, mine, seen))
    return MPI


def load_under_slurm(launch: Launch, environ: Mapping[str, str] = os.environ) -> Any:
    """mpi4py's `MPI`, where srun serves it (`--mpi=pmi2`, `--mpi=pmix`), or None. It is started only where it speaks what srun
    offers: else it may end the process."""
    if not {"PMI_FD", "PMIX_RANK"} & environ.keys():
        return None
    try:
        MPI = _library()
    except (ImportError, RuntimeError):
        return None
    offered = ("PMIX_RANK" if _kind(MPI) == "openmpi" else "PMI_FD") in environ
    return MPI if offered and _start(MPI) == launch.size else None


def describe() -> str:
    """The MPI that mpi4py has, as "MPICH 5.0.2"; empty where there is none. Starts nothing."""
    try:
        MPI = _library()
    except (ImportError, RuntimeError):
        return ""
    name, version = MPI.get_vendor()
    return f"{name} {'.'.join(map(str, version))}"


def _library() -> Any:
    """Raises ImportError without mpi4py, RuntimeError where it finds no MPI."""
    import mpi4py

    # An MPI that another one's mpirun starts ends the process: it is asked who it is before it does anything. It is not ended
    # at exit but in `finalize`: after an error that would wait for ranks which do not know of it.
    mpi4py.rc(initialize=False, finalize=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the same suspicion, in other words
        from mpi4py import MPI
    return MPI


def _kind(MPI: Any) -> str:
    return _VENDORS.get(MPI.get_vendor()[0], "mpich")


def _start(MPI: Any) -> int:
    """How many ranks it has, started if it was not."""
    if not MPI.Is_initialized():
        MPI.Init_thread()
    return MPI.COMM_WORLD.size


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
