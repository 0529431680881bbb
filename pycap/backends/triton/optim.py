"""The optimisers' steps and the gradients' norm in the Triton backend: a launch or two for a whole list of arrays.

The tables of addresses that the kernels read are kept by their contents, so that only a step with new arrays uploads any. What
changes from step to step may lie on the device (`rates`, `grad_scale`): then a step can be recorded in a CUDA graph, and
a norm is clipped without waiting for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np

from pycap.backends.triton.launching import Array, Kernel, blocks, expect, place, row, scratch
from pycap.device import address, bfloat16, to_device
from pycap.memory import kept

_TABLES = "table:*i64 plan:*i32 rates:*fp32 factor:*fp32 arrays:i32 lr:fp32 "
_CLIPPING = "weight_decay:fp32 grad_scale:fp32 clip:fp32 has_rates:i32 has_factor:i32"

_FORMS: tuple[dict[str, Any], ...] = ({"ALIGNED": True}, {"ALIGNED": False})

_sgd = Kernel("optim.sgd", f"{_TABLES} momentum:fp32 {_CLIPPING}", variants=_FORMS)
_rmsprop = Kernel("optim.rmsprop", f"{_TABLES} alpha:fp32 rest:fp32 eps:fp32 {_CLIPPING}", variants=_FORMS)
_adam = Kernel(
    "optim.adam",
    f"{_TABLES} bias1:fp32 bias2:fp32 beta1:fp32 rest1:fp32 beta2:fp32 rest2:fp32 eps:fp32 {_CLIPPING}",
    variants=_FORMS,
)
_squares = Kernel("optim.sum_squares", "partials:*fp64 table:*i64 plan:*i32 arrays:i32", variants=_FORMS)
_total = Kernel(
    "optim.total",
    "out:*O x:*X count:i32 beta:fp64",
    variants=[{"O": out, "X": x} for out in ("fp32", "fp64") for x in ("fp32", "fp64")],
)
_clip = Kernel(
    "optim.clip_factors",
    "factors:*fp32 squares:*fp64 max_norms:*fp32 loss:*fp64 failed:*i32 groups:i32 scale:fp64 has_loss:i32",
)

Arrays = Sequence[Array]
Copies = Sequence[Array | None] | None
Words = tuple[tuple[int, ...], ...]  # what a table holds
_FLOAT32 = np.dtype(np.float32)


@kept(256)
def _table(where: tuple[str, int], words: Words) -> Array:
    return to_device(np.array(words, np.int64))


@kept(64)
def _plan(where: tuple[str, int], sizes: tuple[int, ...], block: int) -> tuple[Array, int]:
    """(array, block of it) for each program, and their number."""
    counts = np.array([blocks(size, block) for size in sizes], np.int64)
    arrays = np.repeat(np.arange(len(sizes)), counts)
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return to_device(np.ascontiguousarray(np.stack([arrays, within], 1).astype(np.int32))), len(arrays)


def _addresses(
    function: str,
    name: str,
    arrays: Sequence[Array | None],
    like: Arrays,
    dtype: Any = _FLOAT32,
    optional: bool = False,
) -> tuple[int, ...]:
    """Where they lie, 0 for None where that is `optional`. Raises TypeError or ValueError, naming the array, where one is not
    contiguous, of `dtype` and shaped as in `like`."""
    if len(arrays) != len(like):
        raise ValueError(f"{function}: {name} has {len(arrays)} arrays, expected {len(like)}")
    found = []
    for number, (array, other) in enumerate(zip(arrays, like, strict=True)):
        if array is None:
            if not optional:
                raise TypeError(f"{function}: {name}[{number}] must be an array, got None")
            found.append(0)
            continue
        if array.dtype != dtype:
            raise TypeError(f"{function}: {name}[{number}] must be {dtype}, got {array.dtype}")
        if array.shape != other.shape:
            raise ValueError(f"{function}: {name}[{number}] has shape {array.shape}, expected {other.shape}")
        if not array.flags.c_contiguous:
            raise ValueError(f"{function}: {name}[{number}] must be C-contiguous")
        found.append(address(array))
    return tuple(found)


def _by_alignment(sizes: tuple[int, ...], rows: Sequence[tuple[int, ...]]) -> list[tuple[bool, Words]]:
    """The tables (sizes, *rows) of the arrays that the aligned form takes, and of the others: (aligned, table) of each
    that has any."""
    parts: dict[bool, list[int]] = {True: [], False: []}
    for number, words in enumerate(zip(sizes, *rows, strict=True)):
        bits = 4 * words[0]
        for word in words[1:]:
            bits |= word
        parts[bits % 16 == 0].append(number)
    if not all(parts.values()):
        return [(bool(parts[True]), (sizes, *rows))] if sizes else []
    return [(form, tuple(tuple(words[i] for i in which) for words in (sizes, *rows))) for form, which in parts.items()]


def _step(
    kernel: Kernel, lists: dict[str, Arrays], copies: Copies, rates: Array | None, lr: float,
    values: tuple[float, ...], weight_decay: float, grad_scale: float | Array, clip: float,
) -> None:  # fmt: skip
    """One launch over `lists`, of which the first are the parameters; another for what is not aligned among them."""
    function, like = f"{kernel.name.partition('.')[2]}_step", lists["params"]
    sizes = tuple(array.size for array in like)
    rows = [_addresses(function, name, arrays, like) for name, arrays in lists.items()]
    rows.append((0,) * len(sizes) if copies is None else _addresses(function, "copies", copies, like, bfloat16(), True))
    factor: Any = None if isinstance(grad_scale, Real) else grad_scale
    for name, array, shape in (("rates", rates, (3,)), ("grad_scale", factor, (1,))):
        if array is not None and array.shape != shape:
            raise ValueError(f"{function}: {name} has shape {array.shape}, expected {shape}")
    for aligned, table in _by_alignment(sizes, rows):
        how = row(kernel, like[0])
        plan, programs = _plan(place(), table[0], how.blocks["BLOCK"])
        kernel(
            (programs, 1, 1), how, _table(place(), table), plan, rates, factor, len(table[0]), lr, *values, weight_decay,
            1.0 if factor is not None else float(grad_scale), clip, int(rates is not None), int(factor is not None),
            ALIGNED=aligned,
        )  # fmt: skip


def sgd_step(
    params: Arrays, grads: Arrays, momenta: Arrays, lr: float, momentum: float, weight_decay: float,
    grad_scale: float | Array, clip: float, *, copies: Copies = None, rates: Array | None = None,
) -> None:  # fmt: skip
    lists = {"params": params, "grads": grads, "momenta": momenta}
    _step(_sgd, lists, copies, rates, lr, (momentum,), weight_decay, grad_scale, clip)


def rmsprop_step(
    params: Arrays, grads: Arrays, squares: Arrays, lr: float, alpha: float, eps: float, weight_decay: float,
    grad_scale: float | Array, clip: float, *, copies: Copies = None, rates: Array | None = None,
) -> None:  # fmt: skip
    lists = {"params": params, "grads": grads, "squares": squares}
    _step(_rmsprop, lists, copies, rates, lr, (alpha, 1 - alpha, eps), weight_decay, grad_scale, clip)


def adam_step(
    params: Arrays, grads: Arrays, ms: Arrays, vs: Arrays, lr: float, beta1: float, beta2: float, eps: float,
    weight_decay: float, step: int, grad_scale: float | Array, clip: float, *, copies: Copies = None,
    rates: Array | None = None,
) -> None:  # fmt: skip
    lists = {"params": params, "grads": grads, "ms": ms, "vs": vs}
    values = (1 - beta1**step, 1 - beta2**step, beta1, 1 - beta1, beta2, 1 - beta2, eps)
    _step(_adam, lists, copies, rates, lr, values, weight_decay, grad_scale, clip)


def sum_squares_into(out: Array, arrays: Arrays) -> None:
    expect("sum_squares", out=(out, (1,)))
    sizes = tuple(array.size for array in arrays)
    tables = _by_alignment(sizes, [_addresses("sum_squares", "arrays", arrays, arrays)])
    how = row(_squares, out)
    plans = [_plan(place(), table[0], how.blocks["CHUNK"]) for _, table in tables]
    (partials,) = scratch(((sum(programs for _, programs in plans),), "float64"))
    first = 0
    for (aligned, table), (plan, programs) in zip(tables, plans, strict=True):
        part = partials[first : first + programs]
        _squares((programs, 1, 1), how, part, _table(place(), table), plan, len(table[0]), ALIGNED=aligned)
        first += programs
    _total((1, 1, 1), row(_total, out), out, partials, first, 0.0)


def sum_squares(arrays: Arrays) -> float:
    out = to_device(np.zeros(1, np.float64))
    sum_squares_into(out, arrays)
    return float(out[0])


def total(out: Array, x: Array, beta: float) -> None:
    expect("total", out=(out, (1,)))
    _total((1, 1, 1), row(_total, out), out, x, x.size, beta)


def clip_factors(
    factors: Array, squares: Array, max_norms: Array, loss: Array | None, failed: Array, scale: float
) -> None:
    groups = factors.shape
    expect("clip_factors", squares=(squares, groups), max_norms=(max_norms, groups), loss=(loss, (1,)))
    expect("clip_factors", failed=(failed, (1,)))
    _clip(
        (1, 1, 1), row(_clip, factors), factors, squares, max_norms, loss, failed, factors.size, float(scale),
        int(loss is not None),
    )  # fmt: skip
