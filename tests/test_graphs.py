"""Captured work: a replay computes what eager launches do, from what lies in memory then; and what cannot be captured."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import sys
import weakref
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pycap import arena, backends, device, memory
from pycap.backends import kernels, reference
from pycap.graphs import Graphs
from pycap.testing import CASES, compare
from pycap.testing.on_device import OnDevice
from tests import cupy_standin


@pytest.fixture
def xp(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    module = cupy_standin.make()
    monkeypatch.setitem(sys.modules, "cupy", module)
    monkeypatch.setattr(device, "missing_driver", lambda: "")
    monkeypatch.setattr(memory, "_scratch", {})
    with backends.use("reference", "cuda"):
        yield module


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def graphs(xp: Any, said: list[str]) -> Graphs:
    return Graphs(said.append, lambda key: f"step {key}")


class Step:
    """A small step of training: rows of a table, a linear layer, its gradients, Adam; ids and upstream gradients change."""

    def __init__(self) -> None:
        random = np.random.default_rng(0)
        self.table = device.to_device(random.standard_normal((7, 5), np.float32))
        self.w = device.to_device(random.standard_normal((4, 5), np.float32))
        self.b = memory.zeros((4,))
        self.dw, self.db, self.m, self.v = (memory.zeros(s) for s in ((4, 5), (4,), (4, 5), (4, 5)))
        self.y = memory.zeros((3, 4))
        self.ids, self.dy = memory.zeros((3,), np.int32), memory.zeros((3, 4))
        self.calls = 0

    def __call__(self) -> None:
        self.calls += 1
        x = memory.empty((3, 5))
        kernels.embedding_forward(x, self.table, self.ids)
        kernels.linear_forward(self.y, x, self.w, self.b, True)
        kernels.linear_backward_weight(self.dw, self.db, self.dy, x, self.y, 0.0, 0.0)
        kernels.adam_step([self.w], [self.dw], [self.m], [self.v], 0.1, 0.9, 0.99, 1e-8, 0.01, 3, 1.0, 0.0)

    def feed(self, number: int) -> None:
        random = np.random.default_rng(number)
        self.ids.set(random.integers(0, 7, 3).astype(np.int32))
        self.dy.set(random.standard_normal((3, 4), np.float32))

    def state(self) -> list[bytes]:
        return [a.get().tobytes() for a in (self.w, self.b, self.dw, self.db, self.m, self.v, self.y)]


def eager_states(runs: int) -> list[list[bytes]]:
    step, states = Step(), []
    for number in range(runs):
        step.feed(number)
        step()
        states.append(step.state())
    return states


def test_ten_runs_call_the_work_twice_and_are_the_eager_ones_bit_for_bit(graphs: Graphs, said: list[str]) -> None:
    step, ways, states = Step(), [], []
    for number in range(10):
        with graphs.on_stream():
            step.feed(number)
            ways.append(graphs.run("a", step))
            states.append(step.state())
    assert ways == ["eager", "captured"] + ["replayed"] * 8 and step.calls == 2
    expected = eager_states(10)
    assert states == expected and len({tuple(state) for state in expected}) == 10
    assert not said and len(graphs) == 1


def test_a_number_of_the_host_is_the_one_of_the_capture(graphs: Graphs, xp: Any) -> None:
    """Why what changes has to lie in device memory; and that a replay is no call in disguise."""
    out, rate = memory.zeros((1,)), [1.0]

    def work() -> None:
        out[...] = out + rate[0]

    for rate[0] in (1.0, 2.0, 4.0, 8.0):
        graphs.run("a", work)
    assert out.tolist() == [1 + 2 + 2 + 2]


def test_an_array_that_was_copied_outside_is_the_old_one(graphs: Graphs, xp: Any) -> None:
    """The fault that `work` reads a stale copy of its input shows: the stand-in's replays read memory, not the source."""
    given, out = memory.zeros((2,)), memory.zeros((2,))
    copies = [given.copy()]

    def work() -> None:
        out[...] = copies[-1] + 1

    for number in range(4):
        given.fill(number)
        copies.append(given.copy())
        graphs.run("a", work)
    assert out.tolist() == [2, 2]


