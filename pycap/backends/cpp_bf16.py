"""Convolution and dense layers of the C++ backend on bfloat16 activations: packs weights, finds scratch memory.

Filters are packed, and a dense layer's weights rounded, once for as long as `constant_weights` holds; else filters at
every call, and dense weights on the way. What the tile kernels do not take goes through the float32 kernels, with the
weights as they are: everything on a CPU without tiles, dense layers with few rows and weights that change, and convolutions
with a stride or a padding as wide as the filter.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pycap import _cpu
from pycap.backends.weights import weight_cache
from pycap.device import bfloat16, is_bfloat16
from pycap.memory import empty, workspace

Array = np.ndarray
Primitive = Callable[..., None]

#: Up to this many rows a dense layer is bound by reading or writing its float32 weights, which the float32 kernels do
#: faster (fc6 at 8 rows, ms: forward 18 against 20, data gradient 15 against 26, weight gradient 22 against 33).
FEW_ROWS = 8

#: Whether this CPU multiplies bfloat16 tiles.
TILES = _cpu.info()["bf16"] != "float32"


def _filters(x_shape: tuple[int, ...], w: Array, padding: int, data: bool) -> Array:
    """w [K,R,S,C] rounded and packed into tiles, for the data gradient where `data`, else for the forward."""

    def pack() -> Array:
        packed = empty((max(_cpu.bf16.conv2d_packed_bytes(x_shape, w.shape, padding, data), 4096),), np.uint8)
        _cpu.bf16.conv2d_pack(packed, w, x_shape, padding, data)
        return packed

    cache = weight_cache()
    return pack() if cache is None else cache.get(w, ("bf16 tiles", data), pack)


def _widened(name: str, array: Array | None) -> Array | None:
    if array is None:
        return None
    _check(name, array)
    wide = empty(array.shape, np.float32)
    _cpu.cast(wide, array, 0.0)
    return wide


def _check(name: str, array: Array) -> None:
    if not is_bfloat16(array):
        raise TypeError(f"{name} must be bfloat16, got {array.dtype}; convert it with astype")


def _by_tiles(x_shape: tuple[int, ...], w_shape: tuple[int, ...], stride: int, padding: int) -> bool:
    return TILES and _cpu.bf16.conv2d_fits(x_shape, w_shape, stride, padding)


def conv2d_forward(
    y: Array, argmax: Array | None, x: Array, w: Array, b: Array | None, stride: int, padding: int, relu: bool,
    wide: Primitive,
) -> None:  # fmt: skip
    """`conv2d_pool_forward` where there is an argmax, else `conv2d_forward`; wide: the same in float32."""
    if not _by_tiles(x.shape, w.shape, stride, padding):
        _check("y", y)
        result = empty(y.shape, np.float32)
        rest = (_widened("x", x), w, b, stride, padding)
        wide(result, *rest, relu) if argmax is None else wide(result, argmax, *rest)
        _cpu.cast(y, result, 0.0)
        return
    packed = _filters(x.shape, w, padding, False)
    ws = workspace(_cpu.bf16.conv2d_workspace(x.shape, w.shape, padding, False))
    _cpu.bf16.conv2d_forward(y, argmax, x, packed, w.shape, b, padding, relu, ws)


def conv2d_backward_data(
    dx: Array, dy: Array, w: Array, y: Array | None, argmax: Array | None, stride: int, padding: int, beta: float,
    wide: Primitive,
) -> None:  # fmt: skip
    if not _by_tiles(dx.shape, w.shape, stride, padding):
        _check("dx", dx)
        result = empty(dx.shape, np.float32)
        wide(result, _widened("dy", dy), w, _widened("y", y), argmax, stride, padding, 0.0)
        _cpu.cast(dx, result, beta)
        return
    packed = _filters(dx.shape, w, padding, True)
    ws = workspace(_cpu.bf16.conv2d_workspace(dx.shape, w.shape, padding, True))
    _cpu.bf16.conv2d_backward_data(dx, dy, packed, w.shape, y, argmax, padding, beta, ws)


def conv2d_backward_weight(
    dw: Array, db: Array | None, dy: Array, x: Array, y: Array | None, argmax: Array | None, stride: int, padding: int,
    beta_w: float, beta_b: float, wide: Primitive,
) -> None:  # fmt: skip
    if not _by_tiles(x.shape, dw.shape, stride, padding):
        wide(dw, db, _widened("dy", dy), _widened("x", x), _widened("y", y), argmax, stride, padding, beta_w, beta_b)
        return
    ws = workspace(_cpu.bf16.conv2d_weight_workspace(x.shape, dw.shape, padding))
    _cpu.bf16.conv2d_backward_weight(dw, db, dy, x, y, argmax, padding, beta_w, beta_b, ws)


def linear_forward(y: Array, x: Array, w: Array, b: Array | None, relu: bool, wide: Primitive) -> None:
    cache = weight_cache()
    if not TILES or (cache is None and len(x) <= FEW_ROWS):
        _check("y", y)
        result = empty(y.shape, np.float32)
        wide(result, _widened("x", x), w, b, relu)
        _cpu.cast(y, result, 0.0)
        return

    def narrow() -> Array:
        rounded = empty(w.shape, bfloat16())
        _cpu.bf16.linear_round(rounded, w)
        return rounded

    weights = w if cache is None else cache.get(w, "bf16", narrow)
    ws = workspace(_cpu.bf16.linear_forward_workspace(*x.shape, w.shape[0]))
    _cpu.bf16.linear_forward(y, x, weights, b, relu, ws)


def linear_backward_data(
    dx: Array, dy: Array, w: Array, y: Array | None, beta: float, wide: Primitive
) -> None:  # fmt: skip
    if not TILES or len(dy) <= FEW_ROWS:
        _check("dx", dx)
        result = empty(dx.shape, np.float32)
        wide(result, _widened("dy", dy), w, _widened("y", y), 0.0)
        _cpu.cast(dx, result, beta)
        return
    ws = workspace(_cpu.bf16.linear_backward_workspace(*dx.shape, w.shape[0]))
    _cpu.bf16.linear_backward_data(dx, dy, w, y, beta, ws)


def linear_backward_weight(
    dw: Array | None, db: Array | None, dy: Array, x: Array, y: Array | None, beta_w: float, beta_b: float,
    wide: Primitive,
) -> None:  # fmt: skip
    if not TILES or len(dy) <= FEW_ROWS:
        wide(dw, db, _widened("dy", dy), _widened("x", x), _widened("y", y), beta_w, beta_b)
        return
    ws = workspace(_cpu.bf16.linear_backward_workspace(*x.shape, dy.shape[1]))
    _cpu.bf16.linear_backward_weight(dw, db, dy, x, y, beta_w, beta_b, ws)
