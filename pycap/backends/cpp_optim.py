"""What the C++ kernels take as numbers and the primitives may have in arrays: the optimisers' rates, factors and copies.

Part of `cpp`. The arrays lie on the host, so that reading them costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np

from pycap import _cpu
from pycap.memory import workspace

Array = Any
Copies = Sequence[Array | None] | None

_LATE = 1 << 62  # a step so late that beta**step is 0


def _values(primitive: str, name: str, array: Array, count: int) -> list[float]:
    """The numbers of a small float32 array. Raises TypeError or ValueError, naming it, for another type or shape."""
    if array.dtype != np.float32:
        raise TypeError(f"{primitive}: {name} must be float32, got {array.dtype}")
    if array.shape != (count,):
        raise ValueError(f"{primitive}: {name} has shape {array.shape}, expected {(count,)}")
    return [float(value) for value in array]


def _factor(primitive: str, grad_scale: float | Array) -> float | None:
    """grad_scale as a number; None where it is an array that is not finite, and so nothing is to be changed."""
    if isinstance(grad_scale, Real):
        return float(grad_scale)
    (factor,) = _values(primitive, "grad_scale", grad_scale, 1)
    return factor if math.isfinite(factor) else None


def _expect_copies(primitive: str, params: Sequence[Array], copies: Copies) -> None:
    """ValueError, before anything is changed, unless there is one for each parameter."""
    if copies is not None and len(copies) != len(params):
        raise ValueError(f"{primitive}: copies has {len(copies)} arrays, expected {len(params)}")


def _copy(params: Sequence[Array], copies: Copies) -> None:
    for parameter, copy in zip(params, copies or [], strict=False):
        if copy is not None:
            _cpu.cast(copy, parameter, 0.0)


def sgd_step(
    params: Any, grads: Any, momenta: Any, lr: float, momentum: float, weight_decay: float, grad_scale: float | Array,
    clip: float, *, copies: Copies = None, rates: Array | None = None,
) -> None:  # fmt: skip
    _expect_copies("sgd_step", params, copies)
    factor = _factor("sgd_step", grad_scale)
    if rates is not None:
        lr = _values("sgd_step", "rates", rates, 3)[0]
    if factor is not None:
        _cpu.sgd_step(params, grads, momenta, lr, momentum, weight_decay, factor, clip)
        _copy(params, copies)


def rmsprop_step(
    params: Any, grads: Any, squares: Any, lr: float, alpha: float, eps: float, weight_decay: float,
    grad_scale: float | Array, clip: float, *, copies: Copies = None, rates: Array | None = None,
) -> None:  # fmt: skip
    _expect_copies("rmsprop_step", params, copies)
    factor = _factor("rmsprop_step", grad_scale)
    if rates is not None:
        lr = _values("rmsprop_step", "rates", rates, 3)[0]
    if factor is not None:
        _cpu.rmsprop_step(params, grads, squares, lr, alpha, eps, weight_decay, factor, clip)
        _copy(params, copies)


def adam_step(
    params: Any, grads: Any, ms: Any, vs: Any, lr: float, beta1: float, beta2: float, eps: float, weight_decay: float,
    step: int, grad_scale: float | Array, clip: float, *, copies: Copies = None, rates: Array | None = None,
) -> None:  # fmt: skip
    """The kernel makes its bias corrections from `step`. Where `rates` gives them it is told a step at which they are 1, and
    what they do goes into lr and eps: lr/b1 * m / (sqrt(v/b2) + eps) = lr*sqrt(b2)/b1 * m / (sqrt(v) + eps*sqrt(b2))."""
    _expect_copies("adam_step", params, copies)
    factor = _factor("adam_step", grad_scale)
    if rates is not None:
        rate, bias1, bias2 = _values("adam_step", "rates", rates, 3)
        lr, eps, step = rate * math.sqrt(bias2) / bias1, eps * math.sqrt(bias2), _LATE
    if factor is not None:
        _cpu.adam_step(params, grads, ms, vs, lr, beta1, beta2, eps, weight_decay, step, factor, clip)
        _copy(params, copies)


def sum_squares(arrays: Sequence[Array]) -> float:
    arrays = list(arrays)
    return _cpu.sum_squares(arrays, workspace(_cpu.sum_squares_workspace(arrays)))


def sum_squares_into(out: Array, arrays: Sequence[Array]) -> None:
    out[...] = sum_squares(arrays)
