"""Who started this process, told from its environment alone: an MPI's mpirun, Slurm's srun, or nobody that matters."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass


class DistributedError(RuntimeError):
    """The processes of a job cannot work together; the text names why, and the remedy."""


@dataclass(frozen=True)
class Launch:
    """A process that was started as one of several.

    by: "mpich" (its mpirun, and those of its kin, as Intel's), "openmpi" or "slurm" (a step of srun). size: 0 where only MPI
    itself can tell it.
    """

    by: str
    rank: int
    size: int


#: What each launcher tells its processes: who it is, rank, size. The first that is there counts: mpirun starts its own helpers
#: by srun where there is Slurm, so that its processes have both. Slurm's are a step's: a plain batch script has none of them.
_TELLS = (
    ("openmpi", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("mpich", "MPI_LOCALRANKID", ""),
    ("slurm", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
    ("mpich", "PMI_RANK", "PMI_SIZE"),
    ("openmpi", "PMIX_RANK", ""),
)


def detect(environ: Mapping[str, str] = os.environ) -> Launch | None:
    """Who started this process as one of several; None where it is alone. Raises DistributedError for a rank that is none."""
    for by, rank, size in _TELLS:
        if rank not in environ or (size and size not in environ):
            continue
        if rank == "MPI_LOCALRANKID":  # srun sets PMI_* too, and this is mpirun's only
            rank, size = "PMI_RANK", "PMI_SIZE"
        launch = Launch(by, _number(environ, rank), _number(environ, size) if size else 0)
        if launch.size and not launch.rank < launch.size:
            raise DistributedError(f"the environment says {rank}={launch.rank}, of {size}={launch.size}: unset them")
        return None if launch.size == 1 else launch
    return None


def _number(environ: Mapping[str, str], name: str) -> int:
    text = environ.get(name, "")
    if not text.isdecimal():
        raise DistributedError(f"the environment says {name}={text!r}, which is no number: unset it")
    return int(text)
