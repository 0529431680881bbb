"""Dense layers in the Triton backend.

A product with few tiles is split along its inner dimension, so that the whole GPU works on it. Bfloat16 activations with
few rows read the float32 weights as they are, for reading them is all the time; with many rows, or where a
`weight_cache()` keeps the result, the weights are first rounded once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pycap.backends.triton.cast import cast
from pycap.backends.triton.launching import (
    ELEMENTS,
    PRODUCTS,
    Array,
    Kernel,
    Row,
    blocks,
    expect,
    interpreting,
    odd,
    precision,
    row,
    scratch,
)
from pycap.backends.weights import rounded_weight, weight_cache
from pycap.memory import empty

#: From so many rows on, bfloat16 products round the weights first: they would read and convert them once for each tile
#: of rows, and up to here there is one such tile, or two.
MANY_ROWS = 257
#: The programs that a product is split into at most: two for each of an H200's 132 multiprocessors.
PROGRAMS = 4 if interpreting() else 264
#: A split goes over at least so many blocks of the inner dimension: its pipeline has to fill.
LEAST = 2 if interpreting() else 4

_WIDE: tuple[dict[str, Any], ...] = ({"T": "bf16", "W": "fp32", "PRECISION": "ieee"},)
_MASKS = ({"MASK": False}, {"MASK": True})
_FORWARD = (
    "y:*T partials:*fp32 x:*T w:*{} b:*fp32 m:i32 i:i32/16 o:i32 share:i32/16 unfinished:i32 has_bias:i32 relu:i32"
)
_DATA = "dx:*T partials:*fp32 dy:*T w:*{} y:*T m:i32 i:i32/16 o:i32/16 share:i32/16 unfinished:i32 scale:fp32 beta:fp32"

_forward = Kernel("linear.forward", _FORWARD.format("T"), variants=PRODUCTS)
_forward_wide = Kernel("linear.forward_wide", _FORWARD.format("W"), variants=_WIDE)
_data = Kernel("linear.backward_data", _DATA.format("T"), variants=[m | p for m in _MASKS for p in PRODUCTS])
_data_wide = Kernel("linear.backward_data_wide", _DATA.format("W"), variants=[m | p for m in _MASKS for p in _WIDE])
_finish = Kernel(
    "linear.finish",
    "y:*T partials:*fp32 b:*fp32 m:i32 n:i32 splits:i32 scale:fp32 beta:fp32 has_bias:i32 relu:i32 "
    "period:i32 total:u32 offset:u32 seed_low:u32 seed_high:u32 threshold:u32 factor:fp32",
    variants=ELEMENTS,
)
_weight = Kernel(
    "linear.backward_weight",
    "dw:*fp32 db:*fp32 dy:*T x:*T y:*T m:i32 i:i32/16 o:i32/16 has_dw:i32 has_db:i32 scale:fp32 beta_w:fp32 beta_b:fp32",
    variants=[m | p for m in _MASKS for p in PRODUCTS],
)
_WORD = 0xFFFFFFFF
#: No dropout, as the kernels' last arguments.
_KEEP_ALL = (1, 0, 0, 0, 0, 0, 1.0)


def split(tiles: int, inner: int, block: int) -> tuple[int, int]:
    """Into how many parts a product of so many tiles is split, and how much of the inner dimension each takes."""
    parts = max(1, min(PROGRAMS // max(tiles, 1), inner // (LEAST * block)))
    share = max(1, blocks(blocks(inner, block), parts)) * block
    return max(1, blocks(inner, share)), share


def _rounded(room: Array, w: Array) -> Array:
    cast(room, w, 0.0)
    return room


@dataclass
class _Product:
    """How x's rows are multiplied with w to n columns, over an inner dimension of k: the kernel and its row, the weights
    as it takes them, the grid, the share of the inner dimension a part, and where partial sums go, if anywhere."""

    kernel: Kernel
    how: Row
    w: Array
    grid: tuple[int, int, int]
    share: int
    partials: Array | None


def _prepare(
    same: Kernel,
    wide: Kernel,
    out: Array,
    x: Array,
    w: Array,
    other: Array | None,
    sizes: tuple[int, ...],
    finish: bool,
) -> _Product:
    """The product into `out` by kernel `same`, or by `wide` with weights of another type. other: one more array that it reads.
    sizes: those whose multiples of 16 matter, the inner dimension first. finish: partial sums in any case."""
    (m, n), k, cache = out.shape, sizes[0], weight_cache()
    kernel, rounded = same, False
    copy = None if w.dtype == x.dtype else rounded_weight(w, x.dtype)
    w = w if copy is None else copy
    if w.dtype != x.dtype:
        if cache is not None:
            narrow = w
            w = cache.get(narrow, ("triton", x.dtype.name), lambda: _rounded(empty(narrow.shape, x.dtype), narrow))
        elif m < MANY_ROWS:
            kernel = wide
        else:
            rounded = True
    how = row(kernel, x, m=m, odd=odd(out, x, w, other, sizes=sizes))
    tiles = blocks(m, how.blocks["BLOCK_M"]) * blocks(n, how.blocks["BLOCK_N"])
    parts, share = split(tiles, k, how.blocks["BLOCK_K"])
    partials = None
    if finish or parts > 1 or rounded:
        summed = parts if finish or parts > 1 else 0
        partials, room = scratch(((summed, m, blocks(n, 16) * 16), "float32"), (w.shape if rounded else (0,), x.dtype))
        w = _rounded(room, w) if rounded else w
        partials = partials if summed else None
    return _Product(kernel, how, w, (tiles, parts, 1), share, partials)


def _finish_product(
    y: Array, partials: Array, b: Array | None, scale: float, beta: float, relu: bool, drop: tuple[Any, ...] = _KEEP_ALL
) -> None:
    """The epilogue, where there are partial sums."""
    m, n = y.shape
    how = row(_finish, y)
    grid = (blocks(m * n, how.blocks["BLOCK"]), 1, 1)
    _finish(grid, how, y, partials, b, m, n, len(partials), scale, beta, int(b is not None), int(relu), *drop)


def _multiply(y: Array, x: Array, w: Array, b: Array | None, relu: bool, drop: tuple[Any, ...] | None = None) -> None:
    (m, i), o = x.shape, w.shape[0]
    use = _prepare(_forward, _forward_wide, y, x, w, b, (i,), drop is not None)
    use.kernel(
        use.grid, use.how, y, use.partials, x, use.w, b, m, i, o, use.share, int(use.partials is not None),
        int(b is not None), int(relu), PRECISION=precision(x),
    )  # fmt: skip
    if use.partials is not None:
        _finish_product(y, use.partials, b, 1.0, 0.0, relu, drop or _KEEP_ALL)


def linear_forward(y: Array, x: Array, w: Array, b: Array | None, relu: bool) -> None:
    o = w.shape[0]
    expect("linear_forward", y=(y, (x.shape[0], o)), w=(w, (o, x.shape[1])), b=(b, (o,)))
    _multiply(y, x, w, b, relu)


def product_in_float32(y: Array, x: Array, w: Array, b: Array | None = None) -> None:
    """y = x w^T + b in float32, of x [M,I] and w [O,I] of one type."""
    (m, i), o = x.shape, w.shape[0]
    expect("product_in_float32", y=(y, (m, o)), w=(w, (o, i)), b=(b, (o,)))
    how = row(_forward, x, m=m, odd=odd(y, x, w, sizes=(i,)))
    tiles = blocks(m, how.blocks["BLOCK_M"]) * blocks(o, how.blocks["BLOCK_N"])
    whole = blocks(i, how.blocks["BLOCK_K"]) * how.blocks["BLOCK_K"]
    pitch = blocks(o, 16) * 16  # the kernel's, of sums that are not finished
    sums = y if o == pitch else scratch(((m, pitch), np.float32))[0]
    _forward((tiles, 1, 1), how, None, sums, x, w, None, m, i, o, whole, 1, 0, 0, PRECISION=precision(x))
    if sums is not y or b is not None:
        _finish_product(y, sums[None], b, 1.0, 0.0, False)


def linear_dropout_forward(
    y: Array, x: Array, w: Array, b: Array | None, relu: bool, p: float, seed: int, total: int, offset: int
) -> None:
    """y = dropout(linear_forward(x, w, b, relu)) in one pass, rounded once.

    y [T,n,O] and x [T,n,I] (or [n,O] and [n,I]: one step); p, seed, total, offset as in the primitive `dropout`.
    ValueError for shapes that do not fit and for p outside 0 <= p < 1.
    """
    if not 0 <= p < 1:
        raise ValueError(f"linear_dropout_forward: p is {p}; it must be at least 0 and below 1")
    o = w.shape[0]
    expect("linear_dropout_forward", y=(y, (*x.shape[:-1], o)), w=(w, (o, x.shape[-1])), b=(b, (o,)))
    counters = (x.shape[-2] or 1, total & _WORD, offset & _WORD)
    drop = (*counters, seed & _WORD, seed >> 32 & _WORD, int(p * 2**32), 1 / (1 - p))
    _multiply(y.reshape(-1, o), x.reshape(-1, x.shape[-1]), w, b, relu, drop)


def backward_data(dx: Array, dy: Array, w: Array, y: Array | None, scale: float, beta: float) -> None:
    """dx = beta*dx + scale * dz w, where dz is dy, masked by y > 0 where y is not None; shapes as `linear_backward_data`.

    With scale = 1/(1-p) it is the gradient of `linear_dropout_forward` with ReLU, whose output y is positive exactly where
    its mask and the ReLU let a gradient through.
    """
    (m, o), i = dy.shape, w.shape[1]
    expect("linear_backward_data", dx=(dx, (m, i)), w=(w, (o, i)), y=(y, (m, o)))
    use = _prepare(_data, _data_wide, dx, dy, w, y, (o, i), False)
    use.kernel(
        use.grid, use.how, dx, use.partials, dy, use.w, y, m, i, o, use.share, int(use.partials is not None), scale, beta,
        MASK=y is not None, PRECISION=precision(dy),
    )  # fmt: skip
    if use.partials is not None:
        _finish_product(dx, use.partials, None, scale, beta, False)


def linear_backward_data(dx: Array, dy: Array, w: Array, y: Array | None, beta: float) -> None:
    backward_data(dx, dy, w, y, 1.0, beta)


def backward_weight(
    dw: Array | None, db: Array | None, dy: Array, x: Array, y: Array | None, scale: float, beta_w: float, beta_b: float
) -> None:
    """dw = beta_w*dw + scale * dz^T x and db = beta_b*db + scale * (column sums of dz), either of which may be None; dz,
    y and scale as in `backward_data`, shapes as `linear_backward_weight`."""
    (m, o), i = dy.shape, x.shape[1]
    expect("linear_backward_weight", dw=(dw, (o, i)), db=(db, (o,)), x=(x, (m, i)), y=(y, (m, o)))
    if dw is None and db is None:
        return
    how = row(_weight, dy, m=m, odd=odd(dw, db, dy, x, y, sizes=(i, o)))
    grid = (blocks(o, how.blocks["BLOCK_M"]) * (1 if dw is None else blocks(i, how.blocks["BLOCK_N"])), 1, 1)
    _weight(
        grid, how, dw, db, dy, x, y, m, i, o, int(dw is not None), int(db is not None), scale, beta_w, beta_b,
        MASK=y is not None, PRECISION=precision(dy),
    )  # fmt: skip


def linear_backward_weight(
    dw: Array, db: Array | None, dy: Array, x: Array, y: Array | None, beta_w: float, beta_b: float
) -> None:
    backward_weight(dw, db, dy, x, y, 1.0, beta_w, beta_b)