def test_keys_have_graphs_of_their_own(graphs: Graphs) -> None:
    out = {rows: memory.zeros((rows,)) for rows in (2, 3)}
    ways = []
    for rows in (2, 3, 2, 3, 3, 2, 2):
        ways.append(graphs.run(rows, lambda rows=rows: out[rows].__iadd__(1)))  # type: ignore[misc]
    assert ways == ["eager", "eager", "captured", "captured", "replayed", "replayed", "replayed"]
    assert out[2].tolist() == [4, 4] and out[3].tolist() == [3, 3, 3] and len(graphs) == 2


def test_shapes_share_an_arena_and_each_replay_is_right(graphs: Graphs) -> None:
    """Ranges that steps overwrite in turn: a graph takes nothing from an earlier launch, of itself or of another."""

    def step(given: Any, out: Any) -> None:
        x = memory.empty(given.shape)
        x[...] = given * 2
        y = memory.empty(given.shape)
        y[...] = x + 1
        del x
        z = memory.empty(given.shape)  # where x was
        z[...] = y * y
        out[...] = z

    given, out = ({rows: memory.zeros((rows, 3)) for rows in (2, 5)} for _ in range(2))
    layouts = {}
    for rows in given:
        with device.use("cpu"), arena.trace() as seen:
            step(np.zeros((rows, 3), np.float32), np.zeros((rows, 3), np.float32))
        layouts[rows] = arena.plan(seen)
    room = arena.Arena.of(list(layouts.values()))
    ways = []
    for number in range(12):
        rows = (2, 5, 2, 5, 5, 2)[number % 6]
        given[rows].fill(number)

        def work(rows: int = rows) -> None:
            with room.serving(layouts[rows]):
                step(given[rows], out[rows])

        ways.append(graphs.run(rows, work))
        assert (out[rows].get() == (2 * number + 1) ** 2).all()
    assert ways == ["eager"] * 2 + ["captured"] * 2 + ["replayed"] * 8


def captured(function: Callable[..., None]) -> Callable[..., None]:
    """`function`, recorded and launched instead of called."""

    def call(*arguments: Any, **named: Any) -> None:
        cuda = device.module().cuda
        pool, stream = cuda.MemoryPool(), cuda.Stream(non_blocking=True)
        with stream, cuda.using_allocator(pool.malloc):
            stream.begin_capture()
            function(*arguments, **named)
            stream.end_capture().launch()

    return call


MEETS_THE_HOST = {"sum_squares"}  # which returns a number


