"""What the C++ bindings are handed cannot make them crash: wrong arrays, numbers and lists raise, and nothing is written.

One valid call of each function of `pycap._cpu` is taken from the cases of the primitives; then one or two of its arguments
are made wrong, again and again. Memory around every array is watched; `make sanitize` runs this under a sanitizer, on more
calls, where a read past an array shows too.
"""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from pycap import backends, memory
from pycap.device import bfloat16
from pycap.testing import CASES, compare

cpp = pytest.importorskip("pycap.backends.cpp", reason="pycap._cpu is not built", exc_type=ImportError)

from pycap import _cpu  # noqa: E402
from pycap.backends import cpp_bf16, cpp_optim  # noqa: E402

SANITIZED = bool(cpp.info()["sanitize"])
CALLS = 500 if SANITIZED else 60  # of each function
REFUSALS = (TypeError, ValueError, IndexError, OverflowError, MemoryError)
GUARD = 64  # bytes around an array


# Valid calls ----------------------------------------------------------------------------------------------------------


class Recorder:
    """A module whose functions, when they are called with arrays, note their arguments, the first time of each name."""

    def __init__(
        self, module: Any, calls: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]], prefix: str = ""
    ) -> None:
        self._module, self._calls, self._prefix = module, calls, prefix

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._module, name)
        if inspect.ismodule(found):
            return Recorder(found, self._calls, f"{name}.")
        if not inspect.isbuiltin(found):
            return found

        def call(*arguments: Any) -> Any:
            if all(a.size for a in arguments if isinstance(a, np.ndarray)):
                self._calls.setdefault(self._prefix + name, (found, copied(arguments)))
            return found(*arguments)

        return call


def copied(argument: Any) -> Any:
    if isinstance(argument, np.ndarray):
        return argument.copy()
    return type(argument)(copied(a) for a in argument) if isinstance(argument, (list, tuple)) else argument


def record() -> dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]:
    calls: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {}
    patch = pytest.MonkeyPatch()
    for module in (cpp, cpp_bf16, cpp_optim):
        patch.setattr(module, "_cpu", Recorder(_cpu, calls))
    backend = Recorder(cpp, calls)
    for primitive, cases in CASES.items():
        for case in cases[:6]:
            if hasattr(cpp, primitive):
                compare(case, backend)
                if primitive in backends.BFLOAT16:
                    compare(case, backend, bfloat16())
    if cpp_bf16.TILES:  # which take more rows than the cases have
        a, w = np.ones((64, 32), bfloat16()), np.ones((32, 32), np.float32)
        backend.linear_forward(np.empty_like(a), a, w, None, True)
        backend.linear_backward_data(np.empty_like(a), a, w, a, 0.0)
        backend.linear_backward_weight(np.empty_like(w), None, a, a, a, 0.0, 0.0)
        calls["bf16.linear_round"] = (_cpu.bf16.linear_round, (np.empty_like(a)[:32], w))
    patch.undo()
    x, w = np.ones((2, 9, 9, 16), np.float32), np.ones((48, 3, 3, 16), np.float32)
    form = np.empty(_cpu.conv2d_filter_floats(x.shape, w.shape, 1, 1), np.float32)
    if form.size:
        calls["conv2d_prepare_filters"] = (_cpu.conv2d_prepare_filters, (form, w, x.shape, 1, 1))
    calls["conv2d_filter_floats"] = (_cpu.conv2d_filter_floats, (x.shape, w.shape, 1, 1))
    calls["conv2d_algorithm"] = (_cpu.conv2d_algorithm, (x.shape, w.shape, 1, 1, 0))
    return calls


RECORDED = record()


# Faults ---------------------------------------------------------------------------------------------------------------


class Arena:
    """Arrays with bytes around them that must stay as they are (a sanitizer fences them itself)."""

    def __init__(self) -> None:
        self._guards: list[np.ndarray] = []

    def place(self, array: np.ndarray) -> np.ndarray:
        if SANITIZED:
            made = memory.empty(array.shape, array.dtype)
        else:
            raw = np.full(array.nbytes + 2 * GUARD + 64, 0xA5, np.uint8)
            start = GUARD + -(raw.ctypes.data + GUARD) % 64
            made = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
            self._guards += [raw[:start], raw[start + array.nbytes :]]
        made[...] = array
        return made

    def intact(self) -> bool:
        return all((guard == 0xA5).all() for guard in self._guards)


