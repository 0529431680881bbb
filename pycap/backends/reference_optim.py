"""The executable definition of the optimisers' primitives: the rules, sums over many arrays, and clipping by the norm.

Part of `reference`. What lies in an array is never read back: a step on a GPU can be recorded and replayed.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

from pycap.device import array_module

Array = Any
Arrays = Sequence[Array]


def _effective(p: Array, g: Array, weight_decay: float, grad_scale: float | Array, clip: float) -> Array:
    """What the rules take as the gradient of p; any finite numbers where `grad_scale` is an array that is not finite."""
    if isinstance(grad_scale, Real):
        g = g * p.dtype.type(grad_scale)
    else:
        g = g * _gated(grad_scale, grad_scale, 0.0).astype(p.dtype)[0]
    if clip:
        g = g.clip(-clip, clip)
    return g + p.dtype.type(weight_decay) * p if weight_decay else g


def _gated(grad_scale: float | Array, new: Array, old: Any) -> Array:
    """`new`, but `old` where grad_scale is an array that is not finite."""
    if isinstance(grad_scale, Real):
        return new
    xp = array_module(grad_scale)
    return xp.where(xp.isfinite(grad_scale).reshape((1,) * new.ndim), new, old)


def _write(
    grad_scale: float | Array, copies: Sequence[Array | None] | None, number: int, p: Array, *pairs: Any
) -> None:
    """array[...] = value for each pair, of which the first is that of parameter p; then p's copy."""
    for array, value in pairs:
        array[...] = _gated(grad_scale, value, array)
    copy = None if copies is None else copies[number]
    if copy is not None:
        copy[...] = _gated(grad_scale, p, copy.astype(p.dtype)).astype(copy.dtype)


def sgd_step(
    params: Arrays, grads: Arrays, momenta: Arrays, lr: float, momentum: float, weight_decay: float,
    grad_scale: float | Array, clip: float, *, copies: Sequence[Array | None] | None = None, rates: Array | None = None,
) -> None:  # fmt: skip
    rate = lr if rates is None else rates[0]
    for number, (p, grad, m) in enumerate(zip(params, grads, momenta, strict=True)):
        new = momentum * m + _effective(p, grad, weight_decay, grad_scale, clip)
        _write(grad_scale, copies, number, p, (p, p - rate * new), (m, new))


def rmsprop_step(
    params: Arrays, grads: Arrays, squares: Arrays, lr: float, alpha: float, eps: float, weight_decay: float,
    grad_scale: float | Array, clip: float, *, copies: Sequence[Array | None] | None = None, rates: Array | None = None,
) -> None:  # fmt: skip
    rate = lr if rates is None else rates[0]
    for number, (p, grad, v) in enumerate(zip(params, grads, squares, strict=True)):
        g = _effective(p, grad, weight_decay, grad_scale, clip)
        new = alpha * v + (1 - alpha) * g * g
        _write(grad_scale, copies, number, p, (p, p - rate * g / (new**0.5 + eps)), (v, new))


def adam_step(
    params: Arrays, grads: Arrays, ms: Arrays, vs: Arrays, lr: float, beta1: float, beta2: float, eps: float,
    weight_decay: float, step: int, grad_scale: float | Array, clip: float, *,
    copies: Sequence[Array | None] | None = None, rates: Array | None = None,
) -> None:  # fmt: skip
    values = (lr, 1 - beta1**step, 1 - beta2**step) if rates is None else (rates[0], rates[1], rates[2])
    rate, bias1, bias2 = values
    for number, (p, grad, m, v) in enumerate(zip(params, grads, ms, vs, strict=True)):
        g = _effective(p, grad, weight_decay, grad_scale, clip)
        first = beta1 * m + (1 - beta1) * g
        second = beta2 * v + (1 - beta2) * g * g
        moved = p - rate / bias1 * first / ((second / bias2) ** 0.5 + eps)
        _write(grad_scale, copies, number, p, (p, moved), (m, first), (v, second))


def total(out: Array, x: Array, beta: float) -> None:
    value = x.astype("float64").sum()
    out[...] = value + beta * out.astype("float64") if beta else value


def sum_squares_into(out: Array, arrays: Arrays) -> None:
    out[...] = 0
    for array in arrays:
        out += (array.astype("float64") ** 2).sum()


def sum_squares(arrays: Arrays) -> float:
    return float(sum((a.astype("float64") ** 2).sum() for a in arrays))


def clip_factors(
    factors: Array, squares: Array, max_norms: Array, loss: Array | None, failed: Array, scale: float
) -> None:
    xp = array_module(factors)
    fine = (failed == 0) & xp.isfinite(squares).all()
    if loss is not None:
        fine = fine & xp.isfinite(loss)
    norms, most = abs(scale) * xp.sqrt(squares), max_norms.astype("float64")
    share = xp.where(most > 0, most / xp.where(norms > most, norms, xp.where(most > 0, most, 1.0)), 1.0)
    factors[...] = xp.where(fine, scale * share, xp.nan)
    failed[...] = xp.where(fine, 0, 1)
