"""The C++ kernels and threads: equal inputs and thread count give equal bits, and Python runs while they compute."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from pycap import backends, memory
from pycap.device import bfloat16

cpp = pytest.importorskip("pycap.backends.cpp")

Array = np.ndarray
Call = Callable[[], list[Array]]


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = cpp.get_num_threads()
    yield
    backends.set_threads(before)


def draw(*shape: int) -> Array:
    return np.random.default_rng(shape).standard_normal(shape, np.float32)


def outputs(*shapes: tuple[int, ...], dtype: Any = np.float32) -> list[Array]:
    return [np.full(shape, np.nan, dtype) for shape in shapes]


def convolution(n: int, h: int, c: int, k: int, r: int, *, pool: bool = False) -> dict[str, Call]:
    """Forward, data gradient and weight gradient of one layer, stride 1."""
    x, w, b, padding = draw(n, h, h, c), draw(k, r, r, c), draw(k), r // 2
    p = h // 2 if pool else h
    dy, argmax = draw(n, p, p, k), np.empty((n, p, p, -(-k // 4)), np.uint8)

    def forward() -> list[Array]:
        y = outputs((n, p, p, k))[0]
        if pool:
            cpp.conv2d_pool_forward(y, argmax, x, w, b, 1, padding)
        else:
            cpp.conv2d_forward(y, x, w, b, 1, padding, True)
        return [y, argmax.copy()] if pool else [y]

    y = forward()[0]
    winners = argmax.copy() if pool else None

    def backward_data() -> list[Array]:
        made = outputs(x.shape)
        cpp.conv2d_backward_data(*made, dy, w, y, winners, 1, padding, 0.0)
        return made

    def backward_weight() -> list[Array]:
        made = outputs(w.shape, b.shape)
        cpp.conv2d_backward_weight(*made, dy, x, y, winners, 1, padding, 0.0, 0.0)
        return made

    return {"forward": forward, "backward_data": backward_data, "backward_weight": backward_weight}


def linear(m: int, i: int, o: int) -> dict[str, Call]:
    x, w, b, dy = draw(m, i), draw(o, i), draw(o), draw(m, o)

    def forward() -> list[Array]:
        made = outputs((m, o))
        cpp.linear_forward(*made, x, w, b, True)
        return made

    y = forward()[0]

    def backward_data() -> list[Array]:
        made = outputs((m, i))
        cpp.linear_backward_data(*made, dy, w, y, 0.0)
        return made

    def backward_weight() -> list[Array]:
        made = outputs((o, i), (o,))
        cpp.linear_backward_weight(*made, dy, x, y, 0.0, 0.0)
        return made

    return {"forward": forward, "backward_data": backward_data, "backward_weight": backward_weight}


def lstm(t: int, n: int, h: int) -> dict[str, Call]:
    x, w_x, w_h, b, dh = draw(t, n, h), draw(4 * h, h) * 0.1, draw(4 * h, h) * 0.1, draw(4 * h), draw(t, n, h)

    def forward() -> list[Array]:
        made = outputs((t, n, h), (t, n, h), (t, n, 4 * h))
        cpp.lstm_forward(*made, x, None, None, w_x, w_h, b, None)
        return made

    hs, cs, gates = forward()

    def backward() -> list[Array]:
        made = outputs(x.shape, w_x.shape, w_h.shape, b.shape)
        state: list[Array | None] = [None, None]
        cpp.lstm_backward(*made, *state, gates.copy(), dh, None, x, hs, cs, None, None, w_x, w_h, None, [0.0] * 6)
        return made

    return {"forward": forward, "backward": backward}


def embedding(words: int, rows: int, features: int, dtype: Any) -> dict[str, Call]:
    """Lookup, and the gradient of the whole table; some rows are looked up often, some never."""
    table, dy = draw(words, features).astype(dtype), draw(rows, features).astype(dtype)
    ids = np.random.default_rng(rows).integers(-1, words // 2, rows, np.int32)

    def forward() -> list[Array]:
        made = outputs((rows, features), dtype=dtype)
        cpp.embedding_forward(*made, table, ids)
        return made

    def backward() -> list[Array]:
        made = outputs(table.shape, dtype=dtype)
        cpp.embedding_backward(*made, dy, ids, None, 0.0)
        return made

    return {"forward": forward, "backward": backward}


def words(m: int, h: int, v: int) -> dict[str, Call]:
    """The loss of each row's word with its gradient, and the best words."""
    x, w, b, logits = draw(m, h), draw(v, h), draw(v), draw(m, v)
    targets = np.random.default_rng(m).integers(0, v, m, np.int32)

    def loss() -> list[Array]:
        made = outputs((m,), (m, v))
        cpp.linear_xent_forward(*made, x, w, b, targets, None)
        return made

    def best() -> list[Array]:
        made = [*outputs((m, 3)), np.empty((m, 3), np.int32)]
        cpp.log_softmax_topk(*made, logits, [2])
        return made

    return {"loss": loss, "best": best}


