"""Work on the device by key: launched kernel by kernel at first, then recorded as a CUDA graph and replayed.

Work that is to be replayed reads and writes arrays that stay where they are, takes what changes from run to run from device
memory, and waits for nothing. A replay repeats the launches only: no Python of `work` runs, so that numbers and addresses
are those of its capture. Whoever gives the work keeps the arrays alive that it finds, and the graph those that it makes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from pycap import device, memory

#: What `Graphs.run` did.
Way = Literal["eager", "captured", "replayed"]


@dataclass(frozen=True)
class _Captured:
    """A graph with the memory that it writes to: nobody else is given any of it while the graph lives."""

    graph: Any
    pool: Any
    workspaces: tuple[Any, Any]
    held: list[Any]


class Graphs:
    """CUDA graphs by key, all on one stream.

    log: is told once of each key that cannot be captured, and why. describe: a key as that line names it. limit: the most
    graphs that are kept (each keeps the memory of its intermediate results); further keys stay eager. agree: told whether
    this process has recorded a key; says whether all have that launch it together, for only then does any of them.
    """

    def __init__(
        self,
        log: Callable[[str], None],
        describe: Callable[[Any], str] = str,
        *,
        limit: int = 32,
        agree: Callable[[bool], bool] = bool,
    ) -> None:
        self.limit, self.capturing = limit, False
        self._log, self._describe, self._agree = log, describe, agree
        self._stream: Any = None
        self._graphs: dict[Hashable, _Captured] = {}
        self._begun: set[Hashable] = set()
        self._eager: set[Hashable] = set()
        self._full = False

    def __len__(self) -> int:
        """How many graphs there are."""
        return len(self._graphs)

    @property
    def stream(self) -> Any:
        """The CuPy stream on which everything runs, not the default one, which cannot capture; None on the CPU."""
        if self._stream is None and device.current() != "cpu":
            # Non-blocking: else a use of the default stream, by anybody and at any time, would end a capture.
            self._stream = device.module().cuda.Stream(non_blocking=True)
        return self._stream if device.current() != "cpu" else None

    @contextmanager
    def on_stream(self) -> Iterator[None]:
        """Within this, `stream` is the current one: after all that the one before was given, and before what it is given."""
        inner = self.stream
        if inner is None:
            yield
            return
        cuda = device.module().cuda
        outer = cuda.get_current_stream()
        if outer == inner:
            yield
            return
        event = cuda.Event(disable_timing=True)
        outer.record(event)
        inner.wait_event(event)
        try:
            with inner:
                yield
        finally:
            inner.record(event)
            outer.wait_event(event)

    def run(self, key: Hashable, work: Callable[[], None]) -> Way:
        """Do `work`, of which each run with the same key must launch the same kernels on the same memory.

        The first run is eager: it compiles and loads kernels, which a capture cannot, fills tables, and grows the workspace.
        The second is captured and launched, later ones only launched. On the CPU every run is eager. Where the capture
        fails, that run and all later ones with the key are eager, so `work` may be called twice in one run; what it raises
        then is raised. Only the run that captures waits for the device.
        """
        if device.current() == "cpu":
            work()
            return "eager"
        with self.on_stream():
            captured = self._graphs.get(key)
            if captured is not None:
                captured.graph.launch(self.stream)
                return "replayed"
            if self._may_capture(key) and self._capture(key, work):
                self._graphs[key].graph.launch(self.stream)
                return "captured"
            work()
            self._begun.add(key)
            return "eager"

    def held_bytes(self) -> int:
        """Bytes of the device that the graphs keep for what is made within them."""
        return sum(captured.pool.total_bytes() for captured in self._graphs.values())

    def clear(self) -> None:
        """Forget all keys and free their graphs, when the device is done with them."""
        if self._stream is not None:
            self._stream.synchronize()
        self._graphs.clear()
        self._begun.clear()
        self._eager.clear()
        self._full = False

    def _may_capture(self, key: Hashable) -> bool:
        if key not in self._begun or key in self._eager:
            return False
        if len(self._graphs) < self.limit:
            return True
        if not self._full:
            self._refuse(key, f"there are {self.limit} graphs already, and further ones would be eager too")
            self._full = True
        return False

    def _capture(self, key: Hashable, work: Callable[[], None]) -> bool:
        """Record `work` as the key's graph; False, having said why, where that cannot be done. Nothing is executed."""
        cuda, stream = device.module().cuda, self.stream
        # What the eager run left in CuPy's pool goes first: the graph's own pool takes as much once more.
        memory.trim()
        pool = cuda.MemoryPool()
        # The workspace before and after: work that grows it has launched on both. What lay between is of the pool.
        before = memory.workspace(0)
        graph: Any = None
        reason = "another rank cannot record it"
        self.capturing = True
        try:
            with cuda.using_allocator(pool.malloc), memory.holding() as held:
                stream.begin_capture()
                try:
                    work()
                except BaseException:
                    with contextlib.suppress(RuntimeError):  # of a capture that is invalid CUDA says so once more
                        stream.end_capture()
                    raise
                graph = stream.end_capture()
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
        finally:
            self.capturing = False
        if not self._agree(graph is not None):
            self._eager.add(key)
            self._refuse(key, reason)
            return False
        self._graphs[key] = _Captured(graph, pool, (before, memory.workspace(0)), held)
        return True

    def _refuse(self, key: Hashable, reason: str) -> None:
        self._log(f"{self._describe(key)}: launched kernel by kernel, not as a CUDA graph: {reason}")