@pytest.mark.parametrize("primitive", [name for name in backends.PRIMITIVES if name not in MEETS_THE_HOST])
def test_what_primitives_launch_can_be_replayed(xp: Any, primitive: str) -> None:
    backend = OnDevice(SimpleNamespace(**{primitive: captured(getattr(reference, primitive))}))
    cases = CASES[primitive]
    for case in cases[:: 1 + len(cases) // 8]:
        compare(case, backend)


# What cannot be captured ----------------------------------------------------------------------------------------------

HOST: dict[str, Callable[[Any], Any]] = {
    "a number": lambda a: float(a.sum()),
    "a truth": lambda a: bool(a.sum() > 0),
    "a list": lambda a: a.tolist(),
    "a copy": lambda a: a.get(),
    "a copy from pageable memory": lambda a: a.set(np.ones(3, np.float32)),
    "an array of the host": lambda a: memory.asarray([1, 2, 3]),
    "a shape by contents": lambda a: a[a > 0],
    "ids by contents": lambda a: device.module().flatnonzero(a),
    "a list of ids": lambda a: a[[0, 1]],
    "a wait": lambda a: device.synchronize(),
}


@pytest.mark.parametrize("meet", HOST.values(), ids=HOST.keys())
def test_work_that_meets_the_host_is_eager_with_a_reason(
    graphs: Graphs, said: list[str], meet: Callable[[Any], Any]
) -> None:
    out, ones = memory.zeros((3,)), memory.filled_like(memory.zeros((3,)), 1)

    def work() -> None:
        out.__iadd__(ones)
        meet(ones)

    assert [graphs.run("T=20", work) for _ in range(4)] == ["eager"] * 4
    assert out.tolist() == [4, 4, 4] and len(graphs) == 0
    assert len(said) == 1
    assert said[0].startswith("step T=20: launched kernel by kernel, not as a CUDA graph: CUDARuntimeError: cudaError")
    assert "StreamCaptureUnsupported" in said[0]
    other = memory.zeros((1,))
    assert [graphs.run("b", lambda: other.__iadd__(1)) for _ in range(3)] == ["eager", "captured", "replayed"]
    assert other.tolist() == [3]
    graphs.clear()
    assert [graphs.run("T=20", lambda: other.__iadd__(1)) for _ in range(3)] == ["eager", "captured", "replayed"]


def test_what_raises_in_a_capture_only_is_told_and_done_eagerly(graphs: Graphs, said: list[str]) -> None:
    out, calls = memory.zeros((1,)), []

    def work() -> None:
        calls.append(graphs.stream.is_capturing())
        out.__iadd__(1)
        if calls[-1]:
            raise ValueError("no such kernel")

    assert [graphs.run("a", work) for _ in range(3)] == ["eager"] * 3
    assert calls == [False, True, False, False] and out.tolist() == [3]
    assert said == ["step a: launched kernel by kernel, not as a CUDA graph: ValueError: no such kernel"]


def test_an_error_of_the_work_itself_is_raised(graphs: Graphs, said: list[str]) -> None:
    fault: list[BaseException] = []

    def work() -> None:
        if fault:
            raise fault[0]

    graphs.run("a", work)
    fault.append(IndexError("id 9"))
    for _ in range(2):
        with pytest.raises(IndexError, match="id 9"):
            graphs.run("a", work)
    assert len(said) == 1 and not graphs.stream.is_capturing()
    assert device.module().cuda.get_current_stream() is device.module().cuda.Stream.null


def test_what_raises_at_first_has_not_been_run(graphs: Graphs) -> None:
    def work() -> None:
        calls.append(graphs.stream.is_capturing())
        if len(calls) == 1:
            raise ValueError("once")

    calls: list[bool] = []
    with pytest.raises(ValueError, match="once"):
        graphs.run("a", work)
    assert [graphs.run("a", work) for _ in range(2)] == ["eager", "captured"] and calls == [False, False, True]


def test_an_interrupt_ends_the_capture_and_is_no_reason_for_anything(graphs: Graphs, said: list[str]) -> None:
    out, interrupts = memory.zeros((1,)), [False]

    def work() -> None:
        out.__iadd__(1)
        if interrupts[0]:
            raise KeyboardInterrupt

    graphs.run("a", work)
    interrupts[0] = True
    with pytest.raises(KeyboardInterrupt):
        graphs.run("a", work)
    interrupts[0] = False
    assert not graphs.stream.is_capturing() and not said
    assert [graphs.run("a", work) for _ in range(2)] == ["captured", "replayed"] and out.tolist() == [3]


def test_beyond_the_limit_keys_stay_eager_and_one_line_says_so(xp: Any, said: list[str]) -> None:
    graphs, out = Graphs(said.append, limit=2), memory.zeros((1,))
    ways = {key: [graphs.run(key, lambda: out.__iadd__(1)) for _ in range(3)] for key in range(4)}
    graph, eager = ["eager", "captured", "replayed"], ["eager"] * 3
    assert ways == {0: graph, 1: graph, 2: eager, 3: eager}
    assert out.tolist() == [12]
    assert said == [
        "2: launched kernel by kernel, not as a CUDA graph: "
        "there are 2 graphs already, and further ones would be eager too"
    ]


def test_on_the_cpu_everything_is_eager(said: list[str]) -> None:
    graphs, calls = Graphs(said.append), []
    with backends.use("reference"), graphs.on_stream():
        assert [graphs.run("a", lambda: calls.append(True)) for _ in range(3)] == ["eager"] * 3
        assert graphs.stream is None
    assert len(calls) == 3 and len(graphs) == 0 and not said


# Memory and streams ---------------------------------------------------------------------------------------------------


def test_what_is_made_in_a_capture_lives_as_long_as_its_graph(graphs: Graphs, xp: Any) -> None:
    out = memory.zeros((256,))

    def work() -> None:
        scratch = memory.empty((256,))
        scratch[...] = out + 1
        out[...] = scratch

    graphs.run("a", work)
    assert graphs.held_bytes() == 0
    graphs.run("a", work)
    pool = graphs._graphs["a"].pool
    assert graphs.held_bytes() == pool.total_bytes() == 2 * 1024  # scratch, and the sum
    before = pool.total_bytes()
    memory.empty((256,))
    graphs.run("a", work)
    assert pool.total_bytes() == before
    assert out.tolist() == [3] * 256
    alive, waits = weakref.ref(pool), xp.cuda.Stream.waits
    graphs.clear()
    assert xp.cuda.Stream.waits == waits + 1  # no memory is freed that a launch still uses
    del pool
    gc.collect()
    assert alive() is None and len(graphs) == 0 and graphs.run("a", work) == "eager"


def test_the_eager_runs_memory_goes_before_the_graph_takes_as_much(
    graphs: Graphs, xp: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    freed: list[bool] = []
    monkeypatch.setattr(
        xp.get_default_memory_pool(), "free_all_blocks", lambda: freed.append(graphs.stream.is_capturing())
    )
    out = memory.zeros((1,))
    seen = [(graphs.run("a", lambda: out.__iadd__(1)), list(freed)) for _ in range(3)]
    assert seen == [("eager", []), ("captured", [False]), ("replayed", [False])]


def test_a_graph_keeps_the_workspaces_that_it_was_captured_with(graphs: Graphs, xp: Any) -> None:
    sizes = {"a": 1000, "b": 5000}

    def work(key: str) -> Callable[[], None]:
        return lambda: memory.workspace(sizes[key]).fill(7)

    graphs.run("a", work("a"))
    graphs.run("a", work("a"))
    first = weakref.ref(memory.workspace(0)._host)
    graphs.run("b", work("b"))
    sizes["b"] = 9000  # more than its eager run asked for
    second = weakref.ref(memory.workspace(0)._host)
    graphs.run("b", work("b"))
    third = weakref.ref(memory.workspace(0)._host)
    memory.workspace(20000)
    gc.collect()
    kept = [[w._host for w in graphs._graphs[key].workspaces] for key in "ab"]
    assert [[w.nbytes for w in pair] for pair in kept] == [[1000, 1000], [5000, 9000]]
    assert kept[0][0] is first() and kept[1][0] is second() and kept[1][1] is third()


@pytest.mark.parametrize("fault", ["no pool of its own", "its pool let go", "its workspace let go"])
def test_a_graph_whose_memory_went_to_others_would_be_seen(
    graphs: Graphs, said: list[str], monkeypatch: pytest.MonkeyPatch, xp: Any, fault: str
) -> None:
    """Else the tests above, which all replay, would not show that the graph keeps what it must."""

    def work() -> None:
        scratch = memory.empty((3,))
        scratch[...] = out
        out[...] = scratch + 1
        memory.workspace(100).fill(1)

    out = memory.zeros((3,))
    if fault == "no pool of its own":
        monkeypatch.setattr(xp.cuda, "using_allocator", lambda allocator: contextlib.nullcontext())
    graphs.run("a", work)
    if fault == "no pool of its own":
        with pytest.raises(RuntimeError, match="cudaErrorIllegalAddress"):
            graphs.run("a", work)
        return
    assert [graphs.run("a", work) for _ in range(2)] == ["captured", "replayed"]
    lost = {"its pool let go": {"pool": None}, "its workspace let go": {"workspaces": ()}}[fault]
    graphs._graphs["a"] = dataclasses.replace(graphs._graphs["a"], **lost)
    memory.workspace(1000)
    gc.collect()
    with pytest.raises(RuntimeError, match="cudaErrorIllegalAddress"):
        graphs.run("a", work)


def test_a_graph_keeps_what_a_cache_of_limited_size_lets_go(graphs: Graphs, xp: Any) -> None:
    """Tables of addresses, constants of preprocessing: a later model's push an earlier one's out."""
    made: list[int] = []

    @memory.kept(2)
    def table(number: int) -> Any:
        made.append(number)
        with memory.persistent():
            filled = memory.zeros((3,))
        filled.fill(number)
        return filled

    out = memory.zeros((3,))
    work = lambda: out.__setitem__(..., table(5) + out)  # noqa: E731
    assert [graphs.run("a", work) for _ in range(2)] == ["eager", "captured"]
    for number in (6, 7, 8):
        table(number)
    gc.collect()
    assert graphs.run("a", work) == "replayed"
    assert out.get().tolist() == [15.0] * 3 and made == [5, 6, 7, 8]
    graphs._graphs["a"] = dataclasses.replace(graphs._graphs["a"], held=[])
    gc.collect()
    with pytest.raises(RuntimeError, match="cudaErrorIllegalAddress"):
        graphs.run("a", work)


def test_an_array_that_its_owner_let_go_is_seen(graphs: Graphs, xp: Any) -> None:
    inputs, out = [memory.zeros((3,))], memory.zeros((3,))

    def work() -> None:
        out[...] = inputs[0] + 1

    assert [graphs.run("a", work) for _ in range(3)] == ["eager", "captured", "replayed"]
    inputs.clear()
    with pytest.raises(RuntimeError, match="cudaErrorIllegalAddress: the graph uses memory that has been given back"):
        graphs.run("a", work)


def test_the_stream_is_not_the_default_one_and_nests(graphs: Graphs, xp: Any) -> None:
    cuda = xp.cuda
    assert graphs.stream is graphs.stream and graphs.stream.is_non_blocking and graphs.stream.ptr != 0
    with graphs.on_stream(), graphs.on_stream():
        assert cuda.get_current_stream() is graphs.stream
    assert cuda.get_current_stream() is cuda.Stream.null


def test_work_waits_for_what_the_stream_before_was_given_and_that_for_the_work(graphs: Graphs, xp: Any) -> None:
    """Copies of pinned memory arrive late on the stand-in, so that without the events old contents would be read."""
    there, out = memory.zeros((2,)), memory.zeros((2,))
    host = np.frombuffer(xp.cuda.alloc_pinned_memory(8), np.float32, 2)
    with xp.cuda.Stream(non_blocking=True) as other:
        for number in range(1, 5):
            host[:] = number
            there.set(host)  # on `other`
            graphs.run("a", lambda: out.__setitem__(..., there))
            with graphs.on_stream():
                assert out.tolist() == [number] * 2
        back = np.frombuffer(xp.cuda.alloc_pinned_memory(8), np.float32, 2)
        with graphs.on_stream():
            out.get(out=back, blocking=False)
        assert back.tolist() == [0, 0]
        other.synchronize()
    assert back.tolist() == [4, 4]


def test_nothing_waits_for_the_device(graphs: Graphs, xp: Any) -> None:
    step, before = Step(), (cupy_standin.ndarray.reads, xp.cuda.Stream.waits)
    for number in range(4):
        with graphs.on_stream():
            step.feed(number)
            graphs.run("a", step)
    assert (cupy_standin.ndarray.reads, xp.cuda.Stream.waits) == before
