"""Jobs of several processes of `program.py`, as mpirun starts them, or as Slurm's srun would."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import MPIRUN, ROOT

PROGRAM = [sys.executable, "-m", "tests.distributed.program"]
PATIENCE = 30.0


@dataclass
class Job:
    """Processes under way: mpirun, or one a rank."""

    processes: list[subprocess.Popen[str]]

    def end(self) -> tuple[list[int], str]:
        """(exit statuses, all that they said), when all have ended, the programs beside them too."""
        said = [process.communicate(timeout=PATIENCE)[0] for process in self.processes]
        return [process.returncode for process in self.processes], "".join(said)


def _environ(**variables: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "PYCAP_TOKEN": "for tests"} | variables


def _start(command: list[str], environ: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )  # fmt: skip


def mpi(size: int, *argv: object) -> Job:
    return Job([_start([str(MPIRUN), "-n", str(size), *PROGRAM, *map(str, argv)], _environ())])


def pmi2(size: int, *argv: object) -> Job:
    """As srun --mpi=pmi2 starts them: mpirun serves the same protocol, and what only mpirun tells is taken away."""
    inner = "SLURM_PROCID=$PMI_RANK SLURM_STEP_NUM_TASKS=$PMI_SIZE exec env -u MPI_LOCALRANKID -u MPI_LOCALNRANKS"
    script = shlex.join([*PROGRAM, *map(str, argv)])
    return Job([_start([str(MPIRUN), "-n", str(size), "sh", "-c", f"{inner} {script}"], _environ())])


def slurm(size: int, *argv: object) -> Job:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    step = {
        "SLURM_STEP_NUM_TASKS": str(size),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_JOB_ID": "7",
        "PYCAP_PORT": port,
    }
    command = [*PROGRAM, *map(str, argv)]
    return Job([_start(command, _environ(SLURM_PROCID=str(rank), **step)) for rank in range(size)])


@contextmanager
def waiting(
    launch: Callable[..., Job], size: int, folder: Path, *argv: object, deed: str = "wait"
) -> Iterator[tuple[Job, list[int]]]:
    """A job whose ranks wait to be ended by a test, and the numbers of their processes."""
    job = launch(size, deed, folder, *argv)
    files = [folder / f"{rank}.pid" for rank in range(size)]
    deadline = time.monotonic() + PATIENCE
    while not all(file.exists() for file in files):
        assert time.monotonic() < deadline and job.processes[0].poll() is None, job.end()
        time.sleep(0.02)
    pids = [int(file.read_text()) for file in files]
    try:
        yield job, pids
    finally:
        for process in job.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
