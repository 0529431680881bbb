"""Ranks within one process, for tests: threads of which one runs at a time, from exchange to exchange.

What is global in the library (a workspace, whether gradients are wanted) so belongs to one of them at any moment. A part that
ends with an error ends the others, and the error is the test's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")


class Deserted(Exception):
    """Another rank has ended with an error."""


class _Job:
    def __init__(self, size: int) -> None:
        self.size = size
        self.turn = threading.Condition()
        self.given: list[list[Any]] = []  # of each exchange so far, what ranks gave
        self.failed: BaseException | None = None
        self.ended: set[int] = set()


class Lockstep:
    """One rank of several (`pycap.distributed.Ranks`). sent: the number of bytes of each large sum, in their order."""

    def __init__(self, job: _Job, rank: int) -> None:
        self.rank, self.size, self.local_rank, self.local_size = rank, job.size, rank, job.size
        self.sent: list[int] = []
        self._job, self._made = job, 0

    def each(self, value: T) -> list[T]:
        job, number = self._job, self._made
        self._made += 1
        if len(job.given) == number:
            job.given.append([])
        job.given[number].append((self.rank, value))
        job.turn.notify_all()
        while len(job.given[number]) < job.size and not job.failed:
            gone = job.ended - {rank for rank, _ in job.given[number]}
            assert not gone, f"exchange {number}: rank {self.rank} waits for ranks that have ended: {gone}"
            job.turn.wait()
        if job.failed:
            raise Deserted
        return [given for _, given in sorted(job.given[number], key=lambda pair: pair[0])]

    def first(self, value: T) -> T:
        return self.each(value)[0]

    def total(self, values: Any) -> Any:
        return np.sum(self.each(np.array(values)), axis=0)

    def barrier(self) -> None:
        self.each(None)

    def start_sum(self, array: Any) -> Any:
        self.sent.append(array.nbytes)
        return _Sum(array, self.total(array))


class _Sum:
    """Until it is waited for, nobody may read or write the array: it holds NaN."""

    def __init__(self, array: Any, total: Any) -> None:
        self._array, self._total = array, total
        array.fill(np.nan)

    def wait(self) -> None:
        assert np.isnan(self._array).all(), "written to while it was being summed"
        self._array[...] = self._total


def together(size: int, part: Callable[[Lockstep], T]) -> list[T]:
    """What `part` returns on each of `size` ranks."""
    job = _Job(size)
    found: dict[int, T] = {}

    def work(rank: int) -> None:
        with job.turn:
            try:
                found[rank] = part(Lockstep(job, rank))
            except BaseException as error:
                job.failed = job.failed or error
            job.ended.add(rank)
            job.turn.notify_all()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if job.failed:
        raise job.failed
    return [found[rank] for rank in range(size)]
