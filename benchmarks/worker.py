"""A side's process, and the parent's end of it: one side works while the others wait for their pipe."""

from __future__ import annotations

import multiprocessing
import signal
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from benchmarks import machine, sides
from benchmarks.cases import Case
from benchmarks.sides import Unavailable, Work


class SideError(RuntimeError):
    """A side failed; the text holds its traceback, or how its process ended."""


class Remote:
    """The parent's end of a process that serves one side.

    target(connection, *arguments): the child's loop; it answers (method, arguments) with ("ok", value), ("unavailable",
    reason) or ("error", traceback), beginning with one answer to its start, until it receives None.
    """

    def __init__(self, name: str, target: Callable[..., None], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would share the parent's OpenMP state
        self.name = name
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=target, args=(theirs, *arguments), daemon=True)
        self._process.start()
        theirs.close()

    def receive(self) -> Any:
        """The next answer. Raises Unavailable or SideError."""
        try:
            status, value = self._connection.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            raise SideError(
                f"{self.name}: its process ended with status {self._process.exitcode} (killed for memory?)"
            ) from None
        if status == "unavailable":
            raise Unavailable(value)
        if status == "error":
            raise SideError(f"{self.name}: {value}")
        return value

    def call(self, method: str, *arguments: Any) -> Any:
        """Have the child do `method` and wait for its answer."""
        try:
            self._connection.send((method, arguments))
        except (BrokenPipeError, ConnectionResetError):
            self._process.join()
            raise SideError(f"{self.name}: its process ended with status {self._process.exitcode}") from None
        return self.receive()

    def close(self) -> None:
        """End the child: kindly, then after two seconds by force (it may be in the middle of a long call)."""
        if self._process.is_alive():
            try:
                self._connection.send(None)
            except BrokenPipeError:
                self._process.join(0)
            self._process.join(2)
            if self._process.is_alive():
                self._process.kill()
        self._process.join()
        self._connection.close()


def serve(connection: Connection, name: str, threads: int) -> None:
    """The child's loop for a side of `sides.SIDES`."""

    def make() -> tuple[Worker, Any]:
        worker = Worker(sides.load(name, threads))
        return worker, worker.side.describe()

    answer(connection, name, make)


def answer(connection: Connection, name: str, make: Callable[[], tuple[Any, Any]]) -> None:
    """A child's loop: what `make` gives, a worker and what to tell of it first, then answers to (method, arguments) until None
    comes or the parent is gone. A worker that cannot be made ends it. Ctrl-C is the parent's to handle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    worker = None
    while True:
        try:
            if worker is None:
                worker, told = make()
                connection.send(("ok", told))
            message = connection.recv()
            if message is None:
                return
            method, arguments = message
            connection.send(("ok", getattr(worker, method)(*arguments)))
        except EOFError:
            return  # the parent is gone
        except Unavailable as reason:
            connection.send(("unavailable", str(reason)))
        except MemoryError:
            connection.send(("unavailable", f"{name} ran out of memory"))
        except Exception:
            connection.send(("error", traceback.format_exc()))
        if worker is None:
            return


class Worker:
    """Holds a side and the case that it has made ready."""

    def __init__(self, side: sides.Side) -> None:
        self.side = side
        self.work: Work | None = None
        self.result: Any = None

    def prepare(self, case: Case) -> tuple[str, float]:
        """Make a case ready in the fastest of the side's ways; returns that way's name and the seconds of one call."""
        self.release()
        ways = self.side.prepare(case)
        times: dict[str, float] = {}
        for way, make in ways.items():
            self.release()
            self.work = make()
            if len(ways) > 1:
                times[way] = self._quickest(self.work.probe or self.work.run)
        best = min(times, key=lambda way: times[way]) if times else next(iter(ways))
        if best != list(ways)[-1]:
            self.release()
            self.work = ways[best]()
        seconds = self._call()
        if seconds < 0.5:  # the first call had more to do than those that follow
            seconds = self._call()
        machine.rest()
        return best, seconds

    def _quickest(self, run: Callable[[], Any]) -> float:
        """The least time of a few calls after a first one: one of 0.5 s, or as many as fit into 0.1 s, at most twenty."""
        run()
        times: list[float] = []
        while not times or (times[0] < 0.5 and (len(times) < 3 or sum(times) < 0.1) and len(times) < 20):
            begin = time.perf_counter()
            run()
            times.append(time.perf_counter() - begin)
        return min(times)

    def _call(self) -> float:
        assert self.work is not None, "prepare comes first"
        self.result = None  # its memory is free for the next one, as in a loop of steps
        begin = time.perf_counter()
        self.result = self.work.run()
        seconds = time.perf_counter() - begin
        return seconds if self.work.seconds is None else self.work.seconds(self.result)

    def turn(self, calls: int) -> list[float]:
        """Seconds of each of `calls` calls, after one that is not counted.

        That one brings back the caches, and the memory that an allocator gave to the system while the others worked: in a
        loop of its own, the side would have both. Fresh processes (`Work.seconds`) begin without either anyway.
        """
        assert self.work is not None, "prepare comes first"
        if self.work.seconds is None:
            self.result = None
            (self.work.probe or self.work.run)()
        seconds = [self._call() for _ in range(calls)]
        machine.rest()
        return seconds

    def outputs(self) -> dict[str, np.ndarray]:
        """Samples of what the case's last call came to."""
        assert self.work is not None, "prepare comes first"
        found = {name: sides.sample(array) for name, array in self.work.outputs(self.result).items()}
        machine.rest()
        return found

    def forget_peak(self) -> None:
        """Begin to measure peak memory here."""
        self.result = None
        machine.forget_peak()

    def peak_mib(self) -> float:
        return machine.peak_mib()

    def release(self) -> None:
        """Let go of the case."""
        self.result = None
        if self.work is not None:
            self.work.close()
            self.work = None
        machine.forget_peak()

    def ceilings(self) -> dict[str, float]:
        """Seconds that this side's gemm and copy take at best."""
        self.release()
        found = {name: self._quickest(run) for name, run in self.side.ceilings().items()}
        machine.rest()
        return found
