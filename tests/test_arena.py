"""The arena: what a trace records, that planned ranges never meet, and that a step in them is the pool's bit for bit."""

from __future__ import annotations

import dataclasses
import gc
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from pycap import arena, backends, device, memory
from pycap.arena import ALIGN, Arena, ArenaError, Layout, Trace
from pycap.autograd import Tensor
from pycap.backends.dry import dry_run
from pycap.models.nic import NIC
from pycap.models.vgg import VGG
from pycap.nn.layers import place_dropout
from tests import cupy_standin

# What a trace records -------------------------------------------------------------------------------------------------


def test_a_trace_tells_when_each_array_came_and_when_its_last_view_went():
    with arena.trace() as seen:
        a = memory.empty((10, 10))
        view = a[2:, 1]
        b = memory.empty((3,), np.uint8)
        del a
        c = memory.empty((0, 7))
        del view
        d = memory.empty((6,), device.bfloat16())
        assert d.dtype == device.bfloat16() and seen.live == 512
    del b, c, d  # after its end: alive to the end
    first, second, third, fourth = seen.requests
    assert [r.nbytes for r in seen.requests] == [400, 3, 0, 12] and first.size == 512
    assert (first.birth, second.birth, third.birth, first.death, fourth.birth) == (0, 1, 2, 3, 4)
    assert {second.death, third.death, fourth.death} == {sys.maxsize}
    assert seen.peak == 512 + 256 and str(first) == "float32 (10, 10), 400 bytes"


def test_what_is_traced_lies_in_memory_that_is_not_there_before_it_is_touched():
    with arena.trace() as seen, memory.poisoned():  # poison would touch it
        huge = memory.empty((1 << 20, 1 << 20))
        scratch = memory.workspace(1 << 41)
        memory.workspace(5)
        huge[-1, -1] = 3
        assert huge.flags.c_contiguous and huge[-1, -1] == 3 and not huge[:2].any() and scratch.nbytes == 1 << 41
    assert seen.peak == 1 << 42 and seen.workspace_nbytes == 1 << 41


def test_a_trace_ends_no_life_by_the_garbage_collector():
    with arena.trace() as seen:
        cycle: list[Any] = [memory.empty((100,))]
        cycle.append(cycle)
        del cycle
        objects = [[] for _ in range(10_000)]  # more than the threshold of the collector
        assert not gc.isenabled() and len(objects) == 10_000
        assert seen.requests[0].death == sys.maxsize
    assert gc.isenabled()


def test_a_trace_is_of_this_thread_alone_and_leaves_what_is_persistent_to_the_pool():
    made = []
    with arena.trace() as seen:
        other = threading.Thread(target=lambda: made.append(memory.empty((5000,))))
        other.start()
        other.join()
        with memory.persistent():
            made.append(memory.empty((5000,)))
            made.append(memory.workspace(64))
        assert not seen.requests and not seen.workspace_nbytes
        memory.empty((1,))
    memory.empty((1,))
    assert len(seen.requests) == 1 and len(made) == 3


# Where it goes --------------------------------------------------------------------------------------------------------


def traced(rng: np.random.Generator, count: int) -> Trace:
    """A trace of `count` arrays of random sizes and lives."""
    with arena.trace() as seen:
        alive: list[Any] = []
        for _ in range(count):
            while alive and rng.random() < 0.45:
                alive.pop(int(rng.integers(len(alive))))
            alive.append(memory.empty((int(rng.choice([0, 1, 63, 64, 65, 1000, 5000, 40_000])),)))
    return seen


def collisions(layout: Layout) -> list[tuple[int, int]]:
    """Pairs of requests that share bytes at some moment, by looking at every moment."""
    found = set()
    times = sorted({r.birth for r in layout.requests})
    for now in times:
        alive = [i for i, r in enumerate(layout.requests) if r.birth <= now < r.death and r.nbytes]
        for a in alive:
            for b in alive:
                begin, end = layout.offsets[a], layout.offsets[a] + layout.requests[a].nbytes
                if a < b and layout.offsets[b] < end and begin < layout.offsets[b] + layout.requests[b].nbytes:
                    found.add((a, b))
    return sorted(found)


