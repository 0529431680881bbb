"""Processes that work together, each with its own part: who they are, and what they tell each other.

Elsewhere nothing knows how they were started: `current()` gives them, and with one process every exchange is the identity.

| file | its job |
|---|---|
| `launch.py` | who started this process, told from its environment |
| `mpi.py` | the exchanges over MPI |
| `sockets.py` | the exchanges over TCP |
| `slurm.py` | where the processes of a Slurm step meet |
| `machine.py` | who shares this machine: each rank's part of its CPUs, and a GPU of its own |
| `reducer.py` | gradients summed while backward goes on |
| `nccl.py` | sums between GPUs |
| `device_reducer.py` | gradients summed between GPUs, within a recorded step |
| `lifeline.py` | how a rank tells that it lives, fails, or has done its part |
| `watch.py` | programs beside the ranks, which name the one that dies or hangs, and stop the others |
"""

from __future__ import annotations

import io
import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING, Any, Protocol, TextIO, TypeVar

from pycap import device
from pycap.distributed import machine
from pycap.distributed.launch import DistributedError, Launch, detect
from pycap.distributed.lifeline import Lifeline

if TYPE_CHECKING:
    from pycap.distributed.mpi import MpiRanks
    from pycap.distributed.sockets import SocketRanks

__all__ = [
    "ALONE",
    "Alone",
    "DistributedError",
    "Ranks",
    "Summing",
    "advise",
    "alike",
    "current",
    "plain_warnings",
    "started",
]

T = TypeVar("T")


class Summing(Protocol):
    """A sum over all ranks that is under way."""

    def wait(self) -> None:
        """Until the array holds the sum."""


class Ranks(Protocol):
    """The processes of a job. Each of them makes the same exchanges in the same order.

    rank: which this one is, from 0; size: how many there are; local_rank, local_size: among those on this machine.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int

    def each(self, value: T) -> list[T]:
        """Every rank's value, by rank: small things that pickle takes."""

    def first(self, value: T) -> T:
        """The value of rank 0."""

    def total(self, values: Any) -> Any:
        """The sum over ranks of a small array of the host, the same bits on every one of them."""

    def barrier(self) -> None:
        """Wait for all."""

    def start_sum(self, array: Any) -> Summing:
        """Replace a float32 or float64 array of the host, large as it may be, by the sum over ranks, the same bits on every one
        of them. It must not be touched until the result's `wait`."""


class _Done:
    def wait(self) -> None:
        return


class Alone:
    """One process: nobody to exchange anything with."""

    rank, size, local_rank, local_size = 0, 1, 0, 1

    def each(self, value: T) -> list[T]:
        return [value]

    def first(self, value: T) -> T:
        return value

    def total(self, values: Any) -> Any:
        return values

    def barrier(self) -> None:
        return

    def start_sum(self, array: Any) -> Summing:
        return _Done()


ALONE = Alone()
_current: Ranks = ALONE


def current() -> Ranks:
    """The processes that work together with this one; `ALONE` where there are no others."""
    return _current


@contextmanager
def started() -> Iterator[Ranks]:
    """Within this, `current()` is the processes that mpirun or srun started together with this one; `ALONE` where there are no
    others.

    An error that leaves this block in one of them, or its death, ends all of them; one of them tells it. Raises
    DistributedError where they do not find together.
    """
    global _current, _line
    launch = detect()
    if launch is None:
        yield ALONE
        return
    line = Lifeline(launch.rank == 0)  # before MPI, which may forbid to start processes
    try:
        ranks = _join(launch)
    except DistributedError:
        line.close()
        # The others' errors are the same as rank 0's, whose end is their end: they leave it the time to tell.
        time.sleep(_PAUSE if launch.rank else 0)
        raise
    machine.settle(ranks)
    line.join(ranks)
    _current, _line = ranks, line
    try:
        with line.signals():
            try:
                yield ranks
            except SystemExit as end:
                if end.code:
                    raise
            ranks.barrier()
            ranks.finalize()
        line.leave()
        _line = None
    except BaseException as error:
        headline, together = line.fail(f"{type(error).__name__}: {error}")
        if together:
            ranks.finalize()
        if headline is None:
            _fall_silent()
        else:
            sys.stderr.write("".join(f"{text}\n" for text in (headline, *getattr(error, "__notes__", ())) if text))
        raise
    finally:
        _current = ALONE  # the line stays: after an error it ends with the process
        device.share(None)


@contextmanager
def alike() -> Iterator[None]:
    """Within this all ranks do the same, such as reading the command line: only rank 0 is heard, or, if it alone exits with an
    error, another one."""
    if _current.rank == 0:
        yield
        return
    said = io.StringIO()
    try:
        with redirect_stdout(said), redirect_stderr(said):
            yield
    except SystemExit as end:
        end.add_note(said.getvalue().rstrip())
        raise


@contextmanager
def plain_warnings(program: str) -> Iterator[None]:
    """Within this pycap's own warnings are a line each of the terminal, told by rank 0, and never errors; others stay as Python
    shows them."""
    shown = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if category.__module__.partition(".")[0] != "pycap":
            shown(message, category, filename, lineno, file, line)
        elif _current.rank == 0:
            print(f"{program}: warning: {message}", file=sys.stderr, flush=True)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = shown


def advise(remedy: str) -> None:
    """What is told together with the death of a rank from now on: a sentence that says how to go on. Rank 0's counts."""
    if _line is not None and _current.rank == 0:
        _line.advise(remedy)


_line: Lifeline | None = None
_PAUSE = 3.0


def _join(launch: Launch) -> MpiRanks | SocketRanks:
    from pycap.distributed import mpi, slurm, sockets

    MPI = mpi.load_under_slurm(launch) if launch.by == "slurm" else mpi.load(launch)
    if MPI is not None:
        return mpi.MpiRanks(MPI)

    host, port = slurm.meeting_point(os.environ)
    return sockets.SocketRanks(launch.rank, launch.size, host, port, slurm.key(os.environ))


def _fall_silent() -> None:
    """Nothing more is said by this process: another one says it."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        os.dup2(nowhere, number)
    os.close(nowhere)
