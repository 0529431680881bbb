"""Who shares this machine: each rank's part of its CPUs, and a GPU of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pycap import device

#: Lists the GPUs that a process sees by their places on the bus. In a process of its own: one that has asked the driver can no
#: longer be given another CUDA_VISIBLE_DEVICES.
_LIST = """
import ctypes
cuda, count, name = ctypes.CDLL("libcuda.so.1"), ctypes.c_int(), ctypes.create_string_buffer(32)
cuda.cuInit(0), cuda.cuDeviceGetCount(ctypes.byref(count))
for number in range(count.value):
    cuda.cuDeviceGetPCIBusId(name, 32, number)
    print(name.value.decode())
"""


@dataclass(frozen=True)
class Place:
    """Where a rank runs. cpus: numbers of those that it may use. gpus: bus ids of those that it sees, in CUDA's order."""

    host: str
    cpus: frozenset[int]
    gpus: tuple[str, ...]


def place() -> Place:
    """This process's."""
    cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return Place(socket.gethostname(), frozenset(cpus), () if device.missing_driver() else _gpus())


def _gpus() -> tuple[str, ...]:
    listed = subprocess.run([sys.executable, "-I", "-S", "-c", _LIST], stdout=subprocess.PIPE, text=True, check=False)
    return tuple(listed.stdout.split())


def settle(ranks: Any) -> None:
    """Sets local_rank and local_size of `ranks`, the CPUs that `device.cpu_count` tells, and the one GPU that CUDA shows to
    this process, with all its threads: before anything has asked for a GPU."""
    places = ranks.each(place())
    here = [rank for rank, other in enumerate(places) if other.host == places[ranks.rank].host]
    ranks.local_rank, ranks.local_size = here.index(ranks.rank), len(here)
    gpus = assign_gpus(places)
    device.share(cpu_part(places, ranks.rank), shortage(places, gpus))
    mine = gpus[ranks.rank]
    if mine is not None:
        names = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        os.environ["CUDA_VISIBLE_DEVICES"] = names[mine] if len(names) > mine and names[mine] else str(mine)


def cpu_part(places: Sequence[Place], rank: int) -> int:
    """How many of its CPUs a rank takes, where others may use them too."""
    mine = places[rank]
    sharing = [r for r, other in enumerate(places) if other.host == mine.host and other.cpus & mine.cpus]
    first, cpus = sharing.index(rank), len(mine.cpus)
    return max(1, cpus * (first + 1) // len(sharing) - cpus * first // len(sharing))


def assign_gpus(places: Sequence[Place]) -> list[int | None]:
    """For each rank the number, among those that it sees, of the first GPU that no rank before it has; None where there is
    none."""
    taken: set[tuple[str, str]] = set()
    numbers: list[int | None] = []
    for at in places:
        free = [number for number, gpu in enumerate(at.gpus) if (at.host, gpu) not in taken]
        numbers.append(free[0] if free else None)
        taken |= {(at.host, at.gpus[number]) for number in free[:1]}
    return numbers


def shortage(places: Sequence[Place], gpus: Sequence[int | None]) -> str:
    """Why these ranks cannot compute on GPUs, which some of them have; empty where all or none of them have one."""
    if None not in gpus or set(gpus) == {None}:
        return ""
    host = places[gpus.index(None)].host
    ranks = sum(at.host == host for at in places)
    count = len({gpu for at in places if at.host == host for gpu in at.gpus})
    return f"{host} has {count} GPU{'s' * (count != 1)} for {ranks} ranks: start one for each GPU"
