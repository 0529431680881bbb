"""Ranks in processes of their own, for tests of what is global in a process: a device, an arena, a capture.

`Processes(2)` starts them once; `run(part, ...)` calls `part(ranks, ...)` in each of them, where `part` is a function of a
module that can be imported, and returns what it returned by rank. An error in one of them ends the call, and is the test's.
"""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import TypeVar

from pycap.distributed.sockets import SocketRanks, listen

T = TypeVar("T")

_PATIENCE = 60.0  # seconds


class Processes:
    """`size` processes that wait for work."""

    def __init__(self, size: int) -> None:
        context = multiprocessing.get_context("spawn")
        with listen() as listener:
            port = listener.getsockname()[1]
        self._links, self._processes = [], []
        for rank in range(size):
            link, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, size, port, theirs), daemon=True)
            process.start()
            theirs.close()
            self._links.append(link)
            self._processes.append(process)

    def run(self, part: Callable[..., T], *arguments: object) -> list[T]:
        """What `part(ranks, *arguments)` returns on each rank."""
        for link in self._links:
            link.send((part, arguments))
        waiting, answers = dict(zip(self._links, range(len(self._links)), strict=True)), {}
        while waiting:
            ready = wait(list(waiting), _PATIENCE)
            assert ready, f"ranks {list(waiting.values())} do not answer"
            for link in ready:  # an error first of all: the other ranks may wait for the one that has it
                rank = waiting.pop(link)
                good, answers[rank] = link.recv()
                assert good, f"rank {rank}: {answers[rank]}"
        return [answers[rank] for rank in range(len(self._links))]

    def close(self) -> None:
        for link in self._links:
            link.close()
        for process in self._processes:
            process.join(5)
            process.kill()
            process.join()


def _serve(rank: int, size: int, port: int, parent: Connection) -> None:
    ranks = SocketRanks(rank, size, "127.0.0.1", port, b"tests")
    ranks.local_rank, ranks.local_size = rank, size
    while True:
        try:
            part, arguments = parent.recv()
        except EOFError:
            return
        try:
            parent.send((True, part(ranks, *arguments)))
        except BaseException:
            parent.send((False, traceback.format_exc()))