@pytest.mark.parametrize("seed", range(20))
def test_ranges_of_arrays_that_are_alive_together_are_apart(seed):
    rng = np.random.default_rng(seed)
    seen = traced(rng, int(rng.integers(1, 60)))
    layout = arena.plan(seen)
    assert collisions(layout) == []
    layout.check()
    assert all(offset % ALIGN == 0 for offset in layout.offsets)
    ends = [o + r.nbytes for o, r in zip(layout.offsets, layout.requests, strict=True)]
    assert max(ends) <= layout.nbytes and layout.bound <= layout.nbytes <= 1.5 * layout.bound


def test_the_bound_is_what_is_alive_at_once():
    for seed in range(5):
        seen = traced(np.random.default_rng(seed), 40)
        at = [sum(r.size for r in seen.requests if r.birth <= now < r.death) for now in range(200)]
        assert arena.plan(seen).bound == max(at)


def test_the_smallest_gap_that_holds_it_is_taken():
    taken = [(4, 9), (11, 12), (11, 20), (23, 25)]
    assert [arena._best_gap(size, taken) for size in (1, 2, 3, 4, 5)] == [9, 9, 20, 0, 25]
    assert arena._best_gap(2, [(0, 5)]) == 5 and arena._best_gap(2, []) == 0


def test_an_overlap_is_found():
    seen = traced(np.random.default_rng(3), 30)
    layout = arena.plan(seen)
    pair = next(
        (i, j)
        for i, a in enumerate(seen.requests)
        for j, b in enumerate(seen.requests)
        if i < j and a.nbytes and b.nbytes and a.meets(b)
    )
    offsets = list(layout.offsets)
    offsets[pair[1]] = offsets[pair[0]]
    bad = dataclasses.replace(layout, offsets=tuple(offsets))
    assert pair in collisions(bad)
    with pytest.raises(ArenaError, match="overlap"):
        bad.check()


def test_a_layout_serves_smaller_steps_of_the_same_course():
    def seen(*lengths: int, longer: bool = False) -> Trace:
        with arena.trace() as made:
            kept = memory.empty((lengths[0],))
            first = memory.empty((lengths[1],))
            if not longer:
                del first
            memory.empty((lengths[2],))
            del kept
        return made

    whole = arena.plan(seen(1000, 2000, 3000))
    smaller = whole.for_smaller(seen(1000, 1, 2990))
    assert smaller is not None and (smaller.offsets, smaller.nbytes) == (whole.offsets, whole.nbytes)
    smaller.check()
    assert collisions(smaller) == [] and [r.nbytes for r in smaller.requests] == [4000, 4, 11960]
    assert smaller.bound == seen(1000, 1, 2990).peak
    assert whole.for_smaller(seen(1000, 2000, 3100)) is None  # more than there is room for
    assert whole.for_smaller(seen(1000, 2000, 3000, longer=True)) is None  # other lives
    assert whole.for_smaller(Trace(whole.requests[:2])) is None and whole.for_smaller(Trace()) is None  # another number


def test_nothing_needs_nothing():
    with arena.trace() as seen:
        pass
    layout = arena.plan(seen)
    assert (layout.nbytes, layout.bound, layout.offsets) == (0, 0, ())
    with Arena.of([layout]).serving(layout):
        pass


# Serving --------------------------------------------------------------------------------------------------------------