def dimensions(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Another shape of at most a little more memory."""
    changed = list(shape) or [1]
    axis = int(rng.integers(len(changed)))
    kind = rng.integers(6)
    if kind == 0:
        changed[axis] += 1
    elif kind == 1:
        changed[axis] = max(changed[axis] - 1, 0)
    elif kind == 2:
        changed[axis] = 0
    elif kind == 3:
        changed.insert(axis, 1)
    elif kind == 4:
        changed.pop(axis)
    else:  # no memory at all, however many rows
        changed[axis] = 0
        changed[axis - 1] = 1 << 40 if len(changed) > 1 else 0
    return tuple(changed) if np.prod(changed, dtype=float) <= 2 * max(np.prod(shape, dtype=float), 64) else shape


def faulty_array(rng: np.random.Generator, array: np.ndarray, others: list[np.ndarray], arena: Arena) -> Any:
    kind = rng.integers(14)
    if kind == 0:
        return None
    if kind == 1:
        return array.tolist() if array.size < 1000 and array.dtype.kind != "V" else "array"
    if kind == 2:
        dtype = np.dtype(rng.choice(["f8", "f2", ">f4", "i8", "i4", "u1", "?", "S1", "O", "c8"]))
        return np.zeros(array.shape, dtype)
    if kind in (3, 4, 5):
        shape = dimensions(rng, array.shape)
        return arena.place(np.zeros(shape, array.dtype))
    if kind == 6:  # every other element
        return np.repeat(array, 2, -1)[..., ::2] if array.ndim else array
    if kind == 7:  # backwards: its data pointer is that of the last element
        return array[::-1] if array.ndim else array
    if kind == 8:
        return np.asfortranarray(array) if array.ndim > 1 else array[:-1]
    if kind == 9:  # one element that claims to be all
        return np.broadcast_to(array.reshape(-1)[:1].reshape((1,) * array.ndim), array.shape) if array.size else array
    if kind == 10:
        array = array.view()
        array.flags.writeable = False
        return array
    if kind == 11:  # one byte off
        raw = np.zeros(array.nbytes + 1, np.uint8)
        return raw[1:].view(array.dtype).reshape(array.shape)
    if kind == 12:
        same = [other for other in others if other is not array and other.dtype == array.dtype]
        return same[int(rng.integers(len(same)))] if same else array
    if array.dtype.kind in "iu" and array.size:  # ids, crops, winners
        array = arena.place(array)
        limits = np.iinfo(array.dtype)
        value = rng.choice(np.array([limits.min, limits.max, 0, -1 % (limits.max + 1)], array.dtype))
        array.reshape(-1)[int(rng.integers(array.size))] = value
    return array


NUMBERS = (-1, 0, 1, 2, 7, 2**31 - 1, 2**31, 2**40, 2**53, 2**62, 2**63 - 1, 2**63, 2**64, -(2**31), -(2**63), -(2**70))
REALS = (float("nan"), float("inf"), float("-inf"), -1.0, 0.5, 1e300, 1e-300)


def faulty(rng: np.random.Generator, argument: Any, others: list[np.ndarray], arena: Arena) -> Any:
    """Another value in an argument's place."""
    if isinstance(argument, np.ndarray):
        return faulty_array(rng, argument, others, arena)
    if isinstance(argument, (list, tuple)) and argument:
        items = list(argument)
        at = int(rng.integers(len(items)))
        kind = rng.integers(4)
        if kind == 0:
            items.pop(at)
        elif kind == 1:
            items.append(items[at])
        else:
            items[at] = faulty(rng, items[at], others, arena)
        return type(argument)(items)
    others_of_it = [None, "x", True, [], 0.5]
    pool = [*NUMBERS] if isinstance(argument, int) else [*REALS, *NUMBERS]
    return pool[int(rng.integers(len(pool)))] if rng.random() < 0.9 else others_of_it[int(rng.integers(5))]


def arrays_in(arguments: Any) -> Iterator[np.ndarray]:
    for argument in arguments:
        if isinstance(argument, np.ndarray):
            yield argument
        elif isinstance(argument, (list, tuple)):
            yield from arrays_in(argument)


def placed(argument: Any, arena: Arena) -> Any:
    if isinstance(argument, np.ndarray):
        return arena.place(argument)
    return type(argument)(placed(a, arena) for a in argument) if isinstance(argument, (list, tuple)) else argument


def test_every_function_is_called() -> None:
    """All that take arrays; those that only answer questions about sizes are called on the way."""
    functions = {name for name, found in inspect.getmembers(_cpu, inspect.isbuiltin)}
    if hasattr(_cpu, "bf16"):
        functions |= {f"bf16.{name}" for name, found in inspect.getmembers(_cpu.bf16, inspect.isbuiltin)}
    about_the_module = {"set_num_threads", "get_num_threads", "isa", "info", "conv2d_force"}
    elsewhere = {"squash", "conv2d_prepare_filters"}  # the first takes Pillow's images: below
    assert functions - about_the_module - elsewhere <= set(RECORDED)


@pytest.mark.parametrize("name", sorted(RECORDED))
def test_wrong_arguments_raise_and_write_nothing(name: str) -> None:
    function, valid = RECORDED[name]
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    function(*placed(valid, Arena()))
    refused = 0
    for number in range(CALLS):
        arena = Arena()
        arguments = list(placed(valid, arena))
        others = list(arrays_in(arguments))
        for _ in range(1 + number % 2):
            at = int(rng.integers(len(arguments)))
            arguments[at] = faulty(rng, arguments[at], others, arena)
        told = f"{name}, call {number}: {[getattr(a, 'shape', a) for a in arguments]}"
        before = [array.tobytes() for array in others]
        try:
            function(*arguments)
        except REFUSALS as error:
            refused += 1
            assert str(error), told
            assert [array.tobytes() for array in others] == before, f"{told}: refused, but something was written"
        assert arena.intact(), f"{told}: written outside the arrays"
    assert refused > CALLS // 4


# What the faults above have found, one by one -----------------------------------------------------------------------------


def linear_backward(ws: np.ndarray) -> None:
    """A call that writes 4 x 16 floats of scratch."""
    dy, w = np.ones((4, 16), np.float32), np.ones((16, 8), np.float32)
    _cpu.linear_backward_data(np.empty((4, 8), np.float32), dy, w, dy.copy(), 0.0, ws)


def scratch(nbytes: int) -> np.ndarray:
    raw = np.zeros(nbytes + 64, np.uint8)
    return raw[-raw.ctypes.data % 64 :][:nbytes]


def test_scratch_must_be_its_own_memory() -> None:
    linear_backward(scratch(256))
    backwards = scratch(65)[::-1][:-64]  # one byte, at its end
    with pytest.raises(ValueError, match="ws must be C-contiguous"):
        linear_backward(np.lib.stride_tricks.as_strided(scratch(321)[256:], (256,), (-1,)))
    with pytest.raises(ValueError, match="ws must be C-contiguous"):
        linear_backward(np.lib.stride_tricks.as_strided(scratch(64), (256,), (0,)))
    with pytest.raises(ValueError, match="ws must be C-contiguous"):
        linear_backward(scratch(512)[::2])
    with pytest.raises(ValueError, match="ws must hold 256 bytes"):
        linear_backward(backwards)
    fixed = scratch(256)
    fixed.flags.writeable = False
    with pytest.raises(ValueError, match="ws is written to, but is read-only"):
        linear_backward(fixed)


def test_outputs_lie_apart_from_all_else() -> None:
    block = np.ones(200, np.float32)
    x, w = block[:64].reshape(4, 16), np.ones((16, 16), np.float32)
    for y in (x, block[60:124].reshape(4, 16)):
        with pytest.raises(ValueError, match="linear_forward: (x and y|y and x) lie in the same memory; pass a copy"):
            _cpu.linear_forward(y, x, w, None, False)
    _cpu.linear_forward(block[64:128].reshape(4, 16), x, w, None, False)  # beside it
    _cpu.linear_forward(np.empty((16, 16), np.float32), w, w, None, False)  # inputs may be one
    with pytest.raises(ValueError, match="params.0. and params.1.|params.1. and params.0."):
        _cpu.sgd_step([x, x], [w[:4], w[4:8]], [w[8:12].copy(), w[12:].copy()], 0.1, 0.9, 0.0, 1.0, 0.0)
    x = x[None]
    _cpu.dropout(x, x, 0.5, 1, 4, 0, 0.0)  # as its contract allows
    for y, beta in ((x, 1.0), (block[16:80].reshape(1, 4, 16), 0.0)):
        with pytest.raises(ValueError, match="lie in the same memory"):
            _cpu.dropout(y, x, 0.5, 1, 4, 0, beta)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("linear_backward_workspace", (-1, 4, 4, True)),
        ("linear_backward_workspace", (2**31, 2**31, 2**31, True)),
        ("lstm_workspace", (4, -2, 3, 5, False)),
        ("lstm_workspace", (2**62, 1, 1, 2, True)),
        ("embedding_backward_workspace", (2**62, 2**62, True)),
        ("conv2d_forward_workspace", ((2**40, 2**10, 2**10, 3), (8, 3, 3, 3), 1, 1, False)),
        ("conv2d_forward_workspace", ((1, -9, 9, 3), (8, 3, 3, 3), 1, 30, False)),
        ("conv2d_forward_workspace", ((1, 9, 9, 3), (8, 3, 3, 3), 1, 2**62, False)),
        ("conv2d_forward_workspace", ((1, 9, 9, 3), (8, 3, 3, 3), 2**63 - 1, 2**52, False)),
        ("conv2d_forward_workspace", ((1, 9, 9, 3), (8, 0, 3, 3), 1, 1, False)),
        ("conv2d_backward_weight_workspace", ((1, 2**25, 2**25, 3), (64, 3, 3, 3), 1, 1, True)),
    ],
)
def test_sizes_that_no_memory_holds_raise(name: str, arguments: tuple[Any, ...]) -> None:
    """And are not computed with: what overflows would be a workspace that is far too small."""
    with pytest.raises(ValueError, match="sizes .* are too large|sizes must be at least 0|no taps"):
        getattr(_cpu, name)(*arguments)