def optimisers(*shapes: tuple[int, ...]) -> dict[str, Call]:
    """A step of each, over tensors that the threads share out anywhere."""

    def stepping(step: Callable[..., None], states: int, *rates: float) -> Call:
        def call() -> list[Array]:
            lists = [[np.abs(draw(*shape)) for shape in shapes] for _ in range(2 + states)]
            step(*lists, *rates, 0.01, *((1,) if states == 2 else ()), 0.5, 0.3)
            return [array for arrays in lists for array in arrays]

        return call

    return {
        "sgd": stepping(cpp.sgd_step, 1, 0.1, 0.9),
        "rmsprop": stepping(cpp.rmsprop_step, 1, 0.01, 0.95, 1e-8),
        "adam": stepping(cpp.adam_step, 2, 0.01, 0.9, 0.999, 1e-8),
    }


# One layer for each algorithm, and for each way of sharing its work out.
LAYERS: dict[str, Callable[[], dict[str, Call]]] = {
    "direct": lambda: convolution(2, 40, 3, 64, 3),
    "im2col": lambda: convolution(2, 24, 24, 40, 5),
    "winograd, own blocks": lambda: convolution(4, 56, 64, 64, 3, pool=True),
    "winograd, blocks in common": lambda: convolution(2, 28, 256, 512, 3),
    "linear, few rows": lambda: linear(1, 4096, 1024),
    "linear, many rows": lambda: linear(96, 1024, 512),
    "lstm": lambda: lstm(6, 32, 128),
}


# The rest, just large enough to be shared out: too short for another Python thread to be sure of its turn meanwhile.
SHORT: dict[str, Callable[[], dict[str, Call]]] = {
    "embedding": lambda: embedding(60, 70, 272, np.float32),
    "embedding, bfloat16": lambda: embedding(60, 70, 272, bfloat16()),
    "words": lambda: words(40, 24, 500),
    "optimisers": lambda: optimisers((7,), (70, 272), (3, 5)),
    "lstm, weights packed by threads": lambda: lstm(2, 8, 192),
}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("layer", LAYERS | SHORT)
def test_equal_inputs_give_equal_bits(layer: str, threads: int) -> None:
    backends.set_threads(threads)
    for name, call in (LAYERS | SHORT)[layer]().items():
        with memory.poisoned():
            runs = [[a.tobytes() for a in call()] for _ in range(4)]
        assert runs[0] == runs[1] == runs[2] == runs[3], f"{layer}: {name} on {threads} threads"


@pytest.fixture
def _no_preemption() -> Iterator[None]:
    """Python threads change only where one of them lets the lock go."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1000.0)
    yield
    sys.setswitchinterval(before)


class Watched:
    """The module of kernels; notes the names of those during whose calls `count` moved, and of all that were called."""

    def __init__(self, module: ModuleType, count: list[int]) -> None:
        self.module, self.count = module, count
        self.called: set[str] = set()
        self.moved: set[str] = set()

    def __getattr__(self, name: str) -> Callable[..., object]:
        function = getattr(self.module, name)

        def watched(*arguments: object) -> object:
            before = self.count[0]
            result = function(*arguments)
            self.called.add(name)
            if self.count[0] > before:
                self.moved.add(name)
            return result

        return watched


@pytest.mark.usefixtures("_no_preemption")
@pytest.mark.parametrize("layer", LAYERS)
def test_python_runs_while_kernels_compute(layer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread counts. It can only do so while a kernel has released Python's lock."""
    count, stop = [0], threading.Event()
    kernels = Watched(cpp._cpu, count)
    monkeypatch.setattr(cpp, "_cpu", kernels)

    def counting() -> None:
        while not stop.is_set():
            count[0] += 1
            time.sleep(0)  # lets the lock go, so that the kernel's thread can go on

    thread = threading.Thread(target=counting)
    thread.start()
    try:
        calls = LAYERS[layer]()
        for _ in range(200):
            for call in calls.values():
                call()
            waiting = {n for n in kernels.called - kernels.moved if n.endswith(("ward", "_data", "_weight"))}
            if not waiting:
                break
        assert not waiting, f"{layer}: no other Python thread ran during up to 200 calls of {sorted(waiting)}"
    finally:
        stop.set()
        thread.join()
    assert kernels.moved