def test_the_same_request_gets_the_same_address_in_every_step_and_is_poisoned_as_it_is_handed_out():
    def step() -> list[int]:
        a = memory.empty((700,))
        a.fill(1)
        b = memory.empty((100, 7))
        assert not memory._poison or np.isnan(b).all()
        b.fill(2)
        assert (a == 1).all()
        del a
        c = memory.empty((1400,), device.bfloat16())
        assert not memory._poison or np.isnan(c).all()
        c.fill(3)
        assert (b == 2).all() and c.flags.c_contiguous and c.dtype == device.bfloat16()
        return [device.address(b), device.address(c)]

    with arena.trace() as seen:
        step()
    layout = arena.plan(seen)
    assert layout.nbytes == 2 * 2816
    room = Arena.of([layout, layout])
    with room.serving(layout):
        places = step()
    for _ in range(3):
        with memory.poisoned(), room.serving(layout):
            assert step() == places
    assert all(place % ALIGN == 0 for place in places)


def test_a_request_that_differs_is_named():
    with arena.trace() as seen:
        memory.empty((4, 5))
        memory.empty((6,), np.uint8)
    layout = arena.plan(seen)
    room = Arena(layout.nbytes)
    with room.serving(layout):
        memory.empty((20,), np.int32)  # as many bytes
        with pytest.raises(ArenaError, match=r"request 1 is for uint8 \(7,\), 7 bytes; planned: uint8 \(6,\), 6 bytes"):
            memory.empty((7,), np.uint8)
        memory.empty((6,), np.uint8)
        with pytest.raises(ArenaError, match="request 2 is for .* planned: no more than 2 requests"):
            memory.empty((1,))
    memory.empty((7,), np.uint8)  # from the pool again
    with pytest.raises(ArenaError, match=f"needs {layout.nbytes} bytes, the arena has 10"), Arena(10).serving(layout):
        pass


def test_one_arena_serves_layouts_of_several_shapes_and_has_the_workspace_ready():
    layouts = []
    for n in (100, 5000):
        with arena.trace() as seen:
            memory.empty((n,))
            memory.workspace(n * 64)
        layouts.append(arena.plan(seen))
    room = Arena.of(layouts)
    assert room.nbytes == layouts[1].nbytes and [layout.workspace for layout in layouts] == [6400, 320_000]
    for layout, n in zip(layouts, (100, 5000), strict=True):
        with room.serving(layout):
            scratch = memory.workspace(1)
            assert memory.empty((n,)).shape == (n,) and memory.workspace(n * 64) is scratch


# A joint step ---------------------------------------------------------------------------------------------------------

IMAGES, PER_IMAGE, STEPS, VOCABULARY = 3, 2, 6, 23


def small_model() -> NIC:
    rng = np.random.default_rng(0)
    cnn = VGG("vgg_micro", 32, rng, width=0.5, fc_size=24, drop=0.25)
    return NIC(cnn, VOCABULARY, rng, rnn_size=20, input_encoding_size=12, drop_prob_lm=0.25)