def test_what_is_no_number_is_named() -> None:
    h, w, logits = np.ones((3, 4), np.float32), np.ones((5, 4), np.float32), np.ones((3, 5), np.float32)
    with pytest.raises(TypeError, match="linear_xent_backward: betas must hold 3 numbers"):
        _cpu.linear_xent_backward(None, np.empty_like(w), None, logits, h, w, 1.0, (0.0, None, "x"))


def test_dropout_counts_as_its_contract_says_whatever_the_batch() -> None:
    """In 32 bits that wrap: (t*total + offset + i)*F + f."""
    x, y, near = np.ones((3, 2, 5), np.float32), np.empty((3, 2, 5), np.float32), np.empty((3, 2, 5), np.float32)
    _cpu.dropout(y, x, 0.5, 7, 2**63 - 1, 2**63 - 1, 0.0)
    _cpu.dropout(near, x, 0.5, 7, (2**63 - 1) % 2**32, (2**63 - 1) % 2**32, 0.0)
    assert y.tobytes() == near.tobytes() and 0 < np.count_nonzero(y) < y.size
    empty = np.empty((1 << 40, 1, 0), np.float32)
    _cpu.dropout(empty.copy(), empty, 0.5, 7, 1, 0, 0.0)  # at once


def test_more_threads_than_scratch_was_made_for_raise() -> None:
    """The check and the kernel go by one number of threads."""
    before = cpp.get_num_threads()
    x, w = np.ones((3, 64, 40), np.float32), np.ones((400, 100), np.float32)
    h, c, gates = (np.empty((3, 64, n), np.float32) for n in (100, 100, 400))
    try:
        cpp.set_num_threads(1)
        ws = scratch(_cpu.lstm_workspace(3, 64, 40, 100, False))
        _cpu.lstm_forward(h, c, gates, x, None, None, w[:, :40].copy(), w, w[:, 0].copy(), None, ws)
        cpp.set_num_threads(64)
        with pytest.raises(ValueError, match="ws must hold"):
            _cpu.lstm_forward(h, c, gates, x, None, None, w[:, :40].copy(), w, w[:, 0].copy(), None, ws)
    finally:
        cpp.set_num_threads(before)