def batch(number: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng([7, number])
    images = rng.standard_normal((IMAGES, 32, 32, 3)).astype(np.float32)
    return images, rng.integers(1, VOCABULARY, (STEPS, IMAGES * PER_IMAGE)).astype(np.int32)


def joint_step(model: NIC, number: int) -> float:
    images, tokens = batch(number)
    place_dropout(model, number, 0, IMAGES, IMAGES)
    x = Tensor(memory.empty(images.shape))
    device.assign(x.data, images)
    loss = model.loss(x, tokens)
    del x
    value = loss.item()
    loss.backward()
    return value


def gradients(model: NIC) -> dict[str, bytes]:
    found = {}
    for name, parameter in model.named_parameters().items():
        assert parameter.fresh
        found[name] = device.to_host(parameter.grad).tobytes()
        parameter.fresh = False
    return found


def layout_of_joint_step() -> Layout:
    """Traced on the host, with a model of its own that holds nothing of interest."""
    with device.use("cpu"):
        model = small_model()
        arena.prepare_gradients(model.named_parameters().values())
        with arena.trace() as seen:
            joint_step(model, 99)
    return arena.plan(seen)


def run(around: Callable[[], Any], numbers: range = range(4)) -> list[tuple[float, dict[str, bytes]]]:
    """Steps over several batches, each within `around()`."""
    model = small_model()
    arena.prepare_gradients(model.named_parameters().values())
    results = []
    for number in numbers:
        with memory.poisoned(), around():
            value = joint_step(model, number)
        results.append((value, gradients(model)))
    return results


@pytest.fixture(params=["cpp", "reference", "stand-in"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if request.param == "stand-in":
        monkeypatch.setitem(sys.modules, "cupy", cupy_standin.make())
        monkeypatch.setattr(device, "missing_driver", lambda: "")
        with backends.use("reference", "cuda"):
            yield
    else:
        if backends.available(request.param):
            pytest.skip(backends.available(request.param))
        with backends.use(request.param):
            yield


def test_a_joint_step_in_the_arena_is_the_pools_bit_for_bit(kernels):
    layout = layout_of_joint_step()
    layout.check()
    assert len(layout.requests) > 30 and layout.nbytes <= 1.2 * layout.bound
    assert layout.nbytes < 0.8 * sum(r.nbytes for r in layout.requests)  # memory is used again
    room = Arena.of([layout])
    from_pool = run(memory.persistent)
    from_arena = run(lambda: room.serving(layout))
    assert len({value for value, _ in from_pool}) == 4
    assert from_arena == from_pool


def test_a_model_on_the_gpu_is_traced_where_it_lies(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", cupy_standin.make())
    monkeypatch.setattr(device, "missing_driver", lambda: "")
    with backends.use("reference", "cuda"):
        model = small_model()
        arena.prepare_gradients(model.named_parameters().values())
        before = {name: device.to_host(array) for name, array in model.state_arrays().items()}
        with dry_run(), arena.trace() as seen:  # arrays of the host among the model's own
            joint_step(model, 99)
        assert gradients(model).keys() == before.keys()
        assert all((device.to_host(array) == before[name]).all() for name, array in model.state_arrays().items())
        layout = arena.plan(seen)
        traced = layout_of_joint_step()
        assert [r.nbytes for r in layout.requests] == [
            r.nbytes for r in traced.requests
        ] and layout.nbytes == traced.nbytes
        room = Arena.of([layout])
        assert run(lambda: room.serving(layout)) == run(memory.persistent)


def test_a_life_that_is_planned_too_short_shows(kernels):
    whole = layout_of_joint_step()
    biggest = max(
        (r for r in whole.requests if r.death != sys.maxsize and r.death > r.birth + 20), key=lambda r: r.nbytes
    )
    cut = [dataclasses.replace(r, death=r.birth + 1 if r is biggest else r.death) for r in whole.requests]
    layout = arena.plan(Trace(cut))
    with pytest.raises(ArenaError, match="overlap"):
        dataclasses.replace(layout, requests=whole.requests).check()
    room = Arena.of([layout])
    try:
        shown = run(lambda: room.serving(layout), range(1))
    except ValueError as error:  # the C++ kernels' bindings take no arrays that overlap
        assert "lie in the same memory" in str(error)
    else:
        assert shown != run(memory.persistent, range(1))


def test_gradients_that_were_not_prepared_are_told_by_the_arena():
    with backends.use("reference"):
        layout = layout_of_joint_step()
        model = small_model()
        room = Arena.of([layout])
        with pytest.raises(ArenaError, match=r"request \d+ is for"), room.serving(layout):
            joint_step(model, 0)


def test_prepared_gradients_are_for_what_learns_and_are_kept():
    model = small_model()
    model.cnn.freeze()
    kept = model.projection.weight.grad = memory.empty(model.projection.weight.shape)
    with arena.trace() as seen:
        arena.prepare_gradients(model.named_parameters().values())
    assert not seen.requests and model.projection.weight.grad is kept
    for name, parameter in model.named_parameters().items():
        assert (parameter.grad is None) == name.startswith("cnn.") and not parameter.fresh


def test_a_trace_wants_the_host(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", cupy_standin.make())
    monkeypatch.setattr(device, "missing_driver", lambda: "")
    with device.use("cuda"), pytest.raises(ArenaError, match="device.use"), arena.trace():
        pass
